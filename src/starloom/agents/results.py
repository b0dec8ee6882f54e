"""What becomes of a result: it is held here, hashed where that was left for later, published, and then told."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

import msgspec

from starloom.agents.core import AgentCore, Instruction
from starloom.agents.crashpoints import CrashPoint, reach
from starloom.agents.earlyvalues import digests_of
from starloom.agents.execution import Made, failure
from starloom.agents.holder import Holder
from starloom.agents.messages import Failed, Finished, Report, WasCancelled
from starloom.agents.publishing import Publisher
from starloom.agents.work import Work, unable_report
from starloom.dag.errors import Overloaded
from starloom.dag.ids import TaskToken


class Results:
    """Takes results from the runs of one agent. `end` says how an attempt has ended; what follows is for `carry_out`."""

    def __init__(
        self,
        core: AgentCore,
        holder: Holder,
        publisher: Publisher,
        end: Callable[[TaskToken, Report], list[Instruction]],
        carry_out: Callable[[Iterable[Instruction]], None],
    ) -> None:
        self._core = core
        self._holder = holder
        self._publisher = publisher
        self._end = end
        self._carry_out = carry_out

    def keep(self, work: Work, made: Made) -> list[Instruction]:
        """Holds the outputs that are not inline, and publishes those that the job store is to have."""
        task = work.assign.task
        if self._core.is_cancelled(task):
            return self._end(task, WasCancelled(task=task))
        try:
            for port, ref in made.outputs.items():
                if ref.inline is None and port in made.data:
                    self._holder.keep(task.job, ref.digest, made.data[port])
        except Overloaded as error:
            return self._end(task, Failed(task=task, error=failure(error, self._core.agent)))
        reach(CrashPoint.COMPUTED)
        if made.late:
            hashing = asyncio.create_task(digests_of(made))
            hashing.add_done_callback(partial(self._hashed, work, made))
            work.task = hashing
            return self._core.made(task, made.outputs, made.holds, made.late, made.ended)
        published = tuple(port for port in work.assign.publish if port in made.outputs)
        # Inline bytes travel in the report, and the journal keeps them.
        to_put = [port for port in published if port in made.data and made.outputs[port].inline is None]
        report = work.finished(made, published)
        if not to_put:
            return self._end(task, report)
        publishing = asyncio.create_task(self._publisher.publish(task, made, to_put))
        publishing.add_done_callback(partial(self._published, report))
        work.task = publishing
        return self._core.computed(task, made.ended)

    def _hashed(self, work: Work, made: Made, hashing: asyncio.Task[dict[str, str]]) -> None:
        task = work.assign.task
        if (unable := unable_report(self._core, task, hashing)) is not None:
            self._carry_out(self._end(task, unable))
            return
        refs = dict(made.outputs)
        for port, digest in hashing.result().items():
            self._holder.rename(task.job, refs[port].digest, digest)
            refs[port] = msgspec.structs.replace(refs[port], digest=digest)
        self._carry_out(self._end(task, work.finished(msgspec.structs.replace(made, outputs=refs), ())))

    def _published(self, report: Finished, publishing: asyncio.Task[float]) -> None:
        task = report.task
        if (unable := unable_report(self._core, task, publishing)) is not None:
            self._carry_out(self._end(task, unable))
            return
        reach(CrashPoint.STORED)
        timing = msgspec.structs.replace(report.timing, transfer=report.timing.transfer + publishing.result())
        self._carry_out(self._end(task, msgspec.structs.replace(report, timing=timing)))
