"""The one configuration tree: defaults, then a YAML file, then ``EASTWEST_…`` variables.

Nothing else reads the environment. Each room gets its own section. Nested fields are named
``EASTWEST_SECTION__FIELD``; values of variables are read as YAML. Every message names the field,
the value and what is allowed.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from eastwest.clock import DURATION_MAX_S
from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout
from eastwest.types import Slo

ENV_PREFIX = "EASTWEST_"
# The largest frame that any rank takes, whatever it sends itself.
FRAME_BYTES_MAX = 1 << 24
# What is said of one configuration: so many things, each in so many characters.
PROBLEMS_MAX = 8
LINE_CHARS_MAX = 200

Seconds = Annotated[float, Field(gt=0, le=DURATION_MAX_S)]
Policy = Literal["cost", "least_loaded", "prefix", "round_robin", "power_of_two"]


class Section(BaseModel):
    """Base of all sections: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """Which model every pool hosts."""

    source: str = Field(
        "smollm2-135m-instruct",
        description="name of a built-in model, path of a Hugging Face directory or GGUF file, "
        "or hub id (owner/name)",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="weights, activations and KV; auto: bfloat16 where the device computes in "
        "it, else float32",
    )
    quantization: Literal["none", "int8"] = Field(
        "none", description="int8: weight-only, one scale a row; activations and KV stay in dtype"
    )
    cache_dir: Path = Field(
        Path("~/.cache/eastwest"), description="where converted models are kept"
    )


class LayoutConfig(Section):
    """How the ranks of one replica share the model: tp * pp * dp ranks."""

    tp: int = Field(1, ge=1, le=1024, description="ranks that share every layer")
    pp: int = Field(1, ge=1, le=1024, description="stages, each with a range of layers")
    ep: int = Field(1, ge=1, le=1024, description="shares of the experts, over tp and dp ranks")
    dp: int = Field(1, ge=1, le=1024, description="groups with KV and sequences of their own")

    def layout(self) -> ParallelLayout:
        return ParallelLayout(self.tp, self.pp, self.ep, self.dp)


class PoolConfig(Section):
    """Replicas of one role."""

    replicas: int = Field(1, ge=0, le=4096)
    layout: LayoutConfig = LayoutConfig()
    device: str = Field(
        "cpu",
        description="what one rank runs on, for predictions: a device of the planner's catalogue, "
        "or the path of a calibrated one; what it says is set right by what is measured",
    )
    threads: int = Field(1, ge=1, le=1024, description="compute threads of one rank (CPU)")
    kv_tokens: int = Field(
        16384, ge=16, description="size of the paged KV of one data-parallel group, in tokens"
    )
    kv_dtype: Literal["auto", "float32", "bfloat16", "float8_e4m3", "int8"] = Field(
        "auto", description="of the paged KV; auto: that of the model; 8 bits: with a scale a row"
    )
    block_tokens: int | None = Field(
        None, ge=1, le=1024, description="tokens of one block; none: kv.block_tokens"
    )
    step_tokens: int = Field(
        512, ge=1, description="most prompt tokens in one engine step: the chunk of a long prompt"
    )
    running_max: int = Field(64, ge=1, description="most sequences decoding at once")
    waiting_max: int = Field(1024, ge=1, description="most requests waiting inside one worker")


class KVConfig(Section):
    """Blocks and their movement."""

    block_tokens: int = Field(16, ge=1, le=1024, description="tokens of one block")
    frame_bytes: int = Field(
        16 << 20,
        ge=1 << 12,
        le=FRAME_BYTES_MAX,
        description="payload of one transfer frame, at most",
    )
    inflight_bytes: int = Field(
        64 << 20, ge=1 << 20, description="bytes on the way between one pair of ranks, at most"
    )
    transports: tuple[Literal["shared_memory", "nixl", "grpc"], ...] | None = Field(
        None,
        min_length=1,
        description="ways for KV to move, best first, all of which every host must have; the first "
        "that both sides of a pair have is used; none: shared_memory as far as each host has it, "
        "and grpc",
    )
    lease_s: Seconds = Field(
        30.0, description="a reservation frees itself this long after its last sign of life"
    )

    @model_validator(mode="after")
    def _transports_are_named_once(self) -> KVConfig:
        if self.transports is not None and len(set(self.transports)) < len(self.transports):
            raise ValueError(
                f"transports are {', '.join(self.transports)}; allowed: each of them once"
            )
        return self


