"""`eastwest roofline`: the talk's tables for any model and device, and one clear line for mistakes.

The command runs in this process, as a person types it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import main
from planner.hardware import device_names
from planner.models import model_names

LLAMA = ("--model", "llama-3-70b", "--hardware", "gb200-nvl72", "--weights", "fp8", "--kv", "fp8")


@pytest.fixture
def roofline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; ``(exit code, output, errors)``."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eastwest", "roofline", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


def row(text: str, *begins: str) -> list[str]:
    """Cells of the first line that begins with these words."""
    cells = (line.split() for line in text.splitlines())
    return next(words for words in cells if words[: len(begins)] == [*begins])


def test_it_prints_the_tables_of_the_talk(roofline: Any) -> None:
    code, out, err = roofline(*LLAMA)
    assert (code, err) == (0, "")
    assert "llama-3-70b on gb200-nvl72" in out
    assert row(out, "fp4")[3:] == ["1,250.0", "937.5", "312.5"]
    assert "8.89 times the scale-up links" in out
    assert row(out, "feed-forward")[1] == "704,643,072"
    assert "163,840 bytes of KV" in out
    # Batch, three times with their units, then the useful devices.
    assert row(out, "16")[7:10] == ["201.6", "45.5", "14.4"]
    own = out[out.index("a layer of 3 matrices") :]
    assert row(own, "16")[7] == "302.4"
    batches = out[out.index("latency against throughput") :]
    assert row(batches, "128")[-4] == "KV"
    assert row(batches, "1,024")[-6:-3] == ["does", "not", "fit"]
    assert "█" in out


def test_json_holds_the_numbers_in_si_units(roofline: Any, tmp_path: Path) -> None:
    path = tmp_path / "roofline.json"
    assert roofline(*LLAMA, "--batch", "24", "--json", str(path))[0] == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["memory_over_network"] == pytest.approx(8.889, abs=5e-4)
    assert report["latencies_s"] == [0.0, 1e-6, 3.8e-6]
    useful = {(r["matrices"], r["layer"]["batch"]): r["useful_devices"] for r in report["scale_up"]}
    assert useful[2, 16][0] == pytest.approx(201.6)
    assert (2, 24) in useful
    assert [p["batch"] for p in report["decode_by_batch"]] == [
        b["batch"] for b in report["balance"]
    ]
    phase = report["decode"]
    moved = sum(c["weight_bytes"] + c["kv_bytes"] for c in phase["components"])
    flops = sum(c["flops"] for c in phase["components"])
    assert phase["flops_per_byte"] == pytest.approx(flops / moved)


@pytest.mark.parametrize("model", model_names())
def test_every_model_has_a_roofline(roofline: Any, model: str) -> None:
    code, out, _ = roofline("--model", model, "--hardware", "h200-sxm")
    assert code == 0
    assert f"{model} on h200-sxm" in out


@pytest.mark.parametrize("hardware", device_names())
def test_every_device_has_one(roofline: Any, hardware: str) -> None:
    assert roofline("--model", "qwen3-0.6b", "--hardware", hardware)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "lama-3-70b"), "did you mean llama-3-70b"),
        (("--hardware", "gb200-nvl27"), "did you mean gb200-nvl72"),
        (("--weights", "fp7"), "number format 'fp7' is not known; did you mean fp8"),
        (("--activations", "fp7"), "number format 'fp7' is not known; did you mean fp8"),
        (("--batch", "0"), "batch is 0; allowed: 1 to 65,536 sequences"),
        (("--batch", "1000000"), "batch is 1,000,000; allowed: 1 to 65,536 sequences"),
        (("--isl", "8000000"), "isl is 8,000,000; allowed: 1 to 7,680 tokens"),
        (("--osl", "0"), "osl is 0; allowed: 1 to 8,191 tokens"),
        (("--devices", "0"), "devices is 0; allowed: 1 to 4,096"),
        (("--mfu", "40"), "mfu is 40; allowed: above 0, to 1"),
        (("--mfu", "nan"), "mfu is nan; allowed: above 0, to 1"),
        (("--json", "/no/such/folder/x.json"), "/no/such/folder/x.json cannot be written"),
    ],
)
def test_a_mistake_gets_one_clear_line(
    roofline: Any, arguments: tuple[str, str], message: str
) -> None:
    code, _, err = roofline(*LLAMA, *arguments)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_the_curves_are_drawn(roofline: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is part of the plan extra")
    pytest.importorskip("plotly", reason="plotly is part of the plan extra")
    png, html = tmp_path / "x.png", tmp_path / "x.html"
    assert roofline(*LLAMA, "--png", str(png), "--html", str(html))[0] == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "useful scale-up" in html.read_text(encoding="utf-8")


@pytest.mark.parametrize(("flag", "library"), [("--png", "matplotlib"), ("--html", "plotly")])
def test_curves_without_the_extra_name_it(
    roofline: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flag: str, library: str
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    code, _, err = roofline(*LLAMA, flag, str(tmp_path / "x"))
    assert code == 1
    assert f"{flag} needs {library}, which is not installed; install eastwest[plan]" in err
