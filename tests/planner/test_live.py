"""What is left of a job that runs becomes a problem, and its plan advice: nothing that stands moves, nothing is widened."""

from typing import Any

import msgspec
import numpy as np
import pytest
from tests.orchestrator.harness import KINDS, node
from tests.orchestrator.test_coordinator_patch import constellation

from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.ids import AgentId, JobId, Revision, StageId
from starloom.devices.linkmeter import MeasuredLink
from starloom.devices.links import BY_TIERS, STORE_TIER, SharedUplink
from starloom.orchestrator.advice import NodeNow, Place, Planned, PlanWanted, RunSeconds, Standing
from starloom.orchestrator.planner.building import build
from starloom.orchestrator.planner.live import advise, deviations, fleet, problem_of, remaining

CHAIN = """
stages:
  a: {kind: t.task, params: {seconds: 2}}
  b: {kind: t.task, in: {x: a.value}, params: {seconds: 2}}
  c: {kind: t.task, in: {x: b.value}, params: {seconds: 2}}
"""


def now(name: str, tier: Tier = Tier.EDGE, **more: Any) -> NodeNow:
    said = {key: more.pop(key) for key in ("uplinks",) if key in more}
    profile = node(name, tier, slots=more.pop("slots", 1), targets=more.pop("targets", ("cpu",)), **said)
    return NodeNow(profile=profile, offers=tuple(KINDS), **more)


def runs(deviation: float = 0.0, seconds: float = 1.0) -> tuple[RunSeconds, ...]:
    """Runs take what is told of them times `seconds`, and are off by a share of that."""
    return tuple(RunSeconds("t.task", AgentId(name), "cpu", seconds, told=True, deviation=deviation) for name in "xyz")


def wanted(text: str, *nodes: NodeNow, **more: Any) -> PlanWanted:
    """What a deadline is planned for takes what is told of it, unless it is said otherwise."""
    if "left" in more:
        more.setdefault("seconds", runs())
    return PlanWanted(
        job=JobId("j"),
        number=3,
        revision=Revision(1),
        constellation=constellation(text),
        kinds=dict(KINDS),
        nodes=nodes,
        **more,
    )


def standing(**of: Standing) -> dict[StageId, Standing]:
    return {StageId(name): how for name, how in of.items()}


def places(planned: Planned) -> dict[str, str]:
    assert not planned.refusal, planned.refusal
    return {name: place.node for name, place in planned.places.items()}


def test_what_stands_is_not_planned_and_what_runs_is_waited_for() -> None:
    how = standing(
        a=Standing(node=AgentId("x"), target="cpu", ended=True, sizes={"value": 10}),
        b=Standing(node=AgentId("y"), target="cpu", started=True, left=0.5),
    )
    planned = advise(wanted(CHAIN, now("x"), now("y"), standing=how))
    assert places(planned) == {"c": "y"}
    assert planned.places[StageId("c")].start == pytest.approx(0.5)
    assert planned.ends == pytest.approx(2.5, abs=0.1)
    assert planned.number == 3


def test_what_was_given_out_stays_and_waits_for_its_upstreams() -> None:
    how = standing(
        a=Standing(node=AgentId("x"), target="cpu", started=True, left=5.0),
        b=Standing(node=AgentId("y"), target="cpu", left=2.0),
    )
    planned = advise(wanted(CHAIN, now("x"), now("y"), standing=how))
    assert places(planned) == {"c": "y"}
    assert planned.places[StageId("c")].start == pytest.approx(7.0, abs=0.01)


def test_an_output_that_is_inline_or_stored_is_there_for_all() -> None:
    text = "stages: {a: {kind: t.blob}, b: {kind: t.need, in: {data: a.data}}}"
    how = Standing(node=AgentId("x"), target="cpu", ended=True, sizes={"data": 500_000_000})
    busy = now("x", busy_seconds=10.0)
    assert places(advise(wanted(text, busy, now("y"), standing=standing(a=how)))) == {"b": "y"}
    near = now("x", busy_seconds=1.0)
    assert places(advise(wanted(text, near, now("y"), standing=standing(a=how)))) == {"b": "x"}
    free = msgspec.structs.replace(how, free=True)
    assert places(advise(wanted(text, near, now("y"), standing=standing(a=free)))) == {"b": "y"}


