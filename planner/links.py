"""KV between the pools: how many bytes a request moves, and what the links carry."""

from __future__ import annotations

from planner.hardware import Device
from planner.model_shape import ModelShape
from planner.precision import Precision, bytes_of
from planner.workload import Workload

# Links are not filled beyond this: transfers come in bursts.
BUSY_MAX = 0.8


class Links:
    """Links of a deployment of `devices` devices: inside one scale-up domain where that holds
    them all, else between hosts.

    request_bytes: KV that a mean request moves: of the tokens that were computed for it. Windows
    bound what their layers send.
    """

    def __init__(
        self,
        model: ModelShape,
        precision: Precision,
        device: Device,
        devices: int,
        workload: Workload,
    ) -> None:
        self.device = device
        self.devices = devices
        self._layers = model.layers
        per_layer = model.kv_elements * bytes_of(precision.kv)
        self.request_bytes = per_layer * sum(
            c.share * layers * (c.fresh if window is None else min(c.fresh, window))
            for c in workload.classes
            for window, layers in model.window_groups()
        )
        if model.indexer is not None:  # its keys go along, in 8 bits
            self.request_bytes += model.indexer.layers * model.indexer.dim * workload.fresh

    @property
    def kind(self) -> str:
        """``scale-up`` or ``scale-out``."""
        return "scale-up" if self.devices <= self.device.scale_up.domain else "scale-out"

    @property
    def bytes_per_s(self) -> float:
        """Of one device, one way, as reached."""
        device = self.device
        inside = self.kind == "scale-up"
        peak = device.scale_up.bytes_per_s if inside else device.scale_out.bytes_per_s
        return peak * device.efficiency.link

    def limit(self, senders: int, receivers: int) -> float:
        """Bytes per second between so many devices: the smaller side's links, not quite full."""
        return BUSY_MAX * self.bytes_per_s * min(senders, receivers)

    def exposed_s(self, senders: int, receivers: int, prompt_s: float) -> float:
        """What a mean request waits for its KV after its first token, with KV leaving layer by
        layer: its last layer, and what the links need longer than the prompt took."""
        seconds = self.request_bytes / (self.bytes_per_s * min(senders, receivers))
        return max(seconds / self._layers, seconds - prompt_s)
