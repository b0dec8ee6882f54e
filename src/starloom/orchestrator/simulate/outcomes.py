"""Properties of how jobs end: as if nothing had happened, and resting on what counts."""

from starloom.dag.constellation import OnFailure
from starloom.dag.facts import JobStatus
from starloom.dag.ids import StageId
from starloom.dag.stagestate import StageStatus
from starloom.orchestrator.simulate.jobview import JobView, StageView
from starloom.orchestrator.simulate.model import Expected, expected, in_order
from starloom.orchestrator.simulate.patched import same
from starloom.orchestrator.simulate.property import DONE, LARGE_JOB_STAGES, Property, may
from starloom.orchestrator.simulate.undisturbed import undisturbed


class SameOutputs(Property):
    name = "outputs as undisturbed"

    def end(self) -> None:
        for name, job in self.judge.jobs.items():
            known = expected(job.constellation, job.submitted.inputs)
            job.tainted.update(self.world.misbehaviour.fickle.get(name, ()))
            tainted = self._closed(job, job.tainted)
            # What rests on a stage that was still to run again when the job was stopped is of an earlier revision.
            open_ = (stage for stage, view in job.stages.items() if view.status not in DONE or stage in job.unfollowed)
            left_out = tainted if job.status is JobStatus.SUCCEEDED else self._closed(job, {*tainted, *open_})
            for stage, wanted in known.items():
                if wanted is not None and stage not in left_out:
                    self._compare(name, stage, job.stages[stage], wanted)
            self._compare_job(name, job, known, bool(tainted))

    def _compare(self, name: str, stage: StageId, view: StageView, wanted: Expected) -> None:
        if view.status is not wanted.status:
            self.broken(f"is {view.status}, and undisturbed {wanted.status}", name, stage)
        elif view.outputs != wanted.digests:
            self.broken("its outputs differ from those of an undisturbed run", name, stage)

    def _compare_job(self, name: str, job: JobView, known: dict[StageId, Expected | None], tainted: bool) -> None:
        if job.cancelled or tainted or not job.ended:
            return
        fails = any(one is not None and one.status is StageStatus.FAILED for one in known.values())
        may_fail = fails or any(
            one is None and job.stages[stage].spec.policy.on_failure is OnFailure.FAIL for stage, one in known.items()
        )
        if job.status is JobStatus.SUCCEEDED and fails:
            self.broken("succeeded, and undisturbed it fails", name)
        if job.status is JobStatus.SUCCEEDED and job.outputs != _declared(job):
            self.broken("its outputs are not those of the stages that its last revision declares", name)
        if job.status is JobStatus.FAILED and not may_fail:
            self.broken("failed, and undisturbed it succeeds", name)
        if job.status is JobStatus.SUCCEEDED and not job.patches and name not in self.world.misbehaviour.overgrown:
            self._compare_shape(name, job)

    def _compare_shape(self, name: str, job: JobView) -> None:
        """Nothing but its own stages has changed the job: it grows as it would have undisturbed."""
        if not job.growths or len(job.stages) > LARGE_JOB_STAGES:
            return
        wanted = undisturbed(job.submitted.constellation, job.submitted.inputs)
        if wanted is not None and not same(wanted, job.constellation):
            self.broken(f"has grown to {sorted(job.stages)}, and undisturbed to {sorted(wanted.stages)}", name)

    def _closed(self, job: JobView, stages: set[StageId]) -> set[StageId]:
        """The stages, and all that rest on these."""
        found = set(stages)
        for stage in in_order(job.constellation):
            if any(arc.upstream in found for arc in job.upstreams[stage]):
                found.add(stage)
        return found


def _declared(job: JobView) -> dict[str, str]:
    """The digests of what the job's constellation declares, as far as the stages have it."""
    return {
        name: job.stages[output.upstream].outputs[output.output]
        for name, output in job.constellation.outputs.items()
        if output.output in job.stages[output.upstream].outputs
    }


class Consistent(Property):
    name = "results rest on those that count"

    def end(self) -> None:
        for name, job in self.judge.jobs.items():
            if job.status is not JobStatus.SUCCEEDED:
                continue
            for stage, view in job.stages.items():
                read = {arc.input: arc for arc in job.upstreams[stage] if arc.output}
                for port, consumed in view.consumed.items():
                    arc = read.get(port)
                    if arc is None and consumed.upstream:
                        self.broken(f"{port} was read, and nothing feeds it", name, stage)
                    if arc and job.stages[arc.upstream].outputs.get(arc.output) != consumed.digest:
                        self.broken(f"{port} was read from a result of {arc.upstream} that does not count", name, stage)
                if view.status is StageStatus.SUCCEEDED and not may(job, stage, view, run=True):
                    self.broken("ran, and its conditions do not hold in the end", name, stage)
