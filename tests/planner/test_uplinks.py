"""Up-links that nodes share: times held to a plain simulation, to what is known by hand, and to the checker."""

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.instances import constrained, instance

from starloom.dag.constellation import Goal, Measure
from starloom.dag.errors import Infeasible
from starloom.orchestrator.planner import check, contending, halving
from starloom.orchestrator.planner.bills import Rates
from starloom.orchestrator.planner.check import SLACK, faults
from starloom.orchestrator.planner.contending import Look, contended
from starloom.orchestrator.planner.goals import Asked, find
from starloom.orchestrator.planner.pacing import find_paced
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import PROVEN, Place, Plan, Problem, Uplink, problem
from starloom.orchestrator.planner.search import WAYS, Search, Ways
from starloom.orchestrator.planner.steady import pace
from starloom.orchestrator.planner.timing import bound_together, in_order, loaders, retimed, spans
from starloom.orchestrator.planner.uplinks import carried, channels_between, lags, passers, shared, timed

SHORT = Budget(iterations=40)
ROBOTS = [Place("r1"), Place("r2"), Place("edge", slots=4)]
WIFI = Uplink("wifi", (0, 1), 10.0, 10.0, half=True)
DSL = Uplink("dsl", (0, 1), 5.0, 10.0)


def sent(uplink: Uplink, sizes: tuple[float, ...] = (100.0, 100.0), **more: Any) -> tuple[Problem, Plan]:
    """Values from one robot each, made at 1 s, to the edge node, over links of 50 bytes a second, and the plan without contention."""
    n = len(sizes)
    seconds = np.full((2 * n, 3), np.inf)
    for index in range(n):
        seconds[index, index % 2] = 1.0
        seconds[n + index, 2] = 1.0
    edges = [(index, n + index, size) for index, size in enumerate(sizes)]
    names = [f"s{index}" for index in range(2 * n)]
    free = problem(names, ROBOTS, seconds, edges, seconds_per_byte=0.02, **more)
    what = shared(free, (uplink,))
    return what, plan(what.free, SHORT)


def passes(uplink: Uplink, a: int, b: int) -> dict[str, int]:
    """How often what goes from a to b takes each way of an up-link."""
    if a == b:
        return {}
    if uplink.half:
        return {uplink.name: (a in uplink.nodes) + (b in uplink.nodes)}
    return {
        "up": int(a in uplink.nodes and b not in uplink.nodes),
        "down": int(b in uplink.nodes and a not in uplink.nodes),
    }


def fair(flows: dict[int, dict[Any, int]], own: dict[int, float], rates: dict[Any, float]) -> dict[int, float]:
    """Max-min fair rates: all are raised together, and each stops when its own link or a way is full."""
    speed, free = dict.fromkeys(flows, 0.0), set(flows)
    while free:
        used = {way: sum(flows[flow].get(way, 0) * speed[flow] for flow in flows) for way in rates}
        weight = {way: sum(flows[flow].get(way, 0) for flow in free) for way in rates}
        steps = [(rates[way] - used[way]) / weight[way] for way in rates if weight[way]]
        step = max(0.0, min([*steps, *(own[flow] - speed[flow] for flow in free)]))
        for flow in free:
            speed[flow] += step
        full = {way for way in rates if weight[way] and used[way] + step * weight[way] >= rates[way] * (1 - 1e-9)}
        free -= {
            flow for flow in free if speed[flow] >= own[flow] * (1 - 1e-9) or any(flows[flow].get(way) for way in full)
        }
    return speed


