"""Whether a job is accepted: whole, with all that is wrong in one answer, or not at all."""

from collections.abc import Iterable, Iterator, Mapping

from starloom.dag import limits
from starloom.dag.checks import number_fault
from starloom.dag.constellation import OutputBinding, Private, Spread, StageSpec
from starloom.dag.errors import (
    Conflict,
    Infeasible,
    InternalError,
    InvalidConstellation,
    InvalidInput,
    Overloaded,
    Problem,
    StarloomError,
    Unavailable,
)
from starloom.dag.facts import JobSubmitted
from starloom.dag.ids import AgentId, StageId
from starloom.dag.job import JobState
from starloom.dag.patch import Difference
from starloom.dag.privacy import Labels, labels_in, labels_of
from starloom.dag.shape import Shape
from starloom.dag.streams import has_streams, input_streams, open_inputs
from starloom.dag.validate import problems
from starloom.dag.validate_stage import a_port, label_problems
from starloom.dag.values import Full, ValueRef
from starloom.dag.variants import ways_of
from starloom.orchestrator.clocks import NANOS
from starloom.orchestrator.effects import Submitted
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.fleet import AgentState, Fleet, Member
from starloom.orchestrator.inputs import Submit
from starloom.orchestrator.lanes import Lane, ReadyLanes
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.spreading import Apart, crowded
from starloom.orchestrator.state import Ledger, State


