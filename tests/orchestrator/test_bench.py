"""The harness that measures side by side, the works, and one small run of each benchmark."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from starloom.agents.catalog import Catalog
from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Requirements, Tier
from starloom.dag.errors import InvalidInput, StarloomError
from starloom.dag.ids import StageId
from starloom.dag.validate import validate
from starloom.orchestrator import demo
from starloom.orchestrator.bench import daskpeer, harness, overhead, peerhost, replay, report, tiers, transfer
from starloom.orchestrator.bench.harness import Row
from starloom.orchestrator.bench.ours import OURS, constellation
from starloom.orchestrator.bench.peerhost import Ask, paced
from starloom.orchestrator.bench.peers import PEERS, Host, open_peers
from starloom.orchestrator.bench.plane import open_plane
from starloom.orchestrator.bench.shapes import LAYER_STAGES, LAYER_UPSTREAMS, Form, Pace, Shape, Work, shape
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.clusterfile import DEFAULT

WAYS = ("", "-plane", "-network")
ROW_KEYS = {"what", "ours", "peer", "peer_name", "ratio", "unit"}


class Told:
    """A contender whose seconds are told beforehand, and that writes down when it was asked."""

    def __init__(self, name: str, asked: list[tuple[str, str]], refuses: str = "") -> None:
        self.name = name
        self._asked = asked
        self._refuses = refuses

    def does(self, work: str) -> bool:
        return work != self._refuses

    def seconds(self, work: str) -> float:
        self._asked.append((self.name, work))
        return float(len(self._asked))


def test_contenders_take_turns_and_warm_ups_do_not_count() -> None:
    asked: list[tuple[str, str]] = []
    said: list[str] = []
    samples = harness.alternate(
        [Told("a", asked), Told("b", asked, refuses="hard")], ["easy", "hard"], 2, warm_ups=1, note=said.append
    )
    warm_up = [("b", "easy"), ("a", "easy"), ("a", "hard")]
    first = [("a", "easy"), ("b", "easy"), ("a", "hard")]
    assert asked == [*warm_up, *first, *warm_up]
    assert samples == {("a", "easy"): [4.0, 8.0], ("b", "easy"): [5.0, 7.0], ("a", "hard"): [6.0, 9.0]}
    assert said == ["warm-up", "repetition 1 of 2", "repetition 2 of 2"]


@pytest.mark.parametrize(
    ("figures", "median", "low", "high"),
    [([3.0], 3.0, 3.0, 3.0), ([4.0, 2.0], 3.0, 2.0, 4.0), ([5.0, 1.0, 2.0, 4.0, 3.0], 3.0, 2.0, 4.0)],
)
def test_a_summary_is_the_median_with_its_quartiles(
    figures: list[float], median: float, low: float, high: float
) -> None:
    found = harness.summary(figures)
    assert (found.median, found.low, found.high, found.n) == (median, low, high, len(figures))


def test_a_ratio_over_one_means_that_ours_is_better() -> None:
    figures: dict[str, Sequence[float]] = {OURS: [2.0], "peer": [6.0], "absent": []}
    [less] = harness.rows("wide", "s", OURS, ["peer", "absent"], figures.__getitem__)
    [more] = harness.rows("rate", "jobs/s", OURS, ["peer"], figures.__getitem__, more_is_better=True)
    assert less.ratio == pytest.approx(3.0)
    assert more.ratio == pytest.approx(1 / 3)
    assert (less.what, less.peer_name, less.unit, less.n) == ("wide", "peer", "s", 1)


@pytest.mark.parametrize("ours", [[], [0.0], [-1.0]])
def test_there_is_no_row_without_a_figure_above_zero(ours: list[float]) -> None:
    assert harness.rows("hop", "ms", OURS, ["peer"], {OURS: ours, "peer": [1.0]}.__getitem__) == []


def test_each_form_has_the_dependencies_that_it_says() -> None:
    chain = shape(Work(form=Form.CHAIN, size=4, workers=2))
    assert chain.upstreams == ((), (0,), (1,), (2,))
    assert chain.workers == (0, 1, 0, 1)
    assert chain.sinks == [3]
    wide = shape(Work(form=Form.WIDE, size=3))
    assert (wide.upstreams, wide.workers, wide.sinks) == (((), (), ()), (None, None, None), [0, 1, 2])
    jobs = shape(Work(form=Form.JOBS, size=2))
    assert jobs.upstreams == ((), (0,), (1,), (), (3,), (4,))
    layered = shape(Work(form=Form.LAYERED, size=3 * LAYER_STAGES))
    for index, upstreams in enumerate(layered.upstreams):
        layer = index // LAYER_STAGES
        assert len(set(upstreams)) == (LAYER_UPSTREAMS if layer else 0)
        assert {upstream // LAYER_STAGES for upstream in upstreams} <= {layer - 1}


def test_a_layered_graph_is_drawn_and_the_same_every_time() -> None:
    work = Work(form=Form.LAYERED, size=4 * LAYER_STAGES)
    assert shape(work) == shape(work)
    layers = [shape(work).upstreams[number * LAYER_STAGES : (number + 1) * LAYER_STAGES] for number in (1, 2, 3)]
    before = [[{upstream % LAYER_STAGES for upstream in upstreams} for upstreams in layer] for layer in layers]
    assert before[0] != before[1] != before[2]


def test_a_slope_of_one_is_twice_as_long_for_twice_as_much() -> None:
    assert harness.slope([(100, 0.2), (1_000, 2.0), (10_000, 20.0)]) == pytest.approx(1.0)
    assert harness.slope([(1, 1.0), (10, 100.0)]) == pytest.approx(2.0)


@pytest.mark.parametrize(("percent", "found"), [(1, 1.0), (50, 50.0), (95, 95.0), (99, 99.0), (100, 100.0)])
def test_a_percentile_is_a_figure_that_so_many_are_at_most(percent: int, found: float) -> None:
    assert harness.percentile([float(number) for number in range(100, 0, -1)], percent) == found


def test_latency_counts_from_when_a_job_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(per_second=1_000.0, seconds=0.005)
    ends: list[Callable[[], None]] = []
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(peerhost, "time", SimpleNamespace(perf_counter=lambda: now, sleep=sleep))

    class Late:
        """Ends all jobs when the last one was handed in."""

        def run(self, graph: Shape) -> None:
            raise NotImplementedError

        def start(self, graph: Shape, done: Callable[[], None]) -> None:
            ends.append(done)
            if len(ends) == pace.jobs:
                for end in ends:
                    end()

    found = paced(Late(), pace)
    assert len(found) == pace.jobs == 5
    assert found == pytest.approx([pace.due(4) - pace.due(job) for job in range(5)])
    assert all(earlier > later for earlier, later in pairwise(found))


def test_the_largest_graph_is_several_jobs() -> None:
    plan = overhead.make_plan(1.0)
    assert [(work.size * work.jobs, work.jobs) for work in plan.growth] == [
        *((100, 1), (1_000, 1), (10_000, 1), (20_000, 1), (100_000, 5)),
    ]
    assert max(work.size for work in plan.growth) == limits.STAGES_PER_JOB_MAX
    told = overhead.growth(plan.growth, Told(OURS, []), 1, lambda _: None)  # type: ignore[arg-type]
    assert list(told["seconds"]) == ["100", "1000", "10000", "20000", "100000"]


def test_only_the_rows_that_were_asked_for_are_measured() -> None:
    plan = overhead.make_plan(1.0, ["hop-same-agent", "wide-1000"])
    assert plan.works == [plan.wide, plan.same, plan.short_same]
    assert overhead.make_plan(1.0, ["growth"]).works == []


def test_dask_gets_at_once_what_does_not_wait_for_each_other() -> None:
    assert daskpeer.batches(shape(Work(form=Form.WIDE, size=3))) == [[0, 1, 2]]
    assert daskpeer.batches(shape(Work(form=Form.CHAIN, size=3, workers=1))) == [[0], [1], [2]]
    assert [len(batch) for batch in daskpeer.batches(shape(Work(form=Form.LAYERED, size=120)))] == [50, 50, 20]


@pytest.mark.parametrize("form", Form)
def test_starloom_is_given_the_same_graph(form: Form) -> None:
    graph = shape(Work(form=form, size=6, workers=2))
    made = constellation(graph, ["left", "right"])
    validate(made, Catalog(points=()).kinds)
    index = {stage: place for place, stage in enumerate(made.stages)}
    arcs = {(index[arc.upstream], index[arc.downstream]) for arc in made.dependencies}
    assert arcs == {(upstream, down) for down, upstreams in enumerate(graph.upstreams) for upstream in upstreams}
    assert [stage.requires.node for stage in made.stages.values()] == ["left", "right"] * (len(graph.upstreams) // 2)


def test_the_rows_of_overhead_have_the_names_that_are_followed() -> None:
    plan = overhead.make_plan(1.0)
    seconds = dict.fromkeys([*plan.works, plan.large], 1.0) | {plan.short_same: 0.1, plan.short_two: 0.1}
    samples = {(name, work): [took] for name in (OURS, "floor") for work, took in seconds.items()}
    rows = {row.what: row for row in overhead.rows(plan, samples, ["floor", "dask"])}
    assert set(rows) == {
        *("wide-1000", "wide-10000", "layered-1000", "chain-100-same-agent", "chain-100-two-agents"),
        *("hop-same-agent", "hop-two-agents", "jobs-at-once"),
    }
    assert rows["hop-two-agents"].ours == pytest.approx(10.0)
    assert rows["jobs-at-once"].ours == pytest.approx(plan.jobs.size)
    late = overhead.pace_rows({OURS: [0.010, 0.020, 0.030], "dask": [0.040]}, ["dask", "floor"])
    assert [(row.what, row.peer_name, row.unit) for row in late] == [
        ("jobs-100-per-second", "dask", "ms"),
        ("jobs-100-per-second-p95", "dask", "ms"),
        ("jobs-100-per-second-p99", "dask", "ms"),
    ]
    assert [row.ours for row in late] == pytest.approx([20.0, 30.0, 30.0])
    assert set(overhead.ROWS) <= {*rows, *(row.what for row in late), "growth"}


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), 1e9])
def test_a_scale_that_makes_no_sense_is_refused(scale: float) -> None:
    with pytest.raises(InvalidInput, match="--scale"):
        overhead.make_plan(scale)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123456, "0.0123"), (1234.5, "1,230"), (12, "12"), (0, "0"), (-0.5, "-0.5")]
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert report.figure(value) == text


def test_a_peer_does_its_work_in_a_process_of_its_own(tmp_path: Path) -> None:
    with open_peers(["floor"], tmp_path) as [floor]:
        assert floor.does(Work(form=Form.WIDE, size=10))
        assert not floor.does(Work(form=Form.CHAIN, size=10, workers=2))
        for form in Form:
            assert floor.seconds(Work(form=form, size=10)) > 0


def test_the_raw_stream_passes_a_chain_to_and_fro(tmp_path: Path) -> None:
    with open_peers(["grpc-stream"], tmp_path) as [stream]:
        assert not stream.does(Work(form=Form.WIDE, size=10))
        assert stream.seconds(Work(form=Form.CHAIN, size=10, workers=2)) > 0


def test_a_peer_that_fails_says_how_and_one_that_ends_shows_its_log(tmp_path: Path) -> None:
    host = Host("floorpeer", tmp_path / "floor.log")
    host.wait_ready()
    with pytest.raises(StarloomError, match="KeyError: 'nobody'"):
        host.ask(Ask(peer="nobody", work=Work(form=Form.WIDE, size=1)))
    host.stop()
    absent = Host("absent", tmp_path / "absent.log")
    with pytest.raises(StarloomError, match=r"No module named .*absent"):
        absent.wait_ready()
    absent.stop()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--repeat", "0"], "--repeat"),
        (["--scale", "-1"], "--scale"),
        (["--peers", "nobody"], "nobody"),
        (["--rows", "none"], "none"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "overhead", "--json", *arguments]) == 2
    assert problem in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_placement_requires_its_tier_and_gives_up_what_no_node_there_has() -> None:
    chosen = demo.constellation()
    cloud = tiers.on_tier(chosen, Tier.CLOUD, DEFAULT)
    device = tiers.on_tier(chosen, Tier.DEVICE, DEFAULT)
    for stage in cloud.stages.values():
        assert stage.requires == Requirements(tiers=(Tier.CLOUD,), target="cpu" if stage.id == "faces" else "")
    for stage in device.stages.values():
        before = chosen.stages[stage.id].requires
        assert stage.requires == Requirements(tiers=(Tier.DEVICE,), target=before.target, labels=before.labels)
    assert (cloud.dependencies, cloud.outputs) == (chosen.dependencies, chosen.outputs)


def test_a_requirement_of_a_node_is_given_up_and_one_of_memory_is_not() -> None:
    graph = Graph("pinned")
    graph.stage("one", "basic.noop", require=Requirements(node="edge-1", memory_bytes=7, target="gpu"))
    moved = tiers.on_tier(graph.build(), Tier.CLOUD, DEFAULT).stages[StageId("one")]
    assert moved.requires == Requirements(tiers=(Tier.CLOUD,), memory_bytes=7, target="cpu")


@pytest.mark.parametrize(("answers", "said"), [(1, "the same in all runs"), (2, "not the same in all runs: 2 answers")])
def test_the_notes_say_that_all_tiers_have_one_processor_and_whether_the_answers_agree(answers: int, said: str) -> None:
    notes = tiers.notes(DEFAULT, answers)
    assert "the same processor" in notes[0]
    assert notes[-1] == f"the answer was {said}"


def test_a_row_shows_its_quartiles() -> None:
    row = Row(
        what="wide-1000",
        ours=0.1,
        peer=0.25,
        peer_name="dask",
        ratio=2.5,
        unit="s",
        n=9,
        ours_spread=(0.09, 0.12),
        peer_spread=(0.2, 0.3),
    )
    assert report.cells(row) == (
        *("wide-1000", "0.1", "[0.09 to 0.12]", "dask", "0.25", "[0.2 to 0.3]", "s", "2.5x", "9"),
    )


@pytest.mark.ray
@pytest.mark.slow
# It starts six systems: a minute where others have a part of the cores, as every other test has while this one runs.
@pytest.mark.timeout(300)
def test_a_small_run_of_overhead_gives_well_formed_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "overhead", "--json", "--repeat", "1", "--scale", "0.02"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bench"] == "overhead"
    assert {row["peer_name"] for row in found["rows"]} == set(PEERS)
    # A hop is a difference, and may come out below zero where chains are as short.
    assert {row["what"] for row in found["rows"]} - {"hop-same-agent", "hop-two-agents"} == {
        *("wide-20", "wide-200", "layered-20", "chain-4-same-agent", "chain-4-two-agents", "jobs-at-once"),
        *("jobs-100-per-second", "jobs-100-per-second-p95", "jobs-100-per-second-p99"),
    }
    assert found["figures"]["memory"]["jobs"] == 120
    assert list(found["figures"]["growth"]["seconds"]) == ["2", "20", "200", "400", "2000"]
    assert found["figures"]["growth"]["slope"] > 0
    for row in found["rows"]:
        assert row.keys() >= ROW_KEYS
        less_is_better = row["unit"] != "jobs/s"
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"] if less_is_better else row["ours"] / row["peer"])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.models
def test_a_small_run_of_tiers_gives_a_row_for_each_placement(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tiers", "--json", "--repeat", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["peer_name"]: row for row in found["rows"]}
    assert set(rows) == {"all-cloud", "all-device"}
    for row in rows.values():
        assert row.keys() >= ROW_KEYS
        assert (row["what"], row["unit"]) == ("demo", "s")
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])


def test_replay_has_a_row_for_each_journal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Small journals: what is measured are the same starts, from the same state."""
    for name, value in (("_OPEN", 20), ("_ENDED_JOBS", 2), ("_ENDED_STAGES", 15)):
        monkeypatch.setattr(replay, name, value)
    monkeypatch.setattr(limits, "SNAPSHOT_FACTS", 30)
    assert main(["bench", "replay", "--repeat", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["what"], row["peer_name"]) for row in rows] == [
        ("open-20", "all-facts"),
        ("open-20-after-ended", "all-facts"),
    ]
    assert all(row.keys() >= ROW_KEYS for row in rows)