class StoreConfig(Section):
    """The offline store of inactive sessions."""

    enabled: bool = True
    url: str | None = Field(
        None,
        description="redis://, redis+cluster://, redis+sentinel:// or unix:// URL (rediss for "
        "TLS); none: an embedded Valkey on a private socket, gone with the process",
    )
    password_file: Path | None = Field(None, description="holds the password instead of the URL")
    namespace: str = Field("eastwest", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    ttl_s: Seconds = Field(86400.0, description="life of stored KV since its last use")
    session_ttl_s: Seconds = Field(7 * 86400.0, description="life of a session's tokens")
    idle_s: Seconds = Field(30.0, description="a session inactive for this long is spilled")
    maxmemory_bytes: int = Field(
        2 << 30, ge=1 << 20, description="limit of the embedded server; it evicts beyond it"
    )
    budget_bytes: int | None = Field(
        None, ge=1, description="most bytes of KV; none: nine tenths of an embedded server's memory"
    )
    tenant_share: float = Field(
        1.0, gt=0.0, le=1.0, description="of the budget, most that one tenant has"
    )
    tenant_bytes: int | None = Field(
        None, ge=1, description="most bytes of KV of one tenant; none: as the share says"
    )
    tenant_quotas: dict[str, PositiveInt] = Field(
        {}, description="most bytes of KV by tenant, instead of both"
    )
    sweep_s: Seconds = Field(
        3600.0, description="every so often, leftovers are removed and the accounts settled"
    )
    timeout_s: Seconds = Field(2.0, description="deadline of one store operation")
    retry_after_s: Seconds = Field(
        1.0, description="the circuit stays open this long after a failure, then longer"
    )


class LimitsConfig(Section):
    """What a client may ask for; checked once, at the edge."""

    message_bytes: int = Field(
        4 << 20, ge=1024, le=1 << 30, description="one request, of gRPC or HTTP"
    )
    metadata_bytes: int = Field(
        16 << 10, ge=1024, le=1 << 20, description="headers of one request, of gRPC or HTTP"
    )
    client_streams: int = Field(
        1024,
        ge=1,
        le=1 << 20,
        description="calls that generate, open at once from one address",
    )
    prompt_bytes: int = Field(1 << 20, ge=1, description="prompt text, or all chat messages")
    prompt_tokens: int | None = Field(
        None, ge=1, description="prompt, session included; none: below the model's context"
    )
    messages: int = Field(4096, ge=1, description="messages of one chat call")
    stop_strings: int = Field(16, ge=0)
    stop_bytes: int = Field(256, ge=1, description="one stop string")
    stop_tokens: int = Field(1024, ge=0, description="stop_token_ids")
    max_tokens: int | None = Field(
        None, ge=1, description="most that max_tokens may be; none: what the context leaves"
    )
    default_max_tokens: int = Field(256, ge=1, description="where max_tokens is not given")
    default_timeout_s: Seconds = Field(600.0, description="where the client sets no deadline")


class SloConfig(Section):
    """What requests should see; placement aims at it."""

    ttft_s: float = Field(2.0, gt=0, description="until the first token")
    tpot_s: float = Field(0.1, gt=0, description="for each token after it, on average")

    def slo(self) -> Slo:
        return Slo(self.ttft_s, self.tpot_s)


class RouterConfig(Section):
    """The global router."""

    host: str = "127.0.0.1"
    port: int = Field(50051, ge=0, le=65535, description="0 takes a free port")
    http_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="OpenAI-compatible HTTP beside gRPC; 0 takes a free port, none: off",
    )
    queue_max: int = Field(1024, ge=1, description="requests waiting in the router, at most")
    active_max: int = Field(1024, ge=1, description="requests being served at once, at most")
    refuse_beyond: Literal["deadline", "slo"] = Field(
        "deadline",
        description="a request whose first token is expected later is refused at once: later than "
        "its deadline, or than its TTFT target",
    )
    attempts_max: int = Field(
        3, ge=1, description="pairs of workers tried for one request, at most, moves included"
    )
    sessions_max: int = Field(
        1024, ge=1, description="sessions kept at hand for when the store is away, at most"
    )
    policy: Policy = Field(
        "cost",
        description="how workers are chosen; cost: by predicted times against slo; prefix: the one "
        "that holds most of the prompt's KV, unless it is busier than others",
    )
    conditional: bool = Field(
        True,
        description="whether roles may bend: prompts get of steps that decode what TPOT targets "
        "leave, and policy cost lets any worker that decodes prefill, where that is predicted to "
        "be better for all",
    )
    index_blocks_max: int = Field(
        1_000_000,
        ge=1,
        description="KV blocks that the router knows the holders of, at most; about 200 bytes each",
    )
    explain_max: int = Field(
        1024,
        ge=0,
        description="latest requests whose placement can be explained; about 4 kB each",
    )
    decision_log: Path | None = Field(
        None,
        description="file of this router alone that placements are written to, for `python -m sim "
        "decisions` to ask again; without prompts or texts; none: off",
    )
    decision_log_mb: int = Field(
        64, ge=1, le=1 << 20, description="of it and the one before it (.1) together, in MiB"
    )
    heartbeat_s: Seconds = Field(1.0, description="between signs of life on a worker stream")
    worker_timeout_s: Seconds = Field(
        20.0, description="a worker silent for this long is treated as dead"
    )
    drain_timeout_s: float = Field(
        60.0,
        ge=0,
        description="running requests may stay for this long on a worker that leaves; then they "
        "are moved",
    )

    @model_validator(mode="after")
    def _timeout_spans_heartbeats(self) -> RouterConfig:
        if self.worker_timeout_s < 3 * self.heartbeat_s:
            raise ValueError(
                f"worker_timeout_s is {self.worker_timeout_s}; allowed: at least three times "
                f"heartbeat_s ({self.heartbeat_s})"
            )
        return self


