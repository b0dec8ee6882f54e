"""Plans made in a process of its own: they come, and whatever becomes of that process is told and harms nobody."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import msgspec
import pytest
from tests.planner.test_live import CHAIN, now, wanted

from starloom.dag import limits
from starloom.dag.ids import JobId
from starloom.orchestrator import planningservice
from starloom.orchestrator.advice import Planned, PlanWanted
from starloom.orchestrator.planningservice import PlanningService

SECONDS = 100
"""Where the planner has to be compiled first, that is most of it."""

SAYS = """
import sys
from starloom.orchestrator.planningprocess import READY, read_frame, write_frame
sink, source = sys.stdout.buffer, sys.stdin.buffer
"""
ENDS = "sys.exit(7)"
NEVER_READY = "import time; time.sleep(1000)"
HANGS = "write_frame(sink, READY); read_frame(source); import time; time.sleep(1000)"
READS_NOTHING = "write_frame(sink, READY); import time; time.sleep(1000)"
TALKS = "write_frame(sink, READY); read_frame(source); write_frame(sink, b'nonsense')"
TALKS_MUCH = "write_frame(sink, READY); read_frame(source); sink.write(bytes([255] * 100)); sink.flush(); source.read()"
GREETS_OTHERWISE = "write_frame(sink, b'hello'); source.read()"
BREAKS_OFF = "write_frame(sink, READY); read_frame(source); sink.write(bytes([0, 0, 1, 0]) + b'half')"
ANSWERS_ANOTHER = """
import msgspec
from starloom.orchestrator.advice import Planned, PlanWanted
write_frame(sink, READY)
while (data := read_frame(source)) is not None:
    wanted = msgspec.json.decode(data, type=PlanWanted)
    write_frame(sink, msgspec.json.encode(Planned(job=wanted.job, number=wanted.number + 1)))
"""
ANSWERS = ANSWERS_ANOTHER.replace("wanted.number + 1", "wanted.number")


class Made:
    """A service, and what it told."""

    def __init__(self) -> None:
        self.told: SimpleQueue[Planned] = SimpleQueue()
        self.open = True
        self.service = PlanningService(self.told.put, lambda job: self.open)

    def next(self) -> Planned:
        return self.told.get(timeout=SECONDS)

    def ready(self) -> None:
        """Once the planner is there."""
        while self.service._refusal:
            self.service._thread.join(0.01)

    def asked(self, asked: PlanWanted) -> tuple[set[str], Planned]:
        """The answer of a planner that is there, and the reasons why there was none before."""
        reasons: set[str] = set()
        while True:
            self.service.want(asked)
            planned = self.next()
            if not planned.again:
                return reasons, planned
            reasons.add(planned.refusal)
            self.service._thread.join(0.01)


@pytest.fixture
def made() -> Iterator[Made]:
    found = Made()
    yield found
    found.service.close()


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has another program run in the planner's place, which is started again without much ado."""
    monkeypatch.setattr(limits, "PLANNER_AGAIN_FIRST_SECONDS", 0.001)

    def put(text: str) -> None:
        monkeypatch.setattr(planningservice, "COMMAND", (sys.executable, "-c", SAYS + text))

    return put


def asked(number: int = 3, job: str = "j") -> PlanWanted:
    return msgspec.structs.replace(wanted(CHAIN, now("x"), now("y")), number=number, job=JobId(job))


