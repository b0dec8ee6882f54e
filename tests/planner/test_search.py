"""Local search: all times stay exact, nothing gets worse, and what is known to be best is found."""

import itertools

import numpy as np
import pytest
from tests.planner.instances import NETWORKS, SHAPES, constrained, instance

from starloom.orchestrator.planner import halving, listing
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.decode import value_of
from starloom.orchestrator.planner.halving import Halving, Start
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.prepared import Board, Prepared, board, copy, plan_of, prepare
from starloom.orchestrator.planner.problem import Place, Problem, problem
from starloom.orchestrator.planner.search import Search
from starloom.orchestrator.planner.trail import begin, trail


def _start(prepared: Prepared) -> Board | None:
    made = board(prepared)
    table = listing.Table(prepared)
    ways = [*listing.classics(table), *listing.portfolio(table)]
    return made if any(listing.run(prepared, made, way) < 0 for way in ways) else None


def _searched(asked: Problem, seed: int) -> tuple[Prepared, Search] | None:
    prepared = prepare(asked)
    start = _start(prepared) if prepared.allowed.any(axis=1).all() else None
    if start is None or prepared.started.all():
        return None
    before = value_of(prepared, start)
    search = Search(prepared, start, seed)
    search.step(300)
    assert search.value <= before + 1e-9
    return prepared, search


@pytest.mark.parametrize("seed", range(40))
def test_times_stay_exact(seed: int) -> None:
    made = _searched(constrained(10 + seed, 4, seed), seed)
    if made is None:
        return
    prepared, search = made
    anew, along = board(prepared), trail(prepared, 0)
    copy(search.board, anew)
    anew.start[:] = 0.0
    begin(prepared, anew, along)
    np.testing.assert_allclose(anew.start, search.board.start, atol=1e-12)
    np.testing.assert_allclose(along.tail, search.trail.tail, atol=1e-12)
    assert value_of(prepared, search.board) == pytest.approx(float(search.values[0]))
    assert value_of(prepared, search.best) == pytest.approx(search.value)


@pytest.mark.parametrize("seed", range(40))
def test_what_shares_a_node_is_counted_right(seed: int) -> None:
    asked = constrained(30, 5, 1_000 + seed)
    made = _searched(asked, seed)
    if made is None:
        return
    prepared, search = made
    assert faults(asked, plan_of(asked, prepared, search.best, "search")) == []
    now = search.board
    running = prepared.seconds[np.arange(len(now.place)), now.place] > 0
    nodes = prepared.node[now.place]
    for model in range(len(prepared.weight)):
        here = running & (prepared.model == model)
        assert np.array_equal(now.users[model], np.bincount(nodes[here], minlength=len(prepared.memory)))
    for group in range(len(now.taken)):
        zones = prepared.zone[group, nodes[prepared.apart == group]]
        assert np.array_equal(now.taken[group], np.bincount(zones, minlength=len(prepared.memory)))
    takes = prepared.charge[np.arange(len(now.place)), now.place]
    np.testing.assert_allclose(now.drawn, np.bincount(nodes, weights=takes, minlength=len(now.drawn)), atol=1e-9)
    for place in np.flatnonzero(np.isfinite(prepared.memory)[prepared.node]):
        lanes = slice(prepared.lanes[place], prepared.upto[place])
        here = running & (now.place >= 0) & (prepared.lanes[now.place] == prepared.lanes[place])
        sizes = np.sort(prepared.working[here, prepared.variant[now.place[here]]])[::-1]
        most = np.zeros(len(now.top[lanes]))
        most[: len(sizes)] = sizes[: len(most)]
        np.testing.assert_allclose(now.top[lanes], most)


def test_search_finds_what_lists_miss() -> None:
    ratios = []
    for shape, network, seed in itertools.product(SHAPES, NETWORKS, range(3)):
        asked = instance(shape, network, 80, 10, 1.0, seed)
        ratios.append(plan(asked, Budget(1_000)).objective / plan(asked, Budget(0)).objective)
    assert np.mean(ratios) < 0.95
    assert max(ratios) <= 1.0


def test_the_best_split_of_a_bag_of_stages_is_found() -> None:
    seconds = [7.0, 7.0, 6.0, 6.0, 5.0, 5.0, 4.0, 4.0, 4.0]
    asked = problem([f"s{i}" for i in range(9)], [Place(name) for name in "abcd"], [[s] * 4 for s in seconds])
    assert plan(asked, Budget(2_000)).makespan == 12.0


