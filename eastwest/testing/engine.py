"""A SIMULATED engine whose tokens depend on every byte of KV before them.

For tests of everything around the engine: it computes no model, but a token that differs from
`expected_output` means that some KV was lost, misplaced or mixed up on its way.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from eastwest.layout import KVSpec, ParallelLayout, Shard
from eastwest.messages import ModelInfo
from eastwest.ports import StepRow
from eastwest.testing.kv_memory import ArrayKVMemory
from eastwest.types import SampledToken, SamplingParams, TopLogprob

SPEC = KVSpec(num_layers=3, num_kv_heads=2, key_dim=4, value_dim=2, dtype="float32")
VOCAB = 512
EOS = 0

Floats = npt.NDArray[np.float32]


def simulated_model(context_tokens: int = 4096) -> ModelInfo:
    """What the simulated engine says of itself."""
    return ModelInfo(
        name="simulated",
        fingerprint="simulated-kv-checksum",
        architecture="SimulatedForCausalLM",
        dtype=SPEC.dtype,
        context_tokens=context_tokens,
        vocab_size=VOCAB,
        eos_ids=(EOS,),
        kv=SPEC,
    )


def kv_of(token: int, position: int) -> Floats:
    """The KV of one token: ``[layer][K then V, flat over heads and dims]``, distinct everywhere."""
    width = SPEC.num_kv_heads * (SPEC.key_dim + SPEC.value_dim)
    base = np.float32((token * 31 + position * 7) % 8191)
    grid = np.arange(SPEC.num_layers * width, dtype=np.float32)
    return (base + grid.reshape(SPEC.num_layers, width) / 128).astype(np.float32)


def next_token(kv: Floats, params: SamplingParams, generated: int, banned: Sequence[int]) -> int:
    """The token after a sequence whose KV is `kv`, ``[token][layer][width]``."""
    seed = 0 if params.greedy else (params.seed or 0) * 1009 + generated + 1
    token = 1 + xxh3_64_intdigest(np.ascontiguousarray(kv).tobytes(), seed) % (VOCAB - 1)
    return token if token not in banned else token % (VOCAB - 1) + 1


def expected_output(
    prompt: Sequence[int], count: int, params: SamplingParams | None = None
) -> list[int]:
    """What any correct serving of `prompt` gives, ending tokens aside."""
    params = params or SamplingParams(temperature=0.0)
    tokens = list(prompt)
    for generated in range(count):
        kv = np.stack([kv_of(token, position) for position, token in enumerate(tokens)])
        tokens.append(next_token(kv, params, generated, ()))
    return tokens[len(prompt) :]


class SimulatedEngine:
    """Implements `eastwest.ports.Engine`.

    While `gate` is cleared, steps after the first `free_steps` wait for it; `held` is set when
    one does. `fail_next` is raised by the next step.
    """

    def __init__(self, num_blocks: int, block_tokens: int, context_tokens: int = 4096) -> None:
        self.model = simulated_model(context_tokens)
        self.layout = ParallelLayout()
        shard = Shard(range(SPEC.num_layers), range(SPEC.num_kv_heads))
        self.kv = ArrayKVMemory(SPEC, shard, num_blocks, block_tokens)
        self.gate = threading.Event()
        self.gate.set()
        self.free_steps = 0
        self.held = threading.Event()
        self.steps: list[list[StepRow]] = []
        self.closed = False
        self.fail_next: Exception | None = None

    def step(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        self.steps.append(list(rows))
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        if len(self.steps) > self.free_steps and not self.gate.is_set():
            self.held.set()
            self.gate.wait()
        return [self._run(row) for row in rows]

    def close(self) -> None:
        self.closed = True

    def _run(self, row: StepRow) -> SampledToken | None:
        size = self.kv.block_tokens
        for offset, token in enumerate(row.tokens):
            position = row.start + offset
            self._put(row.blocks[position // size], position % size, kv_of(token, position))
        if row.sample is None:
            return None
        sample, length = row.sample, row.start + len(row.tokens)
        kv = np.stack(
            [self._get(row.blocks[position // size], position % size) for position in range(length)]
        )
        token = next_token(kv, sample.params, len(sample.output), sample.banned)
        if sample.params.logprobs is None:
            return SampledToken(token)
        return SampledToken(token, -0.5, (TopLogprob(token, -0.5),))

    def _put(self, block: int, slot: int, kv: Floats) -> None:
        keys, values = np.split(kv, [SPEC.num_kv_heads * SPEC.key_dim], axis=1)
        for array, part in ((self.kv.keys, keys), (self.kv.values, values)):
            bytes_ = np.ascontiguousarray(part).view(np.uint8)
            array[:, :, block, slot] = bytes_.reshape(SPEC.num_layers, SPEC.num_kv_heads, -1)

    def _get(self, block: int, slot: int) -> Floats:
        parts = [
            np.ascontiguousarray(array[:, :, block, slot])
            .reshape(SPEC.num_layers, -1)
            .view(np.float32)
            for array in (self.kv.keys, self.kv.values)
        ]
        return np.concatenate(parts, axis=1)
