"""What becomes of a result in a simulated agent's process, as `agents.results` has it: held, hashed, published, then told."""

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from starloom.agents.late import name_of
from starloom.agents.messages import Finished, Publish, Published, WasCancelled
from starloom.dag import limits
from starloom.dag.facts import Timing
from starloom.devices.faults import FaultKind
from starloom.orchestrator.simulate.loop import SECOND
from starloom.orchestrator.simulate.model import KINDS, Made, answers, make
from starloom.orchestrator.simulate.peering import HASH_SECONDS
from starloom.orchestrator.simulate.work import Doing, Work

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.agent import AgentProcess

PUT_SECONDS = (0.002, 0.02)
"""How long it takes to put values into the job store."""


class Results:
    """Takes what attempts of one process made. The process's runner is told how each has ended."""

    def __init__(self, process: "AgentProcess") -> None:
        self._process = process
        self._world = process.world
        self._loop = process.loop
        self._chance = process.chance

    def bring(self, command: Publish) -> None:
        """Values that are held are to be in the job store as well."""
        self._loop.after(self._chance.between(*PUT_SECONDS), partial(self._brought, command), self._process)

    def keep(self, work: Work) -> None:
        """The stage of an attempt is done."""
        assign = work.assign
        task = assign.task
        if self._process.core.is_cancelled(task):
            self._process.runner.ended(task, WasCancelled(task=task))
            return
        inputs = {item.port: self._world.truth(item.ref.digest) for item in assign.inputs}
        salt = self._world.misbehaviour.salt(assign)
        made = make(assign.kind, assign.params, inputs, self._process.name, salt, private=assign.private)
        lost = KINDS[assign.kind].grows and self._world.trouble.fires(FaultKind.GROWTH_LOST)
        late = [port for port, ref in made.outputs.items() if ref.inline is None and not ref.stream]
        if late and not (lost or assign.private or assign.publish) and self._chance.happens(0.7):
            self._keep_early(work, made, late)
            return
        if not lost:
            self._hold(work, made)
        self._tell(work, made, self._report(work, made))

    def keep_streamed(self, work: Work, made: Made) -> None:
        """The stage of an attempt that streams is done."""
        assert work.stream is not None
        report = self._report(work, made)
        report = msgspec.structs.replace(report, consumed={**report.consumed, **work.stream.consumed})
        self._hold(work, made)
        self._tell(work, made, report)

    def _keep_early(self, work: Work, made: Made, late: list[str]) -> None:
        """Tells of what is not hashed yet; the rest follows."""
        task = work.assign.task
        names = {port: name_of(task, port) for port in late}
        refs = {port: msgspec.structs.replace(made.outputs[port], digest=name) for port, name in names.items()}
        self._process.holder.hold(task.job, refs.values())
        self._world.truths.update((name, made.outputs[port].digest) for port, name in names.items())
        self._world.judge.early.add(task)
        work.doing = Doing.HASH
        hashed = partial(self._hashed, work, made, names)
        work.step = self._loop.after(self._chance.between(*HASH_SECONDS), hashed, self._process)
        outputs = made.outputs | refs
        self._process.runner.carry_out(
            self._process.core.made(task, outputs, answers(work.assign, made), late, self._loop.now)
        )

    def _hashed(self, work: Work, made: Made, names: dict[str, str]) -> None:
        held = self._process.holder.held.get(work.assign.task.job, {})
        # Of a job that was released meanwhile nothing is kept.
        if all(held.pop(name, None) is not None for name in names.values()):
            self._hold(work, made)
        self._tell(work, made, self._report(work, made))

    def _hold(self, work: Work, made: Made) -> None:
        refs = [ref for ref in made.outputs.values() if ref.inline is None and not ref.stream]
        if refs:
            self._process.holder.hold(work.assign.task.job, refs)

    def _tell(self, work: Work, made: Made, report: Finished) -> None:
        """Reports a result, once what the job store is to have of it is there."""
        assign = work.assign
        task = assign.task
        refs = made.outputs
        to_put = [port for port in assign.publish if refs[port].inline is None and not refs[port].stream]
        report = self._world.misbehaviour.lie(report)
        if not to_put:
            self._process.runner.ended(task, report)
            return
        work.doing = Doing.PUBLISH
        self._process.runner.carry_out(self._process.core.computed(task, self._loop.now))
        digests = [made.outputs[port].digest for port in to_put]
        self._publish(work, digests, report, limits.BACKOFF_FIRST_SECONDS)

    def _report(self, work: Work, made: Made) -> Finished:
        assign = work.assign
        queue = max(0, work.began - work.accepted - work.fetching)
        timing = Timing(
            queue=queue / SECOND, transfer=work.fetching / SECOND, run=(self._loop.now - work.began) / SECOND
        )
        return Finished(
            task=assign.task,
            outputs=made.outputs,
            consumed={item.port: item.consumed for item in assign.inputs},
            timing=timing,
            target=assign.target,
            published=assign.publish,
            holds=answers(assign, made),
            growth=self._world.misbehaviour.growth(assign, made),
        )

    def _publish(self, work: Work, digests: list[str], report: Finished, wait: float) -> None:
        step = partial(self._put, work, digests, report, wait)
        work.step = self._loop.after(self._chance.between(*PUT_SECONDS), step, self._process)

    def _put(self, work: Work, digests: list[str], report: Finished, wait: float) -> None:
        if self._world.put(self._process, digests):
            self._process.runner.ended(work.assign.task, report)
            return
        longer = min(wait * limits.BACKOFF_FACTOR, limits.RECONNECT_LAST_SECONDS)
        work.step = self._loop.after(wait, partial(self._publish, work, digests, report, longer), self._process)

    def _brought(self, command: Publish) -> None:
        task = command.task
        held = self._process.holder.held.get(task.job)
        if held is None or self._process.runner.leaving:
            return
        digests = [ref.digest for ref in command.values]
        there = all(digest in held for digest in digests) and self._world.put(self._process, digests)
        report = Published(task=task, reason="" if there else "the job store did not take it")
        self._process.runner.carry_out(self._process.core.published(report))
