"""Constellations as text: YAML, and JSON, which is YAML as well.

    api_version: starloom/v1
    name: spoken-question
    labels: {team: demo}
    deadline: 5m                                # of the whole job, from its acceptance on
    objective: [{by: latency, within: 10%}, price]      # what plans make small; or energy, or weights (`dag.objective`)
    every: 100ms                                # how often a job of it is handed in, or `rate: 30`: chunks a second of its streams
    slo: {p95: 250ms, first_token: 1s, token: 60ms}     # what is promised of each round; p50 | p95 | p99 (`dag.slo`)
    inputs:
      audio: {type: bytes}                      # or short: `audio: bytes`
      photo: {type: bytes, private: device}     # stays on that tier, with what is computed from it; device | edge
      words: {type: text, stream: true, optional: true}
      frames: {type: image, stream: true, chunks: 8, full: latest}   # full: block | oldest | latest
    stages:
      hear:
        kind: audio.decode
        in: {data: $audio}                      # a job input; `stage.port` is an upstream's output
        params: {sample_rate_hz: 16000}
        require: {tier: [device, edge], target: npu, labels: {sensor: microphone}, memory: 512MiB, node: cam-1,
                  attributes: {cores: ">= 4", driver: ">= v12.2 | v11.8"}}      # as `dag.attributes` reads it
        colocate: camera                        # on one node with all stages of the job that say the same name
        prefer: {tier: edge, seconds: 2s}       # how much later it may end for standing there, 1s unless said; or a list
        avoid: [{node: cam-1}, {labels: {power: battery}, target: npu, seconds: 10}]       # for standing elsewhere
        spread: replicas                        # on another node than each stage of the job that says the same name, or
        spread: {group: replicas, over: rack, seconds: 2s}      # where an attribute differs, or it may end so much later
        retry: {times: 2, first: 100ms, factor: 2, last: 30s}       # or short: `retry: 2`
        timeout: 30s                            # of one attempt's run
        deadline: 2m                            # of the stage, from when its dependencies hold
        straggler: {factor: 3, after: 1s}       # a copy on another node; or short: `straggler: 3`
        on_failure: default                     # fail | skip | default
        defaults: {text: ""}
        grow: {stages: 100, generations: 10}    # at most, where the kind grows
        replicate: 1                            # copies of the outputs on other nodes, beside the original
        private: edge                           # what it gives stays on device and edge; or by port: {text: device}
        declassify: true                        # what it gives may leave, though what it reads may not
        join: all                               # all | any
        after: [other, {stage: another, on: completion}]            # order only
        cancelled: false                        # true: the stage is skipped
      pick:
        kind: x
        in:
          text: {from: hear.text, on: completion}
          more: {from: hear.more, when: {output: score, is: ">=", value: 0.5, path: faces.0.score}}
    outputs:
      answer: pick.text

Scalars are read as YAML 1.2 reads them: `on`, `yes` and `no` are text. Keys are always text. Tags are
refused; anchors and aliases may be used as long as the document stays small when they are written out.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from starloom.dag import limits, slo
from starloom.dag import objective as objectives
from starloom.dag.checks import name_fault
from starloom.dag.constellation import (
    Constellation,
    On,
    Private,
)
from starloom.dag.errors import InvalidConstellation, Problem
from starloom.dag.ids import StageId
from starloom.dag.schema import from_json
from starloom.dag.stagewriter import order_to_json, seconds_text, source_to_json, stage_to_json, without_empty
from starloom.dag.values import Port
from starloom.dag.yamltext import read_yaml, write_yaml

__all__ = ["canonical", "dump", "from_json", "load", "to_json"]


def load(text: str | bytes, *, place: str = "") -> Constellation:
    """Reads a constellation from YAML or JSON. `place` names the source, such as a file, in the error.

    Raises InvalidConstellation: for text that cannot be read, with line and column; else with every
    structural problem. What the parts mean together is for `dag.validate`.
    """
    return from_json(read_document(text, _what(place)), _what(place))


def dump(constellation: Constellation) -> str:
    """A constellation as YAML; `load` gives back an equal one, up to the order that `canonical` sets.

    Raises InvalidConstellation as `to_json` does.
    """
    return write_yaml(to_json(constellation))


def canonical(constellation: Constellation) -> Constellation:
    """The same constellation with bindings and dependencies in the order that documents give them.

    That is the order of the stages they lead to; for each stage those with data first.
    """
    position = {stage: index for index, stage in enumerate(constellation.stages)}
    last = len(position)
    return msgspec.structs.replace(
        constellation,
        bindings=tuple(sorted(constellation.bindings, key=lambda binding: position.get(binding.downstream, last))),
        dependencies=tuple(
            sorted(constellation.dependencies, key=lambda d: (position.get(d.downstream, last), not d.carries_data))
        ),
    )


def to_json(constellation: Constellation) -> dict[str, Any]:
    """The document form as plain mappings and lists, ready for JSON or YAML.

    Raises InvalidConstellation for what this form cannot say: a dependency into a stage that is not
    there, two that feed one port, data without both ports, a comparison without its condition, a
    stage name that is none. `dag.validate` finds these as well; the binary form holds anything.
    """
    if unsayable := list(_unsayable(constellation)):
        raise InvalidConstellation(unsayable, "the constellation cannot be written as a document")
    feeds: dict[StageId, dict[str, Any]] = {stage: {} for stage in constellation.stages}
    after: dict[StageId, list[Any]] = {stage: [] for stage in constellation.stages}
    for binding in constellation.bindings:
        feeds[binding.downstream][binding.input] = f"${binding.source}"
    for dependency in constellation.dependencies:
        if dependency.carries_data:
            feeds[dependency.downstream][dependency.input] = source_to_json(dependency)
        else:
            after[dependency.downstream].append(order_to_json(dependency))
    return without_empty(
        {
            "api_version": constellation.api_version,
            "name": constellation.name,
            "labels": constellation.labels,
            "deadline": seconds_text(constellation.deadline_seconds) if constellation.deadline_seconds else None,
            "objective": objectives.to_json(constellation.objective),
            "every": seconds_text(constellation.every_seconds) if constellation.every_seconds else None,
            "rate": constellation.rate or None,
            "slo": {name: seconds_text(value) for name, value in slo.to_json(constellation.slo).items()},
            "least_quality": constellation.least_quality,
            "inputs": {
                name: _port(port, constellation.private.get(name)) for name, port in constellation.inputs.items()
            },
            "stages": {
                name: stage_to_json(stage, feeds[name], after[name]) for name, stage in constellation.stages.items()
            },
            "outputs": {name: f"{out.upstream}.{out.output}" for name, out in constellation.outputs.items()},
        },
        keep=("api_version", "name", "stages"),
    )


def _what(place: str) -> str:
    return f"{place or 'the document'} is no constellation"


def read_document(text: str | bytes, what: str) -> Any:
    """The plain value of a document's text. Raises InvalidConstellation, headed by `what`, with line and column."""
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if len(data) > limits.DOCUMENT_BYTES_MAX:
        size = f"{len(data)} bytes are over DOCUMENT_BYTES_MAX = {limits.DOCUMENT_BYTES_MAX}"
        raise InvalidConstellation([Problem("", size)], what)
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fault = f"byte {error.start} is not UTF-8; save the document as UTF-8"
        raise InvalidConstellation([Problem("", fault)], what) from error
    try:
        found = _read_json(decoded) if decoded.lstrip()[:1] == "{" else None
        return read_yaml(decoded) if found is None else found
    except InvalidConstellation as error:
        raise InvalidConstellation(error.problems, what) from error


