"""Devices: what they compute, remember and reach, and how much of that is reached in practice.

A device is one YAML file: one of the catalogue, or one written by hand or by `eastwest calibrate`.
Rates are of dense arithmetic; links count one direction, each device by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eastwest.errors import ConfigError
from planner.nearest import nearest
from planner.precision import BITS
from planner.stacks import Stack


class Facts(BaseModel):
    """Base of the parts of a device: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Memory(Facts):
    """Where weights and KV lie."""

    bytes: float = Field(gt=1e6, lt=1e14, description="usable by one device")
    bytes_per_s: float = Field(gt=1e8)


class ScaleUp(Facts):
    """The fast network among the devices of one domain (NVLink, ICI, Infinity Fabric, …)."""

    domain: int = Field(ge=1, description="devices that reach each other this way")
    bytes_per_s: float = Field(ge=1e6, lt=1e15, description="of one device, one way; not GB/s")
    latency_s: float = Field(
        3e-6, ge=0, le=0.1, description="of a small collective among two; measured, not the wire's"
    )
    latency_per_doubling_s: float = Field(
        5e-7, ge=0, le=0.1, description="added for each doubling of the ranks beyond two"
    )


class ScaleOut(Facts):
    """The network between domains (InfiniBand, RoCE, Ethernet)."""

    bytes_per_s: float = Field(ge=1e6, lt=1e15, description="of one device, one way; not GB/s")
    latency_s: float = Field(1e-5, ge=0, le=0.1, description="of one message")


