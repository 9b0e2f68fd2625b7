"""Drives an engine by hand, and asks `transformers` for the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import transformers

from eastwest.blocks import blocks_for
from eastwest.config import KVConfig, ModelConfig, PoolConfig
from eastwest.ports import SampleInput, StepRow
from eastwest.types import SampledToken, SamplingParams
from engine.torch_engine import TorchEngine, load_engine
from tests.checkpoints import VOCAB

GREEDY = SamplingParams(temperature=0.0)
BLOCK = 8


def engine_of(
    directory: Path, dtype: str = "float32", quantization: str = "none", kv_dtype: str = "auto"
) -> TorchEngine:
    model = ModelConfig.model_validate({"dtype": dtype, "quantization": quantization})
    pool = PoolConfig.model_validate({"kv_tokens": 2048, "kv_dtype": kv_dtype})
    return load_engine(directory, model, pool, KVConfig(block_tokens=BLOCK))


def a_prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()


@dataclass
class Running:
    """One sequence in an engine: its tokens, its blocks, and how far its KV reaches."""

    prompt: list[int]
    blocks: Sequence[int]
    params: SamplingParams = GREEDY
    output: list[int] = field(default_factory=list)
    computed: int = 0

    def row(self, chunk: int) -> StepRow:
        """The next row: a chunk of the prompt, or the last token."""
        tokens = [*self.prompt, *self.output]
        part = tokens[self.computed : self.computed + chunk]
        sampling = self.computed + len(part) == len(tokens)
        sample = SampleInput(self.params, self.prompt, tuple(self.output)) if sampling else None
        return StepRow(part, self.computed, self.blocks, sample)

    def took(self, row: StepRow, sampled: SampledToken | None) -> None:
        self.computed += len(row.tokens)
        if sampled is not None:
            self.output.append(sampled.token)


def blocks_at(first: int, tokens: int) -> range:
    """Consecutive blocks from `first` for `tokens` tokens."""
    return range(first, first + blocks_for(tokens, BLOCK))


def advance(engine: Stepping, sequences: Sequence[Running], chunk: int) -> None:
    """One step in which every sequence takes part."""
    rows = [sequence.row(chunk) for sequence in sequences]
    for sequence, row, sampled in zip(sequences, rows, engine.step(rows), strict=True):
        sequence.took(row, sampled)


def generate(engine: Stepping, sequence: Running, count: int, chunk: int = 512) -> list[int]:
    while len(sequence.output) < count:
        advance(engine, [sequence], chunk)
    return sequence.output


class Stepping(Protocol):
    """What is driven here: an engine, or all ranks of one."""

    def step(self, rows: Sequence[StepRow]) -> list[SampledToken | None]: ...


class Oracle:
    """`transformers` on the same directory."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype
        ).eval()

    def logits(self, tokens: Sequence[int], last: int = 0) -> torch.Tensor:
        """``[tokens, vocab]`` float32; of the last `last` positions, 0 for all."""
        with torch.inference_mode():
            output = self._model(torch.tensor([list(tokens)]), logits_to_keep=last)
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """Greedy, without any cache of its own: every token from the whole sequence."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens, last=1)[-1].argmax()))
        return tokens[len(prompt) :]
