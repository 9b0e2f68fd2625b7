"""Prefill and decode whose KV differs in dtype, layout and block size, with real engines.

1. What comes out is what one rank gives that goes on from KV converted once, from the dtype of the
   prefill side to that of the decode side: the same tokens, and log-probabilities within `ONCE`,
   since ranks sum in another order, by which a value may round to the next step.
2. For the tokens given, log-probabilities are those of transformers in float32 within a tolerance
   that depends on the narrowest KV on the way. Where there are experts, a nearly undecided router
   may choose another one, and then no such bound holds; so these are held to the first alone.
3. With a bfloat16 model they are within `BFLOAT16` of those of transformers in float32, and of
   those that one aggregated bfloat16 worker gives for the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eastwest.config import ModelConfig
from eastwest.ports import SampleInput, StepRow
from eastwest.types import LOGPROBS_MAX, Role, SampledToken, SamplingParams
from engine.torch_engine import TorchEngine
from kv_transfer.convert import convert
from tests.checkpoints import tiny_checkpoint
from tests.engine_ranks import load_ranks
from tests.integration.test_serving import a_prompt
from tests.oracle.harness import Oracle, blocks_at, engine_of
from tests.rig import a_config, a_rig

COUNT = 8
LENGTHS = (9, 70)
CHUNK = 32
SAMPLING = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True, logprobs=LOGPROBS_MAX)
# The most that log-probabilities may be off. KV of another prompt moves them by more than 1.
ONCE = 2e-4
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.01, "int8": 0.03, "float8_e4m3": 0.1}
BFLOAT16 = 0.04
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_attention_heads": 4}),
    "qwen3": ("qwen3", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "mistral": ("mistral", {}),
    "latent": ("deepseek_v3", {"first_k_dense_replace": 3}),
    "mixtral": ("mixtral", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "deepseek_v2": ("deepseek_v2", {}),
}
WITH_EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v2")


def side(kv_dtype: str, block_tokens: int = 8, **layout: int) -> dict[str, Any]:
    return {"kv_dtype": kv_dtype, "block_tokens": block_tokens, "layout": layout}


# Checkpoint, prefill, decode.
PAIRS = [
    ("llama", side("float32", tp=2), side("int8")),
    ("llama", side("int8", 4, tp=4), side("float32", 16, pp=2)),
    ("qwen3", side("float32", pp=2), side("float8_e4m3", 16, tp=4)),
    ("qwen3", side("float8_e4m3", dp=2), side("float32", tp=2)),
    ("mistral", side("bfloat16", tp=2), side("float32", pp=3)),
    ("latent", side("float32", tp=2), side("int8", 4, pp=3)),
    ("latent", side("float8_e4m3", 16, pp=2), side("bfloat16", tp=4)),
    ("mixtral", side("int8", pp=2), side("float8_e4m3", tp=2, ep=2)),
    ("qwen3_moe", side("float32", tp=2, ep=2), side("int8", 32, dp=2, ep=2)),
    ("deepseek_v2", side("float32", 16, tp=4, ep=2), side("float8_e4m3", pp=3)),
]  # fmt: skip
IN_BFLOAT16 = [
    ("llama", side("auto", tp=2), side("auto", 16, pp=2)),
    ("latent", side("auto", tp=4), side("auto", dp=2)),
    ("qwen3", side("auto", pp=3), side("int8", 4, tp=2)),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: tiny_checkpoint(
            architecture, tmp_path_factory.mktemp("kv-dtypes"), vocab_size=512,
            initializer_range=0.05, **fields,
        )
        for name, (architecture, fields) in CHECKPOINTS.items()
    }  # fmt: skip


async def served(
    model_dir: Path,
    directory: Path,
    dtype: str,
    prefill: dict[str, Any],
    decode: dict[str, Any],
    prompts: Sequence[Sequence[int]],
) -> list[tuple[SampledToken, ...]]:
    """What a prefill and a decode replica answer."""
    config = a_config(prefill=prefill, decode=decode)
    model = ModelConfig.model_validate({"source": str(directory), "dtype": dtype})

    def engines(role: Role) -> Any:
        return load_ranks(directory, model, getattr(config, role.value), config.kv)

    async with a_rig(model_dir, config=config, make_engines=engines) as rig:
        answers = [await rig.client.generate(p, sampling=SAMPLING) for p in prompts]
        assert rig.replicas["decode-0"].load().transfer_bytes > 0
    return [answer.logprobs for answer in answers]


def converted_once(
    prefill: TorchEngine, decode: TorchEngine, prompt: Sequence[int]
) -> list[SampledToken]:
    """A prompt on one engine, its KV converted, and the rest on another."""
    first, output = sampled(prefill, prompt, []), []
    layers, heads = range(prefill.kv.spec.num_layers), range(prefill.kv.spec.num_kv_heads)
    output.append(first)
    for start in range(0, len(prompt), prefill.kv.block_tokens):
        tokens = range(min(prefill.kv.block_tokens, len(prompt) - start))
        block = [start // prefill.kv.block_tokens]
        payload = convert(
            prefill.kv.read(block, layers, heads, tokens), prefill.kv.spec, decode.kv.spec,
            (len(layers), len(heads), len(tokens)),
        )  # fmt: skip
        decode.kv.write(block, layers, heads, payload, tokens)
    while len(output) < COUNT:
        output.append(sampled(decode, prompt, [token.token for token in output], cached=True))
    return output


def sampled(
    engine: TorchEngine, prompt: Sequence[int], output: Sequence[int], *, cached: bool = False
) -> SampledToken:
    """The token behind prompt and output. cached: all KV but the last token's is there."""
    tokens = [*prompt, *output]
    blocks, start = blocks_at(0, len(tokens)), len(tokens) - 1 if cached else 0
    result: list[SampledToken | None] = []
    while start < len(tokens):
        part = tokens[start : start + CHUNK]
        last = start + len(part) == len(tokens)
        sample = SampleInput(SAMPLING, prompt, tuple(output)) if last else None
        result = engine.step([StepRow(part, start, blocks, sample)])
        start += len(part)
    assert result[0] is not None
    return result[0]