class Efficiency(Facts):
    """Which share of the peak is reached, as measured; 1 is the data sheet.

    By number format, as in `planner.precision`; a format that is absent is taken as the nearest
    wider one that is given.
    """

    matmul: Mapping[str, float] = Field({"bf16": 1.0}, description="of FLOP/s, large matrices")
    weights: Mapping[str, float] = Field(
        {"bf16": 1.0}, description="of memory bandwidth, weights read for few tokens"
    )
    prompt_attention: Mapping[str, float] = Field(
        {"bf16": 1.0}, description="of FLOP/s, causal attention over prompts"
    )
    kv: Mapping[str, float] = Field(
        {"bf16": 1.0}, description="of memory bandwidth, KV read by decode attention"
    )
    link: float = Field(1.0, gt=0, le=2, description="of link bandwidth, large collectives")

    @model_validator(mode="after")
    def _known(self) -> Efficiency:
        for name in ("matmul", "weights", "prompt_attention", "kv"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; allowed: a share for at least one format")
            for dtype, share in getattr(self, name).items():
                if dtype not in BITS:
                    raise ValueError(
                        f"{name}: {dtype!r} is no number format; allowed: {list(BITS)}"
                    )
                if not 0 < share <= 2:
                    raise ValueError(f"{name}.{dtype} is {share}; allowed: above 0, to 2")
        return self


class Price(Facts):
    """What a device costs; a parameter, since it depends on who asks where and when."""

    per_hour: float = Field(0.0, ge=0, description="in dollars, for one device; 0: not known")


class Device(Facts):
    """One accelerator (or one rank's share of a CPU) and its links."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    vendor: str
    measured: bool = Field(
        False, description="efficiencies were measured on this device, not taken from a relative"
    )
    flops_per_s: Mapping[str, float] = Field(description="dense, by number format")
    memory: Memory
    scale_up: ScaleUp
    scale_out: ScaleOut
    host_bytes_per_s: float = Field(0.0, ge=0, description="to host memory, one way")
    power_w: float = Field(0.0, ge=0, description="of one device, at full load")
    devices_per_host: int = Field(8, ge=1)
    price: Price = Price()
    efficiency: Efficiency = Efficiency()
    stack: Stack | None = Field(
        None, description="of the engine that was measured on it; none: name one, or the default"
    )
    sources: tuple[str, ...] = Field((), description="where the figures are from, and conflicts")

    @model_validator(mode="after")
    def _plausible(self) -> Device:
        if not self.flops_per_s:
            raise ValueError("flops_per_s is empty; allowed: at least one number format")
        for dtype, rate in self.flops_per_s.items():
            if dtype not in BITS:
                raise ValueError(
                    f"flops_per_s: {dtype!r} is no number format; allowed: {list(BITS)}"
                )
            if not 1e9 <= rate <= 1e18:
                raise ValueError(
                    f"flops_per_s.{dtype} is {rate:g}; allowed: 1e9 to 1e18 FLOP/s (not TFLOP/s)"
                )
            if not 0.01 <= rate / self.memory.bytes_per_s <= 1e5:
                raise ValueError(
                    f"flops_per_s.{dtype} is {rate:g} beside memory of "
                    f"{self.memory.bytes_per_s:g} B/s; one of the two is in another unit"
                )
        return self

    def share(self, kind: str, dtype: str) -> float:
        """Efficiency of `kind` (a field of `Efficiency`) for a number format."""
        shares: Mapping[str, float] = getattr(self.efficiency, kind)
        if dtype in shares:
            return shares[dtype]
        wider = [name for name in shares if BITS[name] >= BITS[dtype]]
        return shares[min(wider, key=BITS.__getitem__)] if wider else min(shares.values())


def device_names() -> tuple[str, ...]:
    """Names of the catalogue, sorted."""
    return tuple(sorted(_files()))


def find_device(source: str) -> Device:
    """A device of the catalogue by name or by the one beginning that fits, or that in a YAML file.

    Raises `ConfigError` naming the nearest devices, or the field that is wrong.
    """
    name = _named(source)
    if name is not None:
        return _load(name)
    if os.path.isfile(source):  # False, too, for what cannot be a path
        return read_device(Path(source))
    raise ConfigError(
        f"hardware {source!r} is neither in the catalogue nor a file; {nearest(source, _files())}, "
        f"or the path of a YAML file"
    )


def _named(source: str) -> str | None:
    """The name in the catalogue that is meant: whole, or the one beginning that fits."""
    name = source.strip().lower().replace("_", "-").replace(" ", "-")
    begun = [known for known in _files() if name and known.startswith(name)]
    if name in _files():
        return name
    return begun[0] if len(begun) == 1 else None


def read_device(path: Path) -> Device:
    """The device that a YAML file describes. Raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return device_from(text, str(path))


def device_from(text: str, where: str) -> Device:
    """The device that YAML text describes. `like: NAME` takes from that device of the catalogue
    what is not given. Raises `ConfigError`, beginning with `where`."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} holds no device; allowed: a mapping of its fields")
    like = tree.pop("like", None)
    if like is not None:
        name = _named(str(like))  # never a file, which might be like itself
        if name is None:
            raise ConfigError(f"{where}: like is {like!r}; {nearest(str(like), _files())}")
        tree = _over(_load(name).model_dump(exclude_unset=True), tree)
    try:
        return Device.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_problem(e["loc"], e["msg"], e["input"]) for e in error.errors())
        raise ConfigError(f"{where}: {problems}") from error


def _over(base: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` over `base`, sections one level deep; a relative's measurements are not its own."""
    merged = {**base, "measured": False}
    for key, value in tree.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = {**base[key], **value} if both and key != "flops_per_s" else value
    return merged


def _problem(where: tuple[int | str, ...], message: str, value: object) -> str:
    field = ".".join(map(str, where)) or "device"
    shown = "" if isinstance(value, dict) else f" is {value!r}"
    return f"{field}{shown}: {message.removeprefix('Value error, ')}"


@cache
def _files() -> Mapping[str, str]:
    folder = files("planner").joinpath("catalogue/hardware")
    return {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    }


@cache
def _load(name: str) -> Device:
    return device_from(_files()[name], f"catalogue/hardware/{name}.yaml")
