"""The soak: what counts as growth, what is sampled, the jobs of its load, and a short run of the whole."""

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import msgspec
import pytest
from tests.orchestrator.onray import CommandLine

from starloom.agents.catalog import Catalog
from starloom.agents.sharedmemory import Arena
from starloom.dag import limits
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.soak import sampling, trends, windows, workload
from starloom.orchestrator.soak.sampling import Footprint
from starloom.orchestrator.soak.soaking import CLIENT, ORCHESTRATOR
from starloom.orchestrator.soak.trends import Allowance, Point
from starloom.orchestrator.soak.windows import Latency, Row, Window

POINTS = 72
EVERY = 5.0
SPAN = (POINTS - 1) * EVERY
ALLOWED = Allowance(4.0)
MIB = 1024 * 1024
SEEDS = range(25)


def points(figure: Callable[[float], float], seed: int = 0, noise: float = 0.0) -> list[Point]:
    """A figure by the share of the time that is over, with noise on it."""
    chance = random.Random(seed)
    return [(at * EVERY, figure(at / (POINTS - 1)) + chance.gauss(0.0, noise)) for at in range(POINTS)]


def test_a_slope_is_that_of_a_line_and_a_few_wild_points_do_not_move_it() -> None:
    line = points(lambda share: 100 + 20 * share)
    found = trends.slope(line)
    assert found.per_second * SPAN == pytest.approx(20)
    wild = [(at, 1_000.0 if place % 8 == 3 else figure) for place, (at, figure) in enumerate(line)]
    moved = trends.slope(wild)
    assert moved.per_second * SPAN == pytest.approx(20, rel=0.1)
    assert moved.low <= found.per_second <= moved.high


def test_the_interval_of_a_slope_holds_the_true_one() -> None:
    held = 0
    for seed in range(100):
        low, high = trends.slope(points(lambda share: 100 + 10 * share, seed, noise=3.0))[1:]
        held += low * SPAN <= 10 <= high * SPAN
    assert held >= 85


@pytest.mark.parametrize("few", [[], [(0.0, 1.0)], [(1.0, 1.0), (1.0, 2.0)]])
def test_there_is_no_slope_of_less_than_two_times(few: list[Point]) -> None:
    with pytest.raises(ValueError, match="no slope"):
        trends.slope(few)
    with pytest.raises(ValueError, match="POINTS_MIN"):
        trends.growth(few, ALLOWED)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leak_is_found_in_noise(seed: int) -> None:
    found = trends.growth(points(lambda share: 100 + 12 * share, seed, noise=2.0), ALLOWED)
    assert found.grows
    assert found.rise == pytest.approx(12, abs=3)
    assert found.last > found.first


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "figure",
    [
        lambda share: 100.0,
        lambda share: 100 + 2 * share,
        lambda share: 100 - 20 * share,
        lambda share: 100 + 30 * (share > 0.5),
        lambda share: 100 + 30 * (share > 0.8),
        lambda share: 100 + 40 * (6 * share % 1),
        lambda share: 100 + 20 * min(1.0, 3 * share),
    ],
    ids=["noise", "less than is allowed", "falls", "a step in the middle", "a late step", "a saw", "reaches its bound"],
)
def test_what_does_not_go_on_rising_does_not_grow(figure: Callable[[float], float], seed: int) -> None:
    assert not trends.growth(points(figure, seed, noise=2.0), ALLOWED).grows


def test_a_share_is_allowed_of_where_a_figure_began() -> None:
    rising = points(lambda share: 1_000 + 30 * share)
    assert trends.growth(rising, Allowance(4.0)).grows
    assert not trends.growth(rising, Allowance(4.0, share=0.05)).grows


def window(at: float, jobs: int = 0, leak_mib: float = 0.0, p95: float = 20.0, load: float = 1.0) -> Window:
    """A window of a cluster whose orchestrator has leaked so much."""
    sizes = {ORCHESTRATOR: 60 * MIB + round(leak_mib * MIB), "node": 80 * MIB}
    return Window(
        at=at,
        jobs=jobs,
        latency={"small": Latency(p50=10.0, p95=p95, jobs=12)},
        late_ms=1.0,
        load=load,
        processes={
            name: Footprint(pid=1, memory_bytes=size, shared_bytes=0, handles=20, threads=8)
            for name, size in sizes.items()
        },
        arena_bytes=0,
        held_bytes=0,
        disk={"journal": MIB, "logs": 0},
    )


