"""Tickets: what a reservation promises, to whom, and by which way its KV may come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from decode_pool.sequence import Work
from eastwest.blocks import blocks_for
from eastwest.messages import KvSource, RankEndpoint, Ticket, Transport, WorkerInfo
from kv_transfer.negotiate import check_source, choose_transport
from kv_transfer.transfers import Transfers

Endpoints = Callable[[int], tuple[RankEndpoint, ...]]


class Tickets:
    """Makes the tickets of one incarnation.

    info: this incarnation. endpoints: of the ranks of a data-parallel group. transports: those
    that the configuration allows.
    """

    def __init__(
        self,
        info: Callable[[], WorkerInfo],
        endpoints: Endpoints,
        transfers: Transfers,
        *,
        transports: Sequence[Transport],
        lease_s: float,
    ) -> None:
        self._info = info
        self._endpoints = endpoints
        self._transfers = transfers
        self._allowed = transports
        self._lease_s = lease_s
        self._issued = 0

    def check(self, source: KvSource) -> None:
        """Raise `Incompatible`, saying why, where `source` cannot fill a reservation here."""
        check_source(source, self._info().source())

    def issue(self, work: Work, group: int, group_blocks: int) -> Ticket:
        """A ticket for the blocks of `work`, all in data-parallel group `group` of `group_blocks`
        blocks. From here on its frames are taken, unless this replica fills it itself."""
        info, source = self._info(), work.command.source
        self._issued += 1
        own = (source.worker_id, source.epoch) == (info.worker_id, info.epoch)
        transport = (
            Transport.GRPC if own else choose_transport(source, info.source(), self._allowed)
        )
        first, tokens = len(work.hashes), len(work.command.prompt)
        last = blocks_for(tokens, info.block_tokens)
        placed = tuple(block - group * group_blocks for block in work.blocks[first:last])
        ticket = Ticket(
            transfer_id=f"{info.worker_id}.{self._issued}",
            worker_id=info.worker_id,
            epoch=info.epoch,
            address=info.address,
            endpoints=self._endpoints(group),
            layout=info.layout.of_group,
            kv=info.model.kv,
            fingerprint=info.model.fingerprint,
            block_tokens=info.block_tokens,
            first_block=first,
            num_blocks=last,
            num_tokens=tokens,
            lease_s=self._lease_s,
            transport=transport,
            blocks=() if transport is Transport.GRPC else placed,
        )
        if not own:
            self._transfers.open(
                ticket.transfer_id,
                work.owner,
                group=group,
                blocks=work.blocks,
                first_block=first,
                num_blocks=last,
                num_tokens=tokens,
                transport=transport,
                source=source.worker_id,
            )
        return ticket
