"""What a serving process has loaded is not looked at again."""

from __future__ import annotations

import gc
import weakref

from eastwest.garbage import settle


class Loop:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


def test_what_is_loaded_is_left_alone_and_later_cycles_are_found() -> None:
    thresholds = gc.get_threshold()
    loaded = Loop()
    known = weakref.ref(loaded)
    try:
        settle()
        assert gc.get_freeze_count() > 0
        del loaded
        gc.collect()
        assert known() is not None
        later = weakref.ref(Loop())
        gc.collect()
        assert later() is None
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    gc.collect()
    assert known() is None
