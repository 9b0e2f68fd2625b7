"""What the router says of itself: model, server and loads, as messages. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import eastwest
from eastwest.messages import PROTOCOL_VERSION, ModelInfo
from eastwest.types import Liveness
from eastwest.v1 import inference_pb2 as inference
from router.fleet import WorkerView
from router.links import WorkerLink
from router.requests import PhaseHits
from router.views import Loads


def model_report(model: ModelInfo, has_chat_template: bool) -> inference.GetModelInfoResponse:
    return inference.GetModelInfoResponse(
        model=model.name,
        architecture=model.architecture,
        dtype=model.dtype,
        max_context_length=model.context_tokens,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_ids,
        kv_bytes_per_token=model.kv.bytes_per_token,
        fingerprint=model.fingerprint,
        has_chat_template=has_chat_template,
    )


def server_report(
    router_id: str, uptime_s: float, loads: Loads, links: Iterable[WorkerLink]
) -> inference.GetServerInfoResponse:
    return inference.GetServerInfoResponse(
        version=eastwest.__version__,
        router_id=router_id,
        protocol_version=PROTOCOL_VERSION,
        uptime_s=uptime_s,
        workers=_workers(loads, links),
    )


def loads_report(loads: Loads, links: Iterable[WorkerLink]) -> inference.GetLoadsResponse:
    return inference.GetLoadsResponse(
        waiting=loads.waiting,
        active=loads.active,
        workers=_workers(loads, links),
        completed=loads.counters.completed,
        failed=sum(loads.counters.failed.values()),
        migrations=loads.counters.migrations,
        kv_index=inference.KvIndexStatus(
            blocks=loads.kv.hashes,
            resyncs=loads.kv.resyncs,
            prefill=_hits(loads.kv.prefill),
            decode=_hits(loads.kv.decode),
        ),
    )


def _hits(hits: PhaseHits) -> inference.KvHits:
    return inference.KvHits(
        prompt_tokens=hits.prompt_tokens,
        predicted_tokens=hits.predicted_tokens,
        found_tokens=hits.found_tokens,
    )


def _workers(loads: Loads, links: Iterable[WorkerLink]) -> list[inference.WorkerStatus]:
    """One entry for each link, in the order they were added."""
    views = {view.info.worker_id: view for view in loads.workers}
    return [_worker(link, views.get(link.worker_id)) for link in links]


def _worker(link: WorkerLink, view: WorkerView | None) -> inference.WorkerStatus:
    if view is None:
        return inference.WorkerStatus(
            worker_id=link.worker_id, liveness=Liveness.CONNECTING.value, address=link.address
        )
    info, load = view.info, view.load
    status = inference.WorkerStatus(
        worker_id=info.worker_id,
        epoch=info.epoch,
        role=info.role.value,
        liveness=view.liveness.value,
        address=link.address,
        layout=str(info.layout),
        num_blocks=info.num_blocks,
        block_tokens=info.block_tokens,
        kv_dtype=info.model.kv.dtype,
    )
    if load is not None:
        status.free_blocks = load.free_blocks
        status.cached_blocks = load.cached_blocks
        status.running = load.running
        status.waiting = load.waiting
        status.leaked_blocks = load.leaked_blocks
        status.spilled_blocks = load.spilled_blocks
        status.sessions_inactive = load.sessions_inactive
        status.sessions_spilled = load.sessions_spilled
        status.transfer_bytes = load.transfer_bytes
        status.store_available = load.store_available
        status.links.extend(
            inference.KvLinkStatus(
                source=link.source,
                transport=link.transport.value,
                transfers=link.transfers,
                bytes=link.bytes,
            )
            for link in load.links
        )
        status.expert_tokens.extend(load.expert_tokens)
    return status
