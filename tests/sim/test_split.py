"""`eastwest bench split --simulate`: real router and workers in virtual time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.split.points import Point
from tests.commands import eastwest

OPTIONS = (
    "--simulate", "h100-sxm:2", "--isl", "2048", "--osl", "32", "--ttft", "200ms", "--tpot", "15ms",
    "--within", "0.5", "--requests", "200", "--splits", "2A,1P1D",
)  # fmt: skip


def test_a_sweep_finds_goodput_and_says_where_the_time_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, output = tmp_path / "journal", tmp_path / "split.json"
    files = ("--journal", str(journal), "--json", str(output))
    code, out, err = eastwest(monkeypatch, capsys, "bench", "split", *OPTIONS, *files)
    assert code == 0
    assert "SIMULATED: 2 workers of 1 h100-sxm, llama-3.1-8b" in out
    tree = json.loads(output.read_text())
    assert tree["verdict"]["headline"] in out
    assert [s["split"] for s in tree["splits"]] == ["2A", "1P1D"]
    for split in tree["splits"]:
        rates = {p["rate"]: p["attained"] for p in split["points"]}
        assert rates[split["goodput"]] >= 0.9
        assert min(r for r, attained in rates.items() if attained < 0.9) > split["goodput"]
        for point in split["points"]:
            low, high = point.pop("attained_interval")
            assert low <= point["attained"] <= high
            assert point["requests"] >= 180
            # What TTFT is made of sums to it: means, and here of nearly the same requests.
            assert sum(point["parts_s"]) > 0
            Point(**point)
    assert len(journal.read_text().splitlines()) == 1 + sum(
        len(s["points"]) for s in tree["splits"]
    )
    # Nothing is run again, and it comes to the same.
    monkeypatch.setattr("bench.split.simulated.SimulatedWorkers.run", None)
    code, again, _ = eastwest(
        monkeypatch, capsys, "bench", "split", *OPTIONS, "--journal", str(journal)
    )
    assert code == 0
    assert again == "".join(out.splitlines(keepends=True)[:-1])
    assert err.count("[1/2] 2A at") == len(tree["splits"][0]["points"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--simulate", "h100-sxm"), "--simulate is 'h100-sxm'; allowed: a device and how many"),
        (("--simulate", "h100-sxm:1"), "from 2"),
        (("--simulate", "abacus:4"), "abacus"),
        (("--simulate", "h100-sxm:4", "--model", "no-such"), "no-such"),
        (("--simulate", "h100-sxm:4", "--splits", "1P1D"), "1P1D has 2 workers; allowed: 4"),
        (("--simulate", "h100-sxm:4", "--splits", "x"), "'x' is no split"),
        (("--simulate", "h100-sxm:4", "--ttft", "2"), "--ttft"),
        (("--simulate", "h100-sxm:4", "--share", "1"), "--share is 1"),
        (("--simulate", "h100-sxm:4", "--trace", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--simulate", "h100-sxm:4", "--isl", "200000"), "200,064 tokens"),
        (("--simulate", "h100-sxm:4", "--tp", "3"), "cannot be split over 3"),
        (("--simulate", "h100-sxm:4", "--model", "llama-3.1-70b"), "--tp"),
        (("--simulate", "h100-sxm:4", "--tp", "0"), "--tp is 0; allowed: 1 to 4"),
        (("--workers", "1"), "at least 2"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    words: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = eastwest(monkeypatch, capsys, "bench", "split", *words)
    assert code == 1
    assert said in " ".join(err.split())
    assert "Traceback" not in err