def growing(**rises: float) -> list[Row]:
    """The rows of windows in which these figures rise from end to end."""
    return windows.rows(
        [
            window(
                share * SPAN,
                jobs=round(1_000 * share),
                leak_mib=rises.get("leak_mib", 0.0) * share,
                p95=20 + rises.get("p95", 0.0) * share,
                load=1 + rises.get("load", 0.0) * share,
            )
            for share in (place / (POINTS - 1) for place in range(POINTS))
        ]
    )


def grown(rows: list[Row]) -> list[str]:
    return [row.what for row in rows if row.grows]


def test_the_verdict_names_what_grows() -> None:
    flat = growing()
    assert grown(flat) == []
    assert windows.verdict(flat, failures=0) == windows.FLAT
    leak = growing(leak_mib=10.0)
    assert grown(leak) == ["orchestrator memory"]
    assert windows.verdict(leak, failures=0) == windows.GROWS
    [row] = [row for row in leak if row.grows]
    assert (row.unit, row.n, row.peer_name) == ("MiB", POINTS, "first-third")
    assert row.rise == pytest.approx(row.per_1000_jobs) == pytest.approx(10.0)
    assert row.per_hour == pytest.approx(10.0 * 3_600 / SPAN)
    assert row.ratio == pytest.approx(row.peer / row.ours)
    assert row.ratio < 1
    slow = growing(p95=40.0)
    assert grown(slow) == ["small p95"]
    assert windows.verdict(slow, failures=0) == windows.GROWS


def test_a_machine_that_gets_busier_is_told_and_not_judged() -> None:
    rows = growing(load=20.0)
    assert grown(rows) == ["load average"]
    assert windows.verdict(rows, failures=0) == windows.FLAT


def test_a_failure_is_the_verdict_whatever_else_is_flat_and_too_few_windows_give_none() -> None:
    assert windows.verdict(growing(), failures=1) == windows.FAILED
    few = windows.rows([window(float(at)) for at in range(trends.POINTS_MIN - 1)])
    assert (few, windows.verdict(few, failures=0)) == ([], windows.TOO_SHORT)
    assert windows.verdict(windows.rows([]), failures=0) == windows.TOO_SHORT


def test_a_window_is_judged_that_began_after_the_warm_up() -> None:
    taken = [window(float(at)) for at in (5, 10, 15, 20)]
    assert [each.at for each in windows.judged(taken, 10.0)] == [15, 20]
    assert windows.judged(taken, 100.0) == []


def test_what_is_missing_in_a_window_is_left_out() -> None:
    taken = [window(float(at), jobs=at) for at in range(20)]
    # No job of that work ended then, and a process that is new then has no series yet.
    taken[3] = msgspec.structs.replace(taken[3], latency={})
    taken[0] = msgspec.structs.replace(taken[0], processes={ORCHESTRATOR: taken[0].processes[ORCHESTRATOR]})
    numbers = {row.what: row.n for row in windows.rows(taken)}
    assert numbers["small p95"] == 19
    assert numbers["orchestrator memory"] == 20
    assert "node memory" not in numbers


@pytest.mark.parametrize(
    ("figures", "width", "picture"),
    [([], 5, ""), ([3.0, 3.0], 5, "▁▁"), ([0.0, 7.0], 5, "▁█"), ([0.0, 0.0, 3.5, 3.5, 7.0], 3, "▁▅█")],
)
def test_a_picture_is_as_wide_as_there_is_room(figures: list[float], width: int, picture: str) -> None:
    assert windows.picture(figures, width) == picture


