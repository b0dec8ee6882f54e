"""What runs are expected to take: measured, scaled from other nodes, predicted from graphs and profiles, or hinted at."""

import subprocess
import sys
from math import inf, isfinite
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.orchestrator.harness import KINDS, World, facts_of, learned, node

from starloom.agents import samples
from starloom.agents.messages import Load
from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.facts import AgentJoined, Timing
from starloom.dag.ids import AgentId
from starloom.dag.kinds import Cost, CostParams, KindSpec
from starloom.devices.demand import COLUMNS, Demand
from starloom.devices.node import Measured, NodeProfile
from starloom.orchestrator import image
from starloom.orchestrator.cli.views import speeds
from starloom.orchestrator.costs import Costs, Source
from starloom.orchestrator.image import Image
from starloom.orchestrator.inputs import AgentHeartbeat
from starloom.orchestrator.kept import KeptJobs
from starloom.orchestrator.placement import EarliestFinish
from starloom.orchestrator.same import difference
from starloom.orchestrator.state import State

HERE, THERE, PLAIN = AgentId("here"), AgentId("there"), AgentId("plain")
SEE = KindSpec(name="see", cost=Cost(run_seconds=1.0))
TELL = KindSpec(name="tell", cost=Cost(run_seconds=1.0))
GLUE = KindSpec(name="glue", cost=Cost(run_seconds=0.5))
TASK = KindSpec(name="task", cost=Cost(run_seconds=1.0, params=CostParams(run_seconds="seconds")))

CHEAP: dict[str, float] = {}
"""The reference machine."""
SLOW = {"convolutions": 5.0, "pointwise": 5.0, "depthwise": 5.0, "products": 1.5, "near bytes": 2.0, "far bytes": 2.0}
"""A machine whose convolutions are slow above all."""


def unit_costs(slower: dict[str, float]) -> Any:
    """Seconds of one of each column on a machine that is so many times as slow as the reference at some."""
    table = samples.load()
    each = np.array(table.costs) / np.mean(table.demands, axis=0)
    return each * np.array([slower.get(column, 1.0) for column in COLUMNS])


def asked(**amounts: float) -> Demand:
    found = {"calls": 1.0, "operators": 50.0} | {name.replace("_", " "): amount for name, amount in amounts.items()}
    return tuple(found.get(column, 0.0) for column in COLUMNS)


ASKS = {
    "see": asked(convolutions=2e9, pointwise=4e9, near_bytes=2e8, far_bytes=2e8),
    "tell": asked(products=6e9, near_bytes=2e8, far_bytes=1e8),
}


def truth(kind: str, slower: dict[str, float]) -> float:
    return float(unit_costs(slower) @ np.array(ASKS[kind]))


def profile(slower: dict[str, float], asks: bool = True) -> Measured:
    """What a machine tells that takes exactly what its columns cost, one sample a little off."""
    seconds = np.array(samples.load().demands) @ unit_costs(slower)
    seconds[2] *= 1.1
    told = {kind: {"cpu": demand} for kind, demand in ASKS.items()} if asks else {}
    return Measured(
        samples=samples.load().digest, seconds={"cpu": tuple(float(f"{each:.4g}") for each in seconds)}, asks=told
    )


def off(found: float, real: float) -> float:
    return float(abs(np.log(found / real)))


@pytest.fixture
def costs() -> Costs:
    """Two nodes, one the reference machine, one with slow convolutions, and one that tells nothing of itself."""
    made = Costs()
    made.meet(HERE, profile(CHEAP))
    made.meet(THERE, profile(SLOW))
    made.meet(PLAIN, None)
    return made