def simply(what: Problem, made: Plan) -> tuple[np.ndarray[Any, Any], float]:
    """Starts and makespan of a plan by a simulation in plain loops: everything is looked at anew at each event."""
    arrays, n, e = what.arrays, len(made.place), len(what.arrays.upstream)
    asked, nodes, turn = spans(what, made.place, made.loads), arrays.node[made.place], in_order(what, made.start)
    bound, led = bound_together(arrays)[made.place], loaders(arrays, made, nodes)
    takes = made.finish > made.start + SLACK
    behind: dict[int, list[int]] = {stage: [] for stage in range(n)}
    for at, stage in enumerate(turn):
        for other in turn[:at]:
            ended = made.finish[other] <= made.start[stage] + SLACK / 2
            if takes[stage] and takes[other] and bound[other] == bound[stage] and ended:
                behind[stage].append(other)
    ways: dict[int, dict[Any, int]] = {}
    for edge in range(e):
        a, b = int(nodes[arrays.upstream[edge]]), int(nodes[arrays.downstream[edge]])
        for number, uplink in enumerate(what.uplinks):
            for way, times in passes(uplink, a, b).items():
                if times and arrays.size_bytes[edge] > 0:
                    ways.setdefault(edge, {})[number, way] = times
    rates = {
        (i, way): rate
        for i, u in enumerate(what.uplinks)
        for way, rate in ((u.name, u.up), ("up", u.up), ("down", u.down))
    }
    own = {
        edge: 1 / float(arrays.seconds_per_byte[nodes[arrays.upstream[edge]], nodes[arrays.downstream[edge]]])
        for edge in ways
    }
    start: dict[int, float] = {int(stage): 0.0 for stage in np.flatnonzero(arrays.started)}
    there: dict[int, float] = {}
    left: dict[int, float] = {}
    now = 0.0
    while True:
        for _ in range(n + 1):
            finish = {stage: start[stage] + asked.run[stage] for stage in start}
            for edge in range(e):
                if edge not in ways and int(arrays.upstream[edge]) in finish:
                    there[edge] = finish[int(arrays.upstream[edge])] + asked.lag[edge]
            for stage in set(range(n)) - set(start):
                inputs = np.flatnonzero(arrays.downstream == stage).tolist()
                known = all(edge in there for edge in inputs) and all(other in finish for other in behind[stage])
                if known and (stage not in led or led[stage] in start):
                    soon = [
                        asked.base[stage],
                        *(there[edge] for edge in inputs),
                        *(finish[other] for other in behind[stage]),
                    ]
                    soon += [start[led[stage]] + asked.load[led[stage]]] if stage in led else []
                    start[stage] = max(soon)
        for edge in ways:
            up = int(arrays.upstream[edge])
            if up in finish and finish[up] <= now + 1e-12 and edge not in left:
                left[edge] = float(arrays.size_bytes[edge])
        going = {edge: ways[edge] for edge, bytes_left in left.items() if bytes_left > 0}
        speed = fair(going, own, rates)
        moments = [left[edge] / speed[edge] for edge in going]
        moments += [
            finish[int(arrays.upstream[edge])] - now
            for edge in ways
            if edge not in left and int(arrays.upstream[edge]) in finish
        ]
        if not moments:
            assert len(start) == n
            return np.array([start[stage] for stage in range(n)]), max(finish.values(), default=0.0)
        step = max(0.0, min(moments))
        now += step
        for edge in going:
            left[edge] -= speed[edge] * step
            if left[edge] <= 1e-9 * arrays.size_bytes[edge]:
                left[edge] = 0.0
                there[edge] = now + float(asked.lag[edge] - arrays.size_bytes[edge] / own[edge])


def drawn(stages: int, nodes: int, seed: int) -> Problem:
    """A random problem with requirements, and with up to three up-links that its nodes share, one perhaps behind another."""
    free = constrained(stages, nodes, seed)
    draw, k = np.random.default_rng(seed), len(free.nodes)
    usual = 1 / max(1e-9, float(free.arrays.seconds_per_byte.max(initial=0.0)))
    uplinks = []
    for number in range(int(draw.integers(1, 4))):
        inside = tuple(np.flatnonzero(draw.random(k) < 0.6).tolist())
        up, down = (usual * draw.uniform(0.3, 4.0, 2)).tolist()
        half = bool(draw.random() < 0.5)
        uplinks.append(Uplink(f"u{number}", inside, up, up if half else down, half))
    return shared(free, tuple(uplinks))