class Admission:
    """Takes jobs in."""

    def __init__(self, state: State, ledger: Ledger, lanes: ReadyLanes, endings: Endings, settler: Settler) -> None:
        self._state = state
        self._fleet: Fleet = state.fleet
        self._ledger = ledger
        self._lanes = lanes
        self._endings = endings
        self._settler = settler

    def submit(self, given: Submit) -> None:
        """Accepts a job and makes its first stages ready, or answers with the error."""
        try:
            existing = self._existing(given)
            if existing is None:
                self._check(given)
        except StarloomError as error:
            self._ledger.answer(given.request, error)
            return
        # Nothing is decided yet, so a defect in judging one job must not end all others with the process.
        except Exception as error:
            what = f"the job could not be judged, by a defect of Starloom's: {error!r}; please report it"
            self._ledger.answer(given.request, InternalError(what))
            return
        if existing is not None:
            answer = Submitted(job=existing.id, revision=existing.revision, existing=True)
            self._ledger.answer(given.request, answer)
            return
        self._accept(given)

    def _accept(self, given: Submit) -> None:
        fact = JobSubmitted(
            job=given.job,
            constellation=given.constellation,
            inputs=given.inputs,
            key=given.key,
            principal=given.principal,
            options=given.options,
        )
        self._ledger.record(fact)
        job = self._state.jobs[given.job]
        run = self._endings.begin(job)
        try:
            for name, arcs in job.upstreams.items():
                if not arcs or job.stages[name].spec.cancelled:
                    self._settler.decide(run, name)
        except Exception as error:
            self._endings.contain(job.id, "its beginning", error)
        self._ledger.answer(given.request, Submitted(job=job.id, revision=job.revision))

    def _existing(self, given: Submit) -> JobState | None:
        """The job that has this key already. Raises Conflict if it is another one."""
        if given.job in self._state.jobs:
            raise Conflict(f"there is a job {given.job} already; submit with a new id")
        known = self._state.keys.get(given.key) if given.key else None
        if known is None:
            return None
        job = self._state.jobs[known]
        parts = {
            "constellation": job.submitted == given.constellation,
            "inputs": _content(job.inputs) == _content(given.inputs),
            "options": job.options == given.options,
        }
        different = [part for part, same in parts.items() if not same]
        if different:
            what = " and ".join(different)
            raise Conflict(f"the key {given.key!r} belongs to job {known}, which has other {what}; use another key")
        return job

    def _check(self, given: Submit) -> None:
        """Raises the error for a job that cannot be accepted."""
        if not self._fleet.members:
            raise Unavailable("no agent has joined yet, so nothing could run; start one and try again")
        fed = open_inputs(given.constellation, given.options.streams)
        self.check_load(1, len(given.constellation.stages), len(fed))
        stages = given.constellation.stages
        wrong = problems(given.constellation, self._fleet.kinds)
        labels, _ = labels_of(given.constellation, self._fleet.kinds)
        unfit = [*_input_problems(given), *_option_problems(given)]
        if wrong:
            # A stage that is wrong in itself is judged first; what it requires would be told by a guess.
            broken = {problem.place.split(".")[1] for problem in wrong if problem.place.startswith("stages.")}
            wrong += self.infeasible({name: stage for name, stage in stages.items() if name not in broken}, labels)
            raise InvalidConstellation([*wrong, *unfit], f"constellation {given.constellation.name!r} is not valid")
        if unfit:
            raise InvalidInput(unfit, "the job cannot be accepted")
        least = given.constellation.least_quality
        infeasible = [*self.infeasible(stages, labels, least), *self._parted(stages, stages, labels, least)]
        infeasible += self._crowded(stages, stages, labels, least)
        if infeasible:
            raise Infeasible(infeasible, "no node meets the requirements of these stages")

    def check_load(self, more_jobs: int, more: int, more_streams: int = 0) -> None:
        """Raises Overloaded if so many more jobs, stages, or input streams that clients feed, are too many."""
        jobs = len(self._state.open)
        stages = sum(job.open_stages for job in self._state.open.values())
        fed = (
            sum(len(open_inputs(job.submitted, job.options.streams)) for job in self._state.open.values())
            if more_streams
            else 0
        )
        if more_streams and fed + more_streams > limits.OPEN_INPUT_STREAMS_MAX:
            limit = f"OPEN_INPUT_STREAMS_MAX = {limits.OPEN_INPUT_STREAMS_MAX}"
            what = f"{fed} input streams are open, and {more_streams} more are over {limit}"
        elif jobs + more_jobs > limits.OPEN_JOBS_MAX:
            what = f"{jobs} jobs are open, and OPEN_JOBS_MAX = {limits.OPEN_JOBS_MAX}"
        elif stages + more > limits.OPEN_STAGES_MAX:
            what = f"{stages} stages are open, and {more} more are over OPEN_STAGES_MAX = {limits.OPEN_STAGES_MAX}"
        else:
            return
        raise Overloaded(f"{what}; try again once some have ended", limits.OVERLOADED_RETRY_SECONDS)

    def stream_problems(self, job: Mapping[StageId, StageSpec], difference: Difference) -> Iterator[Problem]:
        """What streams is with agents as a whole: a job that runs is not changed there, so far."""
        changed = {change.stage: change.after or change.before for change in difference.stages}
        outputs = [change.after for change in difference.outputs.values() if change.after is not None]
        declared = {each.upstream for each in outputs if self._is_stream(changed, job, each)}
        for name in dict.fromkeys((*difference.touched, *declared)):
            stage = changed.get(name) or job.get(name)
            if stage is not None and has_streams(self._fleet.kinds.get(stage.kind)):
                what = f"{stage.kind} has stream ports, and stages that stream are not changed while their job runs, so far"
                yield Problem(f"stages.{name}", f"{what}; submit another job")

    def _is_stream(
        self, changed: Mapping[StageId, StageSpec | None], job: Mapping[StageId, StageSpec], output: OutputBinding
    ) -> bool:
        stage = changed.get(output.upstream) or job.get(output.upstream)
        kind = self._fleet.kinds.get(stage.kind) if stage is not None else None
        port = kind.outputs.get(output.output) if kind is not None else None
        return port is not None and port.stream

    def infeasible(
        self, stages: Mapping[StageId, StageSpec], labels: Labels, least_quality: float = 0.0
    ) -> Iterator[Problem]:
        """The stages that no node may run, each with the reason for every node, and why it is private if it is.

        Of one with variants those for the variant that comes first, where no node may run any.
        """
        reasons: dict[int, str] = {}
        for name, stage in stages.items():
            told = ""
            for way in reversed(ways_of(stage, least_quality)):
                lane = self._lanes.lane(way.kind, way.requires, labels.levels.get(name))
                if lane.seq not in reasons:
                    reasons[lane.seq] = self._why_nowhere(lane)
                told = reasons[lane.seq]
                if not told:
                    break
            if told:
                label = labels.of(name)
                what = told if label is None else f"{told}; {label}"
                yield Problem(f"stages.{name}.require", what)

    def _parted(
        self, names: Iterable[StageId], stages: Mapping[StageId, StageSpec], labels: Labels, least_quality: float
    ) -> Iterator[Problem]:
        """Groups with one of these stages that are to share a node, where each may run somewhere but no node may run all."""
        groups: dict[str, list[StageId]] = {}
        for name, spec in stages.items():
            if spec.colocate and not spec.cancelled:
                groups.setdefault(spec.colocate, []).append(name)
        told = {stages[name].colocate for name in names if name in stages}
        for group, members in groups.items():
            if group not in told:
                continue
            nodes = {name: self._nodes(stages[name], labels.levels.get(name), least_quality) for name in members}
            if all(nodes.values()) and not set.intersection(*nodes.values()):
                what = "; ".join(
                    f"{name} on {', '.join(sorted(nodes[name])[: limits.NODES_EXPLAINED_MAX])}"
                    for name in members[: limits.NODES_EXPLAINED_MAX]
                )
                yield Problem(f"stages.{members[0]}.colocate", f"no node may run all of {group!r}: {what}")

    def _crowded(
        self, names: Iterable[StageId], stages: Mapping[StageId, StageSpec], labels: Labels, least_quality: float
    ) -> Iterator[Problem]:
        """Groups with one of these stages that are to stand apart, where each may run somewhere but not all at once."""
        told = {spread.group for name in names if name in stages and (spread := stages[name].spread) is not None}
        groups: dict[str, list[StageId]] = {}
        for name, spec in stages.items():
            if spec.spread is not None and not spec.spread.seconds and not spec.cancelled and spec.spread.group in told:
                groups.setdefault(spec.spread.group, []).append(name)
        for group, members in groups.items():
            apart = Apart(stages[members[0]].spread or Spread(group=group))
            nodes = {
                name: sorted(self._nodes(stages[name], labels.levels.get(name), least_quality)) for name in members
            }
            zones = {name: apart.zones(self._fleet.members[node].profile for node in nodes[name]) for name in members}
            over = f"values of {apart.spread.over}" if apart.spread.over else "nodes"
            if all(nodes.values()) and (left := len(crowded(zones))):
                shown = "; ".join(
                    f"{name} on {', '.join(each[: limits.NODES_EXPLAINED_MAX]) or 'none'}"
                    for name, each in list(zones.items())[: limits.NODES_EXPLAINED_MAX]
                )
                what = f"all {len(members)} of {group!r} need {over} of their own, and {left} can have none: {shown}"
                yield Problem(f"stages.{members[0]}.spread", what)

    def _nodes(self, stage: StageSpec, private: Private | None, least_quality: float) -> set[AgentId]:
        """The nodes that may run a stage, in whichever variant, or that were lost lately and might."""
        found: set[AgentId] = set()
        for way in ways_of(stage, least_quality):
            lane = self._lanes.lane(way.kind, way.requires, private)
            found.update(candidate.member.name for candidate in lane.candidates(self._fleet))
            lost = (member for member in self._fleet.members.values() if self._lost_lately(member))
            found.update(member.name for member in lost if not lane.misfits(member))
        return found

    def infeasible_after(self, shape: Shape, difference: Difference) -> Iterator[Problem]:
        """The stages of a job that no node may run once it is changed so: those that differ, and whose labels do."""
        before, _ = labels_in(shape, self._fleet.kinds)
        labels, parts = labels_in(shape, self._fleet.kinds, difference)
        placeable = {change.stage: change.after for change in difference.stages if change.after is not None}
        for name, level in labels.levels.items():
            if before.levels.get(name) != level:
                placeable[name] = parts.specs[name]
        least = shape.origin.least_quality
        yield from self.infeasible(placeable, labels, least)
        if any(spec.colocate or spec.spread for spec in placeable.values()):
            after = {**shape.specs, **placeable}
            for change in difference.stages:
                if change.after is None:
                    after.pop(change.stage, None)
            yield from self._parted(placeable, after, labels, least)
            yield from self._crowded(placeable, after, labels, least)

    def _why_nowhere(self, lane: Lane) -> str:
        """Why no node may run a lane's stages; empty if one may, or one that was lost lately might."""
        if lane.candidates(self._fleet):
            return ""
        texts = []
        for name in sorted(self._fleet.members):
            member = self._fleet.members[name]
            why = lane.misfits(member)
            if not why:
                if self._lost_lately(member):
                    return ""
                why = "is lost"
            texts.append(f"{name} {why}")
        more = len(texts) - limits.NODES_EXPLAINED_MAX
        shown = "; ".join(texts[: limits.NODES_EXPLAINED_MAX])
        return f"{shown}; and {more} more nodes do not either" if more > 0 else shown

    def _lost_lately(self, member: Member) -> bool:
        lost_for = (self._ledger.now - member.lost_at) / NANOS
        return member.state is AgentState.LOST and lost_for < limits.LOST_NODE_COUNTS_SECONDS


