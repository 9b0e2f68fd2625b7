"""`eastwest bench split`, live: real workers, the default model, a search over rates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def test_a_split_is_measured_live(tmp_path: Path) -> None:
    output = tmp_path / "split.json"
    words = (
        "--workers", "2", "--splits", "1P1D", "--isl", "64", "--osl", "4", "--requests", "10",
        "--ttft", "1s", "--tpot", "5s", "--within", "1.0", "--json", str(output),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "bench", "split", *words],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "live, 2 workers" in done.stdout
    (split,) = json.loads(output.read_text())["splits"]
    assert split["points"]
    for point in split["points"]:
        assert point["split"] == "1P1D"
        # Every run is a tenant of its own.
        assert point["cached_share"] == 0.0
        if not point["stopped"]:
            assert point["failed"] == 0
            assert point["ttft_s"][0] > 0
            assert point["tokens_per_s"] > 0
