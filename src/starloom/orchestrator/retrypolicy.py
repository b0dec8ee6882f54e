"""Whether a stage is tried again after a failure, and when: seconds that grow with each one, up to a limit. Pure."""

from starloom.dag import limits
from starloom.dag.constellation import Retry
from starloom.dag.facts import ErrorInfo
from starloom.dag.stagestate import StageState


def retry_seconds(stage: StageState, error: ErrorInfo) -> float | None:
    """Seconds to wait before a stage that fails now is tried again; None where its policy allows no other try."""
    retry = stage.spec.policy.retry
    return back_off(retry, stage.failures) if error.transient and stage.failures < retry.times else None


def exhausted(stage: StageState, *, death: bool, input_lost: bool) -> str:
    """Which limit a stage is at whose attempt was given up, for a death or for lost inputs; empty if for none.

    What is given up for another reason is no failure, though a copy lived on after the last that counted.
    """
    if death and stage.deaths >= limits.AGENT_DEATHS_PER_STAGE_MAX:
        return f"in flight at the death of {stage.deaths} agents"
    if input_lost and stage.input_losses >= limits.INPUT_LOSSES_PER_STAGE_MAX:
        return f"its inputs could not be had {stage.input_losses} times"
    return ""


def back_off(retry: Retry, failures: int) -> float:
    """Seconds to wait after a stage that had failed so many times before failed again."""
    try:
        return min(retry.first_seconds * retry.factor**failures, retry.last_seconds)
    except OverflowError:
        return retry.last_seconds


def unreachable_seconds(times: int) -> float:
    """Seconds to wait after a stage could not reach its inputs for the given time in a row."""
    return min(limits.UNREACHABLE_FIRST_SECONDS * 2.0 ** (times - 1), limits.UNREACHABLE_LAST_SECONDS)