class TestWhereItRanNowhere:
    @pytest.mark.parametrize("kind", [SEE, TELL])
    @pytest.mark.parametrize(("where", "slower"), [(HERE, CHEAP), (THERE, SLOW)])
    def test_it_is_predicted_from_what_it_asks(
        self, costs: Costs, kind: KindSpec, where: AgentId, slower: dict[str, float]
    ) -> None:
        real = truth(kind.name, slower)
        found = costs.predicted(kind, where, "cpu")
        assert found.source is Source.PREDICTED
        assert found.seconds == costs.run_seconds(kind, where, "cpu")
        assert off(found.seconds, real) < 0.35
        assert off(found.seconds, real) < off(kind.cost.run_seconds, real) / 2
        assert 0 < found.low < real < found.high < 4 * real

    def test_without_graphs_the_hint_is_for_the_reference_machine(self, costs: Costs) -> None:
        assert costs.run_seconds(GLUE, HERE, "cpu") == pytest.approx(0.5, rel=0.1)
        assert costs.run_seconds(GLUE, THERE, "cpu") > 0.7
        assert costs.run_seconds(GLUE, PLAIN, "cpu") == 0.5
        assert costs.predicted(GLUE, THERE, "cpu")[1:] == (0.0, inf, Source.HINTED)

    def test_without_a_profile_it_is_the_hint(self, costs: Costs) -> None:
        assert costs.predicted(SEE, PLAIN, "cpu") == (1.0, 0.0, inf, Source.HINTED)
        assert costs.predicted(SEE, HERE, "npu") == (1.0, 0.0, inf, Source.HINTED)

    def test_profiles_of_other_samples_are_passed_over(self) -> None:
        made = Costs()
        other = msgspec.structs.replace(profile(CHEAP), samples="0123456789abcdef")
        made.meet(HERE, other)
        assert made.predicted(SEE, HERE, "cpu").source is Source.HINTED
        short = msgspec.structs.replace(profile(CHEAP), seconds={"cpu": (1.0,)}, asks={"see": {"cpu": (1.0,)}})
        made.meet(HERE, short)
        assert made.predicted(SEE, HERE, "cpu").source is Source.HINTED

    @pytest.mark.parametrize("seconds", [1e-300, 1e300, -1.0])
    def test_times_that_no_machine_has_are_passed_over(self, seconds: float) -> None:
        """Costs cannot be fitted to them: the orchestrator ended at such a hello, and at its every start while that agent was there."""
        table = samples.load()
        odd = Measured(samples=table.digest, seconds={"cpu": (seconds,) * len(table.names)})
        costs = Costs()
        costs.meet(HERE, odd)
        assert costs.predicted(GLUE, HERE, "cpu").source is Source.HINTED
        assert not costs.forecasts.nodes

    @pytest.mark.parametrize("amount", [1e308, -1.0, 0.0, 1e-320])
    def test_what_no_run_can_ask_is_passed_over(self, amount: float) -> None:
        """Costs cannot be learned of that: the orchestrator ended at the second run's report, and that came again after each start."""
        odd = msgspec.structs.replace(profile(CHEAP), asks={SEE.name: {"cpu": (amount,) * len(COLUMNS)}})
        costs = Costs()
        costs.meet(HERE, odd)
        assert costs.predicted(SEE, HERE, "cpu").source is Source.HINTED
        for seconds in (0.5, 0.6):
            costs.learn(SEE.name, HERE, "cpu", Timing(run=seconds))
        assert 0.5 < costs.run_seconds(SEE, HERE, "cpu") < 0.6

    def test_some_samples_are_enough(self) -> None:
        whole = profile(SLOW)
        some = tuple(seconds if place < 5 else 0.0 for place, seconds in enumerate(whole.seconds["cpu"]))
        made = Costs()
        made.meet(THERE, msgspec.structs.replace(whole, seconds={"cpu": some}))
        assert off(made.run_seconds(SEE, THERE, "cpu"), truth("see", SLOW)) < 0.5