@pytest.mark.parametrize("seed", range(6))
def test_what_passes_an_uplink_is_all_that_the_checker_says_does(seed: int) -> None:
    what = drawn(4, 5, seed)
    told = {(each.way, int(a), int(b)): int(n) for each in passers(what) for a, b, n in zip(*each[2:], strict=True)}
    ways = [(uplink, outward) for uplink in what.uplinks for outward in ((True,) if uplink.half else (True, False))]
    pairs = [(a, b) for a in range(len(what.nodes)) for b in range(len(what.nodes))]
    asked = {
        (way, a, b): check.passes(*ways[way][:1], a, b, ways[way][1]) for way in range(len(ways)) for a, b in pairs
    }
    assert told == {key: times for key, times in asked.items() if times}
    takes = {(way, a, b): seconds for a, b in pairs for way, seconds in channels_between(what)(a, b)}
    rate = [each.rate for each in passers(what)]
    assert takes == {key: times / rate[key[0]] for key, times in told.items()}
    assert rate == [each.up if outward else each.down for each, outward in ways]


def test_many_nodes_behind_many_uplinks_take_no_room_for_what_passes_none() -> None:
    """Every two nodes by every way of 100 up-links would be 200 million numbers."""
    free = problem(["a"], [Place(f"n{node}") for node in range(1_000)], 1.0)
    uplinks = tuple(Uplink(f"u{i}", tuple(range(10 * i, 10 * i + 10)), 1.0, 1.0) for i in range(100))
    tracemalloc.start()
    what = shared(free, uplinks)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100e6
    assert (what.arrays.seconds_per_byte > 0).sum() == 1_000 * 990


def test_two_values_at_one_time_have_half_of_the_uplink_each() -> None:
    what, made = sent(DSL)
    met = timed(what, made)
    assert made.makespan == pytest.approx(1 + 20 + 1)
    assert met.makespan == pytest.approx(1 + 40 + 1)
    assert lags(what, met).tolist() == pytest.approx([40.0, 40.0])
    assert faults(what, made) == ["the up-link dsl cannot carry all that it has to until s3 takes what s1 gives"]
    assert faults(what, met) == []
    assert simply(what, made)[1] == pytest.approx(met.makespan)


def test_what_ends_leaves_its_rate_to_the_other() -> None:
    what, made = sent(DSL, (50.0, 100.0))
    # Both at 2.5 bytes a second until the first has its 50 bytes, then the other at 5.
    assert lags(what, made).tolist() == pytest.approx([20.0, 30.0])


def test_values_that_do_not_meet_take_as_long_as_alone() -> None:
    what, made = sent(DSL, release=[0.0, 30.0, 0.0, 0.0])
    assert timed(what, made).makespan == retimed(what, made).makespan
    assert np.array_equal(timed(what, made).start, retimed(what, made).start)


def test_a_link_that_is_slower_leaves_the_rest_of_the_uplink_to_others() -> None:
    what, made = sent(Uplink("wide", (0, 1), 30.0, 30.0))
    arrays = what.arrays._replace(seconds_per_byte=what.arrays.seconds_per_byte.copy())
    arrays.seconds_per_byte[0, 2] = 1 / 5
    # 5 and 25 bytes a second.
    assert lags(what._replace(arrays=arrays), made).tolist() == pytest.approx([20.0, 4.0])


def test_a_radio_carries_twice_what_stays_among_its_nodes_and_a_wire_none_of_it() -> None:
    seconds = [[1.0, np.inf, np.inf], [np.inf, 1.0, np.inf]]
    free = problem(["a", "b"], ROBOTS, seconds, [(0, 1, 100.0)], seconds_per_byte=0.02)
    assert plan(shared(free, (WIFI,)), SHORT).makespan == pytest.approx(1 + 20 + 1)
    assert plan(shared(free, (DSL,)), SHORT).makespan == pytest.approx(1 + 2 + 1)
    assert [(each.name, each.bytes, each.seconds) for each in carried(shared(free, (WIFI,)), np.array([0, 1]))] == [
        ("wifi", 200.0, 20.0)
    ]