def test_nothing_is_planned_where_placement_would_not_look() -> None:
    nodes = (now("edge"), now("cloud", Tier.CLOUD, slots=8), now("shut", takes=False))
    other = msgspec.structs.replace(now("other"), offers=("t.work",))
    text = "stages: {a: {kind: t.heavy}, b: {kind: t.heavy, after: [a]}, c: {kind: t.heavy, after: [a]}}"
    # Kinds go to their own tier as long as a node there may run them.
    assert set(places(advise(wanted(text, *nodes, other))).values()) == {"edge"}
    assert set(places(advise(wanted(text, *nodes[1:], other))).values()) == {"cloud"}
    assert set(places(advise(wanted(CHAIN, nodes[0], nodes[2]))).values()) == {"edge"}
    # Of several targets the first is taken that is there.
    made = advise(
        wanted("stages: {a: {kind: t.see}, b: {kind: t.see, in: {x: a.value}}}", now("n", targets=("cpu", "npu")))
    )
    assert {place.target for place in made.places.values()} == {"npu"}


def test_nodes_that_tell_of_an_uplink_share_it_in_plans() -> None:
    """Two values of 100 MB, each on a device: with a line of their own they are at the edge in turn after 8 s, over one after 16."""
    text = """
stages:
  a: {kind: t.blob}
  b: {kind: t.blob}
  c: {kind: t.need, in: {data: a.data}, require: {tier: edge}}
  d: {kind: t.need, in: {data: b.data}, require: {tier: edge}}
"""
    how = standing(
        a=Standing(node=AgentId("x"), target="cpu", ended=True, sizes={"data": 100_000_000}),
        b=Standing(node=AgentId("y"), target="cpu", ended=True, sizes={"data": 100_000_000}),
    )

    def ends(*uplinks: SharedUplink) -> float:
        nodes = [now(name, Tier.DEVICE, uplinks=uplinks) for name in "xy"]
        asked = wanted(text, *nodes, now("e", slots=2), standing=how)
        assert fleet(asked).uplinks == uplinks
        # It travels to the process that plans.
        return advise(msgspec.json.decode(msgspec.json.encode(asked), type=PlanWanted)).ends

    link = BY_TIERS[frozenset({Tier.DEVICE, Tier.EDGE})]
    alone = ends()
    hall = SharedUplink(name="hall", up=link.bytes_per_second, down=link.bytes_per_second)
    assert ends(hall) == pytest.approx(alone + 1e8 / link.bytes_per_second)
    assert ends(msgspec.structs.replace(hall, up=2 * link.bytes_per_second)) == pytest.approx(alone)
    # What another tells to be slower is.
    other = (
        now("x", Tier.DEVICE, uplinks=(hall,)),
        now("y", Tier.DEVICE, uplinks=(msgspec.structs.replace(hall, up=1e6),)),
    )
    assert fleet(wanted(text, *other)).uplinks == (msgspec.structs.replace(hall, up=1e6),)


def test_of_more_uplinks_than_a_file_may_have_those_count_that_most_nodes_share() -> None:
    """Fifty nodes with a hundred each kept the planner for seconds."""
    most = limits.FLEET_UPLINKS_MAX
    hall = SharedUplink(name="hall", up=1e6, down=1e6)

    def own(node: str) -> tuple[SharedUplink, ...]:
        return (*(SharedUplink(name=f"{node}-{at}", up=1e6, down=1e6) for at in range(most - 1)), hall)

    made = fleet(wanted(CHAIN, *(now(name, uplinks=own(name)) for name in "abc")))
    assert len(made.uplinks) == most
    assert hall in made.uplinks
    assert all("hall" in node.node.uplinks for node in made.nodes)
    assert {name for node in made.nodes for name in node.node.uplinks} == {each.name for each in made.uplinks}


