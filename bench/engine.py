"""The torch engine against `transformers`: the same weights, dtype and number of threads (one).

Prefill of 512 tokens, and one decode step at batch 1, 8 and 32 over contexts of 512 tokens, in
float32, in bfloat16 and with int8 weights. Runs of the two alternate; each figure is a median.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eastwest.blocks import blocks_for
from eastwest.config import KVConfig, ModelConfig, PoolConfig
from eastwest.paged_kv import PagedKV
from eastwest.ports import SampleInput, StepRow
from eastwest.types import SamplingParams
from engine.catalog import resolve_model
from engine.torch_engine import TorchEngine, load_engine

CONTEXT = 512
BATCHES = (1, 8, 32)
GOAL = 1.3
GREEDY = SamplingParams(temperature=0.0)
PEER = "transformers"

Run = Callable[[], object]


def run(quick: bool) -> list[dict[str, Any]]:
    """Results as `bench` reports them; `ratio` above 1 means faster than the peer."""
    torch.set_num_threads(1)
    directory = resolve_model(ModelConfig())
    results = []
    for dtype in ("float32", "bfloat16"):
        results += _compare(directory, dtype, "none", rounds=3 if quick else 9)
    results += _compare(directory, "bfloat16", "int8", rounds=3 if quick else 9)
    return results


def _compare(directory: Path, dtype: str, quantization: str, rounds: int) -> list[dict[str, Any]]:
    model = ModelConfig.model_validate({"dtype": dtype, "quantization": quantization})
    tokens = max(BATCHES) * (CONTEXT + KVConfig().block_tokens)
    engine = load_engine(directory, model, PoolConfig(kv_tokens=tokens), KVConfig())
    # Memory that was never written to is one shared page, and would be read from the cache.
    assert isinstance(engine.kv, PagedKV)
    for plane in engine.kv.planes:
        plane[...] = 0x3C  # small numbers, in every dtype
    installed = importlib.util.find_spec("transformers") is not None
    peer = Transformers(directory, dtype) if installed else None
    name = dtype if quantization == "none" else f"{dtype} activations, {quantization} weights"
    results = []
    ours, theirs = _medians(partial(prefill, engine), peer.prefill() if peer else None, rounds)
    metric = f"prefill of {CONTEXT} tokens, {name}"
    results.append(_result(metric, "tokens/s", CONTEXT / ours, theirs and CONTEXT / theirs))
    for batch in BATCHES:
        their_run = peer.decode(batch) if peer else None
        ours, theirs = _medians(partial(decode, engine, batch), their_run, rounds)
        metric = f"decode step, batch {batch}, {name}"
        results.append(_result(metric, "ms", 1e3 * ours, theirs and 1e3 * theirs))
    engine.close()
    return results


def prefill(engine: TorchEngine) -> None:
    blocks = range(blocks_for(CONTEXT, engine.kv.block_tokens))
    engine.step([StepRow(_prompt(), 0, blocks, SampleInput(GREEDY, _prompt(), ()))])


def decode(engine: TorchEngine, batch: int) -> None:
    """One step of `batch` sequences, each in blocks of its own; what KV they hold is all one."""
    size = blocks_for(CONTEXT + 1, engine.kv.block_tokens)
    rows = [
        StepRow((i + 3,), CONTEXT, range(i * size, (i + 1) * size), SampleInput(GREEDY, (), ()))
        for i in range(batch)
    ]
    engine.step(rows)


class Transformers:
    """The peer, its cache in the state that the engine's rows describe."""

    def __init__(self, directory: Path, dtype: str) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype)
        ).eval()

    def prefill(self) -> Run:
        tokens = torch.tensor([_prompt()])
        return lambda: self._forward(tokens, None)

    def decode(self, batch: int) -> Run:
        cache = self._forward(torch.tensor([_prompt()]), None).past_key_values
        cache.batch_repeat_interleave(batch)
        tokens = torch.arange(3, batch + 3).unsqueeze(1)
        # The cache grows by a token a run, which is nothing beside its 512.
        return lambda: self._forward(tokens, cache)

    def _forward(self, tokens: torch.Tensor, cache: object) -> Any:
        with torch.inference_mode():
            out = self._model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            out.logits[:, -1].argmax(-1).tolist()
        return out


def _prompt() -> list[int]:
    return [3 + i * 7919 % 49000 for i in range(CONTEXT)]


def _medians(ours: Run, theirs: Run | None, rounds: int) -> tuple[float, float | None]:
    """Seconds of one run each, alternating after one warm-up."""
    runs = [ours] if theirs is None else [ours, theirs]
    times: list[list[float]] = [[] for _ in runs]
    for round_ in range(rounds + 1):
        for one, measured in zip(runs, times, strict=True):
            start = time.perf_counter()
            one()
            if round_:
                measured.append(time.perf_counter() - start)
    medians = [statistics.median(measured) for measured in times]
    return medians[0], medians[1] if len(medians) > 1 else None


def _result(metric: str, unit: str, value: float, against: float | None) -> dict[str, Any]:
    ratio = None
    if against is not None:
        ratio = against / value if unit == "ms" else value / against
    return {
        "metric": metric,
        "value": value,
        "unit": unit,
        "against": PEER if against is not None else f"{PEER} (not installed)",
        "against_value": against,
        "ratio": ratio,
        "goal": GOAL,
        "met": None if ratio is None else ratio >= GOAL,
    }