def test_a_radio_shares_its_rate_between_both_ways() -> None:
    seconds = [[1.0, np.inf, np.inf], [np.inf, np.inf, 1.0], [np.inf, np.inf, 1.0], [np.inf, 1.0, np.inf]]
    free = problem("abcd", ROBOTS, seconds, [(0, 2, 100.0), (1, 3, 100.0)], seconds_per_byte=0.02)
    assert plan(shared(free, (WIFI,)), SHORT).makespan == pytest.approx(1 + 20 + 1)
    assert plan(shared(free, (Uplink("wire", (0, 1), 10.0, 10.0),)), SHORT).makespan == pytest.approx(1 + 10 + 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 14), st.integers(2, 5), st.integers(0, 100_000))
def test_times_are_those_of_the_plain_simulation_and_keep_all_requirements(stages: int, nodes: int, seed: int) -> None:
    what = drawn(stages, nodes, seed)
    try:
        made = plan(what.free, SHORT, seed)
    except Infeasible:
        return
    met, alone = timed(what, made), retimed(what, made)
    start, makespan = simply(what, made)
    assert np.allclose(met.start, start, rtol=1e-6, atol=1e-6)
    assert met.makespan == pytest.approx(makespan)
    assert (met.start >= alone.start - 1e-9).all()
    assert faults(what, met) == []
    assert np.allclose(timed(what, met).start, met.start, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 20), st.integers(2, 5), st.integers(0, 100_000))
def test_a_plan_with_uplinks_is_no_worse_than_that_without_timed_with_them(stages: int, nodes: int, seed: int) -> None:
    what = drawn(stages, nodes, seed)
    try:
        free = plan(what.free, SHORT, seed)
    except Infeasible:
        with pytest.raises(Infeasible):
            plan(what, SHORT, seed)
        return
    found = plan(what, SHORT._replace(iterations=2 * SHORT.iterations), seed)
    assert faults(what, found) == []
    assert found.objective <= timed(what, free).objective * (1 + 1e-9)


@pytest.mark.parametrize("effort", [0.0, 1.0])
def test_no_plan_is_timed_twice(effort: float, monkeypatch: pytest.MonkeyPatch) -> None:
    what, seen = shared(instance("layered", "uneven", 12, 4, 1.0, seed=5), (Uplink("u", (0, 1), 1.0, 1.0),)), []
    monkeypatch.setattr(contending, "LOOKS", (Look(1.0, 1.0, 1.0),))

    def met(within: Problem, made: Plan) -> Plan:
        seen.append((made.place.tobytes(), made.start.tobytes()))
        return timed(within, made)

    monkeypatch.setattr(contending, "timed", met)
    plan(what, Budget(iterations=3, effort=effort))
    assert len(seen) > 1
    assert len(set(seen)) == len(seen)


def test_stages_move_to_where_values_need_not_meet() -> None:
    """Four stages behind one up-link, each of which sends much: to send all at one time is what a plan without contention does."""
    seconds = [[1.0, np.inf, np.inf], [np.inf, 1.0, np.inf]] * 2 + [[6.0, 6.0, 1.0]] * 4
    edges = [(up, up + 4, 20.0) for up in range(4)]
    what = shared(problem("abcdefgh", ROBOTS, seconds, edges), (DSL,))
    free = plan(what.free, SHORT)
    found = plan(what, SHORT)
    assert {int(place) for place in free.place[4:]} == {2}
    assert found.makespan < timed(what, free).makespan - 1
    assert faults(what, found) == []
    assert not found.method.endswith(PROVEN)


