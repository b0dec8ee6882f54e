"""What the agent's core tells its shell to do."""

from typing import NamedTuple

from starloom.agents.messages import Assign, Outcome, Publish, Replicate, Report
from starloom.dag.ids import AgentId, JobId, TaskToken


class Fetch(NamedTuple):
    """Get the remote inputs; then `fetched`, or `ended`."""

    assign: Assign


class Start(NamedTuple):
    """Run it, with nanoseconds of the clock at its acceptance, and of fetching; then `began` and `ended`."""

    assign: Assign
    accepted: int
    fetching: int


class StartTogether(NamedTuple):
    """Run several of one kind on one target in one call; then `began` and `ended` for each."""

    starts: tuple[Start, ...]


class Wake(NamedTuple):
    """Call `woken` when the clock is at `at`."""

    at: int


class Stop(NamedTuple):
    """Stop fetching or running it; then `ended`, once nothing of it runs any more."""

    task: TaskToken


class Drop(NamedTuple):
    """Forget its inputs: it will not start."""

    task: TaskToken


class Forget(NamedTuple):
    """Forget the job's values, and break off what is fetched to be kept for it."""

    job: JobId


class Keep(NamedTuple):
    """Get values that another agent made and keep them; then `replicated`, unless the job is forgotten first."""

    command: Replicate


class Bring(NamedTuple):
    """Put values that are held here into the job store; then `published`, unless the job is forgotten first."""

    command: Publish


class Tell(NamedTuple):
    """Send the report."""

    report: Report


class Ask(NamedTuple):
    """Learn from the agent that has it what an attempt gives, now or later; then `answered`, unless Unask comes first."""

    task: TaskToken
    agent: AgentId
    address: str


class Unask(NamedTuple):
    """Nobody here awaits the attempt any more."""

    task: TaskToken


class Answer(NamedTuple):
    """Tell a subscriber what an attempt gave."""

    subscriber: int
    outcome: Outcome


class Named(NamedTuple):
    """Every input of an attempt that was given out has its digest now: `assign` says them."""

    assign: Assign


class Preload(NamedTuple):
    """Load what the kind needs on the target, beside what runs; then `preloaded`, whatever became of it."""

    kind: str
    target: str


class StopPreload(NamedTuple):
    """Stop what is being loaded, if it can be stopped: nobody wants it any more."""


Instruction = (
    Fetch
    | Start
    | StartTogether
    | Wake
    | Stop
    | Drop
    | Forget
    | Keep
    | Bring
    | Tell
    | Ask
    | Unask
    | Answer
    | Named
    | Preload
    | StopPreload
)
