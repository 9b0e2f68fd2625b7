"""The worked inference examples of the JAX scaling book (inference.md, applied-inference.md), by
the planner.

Each test holds the figures at the paths that it names, of `scaling_book.yaml` in the reference.
Where the book slips, the test holds the right value and says so. The book reads memory at
8.2e11 B/s in most examples and at the data sheet's 8.1e11 in others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from planner.hardware import Device, device_from, find_device
from planner.memory import kv_of_sequence
from planner.model_shape import ModelShape
from planner.models import find_model
from planner.precision import Precision, bytes_of
from planner.roofline import (
    WHOLE,
    critical_batch,
    devices_for,
    fit,
    prefills_per_decode,
    requests_per_s,
    scale_up,
    step_bound,
    sweep_s,
    that_fit,
    tokens_freed_per_step,
)
from planner.work import dense_work
from tests.unit.planner.reference import roofline_reference

approx = pytest.approx
US, MS = 1e-6, 1e-3
SHEET = find_device("tpu-v5e")


def like_v5e(fields: str) -> Device:
    return device_from(f"{{like: tpu-v5e, name: book, {fields}}}", "the book's device")


V5E = like_v5e("memory: {bytes_per_s: 8.2e+11}")
LLAMA3 = find_model("llama-3-70b")
LLAMA2 = find_model("llama-2-13b")
# The model of the book's exercises; how far it sees is not used.
WORKED = ModelShape(
    name="worked", layers=64, hidden=4096, heads=32, kv_heads=8, head_dim=256, ffn_size=16384,
    vocab=32128, context_tokens=131072, windows=(None,) * 64, tied=True,
)  # fmt: skip
# What the figures are computed from, or where they are from.
GIVEN = (
    "source", "formula_step_time", "tpu_v5e", "pop_quiz.setup", "llama2_13b_v5e_8chips.dtype",
    "llama2_13b_v5e_8chips.ctx", "llama2_13b_v5e_8chips.unit_note",
    *(f"worked_problem_model.{field}" for field in ("L", "D", "F", "N", "K", "H", "V", "tied")),
    "worked_problem_model.kv_per_token_note",
)  # fmt: skip
HELD: set[str] = set(GIVEN)
Test = TypeVar("Test", bound=Callable[..., None])


def holds(*paths: str) -> Callable[[Test], Test]:
    """Names the figures of the book that a test holds."""
    HELD.update(paths)
    return lambda test: test


def leaves(tree: Any, path: str = "") -> Iterator[str]:
    """Paths of all figures; rows of a table share theirs."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list):
        for row in tree:
            yield from leaves(row, path)
    else:
        yield path


def test_each_worked_number_of_the_book_is_held() -> None:
    figures = set(leaves(roofline_reference("scaling_book.yaml")))
    assert figures
    missing = {f for f in figures if not any(f == h or f.startswith(f"{h}.") for h in HELD)}
    assert not missing
    stale = {h for h in HELD if not any(f == h or f.startswith(f"{h}.") for f in figures)}
    assert not stale


def all_in(dtype: str) -> Precision:
    return Precision(dtype, dtype, dtype, dtype, dtype, dtype)


@holds("pop_quiz")
@pytest.mark.parametrize(("batch", "ms", "book_ms"), [(4, 2.568, 2.5), (256, 21.05, 21)])
def test_pop_quiz(batch: int, ms: float, book_ms: float) -> None:
    """30e9 weights in 8 bits, multiplied in 16; the larger batch waits for arithmetic."""
    work = dense_work(30e9, batch, "int8w", kv_bytes=batch * 8192 * 100e3)
    step = step_bound(work, like_v5e("memory: {bytes_per_s: 8.1e+11}"), devices=16)
    assert step.seconds == approx(ms * MS, rel=0.002)
    assert step.seconds == approx(book_ms * MS, rel=0.03)


# Llama-2-13B on 8 devices.