@pytest.mark.parametrize("seed", range(4))
def test_plans_for_goals_and_periods_are_told_with_contention(seed: int) -> None:
    what = drawn(8, 4, seed)
    m, k = len(what.places), len(what.nodes)
    rates = Rates(np.linspace(1.0, 3.0, m), np.linspace(2.0, 0.0, m), np.zeros((k, k)), np.zeros((k, k)))
    asked = Asked(rates, [Goal(by=Measure.ENERGY)], effort=0.05)

    def planned(each: Problem, warm: Plan | None) -> Plan:
        return plan(each, SHORT, seed, warm)

    try:
        found = find(what, asked, planned)
    except Infeasible:
        return
    assert faults(what, found.plan) == []
    often = find_paced(what, asked._replace(goals=[Goal(by=Measure.PERIOD)]), pace(what, 0.0), planned).best
    assert faults(what, often.found.plan) == []
    assert often.holds
    busy = [each.seconds for each in carried(what, often.found.plan.place)]
    assert max(busy, default=0.0) <= often.pace.cap * (1 + 1e-6)


APART, OUT = contending.APART.crowd, contending.OUT.crowd


class Told:
    """A course that does as it is told: plans by how much up-links are slowed, and whether all iterations are made. Writes down what is asked."""

    def __init__(self, plans: dict[float, Plan], asked: list[tuple[float, float]], whole: bool, crowd: float) -> None:
        self.plans, self.asked, self.whole, self.crowd = plans, asked, whole, crowd

    def go_on(self, look: Look) -> bool:
        self.asked.append((self.crowd, look.share))
        return self.whole

    def best(self) -> Plan:
        return self.plans[self.crowd]

    def finals(self, look: Look) -> Iterator[Plan]:
        yield from [self.plans[self.crowd]] * 5


def looks(
    what: Problem, plans: dict[float, Plan], late: Callable[[float], bool], whole: bool = True
) -> list[tuple[float, float]]:
    """Which searches are asked to go on, and up to which share of the iterations. Without a plan for links far slower still, as slow as possible is no better."""
    plans = {APART: plans[max(plans)], OUT: plans[max(plans)], **plans}
    asked: list[tuple[float, float]] = []

    def begin(free: Problem, look: Look) -> Told:
        return Told(plans, asked, whole, look.crowd)

    assert faults(what, contended(what, begin, late, 0, 0)) == []
    return asked


def slowly(what: Problem, crowd: float) -> Plan:
    """The plan that lists and a short search make with up-links so many times as slow."""
    return plan(contending._slowed(what, crowd), SHORT)


def crowded(stages: int) -> Problem:
    """A job of which contention takes much."""
    return shared(instance("layered", "uneven", stages, 4, 3.0, seed=1), (Uplink("u", (0, 1), 1.0, 1.0),))


def test_searches_that_there_is_no_time_for_are_left_out_but_those_of_few_stages() -> None:
    small, what = crowded(8), crowded(24)
    plans = {crowd: slowly(what, crowd) for crowd in (1.0, 2.0, 4.0)}
    few = {crowd: slowly(small, crowd) for crowd in (1.0, 2.0, 4.0)}
    assert looks(what, plans, lambda share: False) == [(1.0, 0.5), (2.0, 0.25), (4.0, 0.25)]
    # All of the first's time is over, but not of the last's: there is time for a list, and that is far better.
    assert looks(what, plans, lambda share: share <= 0.7) == [(1.0, 0.5), (4.0, 1.0)]
    assert looks(what, plans, lambda share: True) == [(1.0, 0.5), (1.0, 1.0)]
    assert looks(small, few, lambda share: True) == [(1.0, 0.5), (2.0, 0.25), (4.0, 0.25), (APART, 0.25), (OUT, 0.25)]


def test_a_search_that_has_not_made_its_share_leaves_the_rest_to_the_likeliest() -> None:
    what = crowded(24)
    near, far = slowly(what, 1.0), slowly(what, 4.0)
    assert timed(what, far).objective < timed(what, near).objective
    for crowd in (1.0, 2.0, 4.0):
        plans = {1.0: near, 2.0: near, 4.0: near, crowd: far}
        assert looks(what, plans, lambda share: False, whole=False)[-1] == (crowd, 1.0)