def test_what_is_too_large_to_be_told_ends_no_process(
    made: Made, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(ANSWERS)
    made.service.start()
    made.ready()
    process = made.service._process
    with monkeypatch.context() as small:
        small.setattr(limits, "PLANNER_FRAME_BYTES_MAX", 100)
        reasons, planned = made.asked(asked())
    assert "over PLANNER_FRAME_BYTES_MAX = 100" in planned.refusal
    assert reasons == set()
    assert made.asked(asked())[1].refusal == ""
    assert made.service._process is process


@pytest.mark.slow
def test_a_plan_comes_and_another_after_the_process_was_killed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PLANNER_AGAIN_FIRST_SECONDS", 0.001)
    made.service.start()
    reasons, planned = made.asked(asked())
    assert reasons == {"the planner is being started"}
    assert planned.places.keys() == {"a", "b", "c"}
    assert planned.number == asked().number
    process = made.service._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    reasons, again = made.asked(asked())
    assert any("the planner's process" in reason for reason in reasons)
    assert again.places == planned.places
    made.service.close()
    assert process.poll() is not None
    assert made.service._process is None


@pytest.mark.parametrize(
    ("text", "limit", "said"),
    [
        (HANGS, "PLAN_ANSWER_SECONDS", "did not answer within 0.5 s and was killed"),
        (READS_NOTHING, "PLAN_ANSWER_SECONDS", "did not answer within 0.5 s and was killed"),
        (NEVER_READY, "PLANNER_READY_SECONDS", "was not ready within 0.5 s and was killed"),
        (ENDS, "", "ended with status 7"),
        (TALKS, "", "JSON is malformed"),
        (TALKS_MUCH, "", "over PLANNER_FRAME_BYTES_MAX"),
        (GREETS_OTHERWISE, "", "says b'hello' and not that it is ready"),
        (BREAKS_OFF, "", "ended with status 0"),
        (ANSWERS_ANOTHER, "", "gave another"),
    ],
    ids=[
        "hangs",
        "reads nothing",
        "never ready",
        "ends",
        "nonsense",
        "too much",
        "another greeting",
        "half",
        "another's answer",
    ],
)
def test_whatever_a_planner_does_is_told_and_another_is_started(
    made: Made,
    program: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    text: str,
    limit: str,
    said: str,
) -> None:
    program(text)
    if limit:
        monkeypatch.setattr(limits, limit, 0.5)
    began: list[subprocess.Popen[bytes]] = []
    plain = subprocess.Popen

    def popen(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        if len(began) == 1:
            program(ANSWERS)
            args = (planningservice.COMMAND,)
            monkeypatch.setattr(limits, "PLAN_ANSWER_SECONDS", SECONDS)
            monkeypatch.setattr(limits, "PLANNER_READY_SECONDS", SECONDS)
        began.append(plain(*args, **kwargs))  # type: ignore[call-overload]
        return began[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    made.service.start()
    reasons, planned = made.asked(asked())
    assert not planned.refusal
    assert all(said in reason for reason in reasons - {"the planner is being started"})
    assert said in caplog.text
    # The first is gone, and nothing is left of it.
    assert began[0].returncode is not None
    assert len(began) == 2


def test_what_waits_behind_one_that_breaks_the_planner_is_told_as_well(
    made: Made, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(HANGS)
    monkeypatch.setattr(limits, "PLAN_ANSWER_SECONDS", 1.0)
    made.service.start()
    made.ready()
    for number, job in ((1, "j"), (2, "k"), (3, "l"), (4, "k")):
        made.service.want(asked(number, job))
    told = sorted((made.next() for _ in range(3)), key=lambda each: each.number)
    # Of k only the last is wanted.
    assert [(each.number, each.again) for each in told] == [(1, True), (3, True), (4, True)]
    assert made.told.empty()


def test_it_is_started_again_ever_later(made: Made, program: Callable[[str], None]) -> None:
    program(ENDS)
    waits: list[float] = []
    plain = made.service._broken

    def broken(error: Exception, pause: float) -> None:
        waits.append(pause)
        plain(error, pause)

    made.service._broken = broken  # type: ignore[method-assign]
    made.service.start()
    while len(waits) < 5:
        made.service._thread.join(0.01)
    first = limits.PLANNER_AGAIN_FIRST_SECONDS
    assert waits[:5] == [first, 2 * first, 4 * first, 8 * first, 16 * first]


def test_closing_waits_for_no_plan(made: Made, program: Callable[[str], None]) -> None:
    program(HANGS)
    made.service.start()
    made.ready()
    made.service.want(asked())
    made.service.close()
    made.service.want(asked())
    made.service.close()
    assert made.service._process is None


def test_a_job_that_has_ended_meanwhile_is_planned_no_more(made: Made, program: Callable[[str], None]) -> None:
    program(ANSWERS)
    made.open = False
    made.service.start()
    made.ready()
    made.service.want(asked(1, "ended"))
    made.open = True
    made.service.want(asked(2, "open"))
    assert made.next().job == "open" or made.next().job == "open"


ORCHESTRATES = """
import sys, time
from starloom.orchestrator import planningservice
from starloom.orchestrator.planningservice import PlanningService
if len(sys.argv) > 1:
    planningservice.COMMAND = (sys.executable, "-c", sys.argv[1])
service = PlanningService(print, lambda job: True)
service.start()
while service._process is None:
    time.sleep(0.01)
print(service._process.pid, flush=True)
time.sleep(1000)
"""
DEAF = """
import os, signal, sys, time
from starloom.orchestrator.withparent import die_with_parent
die_with_parent(os.getppid())
print("stopped", file=sys.stderr, flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("given", [(), (DEAF,)], ids=["compiling or ready", "stopped"])
def test_it_ends_with_its_orchestrator_also_by_sigkill(given: tuple[str, ...], tmp_path: Path) -> None:
    """Also one that hangs, and does not hear that its input has ended."""
    with (tmp_path / "errors").open("wb") as errors:
        orchestrator = subprocess.Popen(
            (sys.executable, "-c", ORCHESTRATES, *given), stdout=subprocess.PIPE, stderr=errors
        )
    assert orchestrator.stdout is not None
    pid = int(orchestrator.stdout.readline())
    planner = os.pidfd_open(pid)
    try:
        while given and b"stopped" not in (tmp_path / "errors").read_bytes():
            pass
        orchestrator.kill()
        orchestrator.wait()
        assert select.select([planner], [], [], SECONDS)[0], "the planner is still there"
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(planner, signal.SIGKILL)
        os.close(planner)
        orchestrator.kill()
        orchestrator.stdout.close()