def test_links_that_nodes_measured_are_those_of_plans_and_else_the_usual_ones() -> None:
    nodes = (
        now("d", Tier.DEVICE, links={"c": MeasuredLink(latency_seconds=0.5), "": MeasuredLink(bytes_per_second=1e6)}),
        now(
            "c", Tier.CLOUD, links={"gone": MeasuredLink(latency_seconds=9.0), "d": MeasuredLink(bytes_per_second=3e6)}
        ),
        now("e"),
    )
    asked = msgspec.json.decode(msgspec.json.encode(wanted(CHAIN, *nodes)), type=PlanWanted)
    arrays = problem_of(asked).problem.arrays
    d, c, e, store = range(4)
    assert arrays.latency[c, d] == 0.5
    # Of what only the other way is known, that is the next best.
    assert arrays.seconds_per_byte[c, d] == pytest.approx(1 / 3e6)
    assert arrays.latency[d, c] == 0.5
    assert arrays.seconds_per_byte[d, c] == pytest.approx(1 / 3e6)
    assert arrays.seconds_per_byte[store, d] == pytest.approx(1 / 1e6)
    assert arrays.latency[store, d] == BY_TIERS[frozenset({STORE_TIER, Tier.DEVICE})].latency_seconds
    assert arrays.latency[c, e] == arrays.latency[e, c] == BY_TIERS[frozenset({Tier.EDGE, Tier.CLOUD})].latency_seconds
    # One way alone is what is known of both.
    one = wanted(CHAIN, now("d", Tier.DEVICE, links={"e": MeasuredLink(latency_seconds=0.7)}), now("e"))
    assert problem_of(one).problem.arrays.latency[:2, :2].tolist() == [[0.0, 0.7], [0.7, 0.0]]


def test_what_was_measured_counts() -> None:
    text = CHAIN.replace("t.task", "t.work").replace("params: {seconds: 2}", "params: {seed: 2}")
    measured = [RunSeconds("t.work", AgentId(name), "cpu", seconds) for name, seconds in (("x", 5.0), ("y", 1.0))]
    planned = advise(wanted(text, now("x"), now("y"), seconds=tuple(measured)))
    assert set(places(planned).values()) == {"y"}
    assert planned.ends == pytest.approx(3.0, abs=0.01)


def test_places_do_not_swing_for_little() -> None:
    old = {StageId(name): Place(AgentId("y"), "cpu", 0.0, 0.0) for name in "abc"}
    planned = advise(wanted(CHAIN, now("x"), now("y"), old=old))
    assert planned.kept
    assert set(places(planned).values()) == {"y"}
    busy = advise(wanted(CHAIN, now("x"), now("y", busy_seconds=3.0), old=old))
    assert not busy.kept
    # The last one is there again when it is its turn, and a move has its price.
    assert places(busy) == {"a": "x", "b": "x", "c": "y"}
    gone = advise(wanted(CHAIN, now("x"), old=old))
    assert set(places(gone).values()) == {"x"}


def layered(stages: int = 24) -> str:
    """Layers of three whose stages each await one of the layer before."""
    lines = [
        f"  s{n}: {{kind: t.work, params: {{seed: {n}}}, after: [{f's{n - 3}' if n > 2 else ''}]}}"
        for n in range(stages)
    ]
    return "\n".join(["stages:", *lines])


def took(**seconds: float) -> tuple[RunSeconds, ...]:
    return tuple(RunSeconds("t.work", AgentId(name), "cpu", each) for name, each in seconds.items())


def test_places_do_not_swing_between_plans_of_nearly_the_same_worth() -> None:
    """Predictions that drift to and fro by a percent move nothing, however often they are asked about."""
    nodes = (now("x"), now("y"), now("z"))
    first = advise(wanted(layered(), *nodes, seconds=took(x=1.0, y=1.0, z=1.0)), iterations=200)
    old = dict(first.places)
    for turn in range(8):
        drift = 1.01 if turn % 2 else 0.99
        seconds = took(x=drift, y=1.0, z=2.0 - drift)
        again = advise(wanted(layered(), *nodes, seconds=seconds, old=old), iterations=200)
        assert again.kept
        assert places(again) == places(first)
        old = dict(again.places)