class TestWhereItRanElsewhere:
    @pytest.mark.parametrize("kind", [SEE, TELL])
    def test_it_is_scaled_by_what_it_asks_of_both(self, costs: Costs, kind: KindSpec) -> None:
        """Reading and writing around its models take half as long again, which no graph tells."""
        costs.learn(kind.name, HERE, "cpu", Timing(run=1.5 * truth(kind.name, CHEAP)))
        real = 1.5 * truth(kind.name, SLOW)
        found = costs.predicted(kind, THERE, "cpu")
        assert found.source is Source.SCALED
        assert off(found.seconds, real) < 0.35
        assert found.low < real < found.high

    def test_convolutions_are_scaled_by_more_than_products(self, costs: Costs) -> None:
        for kind in (SEE, TELL):
            costs.learn(kind.name, HERE, "cpu", Timing(run=1.0))
        assert costs.run_seconds(SEE, THERE, "cpu") > 2 * costs.run_seconds(TELL, THERE, "cpu")

    def test_without_graphs_it_is_scaled_by_the_samples(self, costs: Costs) -> None:
        costs.learn("glue", THERE, "cpu", Timing(run=3.0))
        assert 0.5 < costs.run_seconds(GLUE, HERE, "cpu") < 2.5
        assert costs.run_seconds(GLUE, PLAIN, "cpu") == 3.0

    def test_a_profile_that_comes_after_the_runs_counts_them(self) -> None:
        made = Costs()
        made.learn("see", HERE, "cpu", Timing(run=1.5 * truth("see", CHEAP)))
        made.meet(THERE, profile(SLOW))
        assert made.run_seconds(SEE, THERE, "cpu") == 1.5 * truth("see", CHEAP)
        made.meet(HERE, profile(CHEAP))
        assert off(made.run_seconds(SEE, THERE, "cpu"), 1.5 * truth("see", SLOW)) < 0.35


class TestWhereItRan:
    def test_it_is_what_was_measured(self, costs: Costs) -> None:
        costs.learn("see", HERE, "cpu", Timing(run=7.0))
        assert costs.run_seconds(SEE, HERE, "cpu") == 7.0
        assert costs.predicted(SEE, HERE, "cpu") == (7.0, 0.0, inf, Source.MEASURED)

    def test_its_spread_is_learned(self, costs: Costs) -> None:
        for seconds in (1.0, 1.1, 0.9, 1.0, 1.1, 0.9):
            costs.learn("see", HERE, "cpu", Timing(run=seconds))
        found = costs.predicted(SEE, HERE, "cpu")
        assert 0.7 < found.low < 0.95 < found.seconds < 1.05 < found.high < 1.3

    def test_a_node_that_slows_down_is_expected_to_be_slow_at_other_kinds(self, costs: Costs) -> None:
        before = costs.run_seconds(TELL, HERE, "cpu")
        for _ in range(5):
            costs.learn("see", HERE, "cpu", Timing(run=1.0))
        for _ in range(20):
            costs.learn("see", HERE, "cpu", Timing(run=2.0))
        assert costs.run_seconds(TELL, HERE, "cpu") > 1.15 * before

    def test_the_same_profile_again_keeps_what_runs_taught(self, costs: Costs) -> None:
        for seconds in (1.0, 2.0, 2.0, 2.0):
            costs.learn("see", HERE, "cpu", Timing(run=seconds))
        before = costs.run_seconds(TELL, HERE, "cpu")
        costs.meet(HERE, profile(CHEAP))
        assert costs.run_seconds(TELL, HERE, "cpu") == before
        costs.meet(HERE, profile(SLOW))
        assert costs.run_seconds(TELL, HERE, "cpu") != before
        costs.meet(HERE, None)
        assert costs.predicted(TELL, HERE, "cpu").source is Source.HINTED

    def test_runs_that_took_no_time_teach_nothing_wrong(self, costs: Costs) -> None:
        costs.learn("see", HERE, "cpu", Timing(run=0.0))
        costs.learn("see", HERE, "cpu", Timing(run=0.0))
        assert costs.run_seconds(SEE, HERE, "cpu") == 0.0
        assert costs.run_seconds(SEE, THERE, "cpu") == 0.0

    @pytest.mark.parametrize("told", [None, 1.0])
    @pytest.mark.parametrize("least", [5e-324, 1e-300, 1e-160])
    def test_runs_of_next_to_no_time_are_no_defect(self, costs: Costs, least: float, told: float | None) -> None:
        """The next run was so many times as long that its square was no number, and the orchestrator ended."""
        for seconds in (least, 0.5, limits.DURATION_SECONDS_MAX, 0.5, least, 0.5):
            costs.learn(SEE.name, HERE, "cpu", Timing(run=seconds), told)
            for where in (HERE, THERE):
                found = costs.predicted(SEE, where, "cpu", told)
                assert isfinite(found.seconds)
                assert isfinite(found.deviation)


