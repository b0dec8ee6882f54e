"""Values that are passed on before they are hashed, and the names that stand for their digests meanwhile. Pure.

An attempt has each output at most once, so its token and the port name a value as surely as a digest does, on one host
and until the digest is there. No digest is equal to such a name but by a collision of BLAKE3.
"""

from collections.abc import Iterable, Mapping

import msgspec

from starloom.agents.messages import Assign, Finished, Input, Outcome
from starloom.agents.values import digest
from starloom.dag.conditions import comparison_key
from starloom.dag.facts import Consumed
from starloom.dag.ids import TaskToken
from starloom.dag.values import ValueRef


def name_of(task: TaskToken, port: str) -> str:
    """What stands for the digest of an output, in 64 hex digits as one."""
    token = task.token
    return digest("\0".join(("late", task.job, task.stage, str(token.epoch), str(token.attempt), port)).encode())


def outcome_of(
    assign: Assign, outputs: Mapping[str, ValueRef], holds: Iterable[bool], late: Iterable[str] = ()
) -> Outcome:
    """What an attempt gave, as other agents are told; `holds` are the answers to its comparisons, in order."""
    # A report whose answers do not fit is the coordinator's to refuse.
    answers = zip(assign.comparisons, holds, strict=False)
    held = tuple(comparison_key(comparison) for comparison, holds_ in answers if holds_)
    return Outcome(task=assign.task, outputs=dict(outputs), holds=held, late=tuple(late))


def read(report: Finished, assign: Assign) -> Finished:
    """The report of a result, with the digests of its inputs as they are known now."""
    consumed = {item.port: item.consumed for item in assign.inputs if item.port in report.consumed}
    return msgspec.structs.replace(report, consumed=report.consumed | consumed)


def named(inputs: Iterable[Input], outcome: Outcome) -> tuple[Input, ...]:
    """The inputs, those of `outcome` with their digests; all others as they are."""
    refs: Mapping[str, ValueRef] = {name_of(outcome.task, port): ref for port, ref in outcome.outputs.items()}
    return tuple(_with_digest(item, refs) if item.late else item for item in inputs)


def _with_digest(item: Input, refs: Mapping[str, ValueRef]) -> Input:
    ref = refs.get(item.ref.digest)
    if ref is None:
        return item
    consumed = Consumed(item.consumed.upstream, item.consumed.token, ref.digest)
    return msgspec.structs.replace(item, ref=ref, consumed=consumed, late=False)
