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

from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import ModelInfo
from eastwest.ports import StepProgress, StepRow
from eastwest.testing.kv_memory import ArrayKVMemory
from eastwest.types import SampledToken, SamplingParams, TopLogprob

SPEC = KVSpec(num_layers=3, num_kv_heads=2, key_dim=4, value_dim=2, dtype="float32")
VOCAB = 512
EOS = 0
# Longer than any rank needs to come to a step.
MEETING_S = 60.0

Floats = npt.NDArray[np.float32]


def simulated_model(context_tokens: int = 4096, spec: KVSpec = SPEC) -> ModelInfo:
    """What the simulated engine says of itself."""
    return ModelInfo(
        name="simulated",
        fingerprint="simulated-kv-checksum",
        architecture="SimulatedForCausalLM",
        dtype=spec.dtype,
        context_tokens=context_tokens,
        vocab_size=VOCAB,
        eos_ids=(EOS,),
        kv=spec,
    )


def kv_of(token: int, position: int, spec: KVSpec = SPEC) -> Floats:
    """The KV of one token: ``[layer][K then V, flat over heads and dims]``, distinct everywhere."""
    width = spec.num_kv_heads * (spec.key_dim + spec.value_dim)
    base = np.float32((token * 31 + position * 7) % 8191)
    grid = np.arange(spec.num_layers * width, dtype=np.float32)
    return (base + grid.reshape(spec.num_layers, width) / 128).astype(np.float32)


def next_token(kv: Floats, params: SamplingParams, generated: int, banned: Sequence[int]) -> int:
    """The token after a sequence whose KV is `kv`, ``[token][layer][width]``."""
    seed = 0 if params.greedy else (params.seed or 0) * 1009 + generated + 1
    token = 1 + xxh3_64_intdigest(np.ascontiguousarray(kv).tobytes(), seed) % (VOCAB - 1)
    return token if token not in banned else token % (VOCAB - 1) + 1


def expected_output(
    prompt: Sequence[int],
    count: int,
    params: SamplingParams | None = None,
    spec: KVSpec = SPEC,
) -> list[int]:
    """What any correct serving of `prompt` gives, ending tokens aside."""
    params = params or SamplingParams(temperature=0.0)
    tokens = list(prompt)
    width = spec.num_kv_heads * (spec.key_dim + spec.value_dim)
    kv = np.empty((len(tokens) + count, spec.num_layers, width), np.float32)
    for position, token in enumerate(tokens):
        kv[position] = kv_of(token, position, spec)
    for generated in range(count):
        tokens.append(next_token(kv[: len(tokens)], params, generated, ()))
        kv[len(tokens) - 1] = kv_of(tokens[-1], len(tokens) - 1, spec)
    return tokens[len(prompt) :]