def _content(inputs: dict[str, ValueRef]) -> dict[str, tuple[object, ...]]:
    return {name: (ref.type, ref.digest, ref.bytes, ref.meta) for name, ref in inputs.items()}


def _input_problems(given: Submit) -> Iterator[Problem]:
    """Everything wrong with the job's input values."""
    declared = given.constellation.inputs
    for name, port in declared.items():
        ref = given.inputs.get(name)
        if port.stream:
            if ref is not None:
                yield Problem(f"inputs.{name}", "is a stream, which takes no value; feed it once the job is accepted")
        elif ref is None:
            if not port.optional:
                yield Problem(f"inputs.{name}", f"the job needs {a_port(port)} here; give a value")
        elif ref.type is not port.type:
            yield Problem(f"inputs.{name}", f"is {ref.type}, but the job takes {a_port(port)}")
    for name in given.inputs:
        if name not in declared:
            known = ", ".join(declared) or "none"
            yield Problem(f"inputs.{name}", f"the job has no such input; it has {known}")
    total = sum(ref.bytes for ref in given.inputs.values())
    if total > limits.JOB_INPUT_BYTES_MAX:
        yield Problem("inputs", f"{total} bytes are over JOB_INPUT_BYTES_MAX = {limits.JOB_INPUT_BYTES_MAX}")