def test_a_chain_that_no_few_stages_may_leave_goes_to_the_faster_node_as_a_whole() -> None:
    n, seconds = 11, [[2.0, 1.0, 2.0]] * 11
    chain = [(stage, stage + 1, 1.0) for stage in range(n - 1)]
    asked = problem([f"s{i}" for i in range(n)], [Place(name) for name in "abc"], seconds, chain, seconds_per_byte=50.0)
    prepared = prepare(asked)
    slow, table = board(prepared), listing.Table(prepared)
    alone = table.listing("on a", table.upward)._replace(wished=np.zeros(n, dtype=np.int64))
    assert listing.run(prepared, slow, alone) < 0
    assert value_of(prepared, slow) == 22.0
    search = Search(prepared, slow, 0)
    search.step(1_000)
    assert search.value == 11.0


class _Faked:
    """In a search's place: from each start, a number, it finds what is written down, after as many iterations in all."""

    found = {1.0: 1.0, 1.1: 1.1, 1.2: 0.8, 1.3: 0.9, 1.4: 1.4, 9.0: 0.0}
    made: list["_Faked"]

    def __init__(self, prepared: Prepared, first: float, seed: int) -> None:
        self.value, self.first, self.iterations = first, first, 0
        self.made.append(self)

    def step(self, iterations: int) -> None:
        self.iterations += iterations
        self.value = self.found[self.first]


@pytest.mark.parametrize(
    ("stages", "iterations", "tried"),
    [
        (100, 5_000, {1.0: 496, 1.1: 60, 1.2: 4_075, 1.3: 309, 1.4: 60}),
        (100, 350, {1.0: 350}),
        (800, 5_000, {1.0: 496, 1.1: 60, 1.2: 4_444}),
        (2_000, 5_000, {1.0: 5_000}),
    ],
)
def test_search_goes_on_from_the_starts_that_become_best(
    stages: int, iterations: int, tried: dict[float, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halving, "Search", _Faked)
    _Faked.made = []
    asked = problem([f"s{i}" for i in range(stages)], [Place("a")], 1.0, [])
    starts = [Start(value, value, "") for value in sorted(_Faked.found)]  # type: ignore[arg-type]
    searches = Halving(prepare(asked), starts, 0)
    assert searches.go_on(iterations, lambda: False)
    best = searches.found()[0]
    assert {each.first: each.iterations for each in _Faked.made} == tried
    assert best.value == min(each.value for each in _Faked.made)


def test_to_stop_and_to_go_on_is_the_same_as_not_to_stop() -> None:
    asked = instance("layered", "tiered", 60, 8, 1.0, seed=3)
    prepared = prepare(asked)
    starts = []
    for made in listing.classics(listing.Table(prepared)):
        full = board(prepared)
        assert listing.run(prepared, full, made) < 0
        starts.append(Start(value_of(prepared, full), full, made.method))
    starts.sort(key=lambda start: start.value)
    once, parts = Halving(prepared, starts, 5), Halving(prepared, starts, 5)
    assert once.go_on(1_500, lambda: False)
    assert not parts.go_on(1_500, lambda: True)
    assert not parts.go_on(1_500, lambda: True, least=37)
    for share in (37, 430, 431, 700, 1_500):
        assert parts.go_on(share, lambda: False)
    assert parts.made == once.made == 1_500
    assert [each.value for each in parts.found()] == [each.value for each in once.found()]
    assert np.array_equal(parts.found()[0].best.place, once.found()[0].best.place)


def test_cp_sat_mends_what_memory_makes_too_tight_for_lists() -> None:
    # By the clock the two never run together; the lists reckon that with two slots they might.
    asked = problem(["x", "y"], [Place("a", "cpu", 2)], 1.0, [(0, 1, 0.0)], working_bytes=2.0, memory_bytes=3.0)
    found = plan(asked, Budget(10))
    assert found.makespan == 2.0
    assert faults(asked, found) == []


def test_cp_sat_gives_a_plan_that_is_never_worse() -> None:
    asked = constrained(9, 3, 12)
    plain = plan(asked, Budget(0))
    better = plan(asked, Budget(0, effort=1.0))
    assert faults(asked, better) == []
    assert better.objective <= plain.objective + 1e-9


def test_places_are_given_out_where_lists_run_into_dead_ends() -> None:
    # The first stages are fastest on the small node, where only the last one fits in.
    names = ["x", "y", "z"]
    seconds = [[1.0, 9.0], [1.0, 9.0], [1.0, np.inf]]
    asked = problem(
        names,
        [Place("small"), Place("large")],
        seconds,
        [(0, 2, 0.0), (1, 2, 0.0)],
        models=["m", "n", "o"],
        model=[0, 1, 2],
        weight_bytes=[2.0, 2.0, 2.0],
        memory_bytes=[2.0, 9.0],
    )
    found = plan(asked, Budget(10))
    assert found.place.tolist() == [1, 1, 0]
