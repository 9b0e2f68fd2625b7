"""Predictions held against what others measured; the rows are read beside the project."""

from __future__ import annotations

import statistics

import pytest

from bench.h200_rows import ROWS, Published, measured_rows, published

rows_needed = pytest.mark.skipif(
    not ROWS.exists(), reason="no measured H200 rows beside the project"
)


@rows_needed
def test_held_out_rows_are_predicted_within_the_goals() -> None:
    held_out = [row for row in measured_rows() if row.held_out]
    assert len(held_out) > 200
    predictions = [row.predict() for row in held_out]
    pairs = list(zip(predictions, held_out, strict=True))
    assert statistics.median(abs(p.tpot_s / row.tpot_s - 1) for p, row in pairs) <= 0.10
    assert statistics.median(abs(p.ttft_s / row.ttft_s - 1) for p, row in pairs) <= 0.20


@rows_needed
def test_predictions_are_not_lopsided() -> None:
    pairs = [(row.predict(), row) for row in measured_rows() if row.held_out]
    assert abs(statistics.median(p.tpot_s / row.tpot_s - 1 for p, row in pairs)) <= 0.05
    assert abs(statistics.median(p.ttft_s / row.ttft_s - 1 for p, row in pairs)) <= 0.10


@pytest.mark.parametrize("deployment", list(published()), ids=lambda d: d.what)
def test_published_deployments_are_within_half(deployment: Published) -> None:
    assert 1 / 1.5 < deployment.predict() / deployment.tokens_per_s < 1.5


def test_published_deployments_are_about_right_together() -> None:
    ratios = [d.predict() / d.tokens_per_s for d in published()]
    assert statistics.median(abs(ratio - 1) for ratio in ratios) <= 0.20