def _option_problems(given: Submit) -> Iterator[Problem]:
    """Everything wrong with the key and the options."""
    if len(given.key) > limits.JOB_KEY_CHARACTERS_MAX:
        over = f"over JOB_KEY_CHARACTERS_MAX = {limits.JOB_KEY_CHARACTERS_MAX}"
        yield Problem("key", f"has {len(given.key)} characters, {over}")
    if not 0 <= given.options.max_parallel <= limits.JOB_PARALLEL_MAX:
        bounds = f"0 (no bound) to JOB_PARALLEL_MAX = {limits.JOB_PARALLEL_MAX}"
        yield Problem("options.max_parallel", f"is {given.options.max_parallel}; use {bounds}")
    longest = limits.DURATION_SECONDS_MAX
    if fault := number_fault(given.options.deadline_seconds, at_most=longest, unit="seconds, 0 for no bound"):
        yield Problem("options.deadline", fault)
    yield from label_problems("options.labels", given.options.labels)
    streams = input_streams(given.constellation)
    for name, options in given.options.streams.items():
        if name not in streams:
            known = ", ".join(streams) or "none"
            yield Problem(f"streams.{name}", f"the job has no such input stream; it has {known}")
        elif options.spool and options.full not in (None, Full.BLOCK):
            what = f"is spooled, where nothing is dropped, but what is too much is to be dropped ({options.full})"
            yield Problem(f"streams.{name}", f"{what}; say one of both")