def test_what_pays_is_moved_once_and_only_as_much_as_that_takes() -> None:
    nodes = (now("x"), now("y"), now("z"))
    first = advise(wanted(layered(), *nodes, seconds=took(x=1.0, y=1.0, z=1.0)), iterations=200)
    slow = took(x=3.0, y=1.0, z=1.0)
    moved = advise(wanted(layered(), *nodes, seconds=slow, old=dict(first.places)), iterations=3_000)
    assert not moved.kept
    gone = [name for name, where in places(moved).items() if where != first.places[StageId(name)].node]
    assert 0 < len(gone) < 24
    assert moved.ends < first.ends * 2
    for turn in range(4):
        drift = 0.01 if turn % 2 else -0.01
        seconds = took(x=3.0 + drift, y=1.0 - drift, z=1.0 + drift)
        again = advise(wanted(layered(), *nodes, seconds=seconds, old=dict(moved.places)), iterations=3_000)
        assert again.kept
        assert places(again) == places(moved)


def test_a_move_has_its_price() -> None:
    """Of two plans that end at the same time the one that moves less is taken, also where something has to move."""
    nodes = (now("x", slots=8), now("y", slots=8), now("z", takes=False))
    old = {StageId(f"s{n}"): Place(AgentId("z" if n == 0 else "xy"[n % 2]), "cpu", 0.0, 0.0) for n in range(24)}
    made = advise(wanted(layered(), *nodes, seconds=took(x=1.0, y=1.0, z=1.0), old=old), iterations=200)
    assert not made.kept
    assert {name: where for name, where in places(made).items() if name != "s0"} == {
        name: place.node for name, place in old.items() if name != "s0"
    }


def test_two_runs_of_an_accelerator_are_no_contradiction() -> None:
    text = "stages: {a: {kind: t.see}, b: {kind: t.see}, c: {kind: t.see, in: {x: a.value, y: b.value}}}"
    running = Standing(node=AgentId("n"), target="npu", started=True, left=1.0)
    planned = advise(wanted(text, now("n", targets=("cpu", "npu"), slots=2), standing=standing(a=running, b=running)))
    assert places(planned) == {"c": "n"}


def test_that_there_is_no_plan_is_told() -> None:
    planned = advise(wanted(CHAIN, now("x", takes=False)))
    assert "no place may have it" in planned.refusal
    assert not planned.places


def test_the_same_snapshot_gives_the_same_advice() -> None:
    stages = [f"  s{n}: {{kind: t.task, after: [s{n - 3}], params: {{seconds: {1 + n % 7}}}}}" for n in range(3, 30)]
    text = "\n".join(["stages:", *(f"  s{n}: {{kind: t.task}}" for n in range(3)), *stages])
    asked = wanted(text, now("x"), now("y"), now("z", Tier.CLOUD))
    data = msgspec.json.encode(asked)
    one, two = advise(asked, iterations=300), advise(msgspec.json.decode(data, type=PlanWanted), iterations=300)
    assert one == two
    assert msgspec.json.decode(msgspec.json.encode(one), type=Planned) == one


def test_a_fresh_job_is_the_problem_that_a_file_gives() -> None:
    asked = wanted(CHAIN, now("x"), now("y"))
    left, old = remaining(asked, problem_of(asked))
    plain = build(asked.constellation, KINDS, fleet(asked)).problem.arrays
    assert np.array_equal(left.arrays.seconds, plain.seconds)
    assert np.array_equal(left.arrays.penalty, plain.penalty)
    assert (old.place == -1).all()