@holds("llama2_13b_v5e_8chips.params")
def test_llama2_sizes() -> None:
    assert LLAMA2.layers * LLAMA2.dense_ffn_params == approx(8.5e9, rel=0.01)
    assert LLAMA2.embedding_params == approx(0.3e9, rel=0.1)
    assert LLAMA2.layers * LLAMA2.attention_params == approx(4.2e9, rel=0.01)
    assert LLAMA2.total_params == approx(13e9, rel=0.01)


@holds("llama2_13b_v5e_8chips.kv_cache_8192_bf16_bytes", "llama2_13b_v5e_8chips.kv_book_gb")
def test_llama2_kv() -> None:
    kv = kv_of_sequence(LLAMA2, WHOLE, all_in("bf16"), 8192)
    assert kv == 6_710_886_400 == approx(6.7e9, rel=0.002)
    # The book sees the end at 16 sequences, whose KV alone has room: beside the weights, 15 fit.
    assert int(fit(LLAMA2, all_in("bf16"), V5E, 8192, devices=8).sequences) == 15


def check_llama2(batch: int, kv_gb: float, ms: float, tokens_per_s: float, each_gb: float) -> None:
    assert batch * each_gb == approx(kv_gb, abs=0.005)
    step = step_bound(dense_work(13e9, batch, "bf16", batch * each_gb * 1e9), V5E, devices=8)
    assert step.seconds == approx(ms * MS, abs=0.006 * MS)
    assert requests_per_s(batch, step.seconds, osl=1) == approx(tokens_per_s, rel=1e-4)


@holds("llama2_13b_v5e_8chips.mha")
@pytest.mark.parametrize(
    ("batch", "kv_gb", "ms", "tokens_per_s"),
    [
        (1, 6.7, 4.98, 200.61),
        (8, 53.6, 12.13, 659.30),
        (16, 107.2, 20.30, 787.99),
        (32, 214.4, 36.65, 873.21),
        (64, 428.8, 69.33, 923.13),
        (240, 1608.0, 249.09, 963.53),
    ],
)
def test_llama2_steps(batch: int, kv_gb: float, ms: float, tokens_per_s: float) -> None:
    check_llama2(batch, kv_gb, ms, tokens_per_s, each_gb=6.7)