def test_a_footprint_tells_of_handles_threads_and_memory() -> None:
    before = sampling.footprint(os.getpid())
    goes_on = Event()
    thread = Thread(target=goes_on.wait)
    thread.start()
    pipes = [os.pipe() for _ in range(50)]
    ballast = os.urandom(32 * MIB)
    try:
        after = sampling.footprint(os.getpid())
    finally:
        goes_on.set()
        thread.join()
        for end in sum(pipes, ()):
            os.close(end)
    # Other threads of the test process may end or close something meanwhile.
    assert 80 <= after.handles - before.handles <= 120
    assert after.threads >= 2
    assert after.memory_bytes - before.memory_bytes > len(ballast) / 2
    assert after.pid == os.getpid()


def test_there_is_no_footprint_of_no_process() -> None:
    with pytest.raises(OSError, match="No such file"):
        sampling.footprint(2**22 + 1)
    assert sampling.arena_bytes([2**22 + 1]) == 0


def test_an_arena_counts_as_much_as_it_has_reserved_and_once() -> None:
    before = sampling.arena_bytes([os.getpid()])
    arena = Arena(limit_bytes=64 * MIB)
    try:
        arena.reserve()
        with arena.path.open("rb"):
            taken = sampling.arena_bytes([os.getpid(), os.getpid()]) - before
    finally:
        arena.close()
    assert limits.AGENT_ARENA_STEP_BYTES <= taken < 2 * limits.AGENT_ARENA_STEP_BYTES


def test_a_folder_is_as_large_as_its_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "one").write_bytes(bytes(1_000))
    (tmp_path / "below" / "two").write_bytes(bytes(500))
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert sampling.folder_bytes(tmp_path) == 1_500
    assert sampling.folder_bytes(tmp_path / "none") == 0


def test_every_work_has_the_share_of_the_load_that_is_told() -> None:
    lines = [line.split("|") for line in (workload.__doc__ or "").splitlines() if line.startswith("| ")]
    told = {work.strip(): int(share) for _, work, share, *_ in lines if share.strip().isdecimal()}
    assert Counter(workload.ROTA) == told
    assert told.keys() == workload.WORKS.keys()
    kinds = Catalog(points=()).kinds
    assert not [stage.kind for stage in workload.SMALL_JOB.stages.values() if stage.kind not in kinds]


@pytest.mark.parametrize("arguments", [("--rate", "0"), ("--rate", "1e9"), ("--every", "11m"), ("--every", "0")])
def test_a_soak_that_cannot_be_is_refused(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "soak", *arguments, "--json"]) == 2
    assert [problem["place"] for problem in json.loads(capsys.readouterr().out)["error"]["problems"]] == [arguments[0]]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_short_soak_samples_everybody_and_gives_a_verdict(command_line: CommandLine) -> None:
    soak = ("bench", "soak", "--seconds", "15", "--rate", "5", "--every", "1", "--warm-up", "5", "--json")
    done = command_line.run(*soak)
    found = json.loads(done.stdout)
    assert (found["failures"], found["told"], found["left_bytes"]) == (0, [], 0), done.stderr
    # So short a one may well see the jobs that are kept come to their number.
    assert found["verdict"] in (windows.FLAT, windows.GROWS)
    assert done.returncode == (found["verdict"] == windows.GROWS)
    everybody = {ORCHESTRATOR, "soak-device", "soak-edge", "soak-cloud", CLIENT}
    taken = msgspec.convert(found["windows"], list[Window])
    assert taken
    for each in taken:
        assert each.processes.keys() == everybody
        assert len({process.pid for process in each.processes.values()}) == len(everybody)
        assert all(process.handles and process.threads and process.memory_bytes for process in each.processes.values())
        assert each.disk["journal"] > 0
    assert found["jobs"] == {work: share * 5 for work, share in Counter(workload.ROTA).items()}
    # What goes from agent to agent goes through their arenas, where there can be some.
    assert taken[-1].arena_bytes > 0 or not Path("/dev/shm").is_dir()
    rows = msgspec.convert(found["rows"], list[Row])
    assert {f"{name} {what}" for name in everybody for what in ("memory", "handles", "threads")} <= {
        row.what for row in rows
    }
    assert {"arenas", "values held", "disk journal", "small p50", "small p95"} <= {row.what for row in rows}