class Config(Section):
    """The whole tree."""

    model: ModelConfig = ModelConfig()
    router: RouterConfig = RouterConfig()
    prefill: PoolConfig = PoolConfig()
    decode: PoolConfig = PoolConfig()
    aggregated: PoolConfig = PoolConfig(replicas=0)
    kv: KVConfig = KVConfig()
    store: StoreConfig = StoreConfig()
    limits: LimitsConfig = LimitsConfig()
    slo: SloConfig = SloConfig()

    @model_validator(mode="after")
    def _roles_can_serve(self) -> Config:
        if bool(self.prefill.replicas) != bool(self.decode.replicas):
            raise ValueError(
                f"prefill.replicas is {self.prefill.replicas} and decode.replicas is "
                f"{self.decode.replicas}; allowed: both at least 1, or both 0"
            )
        if not self.prefill.replicas and not self.aggregated.replicas:
            raise ValueError(
                "no replicas at all; allowed: prefill and decode, aggregated, or all three"
            )
        return self


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """The resolved tree. `overrides` (nested, from flags) win over variables over the file.

    Raises `ConfigError` naming the field, the value and what is allowed.
    """
    tree: dict[str, Any] = _read_yaml(path) if path else {}
    variables = os.environ if environ is None else environ
    _merge(tree, _from_environ(variables))
    _merge(tree, overrides or {})
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_describe(error)) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(_line(f"cannot read configuration file {path}: {error}")) from error
    tree = _of_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}; allowed: a mapping of sections")
    return tree


def _of_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except Exception as error:  # of wrong dates, numbers and tags the library raises anything
        problem = f"{type(error).__name__}: {error}"
        raise ConfigError(_line(f"{where} is not valid YAML: {problem}")) from error


def _line(text: str) -> str:
    """One short, printable line."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in words)[:LINE_CHARS_MAX]


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, raw in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX):
            continue
        keys = name.removeprefix(ENV_PREFIX).lower().split("__")
        node = _of_yaml(raw, _line(name))
        for key in reversed(keys):
            node = {key: node}
        _merge(tree, node)
    return tree


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        present = into.get(key)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _merge(present, value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # integers may have more digits than Python prints
        return f"{type(value).__name__} without end"


def _describe(error: ValidationError) -> str:
    lines = []
    for item in error.errors()[:PROBLEMS_MAX]:
        field = ".".join(_line(str(part)) for part in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            lines.append(f"{field} is not a known setting; 'eastwest config show' lists them")
        elif item["loc"] and not isinstance(item["input"], dict):
            lines.append(f"{field} is {_shown(item['input'])}; {item['msg']}")
        else:
            lines.append(f"{field}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
