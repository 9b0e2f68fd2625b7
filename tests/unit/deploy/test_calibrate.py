"""What a calibration decides: what it measures, which times count, what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.calibrate.links import Link
from deploy.calibrate.machine import device_yaml, rounded
from deploy.calibrate.peaks import Probe, peaks_of
from deploy.calibrate.repeated import Effort, affordable, interleaved, typical_s
from deploy.calibrate.steps import FULL, QUICK, blocks_of, fitting, measured_steps
from deploy.calibrate_cli import device_name, write_new
from eastwest.errors import ConfigError, InvalidArgument
from eastwest.layout import KVSpec
from eastwest.messages import ModelInfo
from planner.cost import Row
from planner.fit import step_unknowns
from planner.hardware import find_device, read_device
from planner.model_shape import ModelShape
from planner.precision import Precision
from planner.serving import precision_of
from planner.stacks import Stack


class Machine:
    """A clock, and pieces of work that advance it: each by its next time, the last one for ever."""

    def __init__(self, *times: Sequence[float]) -> None:
        self._now_ns = 0
        self._times = [list(each) for each in times]
        self.works = [lambda i=i: self._run(i) for i in range(len(times))]
        self.order: list[int] = []

    def now_ns(self) -> int:
        return self._now_ns

    def wall_s(self) -> float:
        return self._now_ns / 1e9

    def _run(self, index: int) -> None:
        times = self._times[index]
        self._now_ns += round(1e9 * (times.pop(0) if len(times) > 1 else times[0]))
        self.order.append(index)


def test_pieces_take_turns_and_the_warm_up_does_not_count() -> None:
    machine = Machine([9.0, 1.0, 1.1, 1.2], [9.0, 2.0])
    times = interleaved(machine.works, machine, Effort(100.0, 3, 3))
    assert machine.order == [0, 1] * 4
    assert times[0] == pytest.approx([1.0, 1.1, 1.2])
    assert times[1] == pytest.approx([2.0, 2.0, 2.0])


def test_rounds_end_with_the_budget_but_not_before_the_fewest() -> None:
    slower_than_first = Machine([1.0, 10.0])
    assert len(interleaved(slower_than_first.works, slower_than_first, Effort(10.0, 3, 9))[0]) == 3
    steady = Machine([1.0])
    assert len(interleaved(steady.works, steady, Effort(8.0, 3, 9))[0]) == 7


def test_what_the_budget_has_no_room_for_is_left_out() -> None:
    machine = Machine([1.0], [6.0], [1.0], [40.0], [1.0])
    times = interleaved(machine.works, machine, Effort(60.0, 3, 5))
    # The fourth ends the warm-up; then the second gives way.
    assert [len(each) for each in times] == [5, 0, 5, 0, 0]
    assert 4 not in machine.order
    assert affordable([1.0, 5.0, 2.0], 9.0, 3) == [0, 2]
    assert affordable([5.0], 9.0, 3) == []


def test_progress_grows_to_no_more_than_all() -> None:
    told: list[float] = []
    machine = Machine([1.0, 5.0])
    interleaved(machine.works, machine, Effort(6.0, 3, 9), told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_typical_time_is_a_low_one_and_not_the_luckiest() -> None:
    assert typical_s([3.0]) == 3.0
    assert typical_s([9.0, 1.0, 1.2, 1.1, 7.0, 1.3, 8.0, 0.2]) == 1.1


def test_the_grids_tell_all_figures_and_begin_with_what_is_cheap() -> None:
    small = ModelShape(
        "small", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn_size=128, vocab=256,
        context_tokens=8192, windows=(None, None), tied=True,
    )  # fmt: skip
    figures = step_unknowns(small, Precision.named("bf16"), {"bf16": 1e12})
    for grid in (QUICK, FULL):
        steps = grid.steps()
        assert len(steps) > len(figures)
        assert steps[0] == (Row(1, 128, 1),)


def test_steps_fit_the_context_and_the_kv() -> None:
    steps = [(Row(1, 511),), (Row(1, 512),), (Row(8, 8, 3),), (Row(16, 0), Row(1, 16, 2))]
    assert [blocks_of(rows, 16) for rows in steps] == [32, 33, 3, 5]
    assert fitting(steps, 512, 512, 16) == [steps[0], steps[2], steps[3]]
    assert fitting(steps, 4096, 64, 16) == [steps[2]]


def test_steps_without_times_are_not_measured() -> None:
    steps = [(Row(1, 16),), (Row(8, 0),)]
    (only,) = measured_steps(steps, [[], [2.0]])
    assert (only.rows, only.seconds, only.kind) == (steps[1], 2.0, "prefill")


def test_peaks_are_of_the_best_run_of_the_best_probe() -> None:
    probes = [Probe(rate, 100.0, lambda: None) for rate in ("copy", "read", "read", "fp32", "bf16")]
    peaks = peaks_of(probes, [[1.0], [2.0, 4.0], [1.0, 0.5], [0.1], [0.2]])
    assert (peaks.copy_bytes_per_s, peaks.read_bytes_per_s) == (100.0, 200.0)
    # bfloat16 can be widened: it is as fast as float32 where its own arithmetic is slower.
    assert peaks.flops_per_s == {"fp32": 1000.0, "bf16": 1000.0}
    with pytest.raises(InvalidArgument, match="too slowly"):
        peaks_of(probes, [[1.0], [], [], [0.1], [0.2]])


def test_a_link_is_what_a_large_message_adds() -> None:
    link = Link.between(1e-3, 11e-3, 1e7 + 64, 64, "a push")
    assert link.latency_s == 1e-3
    assert link.bytes_per_s == pytest.approx(1e9)
    for small_s, large_s in ((2e-3, 1e-3), (1e-3, 1e-3), (-1.0, 1.0)):
        with pytest.raises(InvalidArgument, match="a push: 64 bytes took"):
            Link.between(small_s, large_s, 1e7, 64, "a push")


def test_the_engine_s_formats_have_the_planner_s_names() -> None:
    def info(dtype: str, kv: str) -> ModelInfo:
        spec = KVSpec(1, 1, 8, 8, kv)
        return ModelInfo("m", "f", "a", dtype, 128, 64, (), spec)

    plain = precision_of(info("float32", "float32"), "none")
    assert plain == Precision("fp32", "fp32", "fp32", "fp32", "fp32", "fp32")
    narrow = precision_of(info("bfloat16", "float8_e4m3"), "int8")
    assert narrow == Precision("int8w", "int8w", "int8w", "int8w", "fp8", "bf16")


def test_what_is_written_is_read_back_as_it_was(tmp_path: Path) -> None:
    device = find_device("h100-sxm").model_copy(update={
        "name": "written", "measured": True, "sources": ("one: 'two'", "three # four"),
        "stack": Stack(name="eastwest", layer_s=1.23456789e-5, expert_matmul={"bf16": 1 / 3}),
    })  # fmt: skip
    short = rounded(device)
    assert short.stack is not None
    assert (short.stack.layer_s, short.stack.expert_matmul) == (1.235e-5, {"bf16": 0.3333})
    path = tmp_path / "written.yaml"
    write_new(path, device_yaml(short), force=False)
    assert read_device(path) == short
    write_new(tmp_path / "exact.yaml", device_yaml(device), force=False)
    assert read_device(tmp_path / "exact.yaml") == device


def test_files_are_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "kept.yaml"
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"kept.yaml cannot be written: File exists"):
        write_new(path, "new", force=False)
    assert path.read_text(encoding="utf-8") == "precious"
    write_new(path, "new", force=True)
    assert path.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize(
    ("file", "name"),
    [("calibrated.yaml", "calibrated"), ("My Box (2).yaml", "my-box-2-"), ("_.yaml", "calibrated")],
)
def test_a_device_is_called_after_its_file(file: str, name: str) -> None:
    assert device_name(Path(file)) == name
