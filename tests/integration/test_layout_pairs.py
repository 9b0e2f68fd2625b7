"""Any layout feeds any other, through the whole pipeline over real links and real transfers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from eastwest.config import Config, ModelConfig
from eastwest.errors import EastWestError
from eastwest.layout import KVSpec, ParallelLayout
from eastwest.testing.engine import SPEC, expected_output, simulated_group
from eastwest.types import Role, SamplingParams
from kv_store.memory_store import MemoryBlockStore
from tests.checkpoints import EXPERTS, SIXES, tiny_checkpoint
from tests.engine_ranks import load_ranks
from tests.integration.test_oracle import greedy
from tests.integration.test_serving import a_prompt
from tests.rig import a_config, a_rig

LATENT = KVSpec(num_layers=5, num_kv_heads=1, key_dim=6, value_dim=0, dtype="float32")
MANY = KVSpec(num_layers=5, num_kv_heads=4, key_dim=4, value_dim=2, dtype="float32")


def sizes(**sizes: int) -> dict[str, int]:
    return sizes


def layouts(prefill: dict[str, int], decode: dict[str, int], **more: Any) -> Config:
    return a_config(prefill={"layout": prefill}, decode={"layout": decode, **more})


# Prefill, decode, the KV, and the decode side's block size where it differs.
PAIRS = [
    (sizes(tp=2), sizes(), SPEC, 8),
    (sizes(), sizes(tp=2), SPEC, 8),
    (sizes(tp=4), sizes(tp=2), MANY, 8),
    (sizes(tp=2), sizes(tp=4), MANY, 16),
    (sizes(pp=2), sizes(tp=2), MANY, 8),
    (sizes(tp=2), sizes(pp=3), MANY, 4),
    (sizes(tp=2, pp=2), sizes(pp=2), MANY, 8),
    (sizes(tp=4), sizes(pp=3), SPEC, 8),
    (sizes(tp=2), sizes(tp=4), LATENT, 8),
    (sizes(pp=3), sizes(tp=2), LATENT, 32),
    (sizes(dp=2), sizes(tp=2), MANY, 8),
    (sizes(tp=2), sizes(dp=2, tp=2), MANY, 8),
    (sizes(dp=2), sizes(dp=3), LATENT, 8),
]


@pytest.mark.parametrize(("prefill", "decode", "spec", "block_tokens"), PAIRS, ids=str)
async def test_every_byte_of_kv_is_where_the_decode_layout_wants_it(
    tiny_model_dir: Path,
    prefill: dict[str, int],
    decode: dict[str, int],
    spec: KVSpec,
    block_tokens: int,
) -> None:
    config = layouts(prefill, decode, block_tokens=block_tokens)
    async with a_rig(tiny_model_dir, config=config, spec=spec) as rig:
        prompts = [a_prompt(length, seed=length) for length in (1, 8, 33, 70)]
        answers = await asyncio.gather(
            *(rig.client.generate(p, temperature=0.0, max_tokens=5).result() for p in prompts)
        )
        for prompt, answer in zip(prompts, answers, strict=True):
            assert list(answer.token_ids) == expected_output(prompt, 5, spec=spec)
        assert rig.replicas["decode-0"].load().transfer_bytes > 0


async def test_a_session_that_one_layout_spilled_resumes_on_another(tiny_model_dir: Path) -> None:
    config = layouts({"pp": 2}, {"tp": 2}).model_copy(
        update={"store": a_config(store={"idle_s": 0.01}).store}
    )
    prompt, store = a_prompt(40), MemoryBlockStore(1 << 24)
    async with a_rig(tiny_model_dir, config=config, spec=MANY, store=store) as rig:
        first = await rig.client.generate(prompt, temperature=0.0, max_tokens=9, session="s")
        await rig.until(lambda: rig.replicas["decode-0"].load().sessions_spilled == 1)
        ranks = simulated_group(ParallelLayout(tp=4, pp=2), 128, 8, MANY)
        await rig.start("prefill-1", Role.PREFILL, ranks)
        await rig.until_up("prefill-1")
        await rig.router.remove_worker("prefill-0")
        turn = [*prompt, *first.token_ids, 7, 8, 9]
        second = await rig.client.generate(turn, temperature=0.0, max_tokens=5)
        assert second.prefill_worker == "prefill-1"
        assert second.usage.loaded_tokens == 48
        assert list(second.token_ids) == expected_output(turn, 5, spec=MANY)


async def test_a_lost_rank_ends_its_replica_and_the_rest_goes_on(tiny_model_dir: Path) -> None:
    config = layouts({}, {"tp": 2})
    async with a_rig(tiny_model_dir, config=config, decode=2, spec=MANY) as rig:
        lost = rig.replicas["decode-0"]
        [follower] = rig.groups["decode-0"].servers.values()
        await follower.stop()
        async with asyncio.timeout(20):
            await lost.defect.wait()
        await rig.stop("decode-0")
        prompt = a_prompt(30)
        while True:
            try:
                answer = await rig.client.generate(prompt, temperature=0.0, max_tokens=5)
            except EastWestError as error:
                if not error.status.retriable:
                    raise
            else:
                break
        assert list(answer.token_ids) == expected_output(prompt, 5, spec=MANY)


# Real engines: checkpoint, prefill, decode, and the decode side's block size.
REAL = [
    (architecture, prefill, decode, 8)
    for architecture in ("llama", "qwen3")
    for prefill, decode in [
        (sizes(tp=2), sizes()),
        (sizes(), sizes(tp=2)),
        (sizes(tp=2), sizes(pp=2)),
        (sizes(pp=3), sizes(tp=4)),
        (sizes(tp=2, pp=2), sizes(dp=2)),
        (sizes(tp=4), sizes(tp=2, pp=2)),
    ]
] + [
    ("mistral", sizes(tp=2), sizes(pp=3), 16),
    ("qwen2", sizes(pp=2), sizes(tp=4), 4),
    ("llama in sixes", sizes(tp=3), sizes(tp=2), 8),
    ("llama in sixes", sizes(tp=2), sizes(tp=3, pp=2), 32),
    ("mixtral", sizes(tp=2, ep=2), sizes(dp=2, ep=2), 8),
    ("mixtral", sizes(pp=2), sizes(tp=4, ep=2), 8),
    ("mixtral in sixes", sizes(tp=3, ep=3), sizes(pp=3), 8),
    ("mixtral in sixes", sizes(dp=2, ep=2), sizes(tp=3), 16),
    ("qwen3_moe", sizes(tp=4, ep=4), sizes(tp=2, pp=2, ep=2), 8),
    ("qwen3_moe", sizes(tp=2), sizes(tp=2, dp=2, ep=4), 8),
    ("qwen3_moe in sixes", sizes(pp=3), sizes(tp=3, ep=3), 8),
    ("qwen3_moe in sixes", sizes(tp=6, ep=2), sizes(tp=2), 4),
    ("deepseek_v2", sizes(tp=2, ep=2), sizes(pp=3), 8),
    ("deepseek_v2", sizes(), sizes(tp=4, ep=4), 8),
    ("deepseek_v2 in sixes", sizes(tp=3), sizes(pp=3), 32),
    ("deepseek_v2 in sixes", sizes(tp=2, pp=2), sizes(tp=3, ep=3), 8),
    ("deepseek_v3", sizes(tp=4, ep=2), sizes(dp=2, ep=2), 8),
    ("deepseek_v3", sizes(dp=2, ep=2), sizes(tp=2, pp=2, ep=2), 8),
    ("deepseek_v3 in sixes", sizes(pp=3), sizes(tp=3), 8),
    ("deepseek_v3 in sixes", sizes(tp=3, ep=3), sizes(dp=3, ep=3), 5),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    dense = {"num_attention_heads": 4, "num_key_value_heads": 2}
    in_sixes = {"num_attention_heads": 12, "num_key_value_heads": 6, "intermediate_size": 96}
    fields: dict[str, dict[str, int]] = {
        **dict.fromkeys(("llama", "qwen3", "mistral", "qwen2"), dense),
        "llama in sixes": in_sixes,
        **{name: {} for name in EXPERTS},
        **{f"{name} in sixes": SIXES[name] for name in EXPERTS},
    }
    return {
        name: tiny_checkpoint(
            name.split()[0], tmp_path_factory.mktemp("pairs"), vocab_size=512, **overrides
        )
        for name, overrides in fields.items()
    }


@pytest.mark.parametrize(("checkpoint", "prefill", "decode", "block_tokens"), REAL, ids=str)
async def test_tokens_are_those_of_transformers_whatever_the_layouts(
    tiny_model_dir: Path,
    checkpoints: dict[str, Path],
    checkpoint: str,
    prefill: dict[str, int],
    decode: dict[str, int],
    block_tokens: int,
) -> None:
    config = layouts(prefill, decode, block_tokens=block_tokens)
    directory = checkpoints[checkpoint]
    model = ModelConfig(source=str(directory), dtype="float32")

    def engines(role: Role) -> Any:
        return load_ranks(directory, model, getattr(config, role.value), config.kv)

    sampling = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    async with a_rig(tiny_model_dir, config=config, make_engines=engines) as rig:
        prompts = [a_prompt(length, seed=length) for length in (9, 70)]
        for prompt in prompts:
            answer = await rig.client.generate(prompt, sampling=sampling)
            assert list(answer.token_ids) == greedy(directory, prompt)
        mixture = checkpoint.split()[0] in EXPERTS
        for replica, layout in (("prefill-0", prefill), ("decode-0", decode)):
            counted = rig.replicas[replica].load().expert_tokens
            assert len(counted) == (ParallelLayout(**layout).world_size if mixture else 0)
    assert ParallelLayout(**prefill) != ParallelLayout(**decode)


@pytest.mark.parametrize(
    ("checkpoint", "spilling", "resuming"),
    [
        ("qwen3", sizes(tp=4), sizes(pp=3)),
        ("mixtral", sizes(pp=2), sizes(tp=2, dp=2, ep=4)),
        ("deepseek_v3", sizes(tp=2, ep=2), sizes(pp=3)),
    ],
    ids=str,
)
async def test_a_session_resumes_on_another_layout_with_the_tokens_of_transformers(
    tiny_model_dir: Path,
    checkpoints: dict[str, Path],
    checkpoint: str,
    spilling: dict[str, int],
    resuming: dict[str, int],
) -> None:
    config = layouts({}, spilling).model_copy(
        update={"store": a_config(store={"idle_s": 0.01}).store}
    )
    directory, store = checkpoints[checkpoint], MemoryBlockStore(1 << 24)
    model = ModelConfig(source=str(directory), dtype="float32")

    def engines(role: Role) -> Any:
        return load_ranks(directory, model, getattr(config, role.value), config.kv)

    sampling = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    async with a_rig(tiny_model_dir, config=config, store=store, make_engines=engines) as rig:
        prompt = a_prompt(40)
        first = await rig.client.generate(prompt, sampling=sampling, session="s")
        await rig.until(lambda: rig.replicas["decode-0"].load().sessions_spilled == 1)
        other = layouts(resuming, {})
        await rig.start(
            "prefill-1", Role.PREFILL, load_ranks(directory, model, other.prefill, other.kv)
        )
        await rig.until_up("prefill-1")
        await rig.router.remove_worker("prefill-0")
        turn = [*prompt, *first.token_ids, 7, 8, 9]
        second = await rig.client.generate(turn, sampling=sampling)
        assert second.prefill_worker == "prefill-1"
        assert second.usage.loaded_tokens == 48
        assert list(second.token_ids) == greedy(directory, turn)