def test_a_search_begins_with_all_apart_where_that_takes_least() -> None:
    what = crowded(24)
    near, far = slowly(what, 1.0), slowly(what, 4.0)
    for best in (APART, OUT):
        plans = {1.0: near, 2.0: near, 4.0: near, APART: near, OUT: near, best: far}
        assert looks(what, plans, lambda share: False)[-1] == (best, 0.25)
        assert looks(what, plans, lambda share: False, whole=False)[-1] == (best, 1.0)
        assert looks(what, plans, lambda share: share <= 0.7)[-1] == (best, 1.0)


def test_only_what_others_can_do_is_kept_from_nodes_behind_uplinks() -> None:
    seconds = [[1.0, 2.0, 1.0], [1.0, np.inf, np.inf], [np.inf, np.inf, 3.0]]
    what = shared(problem("abc", ROBOTS, seconds, [(0, 1, 1.0), (0, 2, 1.0)]), (DSL,))
    left = contending._without(what)
    assert left.uplinks == ()
    # The first may run at the edge, and the second on a robot alone.
    assert [list(np.flatnonzero(row)) for row in np.isfinite(left.arrays.seconds)] == [[2], [0], [2]]
    tied = shared(problem("a", ROBOTS, [[1.0, 1.0, np.inf]], []), (DSL,))
    with pytest.raises(Infeasible):
        contending._without(tied)


def test_a_plan_leaves_out_what_can_only_be_reached_slowly() -> None:
    """Two nodes beside each other, and three behind a radio that is slow for what the job moves: it was 1.6 times as long with them as without."""
    per_byte = np.full((5, 5), 1e-3)
    per_byte[2:, :] = per_byte[:, 2:] = 0.05
    places = [Place("c0", slots=2), Place("c1", slots=2), *(Place(f"e{n}", slots=4) for n in range(3))]
    edges = [(up, 20 + down, 10.0) for down in range(40) for up in (down % 20, (7 * down + 3) % 20)]
    free = problem([f"s{n}" for n in range(60)], places, 1.0, edges, seconds_per_byte=per_byte)
    radio = shared(free, (Uplink("radio", (2, 3, 4), 5.0, 5.0, True),))
    alone = problem([f"s{n}" for n in range(60)], places[:2], 1.0, edges, seconds_per_byte=per_byte[:2, :2])
    for iterations in (40, 400):
        budget = Budget(iterations=iterations)
        assert plan(radio, budget).makespan <= plan(alone, budget).makespan * 1.02


def test_where_contention_takes_nothing_one_search_has_all_iterations() -> None:
    free = instance("layered", "uneven", 200, 6, 1.0, seed=3)
    wide = shared(free, (Uplink("wide", (0, 1, 2), 1e9, 1e9),))
    budget = Budget(iterations=600)
    alone, found = plan(free, budget, 3), plan(wide, budget, 3)
    assert alone.makespan < plan(free, budget._replace(iterations=300), 3).makespan
    assert found.makespan <= alone.makespan * (1 + 1e-9)
    assert looks(wide, {1.0: alone}, lambda share: False) == [(1.0, 0.5), (1.0, 1.0)]


def test_where_slowed_uplinks_promise_nothing_the_first_search_goes_on() -> None:
    what = crowded(30)
    near, far, worse = slowly(what, 1.0), slowly(what, 4.0), slowly(what, 1e-3)
    assert timed(what, worse).objective > contending.PROMISING * timed(what, near).objective
    assert looks(what, {1.0: near, 2.0: worse, 4.0: worse}, lambda share: False)[-1] == (1.0, 0.75)
    assert looks(what, {1.0: near, 2.0: worse, 4.0: far}, lambda share: False)[-1] == (4.0, 0.25)
    assert looks(what, {1.0: near, 2.0: far, 4.0: worse}, lambda share: False)[-1] == (4.0, 0.25)


