"""Greedy tokens in float32 are those of transformers, however the work is cut and placed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import ARCHITECTURES, tiny_checkpoint
from tests.oracle.harness import (
    BLOCK,
    Oracle,
    Running,
    a_prompt,
    advance,
    blocks_at,
    engine_of,
    generate,
)

NEW = 8
# One token; around a block; several blocks; beyond a segment of queries and a window.
LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 67, 150)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def truth(directory: Path) -> dict[int, list[int]]:
    oracle = Oracle(directory)
    return {length: oracle.generate(a_prompt(length, length), NEW) for length in LENGTHS}


def sequence_at(length: int, first_block: int) -> Running:
    return Running(a_prompt(length, length), blocks_at(first_block, length + NEW))


@pytest.mark.parametrize("chunk", [3, BLOCK, 64, 512])
def test_chunks_of_a_prompt_do_not_change_its_tokens(
    chunk: int, directory: Path, truth: dict[int, list[int]]
) -> None:
    engine = engine_of(directory)
    for length in LENGTHS:
        assert generate(engine, sequence_at(length, 1), NEW, chunk) == truth[length]


def test_a_mixed_batch_gives_each_sequence_its_own_tokens(
    directory: Path, truth: dict[int, list[int]]
) -> None:
    engine = engine_of(directory)
    sequences = [sequence_at(length, 25 * i) for i, length in enumerate(LENGTHS)]
    while any(len(sequence.output) < NEW for sequence in sequences):
        # Short prompts decode beside the chunks of the longer ones.
        advance(engine, [s for s in sequences if len(s.output) < NEW], chunk=16)
    assert {len(s.prompt): s.output for s in sequences} == truth


def test_a_step_longer_than_a_tile_gives_the_same_tokens(
    directory: Path, truth: dict[int, list[int]]
) -> None:
    engine = engine_of(directory)
    sequences = [sequence_at(150, 25 * i) for i in range(5)]
    while len(sequences[0].output) < NEW:
        advance(engine, sequences, chunk=512)
    assert [s.output for s in sequences] == [truth[150]] * 5


def test_scattered_blocks_hold_the_same_sequence(
    directory: Path, truth: dict[int, list[int]]
) -> None:
    engine = engine_of(directory)
    sequence = sequence_at(150, 0)
    blocks = list(sequence.blocks)
    sequence.blocks = [b * 7 % 251 for b in blocks[::2]] + [200 - b for b in blocks[1::2]]
    assert len(set(sequence.blocks)) == len(blocks)
    assert generate(engine, sequence, NEW, chunk=50) == truth[150]


def test_a_reused_prefix_gives_the_same_tokens(
    directory: Path, truth: dict[int, list[int]]
) -> None:
    engine = engine_of(directory)
    first = sequence_at(150, 0)
    generate(engine, first, NEW)
    shared = 9 * BLOCK
    second = sequence_at(150, 100)
    second.blocks = [*first.blocks[:9], *second.blocks[9:]]
    second.computed = shared
    assert generate(engine, second, NEW) == truth[150]


def test_prefill_and_decode_on_two_engines_give_the_same_tokens(
    directory: Path, truth: dict[int, list[int]]
) -> None:
    prefill, decode = engine_of(directory), engine_of(directory)
    spec = decode.model.kv
    layers, heads = range(spec.num_layers), range(spec.num_kv_heads)
    for length in LENGTHS:
        sender = sequence_at(length, 2)
        generate(prefill, sender, 1)
        receiver = sequence_at(length, 60)
        receiver.output, receiver.computed = list(sender.output), length
        filled = -(-length // BLOCK)
        # Layer by layer and head by head, as ranks of another layout would send it.
        for layer in layers:
            for head in heads:
                part = range(layer, layer + 1), range(head, head + 1)
                run = prefill.kv.read(sender.blocks[:filled], *part)
                decode.kv.write(receiver.blocks[:filled], *part, run)
        assert generate(decode, receiver, NEW) == truth[length]


def test_kv_of_bfloat16_survives_a_copy_bit_by_bit(directory: Path) -> None:
    one, other = engine_of(directory, "bfloat16"), engine_of(directory, "bfloat16")
    alone = sequence_at(67, 0)
    generate(one, alone, NEW)
    spec = one.model.kv
    everything = range(spec.num_layers), range(spec.num_kv_heads)
    moved = Running(alone.prompt, blocks_at(31, 80), output=alone.output[:1], computed=67)
    other.kv.write(moved.blocks[:9], *everything, one.kv.read(alone.blocks[:9], *everything))
    assert generate(other, moved, NEW) == alone.output
