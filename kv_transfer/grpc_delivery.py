"""KV over gRPC: the frame carries its payload. Works between any two hosts."""

from __future__ import annotations

from eastwest.in_thread import in_thread
from eastwest.messages import RankEndpoint, Ticket, Transport
from kv_transfer.frame_codec import Header, Message, encode_parts
from kv_transfer.transport import Outgoing


class GrpcTransport:
    """Is a `TransportProvider`, and needs nothing to be so."""

    @property
    def transport(self) -> Transport:
        return Transport.GRPC

    def deliver(self, ticket: Ticket, endpoint: RankEndpoint) -> GrpcDelivery:
        return GrpcDelivery()

    def close(self) -> None:
        """Nothing is kept."""


class GrpcDelivery:
    """Is a `Delivery`."""

    async def pack(self, header: Header, outgoing: Outgoing) -> Message:
        """See `Delivery.pack`."""
        region = header.region
        if outgoing.converts:
            return encode_parts(header, await in_thread(outgoing.parts, region))
        return encode_parts(header, outgoing.parts(region))

    def settle(self) -> None:
        """Nothing outlives a `pack`."""

    async def close(self) -> None:
        """Nothing outlives a `pack`."""
