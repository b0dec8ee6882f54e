"""What a stage that grows writes: new stages, fed by its own outputs and inputs, and who reads them.

    def run(self, call: StageCall) -> Outputs | Grown:
        boxes = find(call.inputs["image"])
        grow = Growing(call)
        readers = [grow.stage("text.recognise", {"part": n}, image=grow.fed("image"), boxes=grow.own("boxes"))
                   for n in range(len(boxes))]
        whole = grow.stage("text.merge", inputs={f"part-{n}": reader["lines"] for n, reader in enumerate(readers)})
        grow.redirect("text", whole["text"])
        return grow.result({"boxes": boxes, "text": ""})

A loop adds one more like itself, until it is done: `grow.again(value=grow.own("value"))`, and who reads its
output reads that one's. A kind that grows has to be deterministic in what it adds, as in what it gives:
where it runs again, the same stages are there already.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starloom.agents.stage import Grown, Outputs, StageCall
from starloom.dag.constellation import Join, Policy, Requirements
from starloom.dag.edit import Edit, Source
from starloom.dag.growth import AGAIN, OWN, OWN_INPUT, added_name


@dataclass(frozen=True, slots=True)
class Added:
    """A stage that is to be added: `added["port"]` is one of its outputs, to feed to others."""

    name: str

    def __getitem__(self, port: str) -> str:
        return f"{self.name}.{port}"


class Growing:
    """What one call adds to its job. What it means is judged where the job is, with all that is wrong at once."""

    def __init__(self, call: StageCall) -> None:
        self._inputs = tuple(call.inputs)
        self._edit = Edit()
        self._count = 0

    def __repr__(self) -> str:
        return f"<Growing by {self._count} stages>"

    def own(self, port: str) -> str:
        """An output of the stage itself."""
        return f"{OWN}.{port}"

    def fed(self, port: str) -> str:
        """Whatever feeds an input of the stage itself."""
        return f"{OWN_INPUT}.{port}"

    def stage(
        self,
        kind: str,
        params: Mapping[str, Any] | None = None,
        *,
        require: Requirements | None = None,
        policy: Policy | None = None,
        join: Join = Join.ALL,
        after: Iterable[Source] = (),
        inputs: Mapping[str, Source] | None = None,
        **ports: Source,
    ) -> Added:
        """A new stage; without `require`, on the tiers that the stage itself is kept to."""
        added = Added(added_name(self._count))
        self._count += 1
        self._edit.add(
            added.name,
            kind,
            params=params,
            require=require,
            policy=policy,
            join=join,
            after=after,
            inputs={**ports, **(inputs or {})},
        )
        return added

    def again(
        self,
        params: Mapping[str, Any] | None = None,
        *,
        inputs: Mapping[str, Source] | None = None,
        **ports: Source,
    ) -> Added:
        """The next round of a loop: one more like the stage itself. Parameters and inputs that are not given are its own."""
        own = {port: self.fed(port) for port in self._inputs}
        self._edit.add(AGAIN, OWN, params=params, inputs={**own, **ports, **(inputs or {})})
        return Added(AGAIN)

    def redirect(self, port: str, *sources: str) -> None:
        """All that reads this output of the stage, and the job's outputs that are it, read another instead.

        Several sources are for a port of a kind that takes any number: it reads them as `port-0`, `port-1` and so on.
        """
        self._edit.redirect(self.own(port), *sources)

    def rewire(self, stage: str, inputs: Mapping[str, Source] | None = None, **ports: Source) -> None:
        """Feeds a stage of the job that is downstream of this one, and has not started, differently."""
        self._edit.rewire(stage, inputs={**ports, **(inputs or {})})

    def result(self, outputs: Outputs) -> Outputs | Grown:
        """The outputs with all of this, if it is anything. Raises InvalidInput with everything that cannot be read."""
        return Grown(outputs, self._edit.patch()) if len(self._edit) else outputs