def varied(stages: int = 6, large: float = 2.0, small: float = 0.5) -> str:
    """A chain whose stages each have two variants; some of a third, between both."""
    lines = []
    for n in range(stages):
        reads = f"after: [s{n - 1}], " if n else ""
        lines.append(f"  s{n}: {{kind: t.task, {reads}variants: [")
        lines.append(f"    {{name: large, quality: 0.9, params: {{seconds: {large}}}}},")
        if n % 2:
            lines.append(f"    {{name: middle, quality: 0.8, params: {{seconds: {(large + small) / 2}}}}},")
        lines.append(f"    {{name: small, quality: 0.5, params: {{seconds: {small}}}}}]}}")
    return "\n".join(["stages:", *lines])


def variants(planned: Planned) -> dict[str, str]:
    assert not planned.refusal, planned.refusal
    return {name: place.variant for name, place in planned.places.items() if place.variant}


def test_lesser_variants_are_for_a_deadline_and_as_few_as_it_asks_for() -> None:
    nodes = (now("x"), now("y"))
    assert variants(advise(wanted(varied(), *nodes))) == {}
    assert variants(advise(wanted(varied(), *nodes, left=14.0))) == {}
    # 12 s of best variants, and 9 s of the 10 that are left: two lose a little, 0.75 s each, and one of the others 1.5 s.
    late = advise(wanted(varied(), *nodes, left=10.0))
    assert late.ends <= 10.0 * limits.PLAN_DEADLINE_SHARE
    lost = sum({"middle": 0.1, "small": 0.4}[each] for each in variants(late).values())
    assert lost == pytest.approx(0.6)
    hurried = advise(wanted(varied(), *nodes, left=3.0))
    assert set(variants(hurried).values()) == {"small"}
    assert len(variants(hurried)) == 6
    # What cannot end in time any more is as fast as it can be.
    assert len(variants(advise(wanted(varied(), *nodes, left=-1.0)))) == 6


def test_of_variants_of_one_quality_the_first_is_better_and_the_other_is_told() -> None:
    """Without word of it a stage runs in the first, and the plan would end long after it says."""
    text = varied().replace("quality: 0.5", "quality: 0.9").replace("quality: 0.8", "quality: 0.9")
    nodes = (now("x"), now("y"))
    for left in (None, 20.0):
        slow = advise(wanted(text, *nodes, left=left))
        assert variants(slow) == {}
        assert slow.ends == pytest.approx(12.0)
    quick = advise(wanted(text, *nodes, left=4.0))
    assert set(variants(quick).values()) == {"small"}
    assert quick.ends == pytest.approx(3.0)


def test_a_stage_that_had_a_place_keeps_its_variant_and_floors_hold() -> None:
    nodes = (now("x"), now("y"))
    kept = advise(wanted(varied(), *nodes, left=3.0, had={StageId("s2"): "large"}))
    assert "s2" not in variants(kept)
    assert len(variants(kept)) == 5
    floor = advise(wanted(f"least_quality: 0.7\n{varied()}", *nodes, left=3.0))
    assert set(variants(floor).values()) == {"middle"}
    how = standing(s0=Standing(node=AgentId("x"), target="cpu", variant="small", started=True, left=0.25))
    assert advise(wanted(varied(), *nodes, standing=how)).ends == pytest.approx(10.25, abs=0.1)


def test_what_runs_took_counts_for_each_variant() -> None:
    slow = tuple(RunSeconds("t.task", AgentId(name), "cpu", 2.0, told=True) for name in "xy")
    assert variants(advise(wanted(varied(), now("x"), now("y"), left=20.0, seconds=slow)))
    assert advise(wanted(varied(), now("x"), now("y"), seconds=slow)).ends == pytest.approx(24.0, abs=0.1)


