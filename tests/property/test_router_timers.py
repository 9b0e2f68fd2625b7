"""Timers behave like a table of times that is searched in full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.timers import Timers

NAMES = st.sampled_from("abcdef")
STEPS = st.one_of(
    st.tuples(st.just("set"), NAMES, st.integers(0, 50)),
    st.tuples(st.just("cancel"), NAMES, st.just(0)),
    st.tuples(st.just("due"), st.just(""), st.integers(0, 50)),
)


@given(st.lists(STEPS, max_size=300))
def test_timers_match_a_table(steps: list[tuple[str, str, int]]) -> None:
    timers, table = Timers(), dict[str, int]()
    for step, name, when in steps:
        if step == "set":
            timers.set(name, when)
            table[name] = when
        elif step == "cancel":
            timers.cancel(name)
            table.pop(name, None)
        else:
            due = sorted((at, name) for name, at in table.items() if at <= when)
            assert timers.due(when) == [name for _, name in due]
            table = {name: at for name, at in table.items() if at > when}
        assert timers.next_ns() == min(table.values(), default=None)
        assert len(timers) == len(table)
        assert all(name in timers for name in table)


def test_timers_that_move_often_are_not_lost() -> None:
    timers = Timers()
    timers.set("still", 1000)
    for when in range(500):
        timers.set("moving", 2000 - when)
    assert timers.due(1000) == ["still"]
    assert timers.due(2000) == ["moving"]
    assert timers.next_ns() is None
