"""Parts of a time sum exactly to it, whatever the workers report."""

from hypothesis import given
from hypothesis import strategies as st

from eastwest.timing import split
from router.requests import Marks

NS = st.integers(0, 10**12)


@given(st.integers(-5, 10**12), st.lists(st.integers(-(10**12), 10**13), max_size=5))
def test_split_is_exact_and_never_negative(total: int, parts: list[int]) -> None:
    fitted, rest = split(total, parts)
    assert sum(fitted) + rest == max(0, total)
    assert min([*fitted, rest]) >= 0
    assert all(f <= max(0, p) for f, p in zip(fitted, parts, strict=True))


@given(st.lists(NS, min_size=6, max_size=6), NS, NS, NS, NS)
def test_the_parts_of_ttft_and_of_the_second_gap_sum_exactly(
    times: list[int], queue: int, imported: int, decode_queue: int, step: int
) -> None:
    accepted, admitted, dispatched, reserved, first, delivered = sorted(times)
    marks = Marks(
        accepted_ns=accepted,
        admitted_ns=admitted,
        dispatched_ns=dispatched,
        reserved_ns=reserved,
        first_token_ns=first,
        second_token_ns=first + 77,
        last_token_ns=first + 99,
        prefill_queue_ns=queue,
        import_ns=imported,
        decode_queue_ns=decode_queue,
        first_step_ns=step,
    )
    timing = marks.timing(delivered)
    assert timing.ttft.total_ns == delivered - accepted
    assert timing.second is not None
    assert timing.second.total_ns == 77
    parts = (*_parts(timing.ttft), *_parts(timing.second))
    assert min(parts) >= 0


def _parts(value: object) -> list[int]:
    return [getattr(value, name) for name in value.__slots__]  # type: ignore[attr-defined]