def test_variants_do_not_swing_and_better_ones_come_back_where_there_is_time() -> None:
    nodes = (now("x"), now("y"))
    first = advise(wanted(varied(), *nodes, left=10.0))
    for turn in range(6):
        drift = runs(seconds=1.0 + (0.02 if turn % 2 else -0.02))
        again = advise(wanted(varied(), *nodes, left=10.3, seconds=drift, old=dict(first.places)))
        assert variants(again) == variants(first)
    # A little more time than it takes with better ones is not enough, and much more is.
    assert variants(advise(wanted(varied(), *nodes, left=13.5, old=dict(first.places))))
    assert not variants(advise(wanted(varied(), *nodes, left=16.0, old=dict(first.places))))
    some = advise(wanted(varied(), *nodes, left=12.0, old=dict(advise(wanted(varied(), *nodes, left=3.0)).places)))
    assert 0 < len(variants(some)) < 6
    assert some.ends <= 12.0 * limits.PLAN_BETTER_SHARE


def test_what_the_last_runs_may_be_late_by_is_kept_in_reserve() -> None:
    """A tenth of what is left is less than one run is off by: 4 s of best variants would end within 4.14 s, or 1.4 s later."""
    nodes, off = (now("x"), now("y")), runs(0.3)
    assert variants(advise(wanted(varied(2), *nodes, left=4.6))) == {}
    hurried = advise(wanted(varied(2), *nodes, left=4.6, seconds=off))
    assert variants(hurried) == {"s1": "middle"}
    # Of a long chain a tenth is more than its runs are late by together.
    assert variants(advise(wanted(varied(60), *nodes, left=134.0, seconds=off))) == {}
    # And better ones come back where there is a tenth more time than the reserve asks for.
    had = dict(hurried.places)
    assert variants(advise(wanted(varied(2), *nodes, left=5.5, seconds=off))) == {}
    assert variants(advise(wanted(varied(2), *nodes, left=5.5, seconds=off, old=had))) == {"s1": "middle"}
    assert variants(advise(wanted(varied(2), *nodes, left=6.1, seconds=off, old=had))) == {}


def test_what_runs_are_off_by_is_counted_for_what_has_not_ended() -> None:
    how = standing(
        s0=Standing(node=AgentId("x"), target="cpu", variant="small", ended=True),
        s1=Standing(node=AgentId("x"), target="cpu", variant="middle", started=True, left=0.1),
    )
    asked = wanted(varied(3), now("x"), now("y"), standing=how, left=9.0, seconds=runs(0.3)[:1])
    built = problem_of(asked)
    off = deviations(asked, built)
    at = {(str(place.node), place.variant): index for index, place in enumerate(built.problem.places)}
    assert not off[0].any()
    assert off[1, at["x", 1]] == pytest.approx(0.3 * 1.25)
    assert off[2, at["x", 0]] == pytest.approx(0.3 * 2.0)
    # Of what never ran there no more is known than that runs deviate.
    assert off[2, at["y", 0]] == pytest.approx(limits.PLAN_DEVIATION * 2.0)


def test_better_variants_come_back_as_far_as_there_is_time_with_what_uplinks_carry() -> None:
    """Two values of 100 MB are at the edge 16 s from now over the one line, so what reads them may take 0.5 s, and what does not its time."""

    def both(large: float, small: float) -> str:
        return f"variants: [{{name: large, quality: 0.9, params: {{seconds: {large}}}}}, {{name: small, quality: 0.5, params: {{seconds: {small}}}}}]"

    text = f"""
stages:
  a: {{kind: t.task}}
  b: {{kind: t.task}}
  c: {{kind: t.task, in: {{x: a.value}}, require: {{tier: edge}}, {both(2, 0.5)}}}
  d: {{kind: t.task, in: {{x: b.value}}, require: {{tier: edge}}, {both(2, 0.5)}}}
  e: {{kind: t.task, {both(5.5, 5)}}}
  f: {{kind: t.task, after: [e], {both(5.5, 5)}}}
  g: {{kind: t.task, after: [f], {both(5.5, 5)}}}
"""
    how = standing(
        a=Standing(node=AgentId("x"), target="cpu", ended=True, sizes={"value": 100_000_000}),
        b=Standing(node=AgentId("y"), target="cpu", ended=True, sizes={"value": 100_000_000}),
    )
    rate = BY_TIERS[frozenset({Tier.DEVICE, Tier.EDGE})].bytes_per_second
    hall = SharedUplink(name="hall", up=rate, down=rate)
    nodes = [*(now(name, Tier.DEVICE, uplinks=(hall,)) for name in "xy"), now("z", slots=3)]
    planned = advise(wanted(text, *nodes, standing=how, left=17.0 / limits.PLAN_DEADLINE_SHARE))
    assert variants(planned) == {"c": "small", "d": "small"}
    assert planned.ends == pytest.approx(16.5, abs=0.1)