def _read_json(text: str) -> Any:
    """JSON, some ten times as fast as YAML; None where the text is not JSON and may be YAML."""
    twice: list[Problem] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            times = Counter(key for key, _ in pairs)
            what = "the key {!r} is given twice in one mapping; keep one"
            twice.extend(Problem("", what.format(key)) for key, count in times.items() if count > 1)
        return found

    try:
        document = json.loads(text, object_pairs_hook=mapping)
    except RecursionError as error:
        what = f"is nested deeper than DOCUMENT_DEPTH_MAX = {limits.DOCUMENT_DEPTH_MAX}; flatten it"
        raise InvalidConstellation([Problem("", what)]) from error
    except ValueError:
        return None
    if twice:
        raise InvalidConstellation(twice)
    return document


def _unsayable(constellation: Constellation) -> Iterator[Problem]:
    for stage_id, stage in constellation.stages.items():
        fault = name_fault(stage_id) or ("" if stage.id == stage_id else "its id is not the name it is listed under")
        if fault:
            yield Problem(f"stages.{stage_id}", fault)
    fed: set[tuple[StageId, str]] = set()
    for index, dependency in enumerate(constellation.dependencies):
        place = f"dependencies[{index}]"
        for stage_id in (dependency.upstream, dependency.downstream):
            if name_fault(stage_id):
                yield Problem(place, name_fault(stage_id))
        if dependency.downstream not in constellation.stages:
            yield Problem(place, f"no stage is called {dependency.downstream!r}")
        if bool(dependency.output) != bool(dependency.input):
            yield Problem(place, "names only one of output and input")
        if (dependency.on == On.COMPARISON) != (dependency.comparison is not None):
            yield Problem(place, "has a comparison without on: comparison, or the other way round")
        if dependency.carries_data:
            yield from _fed_twice(fed, dependency.downstream, dependency.input)
    for binding in constellation.bindings:
        if binding.downstream not in constellation.stages:
            yield Problem(f"inputs.{binding.source}", f"no stage is called {binding.downstream!r}")
        yield from _fed_twice(fed, binding.downstream, binding.input)
    for name in constellation.private:
        if name not in constellation.inputs:
            yield Problem(f"inputs.{name}", "is said to be private, but the constellation has no such input")
    for name, output in constellation.outputs.items():
        if name_fault(output.upstream) or not output.output:
            yield Problem(f"outputs.{name}", f"{output.upstream!r}.{output.output!r} cannot be written as stage.port")


def _fed_twice(fed: set[tuple[StageId, str]], stage: StageId, port: str) -> Iterator[Problem]:
    if (stage, port) in fed:
        yield Problem(f"stages.{stage}.in.{port}", "is fed twice")
    fed.add((stage, port))


def _port(port: Port, private: Private | None) -> str | dict[str, Any]:
    full = port.full and str(port.full)
    parts = {"type": str(port.type), "stream": port.stream, "optional": port.optional}
    short = without_empty({**parts, "chunks": port.chunks, "full": full, "private": private and str(private)})
    return str(port.type) if len(short) == 1 else short
