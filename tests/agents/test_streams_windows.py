"""Windows over a stream and joins of several, beside what is computed from whole lists."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starloom.agents.stage import Received
from starloom.agents.streams.joins import Join, Joined
from starloom.agents.streams.windows import CountWindows, TimeWindows, Window
from starloom.dag.errors import InvalidInput, StageError
from starloom.dag.values import Full


def at(*seconds: float) -> list[Received]:
    return [Received(value=second, offset=offset, at=second) for offset, second in enumerate(seconds)]


def found(windows: list[Window]) -> list[list[Any]]:
    return [[item.value for item in window.items] for window in windows]


def run(windows: CountWindows | TimeWindows, items: list[Received]) -> list[Window]:
    return [window for item in items for window in windows.add(item)] + windows.close()


@pytest.mark.parametrize(
    ("size", "step", "expected"),
    [
        (3, 0, [[0, 1, 2], [3, 4, 5], [6]]),
        (3, 1, [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]]),
        (3, 2, [[0, 1, 2], [2, 3, 4], [4, 5, 6]]),
        (2, 3, [[0, 1], [3, 4], [6]]),
        (9, 0, [[0, 1, 2, 3, 4, 5, 6]]),
    ],
)
def test_windows_by_count(size: int, step: int, expected: list[list[int]]) -> None:
    assert found(run(CountWindows(size, step), at(*range(7)))) == expected


@given(st.integers(1, 8), st.integers(0, 9), st.integers(0, 40))
def test_windows_by_count_are_slices_and_leave_nothing_out_unless_the_step_does(
    size: int, step: int, count: int
) -> None:
    windows = found(run(CountWindows(size, step), at(*range(count))))
    by = step or size
    whole = [list(range(start, start + size)) for start in range(0, count - size + 1, by)]
    assert windows[: len(whole)] == whole
    assert len(windows) <= len(whole) + 1
    if by <= size:
        assert sorted({value for window in windows for value in window}) == list(range(count))


def test_greater_generation_ends_what_is_open() -> None:
    counted = CountWindows(3)
    timed = TimeWindows(10)
    for windows in (counted, timed):
        for item in at(1, 2):
            assert windows.add(item) == []
        assert windows.add(Received("new", 2, generation=1, at=3)) == []
        assert windows.add(Received("old", 3, generation=0, at=3)) == []
        assert windows.stale == 3
        assert found(windows.close()) == [["new"]]


def test_windows_by_time_close_when_the_watermark_has_passed_them() -> None:
    windows = TimeWindows(2.0, lateness=1.0)
    first, second, third, fourth = at(0.5, 2.5, 1.9, 3.0)
    assert windows.add(first) == windows.add(second) == windows.add(third) == []
    (closed,) = windows.add(fourth)
    assert (closed.start, closed.end) == (0.0, 2.0)
    assert found([closed]) == [[0.5, 1.9]]
    assert windows.add(Received("late", 4, at=1.0)) == []
    assert windows.late == 1
    assert found(windows.close()) == [[2.5, 3.0]]


def test_windows_by_time_that_overlap_or_leave_gaps() -> None:
    assert found(run(TimeWindows(2.0, 1.0), at(0.5, 1.5, 2.5))) == [[0.5], [0.5, 1.5], [1.5, 2.5], [2.5]]
    gaps = TimeWindows(1.0, 2.0)
    assert found(run(gaps, at(0.5, 1.5, 2.5))) == [[0.5], [2.5]]
    assert gaps.late == 0


@given(
    st.lists(st.integers(0, 400), max_size=30),
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(0, 60),
)
def test_windows_by_time_have_all_that_is_in_them_or_it_is_late(
    tenths: list[int], size: int, step: int, lateness: int
) -> None:
    windows = TimeWindows(size / 10, step / 10, lateness / 10)
    given_ = run(windows, at(*(value / 10 for value in tenths)))
    starts = [window.start or 0.0 for window in given_]
    assert starts == sorted(set(starts))
    for window in given_:
        assert window.items
        assert window.start is not None
        assert all(window.start <= (item.at or 0) < (window.end or 0) for item in window.items)
    offsets = {item.offset for window in given_ for item in window.items}
    # Where steps leave gaps, chunks may lie in none.
    covered = {n for n, value in enumerate(tenths) if value % step < size or step <= size}
    assert len(covered - offsets) == windows.late
    if not tenths or lateness >= max(tenths) - min(tenths):
        assert windows.late == 0


@pytest.mark.parametrize("wrong", [(0.0,), (-1.0,), (1.0, -1.0), (1.0, 1.0, -1.0), (1_000.0, 0.001)])
def test_windows_that_cannot_be_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInput):
        TimeWindows(*wrong)


@pytest.mark.parametrize("wrong", [(0,), (-1,), (1, -1), (1_000_000,)])
def test_counts_that_cannot_be_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput):
        CountWindows(*wrong)


def test_chunk_without_a_time_is_told() -> None:
    with pytest.raises(StageError, match="does not say its time"):
        TimeWindows(1.0).add(Received(1, 7))
    with pytest.raises(StageError, match="chunk 7 of a"):
        Join(["a", "b"], 1.0).add("a", Received(1, 7))


def joined(join: Join, streams: dict[str, list[Received]]) -> list[Joined]:
    """Feeds the streams as whoever blocks does: always that which is behind."""
    left = {name: list(items) for name, items in streams.items()}
    pairs: list[Joined] = []
    while (name := join.lagging()) is not None:
        pairs += join.add(name, left[name].pop(0)) if left[name] else join.end(name)
    return pairs


def test_join_takes_the_nearest_within_the_tolerance() -> None:
    join = Join(["frame", "scan"], 0.1)
    pairs = joined(join, {"frame": at(0.0, 1.0, 2.0, 3.0), "scan": at(0.05, 0.95, 1.02, 2.2)})
    assert [(pair.at, pair.items["scan"].value) for pair in pairs] == [(0.0, 0.05), (1.0, 1.02)]
    assert join.unmatched == 2


TIMES = st.lists(st.integers(0, 60), max_size=20).map(sorted)


@given(TIMES, TIMES, TIMES, st.integers(0, 8))
def test_join_is_what_whole_lists_give(leader: list[int], left: list[int], right: list[int], tolerance: int) -> None:
    streams = {name: at(*values) for name, values in (("leader", leader), ("left", left), ("right", right))}
    join = Join(list(streams), float(tolerance))
    pairs = joined(join, streams)

    def nearest(items: list[int], time: int) -> int | None:
        best = min(items, key=lambda value: (abs(value - time), value), default=None)
        return best if best is not None and abs(best - time) <= tolerance else None

    both = [(time, nearest(left, time), nearest(right, time)) for time in leader]
    expected = [found_ for found_ in both if None not in found_]
    assert [(p.at, p.items["left"].value, p.items["right"].value) for p in pairs] == expected
    assert join.unmatched == len(leader) - len(expected)
    assert join.late == 0


def test_what_runs_backwards_is_late() -> None:
    join = Join(["a", "b"], 1.0)
    for second in (5.0, 4.0, 6.0):
        join.add("b", Received(second, at=second))
    assert join.late == 1


@pytest.mark.parametrize(("full", "left"), [(Full.OLDEST, [7.0, 8.0, 9.0]), (Full.LATEST, [9.0])])
def test_live_join_drops_what_waits_for_a_silent_stream(full: Full, left: list[float]) -> None:
    join = Join(["frame", "scan"], 1.0, full, most=3)
    for item in at(*range(10)):
        assert join.add("frame", item) == []
    assert join.dropped == 10 - len(left)
    given_ = [pair.at for item in at(7.5, 8.5, 9.5) for pair in join.add("scan", item)]
    assert given_ == left


def test_live_join_keeps_no_more_of_a_stream_whose_leader_is_silent() -> None:
    join = Join(["frame", "scan"], 100.0, Full.OLDEST, most=3)
    for item in at(*range(10)):
        join.add("scan", item)
    (pair,) = join.add("frame", Received("f", at=0.0))
    assert pair.items["scan"].value == 7.0


def test_generation_empties_a_join() -> None:
    join = Join(["a", "b"], 1.0)
    join.add("a", Received("old", at=9.0))
    join.add("b", Received("new", generation=1, at=1.0))
    assert join.add("b", Received("older", generation=0, at=9.0)) == []
    (pair,) = join.add("a", Received("newer", generation=1, at=1.0))
    assert {name: item.value for name, item in pair.items.items()} == {"a": "newer", "b": "new"}
    assert join.stale == 2


@pytest.mark.parametrize("wrong", [(["a"], 1.0), (["a", "b"], -1.0)])
def test_join_that_cannot_be_is_refused(wrong: tuple[list[str], float]) -> None:
    with pytest.raises(InvalidInput):
        Join(*wrong)