class TestToldByParameters:
    def test_the_ratio_is_learned_not_the_mean(self, costs: Costs) -> None:
        assert costs.predicted(TASK, HERE, "cpu", 2.0) == (2.0, 0.0, inf, Source.HINTED)
        for told in (1.0, 10.0, 0.1):
            costs.learn("task", HERE, "cpu", Timing(run=1.2 * told), told)
        assert costs.run_seconds(TASK, HERE, "cpu", 5.0) == pytest.approx(6.0)
        assert costs.run_seconds(TASK, PLAIN, "cpu", 5.0) == pytest.approx(6.0)
        assert costs.predicted(TASK, HERE, "cpu", 5.0).source is Source.MEASURED
        assert costs.predicted(TASK, PLAIN, "cpu", 5.0).source is Source.SCALED
        assert costs.known(TASK, "cpu")

    def test_each_node_has_its_own(self, costs: Costs) -> None:
        costs.learn("task", HERE, "cpu", Timing(run=1.0), 1.0)
        costs.learn("task", THERE, "cpu", Timing(run=3.0), 1.0)
        assert costs.run_seconds(TASK, THERE, "cpu", 2.0) == 6.0
        assert costs.run_seconds(TASK, HERE, "cpu", 2.0) == 2.0

    def test_a_run_teaches_a_ratio_by_as_much_as_it_was_told_to_take(self, costs: Costs) -> None:
        """A stage of 5 ms that took 60 made its node four times as slow, just when forty of a second each were placed."""
        for _ in range(3):
            costs.learn("task", HERE, "cpu", Timing(run=2.0), 1.0)
        costs.learn("task", HERE, "cpu", Timing(run=0.060), 0.005)
        assert costs.run_seconds(TASK, HERE, "cpu", 1.0) == pytest.approx(2.0, rel=0.03)
        assert costs.run_seconds(TASK, THERE, "cpu", 1.0) == pytest.approx(2.0, rel=0.03)
        within = costs.predicted(TASK, HERE, "cpu", 1.0)
        assert 1.0 < within.low < within.seconds < within.high < 3.0
        # Short ones teach all the same, and what began with one is soon what long ones tell.
        costs.learn("task", THERE, "cpu", Timing(run=0.060), 0.005)
        assert costs.run_seconds(TASK, THERE, "cpu", 1.0) == pytest.approx(12.0)
        costs.learn("task", THERE, "cpu", Timing(run=3.0), 1.0)
        assert costs.run_seconds(TASK, THERE, "cpu", 1.0) == pytest.approx(3.0, rel=0.02)

    def test_what_is_told_to_take_nothing_teaches_no_ratio(self, costs: Costs) -> None:
        costs.learn("task", HERE, "cpu", Timing(run=0.5), 0.0)
        assert costs.run_seconds(TASK, HERE, "cpu", 0.0) == 0.0
        assert costs.run_seconds(TASK, HERE, "cpu", 2.0) == 2.0