@holds("llama2_13b_v5e_8chips.gmqa_1_to_5")
@pytest.mark.parametrize(
    ("batch", "kv_gb", "ms", "tokens_per_s"),
    [
        (1, 1.34, 4.17, 239.94),
        (8, 10.72, 5.60, 1429.19),
        (16, 21.44, 7.23, 2212.48),
        (32, 42.88, 10.50, 3047.62),
        (64, 85.76, 17.04, 3756.62),
        (240, 321.6, 52.99, 4529.34),
    ],
)
def test_llama2_steps_with_a_fifth_of_the_kv(
    batch: int, kv_gb: float, ms: float, tokens_per_s: float
) -> None:
    fewer = replace(LLAMA2, kv_heads=LLAMA2.kv_heads // 5)
    each = kv_of_sequence(fewer, WHOLE, all_in("bf16"), 8192)
    assert each == approx(1.34e9, rel=0.002)
    check_llama2(batch, kv_gb, ms, tokens_per_s, each_gb=1.34)


# Llama-3-70B.


@holds("llama3_70b_v5e.kv_per_token_int8", "llama3_70b_v5e.kv_32k_gb")
def test_llama3_kv() -> None:
    assert kv_of_sequence(LLAMA3, WHOLE, all_in("int8"), 1) == 163_840
    assert kv_of_sequence(LLAMA3, WHOLE, all_in("int8"), 32768) == approx(5.37e9, rel=0.001)


@holds("llama3_70b_v5e.B240_32k")
def test_llama3_memory_at_a_large_batch() -> None:
    kv = 240 * kv_of_sequence(LLAMA3, WHOLE, all_in("int8"), 32768)
    assert kv == approx(1.288e12, rel=0.001)
    assert devices_for(V5E, kv + 70e9) == approx(84.9, abs=0.05)  # the book: 86


@holds("llama3_70b_v5e.B32_8k_int8")
def test_llama3_at_batch_32() -> None:
    kv = 32 * kv_of_sequence(LLAMA3, WHOLE, all_in("int8"), 8000)
    assert kv == approx(41.9e9, rel=0.002)
    assert kv + 70e9 == approx(112e9, rel=0.002)
    assert devices_for(V5E, kv + 70e9) == approx(7, rel=0.002)
    work = dense_work(70e9, 32, "int8", kv)
    step = step_bound(work, SHEET, devices=8)
    assert step.seconds == approx(17.28 * MS, rel=0.001)
    assert requests_per_s(32, 17 * MS, osl=1) == approx(1882, abs=0.5)
    assert requests_per_s(32, 17 * MS, osl=1) / 8 == approx(235, abs=0.5)
    assert step_bound(work, SHEET, devices=16).seconds == approx(8.64 * MS, rel=0.001)  # book: 8.5


@holds("llama3_70b_v5e.b_crit")
def test_critical_batches() -> None:
    assert critical_batch(V5E, "bf16") == approx(240, abs=0.5)
    assert critical_batch(V5E, "int8w") == approx(120, abs=0.5)
    assert critical_batch(V5E, "int8") == approx(240, abs=0.5)


@holds(
    "llama3_70b_v5e.min_topology_book",
    "llama3_70b_v5e.min_topology_recomputed",
    "llama3_70b_v5e.min_topology_errata",
    "llama3_70b_v5e.qps_per_chip_book",
)
@pytest.mark.parametrize(
    ("dtype", "weights_gb", "least", "chips", "left_gb", "sequences", "rate"),
    [
        ("bf16", 140, 8.75, 16, 116, 43, 0.269),
        # The book: 68 GB, 52 sequences and 0.66; its 4x2 slice has 128 GB, of which 70 are taken.
        ("int8", 70, 4.375, 8, 58, 43, 0.538),
        # The book: weights of 45 GB, 19 GB, 67 sequences and 1.72; 70e9 in 4 bits are 35 GB.
        ("fp4", 35, 2.1875, 4, 29, 43, 1.077),
    ],
)
def test_least_slices(
    dtype: str, weights_gb: int, least: float, chips: int, left_gb: int, sequences: int, rate: float
) -> None:
    weights = 70e9 * bytes_of(dtype)
    assert weights == weights_gb * 1e9
    assert devices_for(V5E, weights) == least
    each = kv_of_sequence(LLAMA3, WHOLE, all_in(dtype), 8192)
    memory = chips * V5E.memory.bytes
    assert memory - weights == left_gb * 1e9
    assert int(that_fit(memory, weights, each)) == sequences
    per_chip = requests_per_s(sequences, sweep_s(V5E), osl=512) / chips
    assert per_chip == approx(rate, rel=1e-3)


@holds("llama3_70b_v5e.full_hbm_step_ms_book", "llama3_70b_v5e.full_hbm_step_ms")
def test_a_step_over_all_memory() -> None:
    assert sweep_s(V5E) == approx(19.51 * MS, abs=0.005 * MS)


@holds("llama3_70b_v5e.doubled_topology")
@pytest.mark.parametrize(
    ("dtype", "chips", "left_gb", "book", "rate"),
    [("bf16", 32, 372, 0.51, 0.432), ("int8", 16, 186, 1.03, 0.863), ("fp4", 8, 93, 2.06, 1.727)],
)
def test_doubled_slices(dtype: str, chips: int, left_gb: int, book: float, rate: float) -> None:
    """The book has 186 GB and 161 sequences on 4x8 in bf16, and rates that follow from them;
    372 GB are left there, and 138 sequences fit in each row."""
    weights = 70e9 * bytes_of(dtype)
    assert chips * V5E.memory.bytes - weights == left_gb * 1e9
    each = kv_of_sequence(LLAMA3, WHOLE, all_in(dtype), 8192)
    sequences = int(that_fit(chips * V5E.memory.bytes, weights, each))
    assert sequences == 138
    assert requests_per_s(sequences, sweep_s(V5E), osl=512) / chips == approx(rate, abs=5e-4)
    assert requests_per_s(161, 19 * MS, osl=512) / chips == approx(book, rel=0.02)


@holds("llama3_70b_v5e.comms_4x8_B64_us")
def test_a_layer_over_32_devices() -> None:
    """All in 8 bits, two matrices; the book's figures are 11, 18 and 4."""
    layer = scale_up(LLAMA3, all_in("int8"), SHEET, 64, matrices=2)
    assert layer.network_s == approx(11.65 * US, abs=0.005 * US)
    assert layer.memory_s / 32 == approx(18.12 * US, abs=0.005 * US)
    assert layer.compute_s / 32 == approx(4.77 * US, abs=0.005 * US)


@holds("llama3_70b_v5e.Y_max")
def test_useful_scale_up() -> None:
    # Compute-bound on v5p, over two axes of the torus: 2 F / 2550.
    v5p = device_from(
        "{like: tpu-v5p, name: two-axes, scale_up: {bytes_per_s: 3.6e+11}}", "two axes"
    )
    many = scale_up(LLAMA3, all_in("bf16"), v5p, 1000, matrices=2)
    assert many.useful() == approx(22.49, abs=0.005)
    # The book takes memory to be 8 times as fast as a link; of v5e's data sheet it is 9 times.
    eight = like_v5e("memory: {bytes_per_s: 7.2e+11}")
    assert scale_up(LLAMA3, all_in("int8"), eight, 64, matrices=2).useful() == approx(56)
    assert scale_up(LLAMA3, all_in("int8"), SHEET, 64, matrices=2).useful() == approx(
        49.8, abs=0.05
    )


@holds("llama3_70b_v5e.prefill_8192_16chips_40mfu_s_book", "llama3_70b_v5e.prefill_s")
def test_prefill() -> None:
    step = step_bound(dense_work(70e9, 8192, "bf16"), V5E, devices=16, mfu=0.4)
    assert step.seconds == approx(0.9096, abs=5e-5)


@holds("llama3_70b_v5e.evict_tokens_per_step")
def test_tokens_freed_each_step() -> None:
    assert tokens_freed_per_step(8192, 4096, 32) == 96


@holds("llama3_70b_v5e.pd_ratio")
def test_prefills_per_decode() -> None:
    assert prefills_per_decode(0.91, 0.019, 512, 32) == approx(2.993, abs=5e-4)


# The exercises.


@holds("worked_problem_model.params_book", "worked_problem_model.params")
def test_worked_model_size() -> None:
    assert WORKED.total_params == 18_385_207_296 == approx(18.4e9, rel=0.001)


@holds("worked_problem_model.kv_per_token_int8")
def test_worked_model_kv() -> None:
    assert kv_of_sequence(WORKED, WHOLE, all_in("int8"), 1) == 262_144


@holds("worked_problem_model.q2_maxbatch_128k_int8_16chips")
def test_worked_model_batch() -> None:
    int8 = all_in("int8")
    held = fit(WORKED, int8, V5E, 131_072, devices=16)
    assert held.memory_bytes - held.weight_bytes == approx(237.6e9, rel=1e-3)
    assert held.sequences == approx(6.92, abs=0.005)
    one_head = replace(WORKED, kv_heads=1)
    each = kv_of_sequence(one_head, WHOLE, int8, 131_072)
    assert that_fit(held.memory_bytes, held.weight_bytes, each) == approx(55.32, abs=0.01)
    # Fewer KV heads also weigh less.
    assert fit(one_head, int8, V5E, 131_072, devices=16).sequences == approx(55.54, abs=0.01)


@holds("worked_problem_model.q3_param_load_ms_int8_16chips")
def test_worked_model_weights() -> None:
    step = step_bound(dense_work(WORKED.total_params, 1, "int8"), SHEET, devices=16)
    assert step.seconds == approx(1.42 * MS, abs=0.005 * MS)
