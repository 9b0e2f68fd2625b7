"""Every transcript in ``tests/transcripts`` reads as the scheduler would write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.router.transcript import rewritten

TRANSCRIPTS = sorted((Path(__file__).parents[2] / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_scheduler_acts_as_written(path: Path, rewrite: bool) -> None:
    written = path.read_text(encoding="utf-8")
    if rewrite:
        path.write_text(rewritten(written), encoding="utf-8")
    else:
        assert rewritten(written) == written


def test_there_are_transcripts() -> None:
    assert TRANSCRIPTS