class TestKept:
    def test_an_image_gives_the_same_and_goes_on_alike(self, costs: Costs) -> None:
        planner = EarliestFinish()
        planner.costs = costs
        for kind, where in (("see", HERE), ("see", HERE), ("tell", THERE), ("glue", PLAIN)):
            planner.learn(kind, where, "cpu", Timing(run=2.0))
        planner.learn("task", HERE, "cpu", Timing(run=2.0), 1.0)
        costs.run_seconds(TELL, HERE, "cpu")
        state = State(planner)
        taken = msgspec.json.decode(msgspec.json.encode(image.take(state, KeptJobs())), type=Image)
        found = State(EarliestFinish())
        image.restore(taken, found, KeptJobs())
        assert difference(state, found) == ""
        for each in (state, found):
            each.planner.learn("see", HERE, "cpu", Timing(run=3.0))
            each.planner.learn("see", HERE, "cpu", Timing(run=3.0))
        assert difference(state, found) == ""
        assert found.planner.expected_seconds(TELL, HERE, "cpu") == costs.run_seconds(TELL, HERE, "cpu")

    def test_what_was_asked_in_between_makes_no_difference(self) -> None:
        one, other = EarliestFinish(), EarliestFinish()
        for planner in (one, other):
            planner.meet(HERE, profile(CHEAP))
            planner.meet(THERE, profile(SLOW))
            for seconds in (1.0, 1.5, 2.5):
                planner.learn("see", HERE, "cpu", Timing(run=seconds))
                if planner is one:
                    for kind in (SEE, TELL, GLUE):
                        planner.expected_seconds(kind, THERE, "cpu")
        assert difference(one, other, "planner") == ""
        assert one.expected_seconds(SEE, THERE, "cpu") == other.expected_seconds(SEE, THERE, "cpu")


def told(name: str, measured: Measured | None) -> NodeProfile:
    return msgspec.structs.replace(node(name), measured=measured)


class TestInTheCoordinator:
    def test_profiles_are_facts_and_a_restart_knows_as_much(self, world: Any) -> None:
        w: World = world(told("here", profile(CHEAP)), told("there", profile(SLOW)))
        graph = Graph("one")
        graph.stage("s", "t.work")
        w.submit(graph.build(KINDS))
        w.finish("s", run=2.0)
        before = learned(w.coordinator._state.planner)
        assert set(before["nodes"]) == {("here", "cpu"), ("there", "cpu")}
        assert before["factor"]
        w.restart()
        assert learned(w.coordinator._state.planner) == before

    def test_what_a_heartbeat_tells_is_joined_to_the_profile_once(self, world: Any) -> None:
        w: World = world(node("here"))
        member = w.coordinator._state.fleet.members[AgentId("here")]
        for _ in range(2):
            w.handle(
                AgentHeartbeat(
                    agent=AgentId("here"),
                    incarnation=member.incarnation,
                    load=Load(queued=3, measured=profile(CHEAP)),
                )
            )
        joins = facts_of(w, AgentJoined)
        assert len(joins) == 2
        assert joins[1].incarnation == joins[0].incarnation
        assert member.profile == told("here", profile(CHEAP))
        assert (member.load.queued, member.load.measured) == (3, None)
        assert learned(w.coordinator._state.planner)["nodes"]


def test_nodes_tell_their_speed_as_a_fleet_file_has_it() -> None:
    assert speeds(node("a")) == {}
    assert speeds(told("a", msgspec.structs.replace(profile(CHEAP), samples="0123456789abcdef"))) == {}
    halved = tuple(2 * seconds for seconds in samples.load().reference)
    assert speeds(told("a", msgspec.structs.replace(profile(CHEAP), seconds={"cpu": halved}))) == {"cpu": 0.5}


def test_nothing_of_it_needs_a_compiler_or_onnx() -> None:
    code = (
        "import sys; from starloom.orchestrator.costs import Costs; from tests.orchestrator.test_costs import *; "
        "c = Costs(); c.meet(HERE, profile(SLOW)); c.learn('see', HERE, 'cpu', Timing(run=1.0)); "
        "c.learn('see', HERE, 'cpu', Timing(run=1.0)); c.predicted(TELL, HERE, 'cpu'); "
        "sys.exit(bool({'numba', 'ortools', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