def test_iterations_that_are_made_in_any_case_are_made_once_for_all_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(Search):
        def step(self, iterations: int, ways: Ways = WAYS) -> None:
            made.append(iterations)
            super().step(iterations, ways)

    monkeypatch.setattr(halving, "Search", Counted)
    what = crowded(40)
    plan(what, Budget(spent=lambda: True, least=100))
    # Between two looks at the time are some more.
    assert 100 <= sum(made) < 100 + halving.STEP_STAGES // 40
    made.clear()
    plan(what, Budget(iterations=100, spent=lambda: True, least=100))
    assert sum(made) == 100


def test_a_proof_is_told_where_contention_takes_nothing() -> None:
    seconds = [[1.0, np.inf, np.inf], [np.inf, np.inf, 1.0]]
    what = shared(problem("ab", ROBOTS, seconds, [(0, 1, 10.0)]), (DSL,))
    found = plan(what, Budget(iterations=40, effort=1.0))
    assert found.makespan == pytest.approx(4.0)
    assert found.method.endswith(PROVEN)


def test_of_plans_that_take_as_little_the_fastest_with_contention_is_looked_for() -> None:
    """Three robots' values, each worked on by its robot in 2 s or far away in 1 s, for 10 J: the fastest if not all go far.

    Where what comes after them is fastest, it takes most.
    """
    places = [*(Place(f"r{robot}") for robot in range(3)), Place("far", slots=4), Place("dear"), Place("thrifty")]
    seconds = np.full((7, 6), np.inf)
    for robot in range(3):
        seconds[robot, robot] = 1.0
    seconds[3:6, :4] = [2.0, 2.0, 2.0, 1.0]
    seconds[6, 3:] = [2.0, 0.5, 1.0]
    edges = [*((i, i + 3, 10.0) for i in range(3)), *((i, 6, 0.0) for i in range(3, 6))]
    per_byte = np.array([[0.05 if min(a, b) < 3 else 0.0 for a in range(6)] for b in range(6)])
    free = problem("abcdefg", places, seconds, edges, seconds_per_byte=per_byte)
    what = shared(free, (Uplink("u", (0, 1, 2), 20.0, 20.0),))
    links = np.zeros((6, 6))
    rates = Rates(np.array([5.0, 5.0, 5.0, 10.0, 100.0, 1.0]), np.zeros(6), links, links)
    asked = Asked(rates, [Goal(by=Measure.ENERGY), Goal(by=Measure.LATENCY)], effort=1.0)
    found = find(what, asked, lambda each, warm: plan(each, SHORT, 0, warm))
    assert found.bill.joules == pytest.approx(46.0)
    assert found.plan.makespan == pytest.approx(4.0)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)), max_size=6))
def test_the_checker_finds_a_window_with_more_bytes_than_pass_in_it(given: list[tuple[int, int, int]]) -> None:
    passing = sorted(
        (float(begin), float(begin + room), 2.0 * size, at) for at, (begin, room, size) in enumerate(given)
    )
    windows = [(first[0], last[1]) for first in passing for last in passing if first[0] < last[1]]
    full = [
        sum(size for begin, by, size, _ in passing if low <= begin and by <= high) > 3.0 * (high - low)
        for low, high in windows
    ]
    assert (check._late(passing, 3.0) >= 0) == any(full)


def test_without_uplinks_nothing_changes() -> None:
    what = instance("layered", "tiered", 30, 6, 1.0, seed=3)
    made = plan(what, SHORT)
    assert shared(what, ()).arrays is what.arrays
    assert timed(what, made) is made
    wide = shared(what, (Uplink("wide", (0, 1), 1e12, 1e12),))
    assert np.array_equal(wide.arrays.seconds_per_byte, what.arrays.seconds_per_byte)
    assert timed(wide, made).makespan == retimed(what, made).makespan


def test_the_same_seed_gives_the_same_plan() -> None:
    what = shared(instance("layered", "uneven", 30, 6, 3.0, seed=5), (Uplink("u", (0, 1, 2), 1.0, 1.0),))
    one, other = plan(what, SHORT, seed=7), plan(what, SHORT, seed=7)
    assert one.method == other.method
    assert np.array_equal(one.place, other.place)
    assert np.array_equal(one.start, other.start)
