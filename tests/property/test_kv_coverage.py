"""The coverage map against a set of cells.

1. `add` is new exactly when some cell is new; `contains` when none is.
2. `complete` holds exactly when every cell has come.
3. `missing` tiles what has not come, without overlap, also when it is asked for in portions.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transfer.coverage import Coverage
from kv_transfer.plan import Region

untimed = settings(deadline=None)  # machines may be busy
WHOLE = Region(layers=range(2, 6), blocks=range(3, 10), heads=range(1, 4))

Cell = tuple[int, int, int]


def parts(whole: range) -> st.SearchStrategy[range]:
    edges = st.integers(whole.start, whole.stop)
    return st.tuples(edges, edges).map(lambda pair: range(min(pair), max(pair)))


regions = st.builds(Region, parts(WHOLE.layers), parts(WHOLE.blocks), parts(WHOLE.heads))


def cells(region: Region) -> set[Cell]:
    return {
        (layer, block, head)
        for layer in region.layers
        for block in region.blocks
        for head in region.heads
    }


@untimed
@given(st.lists(regions, max_size=12))
def test_it_agrees_with_a_set_of_cells(arrivals: list[Region]) -> None:
    coverage, model = Coverage(WHOLE), set[Cell]()
    for region in arrivals:
        new = cells(region) - model
        box = (region.layers, region.blocks, region.heads)
        assert coverage.contains(*box) == (not new)
        assert coverage.add(*box) == bool(new)
        model |= new
        assert coverage.complete == (model == cells(WHOLE))


@untimed
@given(st.lists(regions, max_size=12), st.integers(1, 20))
def test_what_is_missing_completes_it_without_overlap(arrivals: list[Region], limit: int) -> None:
    coverage, model = Coverage(WHOLE), set[Cell]()
    for region in arrivals:
        coverage.add(region.layers, region.blocks, region.heads)
        model |= cells(region)
    while not coverage.complete:
        missing = coverage.missing(limit)
        assert 0 < len(missing) <= limit
        for region in missing:
            assert cells(region)
            assert not cells(region) & model
            model |= cells(region)
            assert coverage.add(region.layers, region.blocks, region.heads)
    assert model == cells(WHOLE)
    assert coverage.missing() == []


def test_one_hole_is_one_region() -> None:
    coverage = Coverage(WHOLE)
    hole = Region(layers=range(3, 5), blocks=range(4, 8), heads=range(1, 4))
    for layer in WHOLE.layers:
        for block in WHOLE.blocks:
            if layer not in hole.layers or block not in hole.blocks:
                coverage.add(range(layer, layer + 1), range(block, block + 1), WHOLE.heads)
    assert coverage.missing() == [hole]


def test_an_empty_region_is_complete_from_the_start() -> None:
    coverage = Coverage(Region(range(4), range(7, 7), range(3)))
    assert coverage.complete
    assert coverage.missing() == []
