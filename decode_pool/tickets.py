"""Tickets: what a reservation promises, to whom, and by which way its KV may come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from decode_pool.sequence import Work
from eastwest.blocks import blocks_for
from eastwest.clock import Clock, ns
from eastwest.config import KVConfig
from eastwest.layout import ParallelLayout
from eastwest.messages import KvSource, RankEndpoint, Ticket, Transport, WorkerInfo
from kv_transfer.negotiate import allowed_transports, check_source, choose_transport
from kv_transfer.ranks import ReceivingRank
from kv_transfer.transfers import TransferOwner, Transfers
from runtime.holdings import Holdings

Endpoints = Callable[[int, Transport], tuple[RankEndpoint, ...]]


class Tickets:
    """Makes the tickets of one incarnation, and opens their transfers.

    info: this incarnation. endpoints: of the ranks of a data-parallel group, for one
    transport. owner: told how
    transfers end.
    """

    def __init__(
        self,
        info: Callable[[], WorkerInfo],
        endpoints: Endpoints,
        ranks: Sequence[ReceivingRank],
        layout: ParallelLayout,
        holdings: Holdings,
        owner: TransferOwner,
        clock: Clock,
        *,
        epoch: int,
        config: KVConfig,
    ) -> None:
        self.transfers = Transfers(
            ranks,
            layout,
            holdings.ledger,
            owner,
            clock,
            epoch=epoch,
            lease_ns=ns(config.lease_s),
            blocks_per_group=holdings.pool.group_blocks,
        )
        self._info = info
        self._endpoints = endpoints
        self._blocks = holdings.pool
        self._allowed = allowed_transports(config)
        self._lease_s = config.lease_s
        self._issued = 0

    def check(self, source: KvSource) -> None:
        """Raise `Incompatible`, saying why, where `source` cannot fill a reservation here."""
        check_source(source, self._info().source())

    def issue(self, work: Work) -> Ticket:
        """A ticket for the blocks of `work`. From here on its frames are taken, unless this
        replica fills it itself."""
        group, size = self._blocks.group_of(work.blocks), self._blocks.group_blocks
        info, source = self._info(), work.command.source
        self._issued += 1
        own = (source.worker_id, source.epoch) == (info.worker_id, info.epoch)
        transport = (
            Transport.GRPC if own else choose_transport(source, info.source(), self._allowed)
        )
        first, tokens = len(work.hashes), len(work.given)
        last = blocks_for(tokens, info.block_tokens)
        placed = tuple(block - group * size for block in work.blocks[first:last])
        ticket = Ticket(
            transfer_id=f"{info.worker_id}.{self._issued}",
            worker_id=info.worker_id,
            epoch=info.epoch,
            address=info.address,
            endpoints=self._endpoints(group, transport),
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
            self.transfers.open(
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
