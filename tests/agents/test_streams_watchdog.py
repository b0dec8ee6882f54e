"""Who waits for whom around a diamond of streams, and what helps."""

from hypothesis import given
from hypothesis import strategies as st
from tests.agents.fakes import task

from starloom.agents.streams.records import Bound
from starloom.agents.streams.watchdog import Enlarge, Hopeless, RoomWait, Waits, overdue, remedy, stuck
from starloom.dag import limits
from starloom.dag.ids import TaskToken

MOST = Bound(1_000, 1_000)
FOUR = Bound(4, 100)
A, B, C, D = (task(name) for name in "ABCD")


def full(port: str, *readers: TaskToken, bound: Bound = FOUR, kept: Bound | None = None) -> RoomWait:
    names = tuple(f"{reader.stage}.in" for reader in readers)
    return RoomWait(port, readers, names, kept or Bound(bound.chunks, 4), bound)


def diamond(**changed: Waits) -> dict[TaskToken, Waits]:
    """A feeds B, which gathers, and C, which does not; D joins them."""
    found = {
        A: Waits(rooms=(full("out", C, bound=Bound(8, 100)),)),
        B: Waits(producers=(A,)),
        C: Waits(rooms=(full("out", D),)),
        D: Waits(producers=(B,)),
    }
    return found | {task(name): waits for name, waits in changed.items()}


def test_diamond_that_waits_for_itself_gets_more_room_where_there_is_least() -> None:
    assert stuck(diamond()) == {A, B, C, D}
    assert remedy(diamond(), MOST) == Enlarge(C, "out", Bound(8, 100))


def test_room_is_given_in_what_is_full() -> None:
    by_bytes = Waits(rooms=(full("out", D, kept=Bound(2, 99)),))
    assert remedy(diamond(C=by_bytes), MOST) == Enlarge(C, "out", Bound(4, 200))


def test_who_computes_or_waits_for_the_world_may_go_on() -> None:
    waits = diamond()
    del waits[B]
    assert stuck(waits) == frozenset()
    assert remedy(waits, MOST) is None
    assert remedy(diamond(B=Waits(producers=(None,))), MOST) is None
    # It takes from whoever comes first.
    assert remedy(diamond(D=Waits(producers=(B, None))), MOST) is None


def test_reader_on_another_agent_is_not_taken_for_stuck_but_one_here_is() -> None:
    assert remedy(diamond(C=Waits(rooms=(full("out"),))), MOST) is None
    both = Waits(rooms=(full("out", D)._replace(names=("far.in", "D.in")),))
    assert remedy(diamond(C=both), MOST) is not None


def test_waits_for_chunks_alone_are_no_matter_of_room() -> None:
    assert stuck({A: Waits(producers=(B,)), B: Waits(producers=(A,))}) == frozenset()


def test_without_room_the_circle_is_named() -> None:
    found = remedy(diamond(), Bound(4, 100))
    assert found == Hopeless(
        C,
        "streams wait for each other, and no room is left: C waits for D to take from out, D waits for chunks of B, B waits for chunks of A, "
        "A waits for C to take from out",
    )


def test_larger_stream_is_enlarged_where_the_smallest_has_all_it_may() -> None:
    waits = diamond(C=Waits(rooms=(full("out", D, bound=Bound(4, 100)),)))
    waits[A] = Waits(rooms=(full("out", C, bound=Bound(4, 200), kept=Bound(3, 200)),))
    assert remedy(waits, Bound(4, 500)) == Enlarge(A, "out", Bound(4, 400))


def test_wait_that_lasts_too_long_is_told_with_what_it_waits_for() -> None:
    late = int(limits.STREAM_STALL_SECONDS * 1e9) + 1
    room = full("out")._replace(names=("far.in", "B.in"), since=5)
    assert list(overdue({A: Waits((room,))}, late + 4)) == []
    (found,) = overdue({A: Waits((room,)), B: Waits((), (A,))}, late + 5)
    assert found.task == A
    assert "out waits for far.in and B.in since STREAM_STALL_SECONDS" in found.why


TASKS = [task(name) for name in "abcdef"]
ONE = st.sampled_from(TASKS)
ROOMS = st.builds(lambda readers: full("out", *readers), st.lists(ONE, max_size=2))
WAITS = st.builds(
    Waits,
    st.lists(ROOMS, max_size=2).map(tuple),
    st.lists(ONE | st.none(), max_size=2).map(tuple),
)


@given(st.dictionaries(ONE, WAITS, max_size=6))
def test_whoever_is_stuck_waits_for_nobody_who_is_not(waits: dict[TaskToken, Waits]) -> None:
    found = stuck(waits)
    for one in found:
        assert waits[one] != Waits()
        assert all(producer in found for producer in waits[one].producers)
        assert all(set(room.readers) & found for room in waits[one].rooms)
    # And it is the largest such set: whoever is not in it waits for somebody who may go on.
    for one in waits.keys() - found if found else ():
        if waits[one] == Waits():
            continue
        helped = [producer not in found for producer in waits[one].producers]
        helped += [not set(room.readers) & found for room in waits[one].rooms]
        assert any(helped)