class SimulatedEngine:
    """Implements `eastwest.ports.Engine`: one rank alone, or of a group (`simulated_group`).

    While `gate` is cleared, steps after the first `free_steps` wait for it; `held` is set when
    one does. `fail_next` is raised by the next step.
    """

    def __init__(
        self,
        num_blocks: int,
        block_tokens: int,
        context_tokens: int = 4096,
        *,
        spec: KVSpec = SPEC,
        layout: ParallelLayout | None = None,
        rank: int = 0,
    ) -> None:
        self.model = simulated_model(context_tokens, spec)
        self.layout = layout or ParallelLayout()
        self.rank = rank
        self.expert_tokens: tuple[int, ...] = ()
        self.kv = ArrayKVMemory(spec, shard_of(spec, self.layout, rank), num_blocks, block_tokens)
        # The whole group's KV, which the leader reads, and where its ranks meet in each step.
        self.group: list[ArrayKVMemory] = [self.kv]
        self.meeting = threading.Barrier(1)
        self.gate = threading.Event()
        self.gate.set()
        self.free_steps = 0
        self.held = threading.Event()
        self.steps: list[list[StepRow]] = []
        self.closed = False
        self.fail_next: Exception | None = None

    def step(
        self, rows: Sequence[StepRow], progress: StepProgress | None = None
    ) -> list[SampledToken | None]:
        self.steps.append(list(rows))
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        if len(self.steps) > self.free_steps and not self.gate.is_set():
            self.held.set()
            self.gate.wait()
        own = [row for row in rows if self._group_of(row) == self.layout.group(self.rank)]
        ends = [row.start + (len(row.tokens) if row in own else 0) for row in rows]
        for layer in self.kv.shard.layers:
            for row in own:
                self._put(row, layer)
            if progress is not None:
                progress(range(layer, layer + 1), ends)
        # A rank that has died breaks the meeting for the others.
        self.meeting.wait(MEETING_S)
        if self.rank != self.layout.leader:
            return [None] * len(rows)
        return [self._sample(row) for row in rows]

    def close(self) -> None:
        self.closed = True
        if len(self.group) > 1:
            self.meeting.abort()

    def _group_of(self, row: StepRow) -> int:
        return row.blocks[0] // self.kv.num_blocks

    def _place(self, row: StepRow, position: int) -> int:
        """The slot of a position, in a rank of the row's group."""
        size = self.kv.block_tokens
        own = row.blocks[position // size] % self.kv.num_blocks
        return own * size + position % size

    def _put(self, row: StepRow, layer: int) -> None:
        """Write this rank's heads of one layer of the row's new tokens."""
        spec, shard = self.kv.spec, self.kv.shard
        at = layer - shard.layers.start
        for position, token in enumerate(row.tokens, row.start):
            flat = kv_of(token, position, spec)[layer]
            split = spec.num_kv_heads * spec.key_dim
            for plane, part in zip(self.kv.planes, (flat[:split], flat[split:]), strict=False):
                heads = part.reshape(spec.num_kv_heads, -1)[shard.heads.start : shard.heads.stop]
                bytes_ = np.ascontiguousarray(heads).view(np.uint8)
                plane[at, :, self._place(row, position)] = bytes_

    def _sample(self, row: StepRow) -> SampledToken | None:
        if row.sample is None:
            return None
        sample, length = row.sample, row.start + len(row.tokens)
        slots = [self._place(row, position) for position in range(length)]
        token = next_token(self._kv(row, slots), sample.params, len(sample.output), sample.banned)
        if sample.params.logprobs is None:
            return SampledToken(token)
        return SampledToken(token, -0.5, (TopLogprob(token, -0.5),))

    def _kv(self, row: StepRow, slots: Sequence[int]) -> Floats:
        """``[token][layer][width]``, from the shards of all ranks of the row's group."""
        spec = self.kv.spec
        whole = [
            np.zeros((spec.num_layers, spec.num_kv_heads, len(slots), size), np.uint8)
            for size in (spec.key_bytes, spec.value_bytes)
        ]
        ranks = self.layout.ranks_of_group(self._group_of(row))
        members = [self.group[rank] for rank in ranks] if len(self.group) > 1 else self.group
        for memory in members:
            layers, heads = memory.shard.layers, memory.shard.heads
            for plane, held in zip(whole, memory.planes, strict=False):
                plane[layers.start : layers.stop, heads.start : heads.stop] = held[:, :, slots]
        parts = [plane.view(np.float32).transpose(2, 0, 1, 3) for plane in whole if plane.size]
        return np.concatenate([p.reshape(len(slots), spec.num_layers, -1) for p in parts], axis=2)


def simulated_group(
    layout: ParallelLayout, num_blocks: int, block_tokens: int, spec: KVSpec = SPEC
) -> list[SimulatedEngine]:
    """All ranks of a replica, in one process, a thread each; num_blocks: of one rank."""
    engines = [
        SimulatedEngine(num_blocks, block_tokens, spec=spec, layout=layout, rank=rank)
        for rank in range(layout.world_size)
    ]
    meeting = threading.Barrier(len(engines))
    for engine in engines:
        engine.group, engine.meeting = [e.kv for e in engines], meeting
    return engines
