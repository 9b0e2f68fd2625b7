"""A whole calibration with the real parts, on a small random model and a small grid."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from deploy import calibrate_cli
from deploy.calibrate import machine
from deploy.calibrate.repeated import Effort
from deploy.calibrate.steps import Grid
from eastwest.config import Config
from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout
from planner.cost import CostModel, Row
from planner.hardware import read_device
from planner.hf_config import read_model
from planner.precision import Precision
from tests.checkpoints import tiny_checkpoint

# With no steps beyond the context of a tiny model but one, which is left out.
TINY = replace(
    machine.QUICK_DEPTH,
    grid=Grid((8, 32, 128), (0, 128), (1, 4, 8), (16, 256, 4096), ((Row(16, 0, 4),),)),
    effort=Effort(20.0, 3, 5),
    link_rounds=3,
    link_bytes=8 << 20,
)


@pytest.fixture
def tiny_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "QUICK_DEPTH", TINY)
    # A machine that runs other tests too may be anything; what a fit makes of it is not the point.
    monkeypatch.setattr(machine, "_MEDIAN_ERROR_MAX", math.inf)


@pytest.mark.usefixtures("tiny_depth")
@pytest.mark.parametrize(
    ("architecture", "model", "precision"),
    [
        ("llama", {"dtype": "float32"}, "fp32"),
        ("mixtral", {"dtype": "bfloat16", "quantization": "int8"}, "int8w"),
    ],
)
def test_this_machine_becomes_a_device(
    tmp_path: Path, architecture: str, model: dict[str, str], precision: str
) -> None:
    source = tiny_checkpoint(architecture, tmp_path / "model")
    config = Config.model_validate({"model": {"source": str(source), **model}})
    output = tmp_path / "this-machine.yaml"
    console = Console(record=True, width=120)
    calibrate_cli.run_calibrate(config, output, console, quick=True, force=False)

    device = read_device(output)
    assert device.measured
    assert device.name == "this-machine"
    assert 0 < device.efficiency.link <= 1
    assert device.memory.bytes_per_s > 0
    assert device.scale_out.latency_s > 0
    assert device.stack is not None
    assert device.stack.name == "eastwest"
    # The file is all that a plan needs.
    named = Precision.named(precision)
    cost = CostModel(read_model(source), ParallelLayout(), named, device, device.stack)
    for rows in ([Row(64, 0)], [Row(1, 100, 8)], [Row(64, 0), Row(1, 100, 8)]):
        assert 0 < cost.step(rows).seconds < math.inf

    shown = console.export_text()
    assert "4 x prompt 16 after 0" in shown
    assert "nan" not in shown
    assert "left out" in shown


def test_an_existing_file_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "mine.yaml"
    output.write_text("name: mine", encoding="utf-8")
    config = Config.model_validate({"model": {"source": str(tmp_path / "absent")}})
    with pytest.raises(ConfigError, match=r"mine.yaml exists; allowed: .*--force"):
        calibrate_cli.run_calibrate(config, output, Console(), quick=True, force=False)
    with pytest.raises(ConfigError, match="is no directory"):
        calibrate_cli.run_calibrate(
            config, tmp_path / "absent" / "x.yaml", Console(), quick=True, force=False
        )
