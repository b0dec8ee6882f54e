"""Jobs, stages, nodes and events, as JSON has them and as people read them."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from starloom.dag import facts

if TYPE_CHECKING:
    from starloom.devices.links import SharedUplink
    from starloom.devices.node import NodeProfile
    from starloom.orchestrator.infos import ClusterInfo, Event, JobInfo, NodeInfo, StageInfo

_NANOS = 1_000_000_000


def stage_row(stage: "StageInfo") -> dict[str, Any]:
    """A stage, as the JSON of `get` and `demo` has it."""
    seconds = stage.seconds
    return {
        "name": stage.name,
        "kind": stage.kind,
        "status": stage.status,
        "node": stage.node,
        "tier": stage.tier,
        "target": stage.target,
        "emulated": stage.emulated,
        "model": ", ".join(stage.models),
        "attempts": stage.attempts,
        "copies": stage.copies,
        "reason": stage.reason,
        "grown_by": stage.grown_by,
        "private": stage.private,
        "variant": stage.variant,
        "degraded": stage.degraded,
        "planned": stage.planned,
        "seconds": {
            "queue": seconds.queue,
            "transfer": seconds.transfer,
            "load": seconds.load,
            "run": seconds.run,
        },
        "figures": stage.figures,
    }


def job_row(info: "JobInfo") -> dict[str, Any]:
    """A job without its stages and outputs, as the JSON of `jobs` and `get` has it. Times are unix seconds."""
    return {
        "job": info.id,
        "key": shown_key(info),
        "name": info.name,
        "status": info.status,
        "revision": info.revision,
        "degraded": list(info.degraded),
        "labels": info.labels,
        "submitted": info.submitted_unix_nanos / _NANOS,
        "ended": info.ended_unix_nanos / _NANOS if info.ended_unix_nanos else None,
    }


def shown_key(info: "JobInfo") -> str:
    """The caller's key; empty for one that a client made up."""
    from starloom.orchestrator.clientjob import OWN_KEY_PREFIX

    return "" if info.key.startswith(OWN_KEY_PREFIX) else info.key


def node_row(node: "NodeInfo") -> dict[str, Any]:
    """A node, as the JSON of `nodes` has it."""
    profile = node.profile
    return {
        "name": node.name,
        "tier": profile.tier,
        "targets": [target.name for target in profile.targets],
        "emulated": [target.name for target in profile.targets if target.emulated],
        "state": node.state,
        "labels": profile.labels,
        "pid": profile.pid,
        "address": profile.address,
        "cores": profile.cores,
        "memory_bytes": profile.memory_bytes,
        "slots": profile.slots,
        "providers": profile.providers,
        "speed": speeds(profile),
        "uplinks": [uplink_row(each) for each in profile.uplinks],
        "load": msgspec.to_builtins(node.load),
        "heard_seconds": node.heard_seconds,
    }


def uplink_row(uplink: "SharedUplink") -> dict[str, Any]:
    """An up-link that a node shares, as a fleet file lists it."""
    from starloom.devices.links import BYTES_PER_MBIT

    row: dict[str, Any] = {"name": uplink.name, "mbit": uplink.down / BYTES_PER_MBIT}
    if uplink.half:
        return row | {"duplex": "half"}
    return row if uplink.up == uplink.down else row | {"up_mbit": uplink.up / BYTES_PER_MBIT}


def speeds(profile: "NodeProfile") -> dict[str, float]:
    """By target, how many times as fast as the reference machine, as a fleet file has it; of those that were measured."""
    from starloom.agents import samples

    measured = profile.measured
    if measured is None or measured.samples != samples.load().digest:
        return {}
    found = {target: samples.speed(seconds) for target, seconds in measured.seconds.items()}
    return {target: round(speed, 3) for target, speed in found.items() if speed is not None}


def cluster_row(info: "ClusterInfo", address: str) -> dict[str, Any]:
    """The nodes and the orchestrator, as the JSON of `nodes` has them."""
    return {
        "nodes": [node_row(node) for node in info.nodes],
        "orchestrator": {"pid": info.pid, "address": address, "epoch": info.epoch},
    }


def event_row(event: "Event") -> dict[str, Any]:
    """An event: its offset and time beside the fields of its fact, whose kind is `fact`."""
    row: dict[str, Any] = msgspec.to_builtins(event.fact)
    return {"offset": event.offset, "unix_nanos": event.unix_nanos, **row}


def event_line(event: "Event") -> str:
    """An event in a line for people: local time, what it is about, and what happened."""
    when = datetime.fromtimestamp(event.unix_nanos / _NANOS).strftime("%H:%M:%S.%f")[:-3]
    fact = event.fact
    about = getattr(fact, "stage", "") or getattr(fact, "agent", "") or "job"
    return f"{when}  {about:<16}  {_happened(fact)}"


def _happened(fact: facts.Fact) -> str:
    match fact:
        case facts.JobSubmitted():
            return f"submitted: {fact.constellation.name}, {len(fact.constellation.stages)} stages"
        case facts.StagePlaced():
            copy = ", a copy of one that runs too long" if fact.copy else ""
            variant = f" as {fact.variant}" if fact.variant else ""
            return f"placed on {fact.agent} ({fact.target}){variant}, attempt {fact.token.attempt}{copy}"
        case facts.StageCommitted():
            models = f", {', '.join(fact.models)}" if fact.models else ""
            figures = f"; {figures_text(fact.figures)}" if fact.figures else ""
            grown = fact.growth
            grew = f"; grew to revision {grown.revision}: {', '.join(grown.operations)}" if grown else ""
            return f"succeeded in {seconds_text(fact.timing)}{models}{figures}{grew}"
        case facts.StageFailed():
            again = "" if fact.retry_seconds is None else f"; again in {fact.retry_seconds:g} s"
            return f"failed: {fact.error.message}{again}"
        case facts.StageSkipped() | facts.StageSuperseded() | facts.StageReopened() | facts.AgentLost():
            return f"{_verb(fact)}: {fact.reason}"
        case facts.OutputsHeld():
            return f"replicated to {fact.agent}"
        case facts.OutputsGone():
            return f"no longer on {fact.agent}"
        case facts.JobPatched():
            who = f" by {fact.principal}" if fact.principal else ""
            why = f" ({fact.why})" if fact.why else ""
            return f"changed to revision {fact.revision}{who}{why}: {', '.join(fact.operations)}"
        case facts.JobCancelRequested(ends=facts.JobStatus.FAILED):
            return f"stopped: {fact.reason}"
        case facts.DeadlineSpent():
            return f"{fact.seconds:.1f} s of its deadline have passed"
        case facts.JobEnded():
            return f"{fact.status}{f': {fact.error}' if fact.error else ''}"
        case _:
            return _verb(fact)


def _verb(fact: facts.Fact) -> str:
    return str(fact.__struct_config__.tag).partition("-")[2].replace("-", " ")


def seconds_text(timing: facts.Timing) -> str:
    """A stage's time in all, with what makes it up where it is more than nothing."""
    parts: Mapping[str, float] = {
        "queue": timing.queue,
        "transfer": timing.transfer,
        "load": timing.load,
        "run": timing.run,
    }
    listed = ", ".join(f"{name} {part:.3f}" for name, part in parts.items() if part >= 0.0005)
    return f"{sum(parts.values()):.3f} s{f' ({listed})' if listed else ''}"


def figures_text(figures: Mapping[str, float]) -> str:
    """What a stage measured of itself, in a line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