SPLIT = """
every: {every}
stages:
  a: {{kind: t.task, params: {{seconds: 0.4}}}}
  b: {{kind: t.task, after: [a], params: {{seconds: 0.4}}}}
  c: {{kind: t.task, after: [b], params: {{seconds: 0.4}}}}
"""
"""A chain that is fastest on one node, which takes 1.2 s a round."""


def rounds(every: str, *nodes: NodeNow, **more: Any) -> Planned:
    measured = tuple(
        RunSeconds("t.task", node.profile.name, "cpu", 1.01 if index else 1.0, told=True)
        for index, node in enumerate(nodes)
    )
    made = advise(wanted(SPLIT.format(every=every), *nodes, seconds=measured, rounds=True, **more), iterations=50)
    assert made.rounds is not None, made.refusal
    return made


def test_a_period_spreads_what_is_fastest_on_one_node() -> None:
    """A plan for one makespan has all on the first node, which is busy then for more than the period."""
    nodes = (now("x"), now("y"), now("z"))
    slow = rounds("2s", *nodes)
    assert set(places(slow).values()) == {"x"}
    fast = rounds("500ms", *nodes)
    assert set(places(fast).values()) == {"x", "y", "z"}
    assert fast.rounds is not None
    assert fast.rounds.holds
    assert fast.ends == fast.rounds.p95 >= 1.2
    assert fast.rounds.busy == pytest.approx({"x": 0.4, "y": 0.404, "z": 0.404})
    often = rounds("300ms", *nodes)
    assert often.rounds is not None
    assert not often.rounds.holds
    assert often.rounds.least == pytest.approx(0.404 / limits.PLAN_LOAD_MAX)


def test_what_others_take_of_a_node_is_not_there_for_rounds() -> None:
    free, half = (now("x"), now("y"), now("z")), (now("x"), now("y"), now("z", taken=0.9))
    assert list(places(rounds("1s", *free)).values()).count("z") <= 1
    shared = rounds("1s", *half)
    assert set(places(shared).values()) == {"x", "y"}
    assert shared.rounds is not None
    assert shared.rounds.holds
    # What a round takes is told as it is by itself: others count it once.
    assert sum(shared.rounds.busy.values()) == pytest.approx(1.2, abs=0.02)


def test_the_plan_for_a_period_does_not_swing_and_is_made_anew_for_a_reason() -> None:
    nodes = (now("x"), now("y"), now("z"))
    first = rounds("500ms", *nodes)
    for turn in range(4):
        drifted = [now(name, taken=0.02 * (turn % 2)) for name in "xyz"]
        again = rounds("500ms", *drifted, old=dict(first.places))
        assert again.kept
        assert places(again) == places(first)
    full = (now("x"), now("y"), now("z", taken=0.9), now("u"))
    moved = rounds("500ms", *full, old=dict(first.places))
    assert not moved.kept
    assert set(places(moved).values()) == {"x", "y", "u"}
    gone = rounds("500ms", now("x"), now("y"), now("u"), old=dict(first.places))
    assert set(places(gone).values()) == {"x", "y", "u"}


def test_lesser_variants_are_for_a_period_too() -> None:
    text = f"every: 700ms\n{varied(2, large=1.0, small=0.5)}"
    made = advise(wanted(text, now("x"), now("y"), rounds=True), iterations=50)
    assert set(variants(made).values()) <= {"middle", "small"}
    assert len(variants(made)) == 2
    assert made.rounds is not None
    assert made.rounds.holds
    assert not variants(advise(wanted(text.replace("700ms", "3s"), now("x"), now("y"), rounds=True), iterations=50))