def test_the_rows_of_transfer_have_the_names_that_are_followed() -> None:
    samples: dict[tuple[str, Work], list[float]] = {}
    for size in transfer.SIZES.values():
        long, short, one = size.works
        for name in (OURS, transfer.RAY):
            samples[name, long], samples[name, short] = [0.001 * long.size], [0.001 * short.size]
        for name in ("starloom-plane", "starloom-network", "grpc-stream", "memcpy"):
            samples[name, one] = [0.002]
    rows = transfer.rows(list(transfer.SIZES), samples)
    assert {"1kB", "1MB", "10MB", "100MB", "10MB-plane", "10MB-network"} <= {row.what for row in rows}
    ratios = {(row.what, row.peer_name): row.ratio for row in rows}
    assert ratios["10MB", "ray-actors"] == pytest.approx(1.0)
    assert ratios["10MB", "memcpy"] == pytest.approx(2.0)
    assert ratios["10MB", "memcpy-and-hop"] == pytest.approx(4.0)
    assert ratios["10MB-plane", "memcpy"] == pytest.approx(1.0)
    with pytest.raises(InvalidInput, match="3kB"):
        transfer._sizes("1MB,3kB")


def test_the_bare_data_plane_moves_values_of_every_size() -> None:
    with open_plane() as contenders:
        for contender in contenders:
            assert not contender.does(Work(form=Form.CHAIN, size=2, workers=2, value_bytes=1))
            for size in (1_000, 1_000_000):
                assert contender.seconds(Work(form=Form.CHAIN, size=1, workers=2, value_bytes=size)) > 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_run_of_transfer_gives_well_formed_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "transfer", "--json", "--repeat", "1", "--sizes", "1kB,1MB"]) == 0
    found = json.loads(capsys.readouterr().out)
    # What a chain takes by its size is a difference, and may come out below zero where it is measured once.
    differences = {"1kB", "1MB"}
    assert {row["what"] for row in found["rows"]} | differences == {
        f"{size}{way}" for size in differences for way in WAYS
    }
    assert {row["peer_name"] for row in found["rows"] if row["what"] == "1MB-plane"} == {
        *("grpc-stream", "memcpy", "memcpy-and-hop")
    }
    assert {row["peer_name"] for row in found["rows"] if row["what"] in differences} <= {
        *("ray-actors", "grpc-stream", "memcpy", "memcpy-and-hop")
    }
    assert all(row.keys() >= ROW_KEYS and row["ratio"] > 0 for row in found["rows"])