def furthest(answer: Sequence[SampledToken], other: Sequence[SampledToken]) -> float:
    """The largest difference between log-probabilities that both tell."""
    worst = 0.0
    for ours, theirs in zip(answer, other, strict=True):
        known = {top.token: top.logprob for top in theirs.top}
        both = [abs(top.logprob - known[top.token]) for top in ours.top if top.token in known]
        assert both
        worst = max(worst, *both)
    return worst


def furthest_from_truth(
    oracle: Oracle, prompt: Sequence[int], answer: Sequence[SampledToken]
) -> float:
    """Likewise from what transformers says of the same tokens."""
    tokens = [*prompt, *(token.token for token in answer)]
    truth = oracle.logits(tokens).log_softmax(-1)[len(prompt) - 1 : -1]
    return max(
        abs(top.logprob - float(row[top.token]))
        for row, token in zip(truth, answer, strict=True)
        for top in token.top
    )


def narrowest(*sides: dict[str, Any]) -> str:
    dtypes: list[str] = [side["kv_dtype"] for side in sides]
    return max(dtypes, key=TOLERANCE.__getitem__)


@pytest.mark.parametrize(("checkpoint", "prefill", "decode"), PAIRS, ids=str)
async def test_kv_is_converted_once_and_nothing_else_is_lost(
    tiny_model_dir: Path,
    checkpoints: dict[str, Path],
    checkpoint: str,
    prefill: dict[str, Any],
    decode: dict[str, Any],
) -> None:
    directory = checkpoints[checkpoint]
    prompts = [a_prompt(length, seed=length) for length in LENGTHS]
    answers = await served(tiny_model_dir, directory, "float32", prefill, decode, prompts)
    oracle = Oracle(directory)
    for prompt, answer in zip(prompts, answers, strict=True):
        source, target = (
            engine_of(directory, kv_dtype=side["kv_dtype"]) for side in (prefill, decode)
        )
        expected = converted_once(source, target, prompt)
        assert [token.token for token in answer] == [token.token for token in expected]
        assert furthest(answer, expected) < ONCE
        if checkpoint not in WITH_EXPERTS:
            tolerance = TOLERANCE[narrowest(prefill, decode)]
            assert 1e-5 < furthest_from_truth(oracle, prompt, answer) < tolerance


@pytest.mark.parametrize(("checkpoint", "prefill", "decode"), IN_BFLOAT16, ids=str)
async def test_bfloat16_stays_near_one_aggregated_worker_and_the_truth(
    tiny_model_dir: Path,
    checkpoints: dict[str, Path],
    checkpoint: str,
    prefill: dict[str, Any],
    decode: dict[str, Any],
) -> None:
    directory = checkpoints[checkpoint]
    prompts = [a_prompt(length, seed=length) for length in LENGTHS]
    answers = await served(tiny_model_dir, directory, "bfloat16", prefill, decode, prompts)
    oracle, aggregated = Oracle(directory), engine_of(directory, "bfloat16")
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = [token.token for token in answer]
        alone = [sampled(aggregated, prompt, tokens[:count]) for count in range(COUNT)]
        assert furthest(answer, alone) < BFLOAT16
        assert 1e-4 < furthest_from_truth(oracle, prompt, answer) < BFLOAT16
