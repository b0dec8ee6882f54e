"""Lines of text that were read, as a whole and in parts."""

from collections.abc import Mapping, Sequence
from typing import Any

from starloom.agents.stage import Outputs, Stage, StageCall
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, KindSpec
from starloom.dag.values import Port, PortType


class MergeText(Stage):
    """Puts lines that several `text.recognise` read together again, in the order of their `index`."""

    spec = KindSpec(
        name="text.merge",
        about="Puts lines of text that were read in parts together.",
        outputs={"text": Port(PortType.TEXT), "lines": Port(PortType.JSON)},
        variadic_input=Port(PortType.JSON),
        tier=Tier.EDGE,
        brief=True,
        cost=Cost(run_seconds=0.001),
    )

    def run(self, call: StageCall) -> Outputs:
        lines = [line for name in sorted(call.inputs) for line in _read_lines(name, call.inputs[name])]
        return as_text(sorted(lines, key=lambda line: int(line["index"])))


def as_text(lines: Sequence[Mapping[str, Any]]) -> Outputs:
    """The outputs of lines that were read: their text, and themselves."""
    return {"text": "\n".join(str(line["text"]) for line in lines), "lines": lines}


def _read_lines(name: str, value: Any) -> list[Mapping[str, Any]]:
    if isinstance(value, list) and all(
        isinstance(line, dict) and isinstance(line.get("index"), int) and isinstance(line.get("text"), str)
        for line in value
    ):
        return value
    raise StageError(f"text.merge: input {name} holds no lines; feed it the `lines` of text.recognise")
