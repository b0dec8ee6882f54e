"""A difference in words, one line for each thing that changed: for people, in events and on the command line.

+ summary (text.summarise)
~ words: kind speech.recognise -> speech.whisper
~ words: require {tier: edge} -> {tier: cloud}
+ words.text -> summary.text
- words.text -> speak.text
"""

import json
from collections.abc import Iterator
from typing import Any

from starloom.dag import limits
from starloom.dag.constellation import Dependency, On
from starloom.dag.patch import Add, AnyOperation, Change, Difference, SetOutputs, Splice, variants_said
from starloom.dag.stagewriter import (
    policy_to_json,
    preferences_to_json,
    privacy_to_json,
    requirements_to_json,
    spread_to_json,
    variants_to_json,
)

_VALUE_CHARACTERS_MAX = 80


def lines_of(difference: Difference) -> list[str]:
    """What changed, a line each: stages, then what leads into them, then outputs."""
    return list(_lines(difference))


def changes_shown(difference: Difference) -> tuple[str, ...]:
    """The first PATCH_LINES_SHOWN lines, and how many more there are."""
    lines = lines_of(difference)
    more = len(lines) - limits.PATCH_LINES_SHOWN
    return (*lines[: limits.PATCH_LINES_SHOWN], f"and {more} more changes") if more > 0 else tuple(lines)


def in_short(operation: AnyOperation) -> str:
    """An operation in a few words, for people."""
    name = str(operation.__struct_config__.tag)
    match operation:
        case Add(stages=stages):
            more = f" and {len(stages) - 1} more" if len(stages) > 1 else ""
            return f"{name} {stages[0].id if stages else 'nothing'}{more}"
        case Splice(prefix=prefix, constellation=inner):
            return f"{name} {inner.name} as {prefix}"
        case SetOutputs(outputs=outputs):
            return f"{name} {', '.join(outputs)}"
        case _:
            return f"{name} {operation.stage}"


def _lines(difference: Difference) -> Iterator[str]:
    for change in difference.stages:
        yield from _stage_lines(change)
    yield from (f"- {_arc(arc)}" for arc in difference.removed)
    yield from (f"- ${binding.source} -> {binding.downstream}.{binding.input}" for binding in difference.unbound)
    yield from (f"+ {_arc(arc)}" for arc in difference.added)
    yield from (f"+ ${binding.source} -> {binding.downstream}.{binding.input}" for binding in difference.bound)
    for name, ends in difference.outputs.items():
        before, after = (f"{end.upstream}.{end.output}" if end else "" for end in (ends.before, ends.after))
        sign = "+" if not before else "~" if after else "-"
        yield f"{sign} output {name}: {' -> '.join(filter(None, (before, after)))}"


def _stage_lines(change: Change) -> Iterator[str]:
    before, after = change.before, change.after
    if before is None or after is None:
        spec = after or before
        yield f"{'-' if after is None else '+'} {change.stage} ({spec.kind if spec else ''})"
        return
    if before.kind != after.kind:
        yield f"~ {after.id}: kind {before.kind} -> {after.kind}"
    for name in {**before.params, **after.params}:
        old, new = before.params.get(name), after.params.get(name)
        if old != new or (name in before.params) != (name in after.params):
            yield f"~ {after.id}: {name} {_value(old)} -> {_value(new)}"
    parts: tuple[tuple[str, Any, Any], ...] = (
        ("require", requirements_to_json(before.requires), requirements_to_json(after.requires)),
        ("colocate", before.colocate, after.colocate),
        ("spread", spread_to_json(before.spread), spread_to_json(after.spread)),
        ("preferences", preferences_to_json(before.prefers), preferences_to_json(after.prefers)),
        ("policy", policy_to_json(before.policy), policy_to_json(after.policy)),
        (
            "privacy",
            privacy_to_json(before.private, before.declassify),
            privacy_to_json(after.private, after.declassify),
        ),
        ("variants", variants_to_json(**variants_said(before)), variants_to_json(**variants_said(after))),
        ("join", before.join, after.join),
        ("cancelled", before.cancelled, after.cancelled),
    )
    for name, old, new in parts:
        if old != new:
            yield f"~ {after.id}: {name} {_value(old)} -> {_value(new)}"


def _arc(arc: Dependency) -> str:
    source = f"{arc.upstream}.{arc.output}" if arc.output else f"{arc.upstream}"
    sink = f"{arc.downstream}.{arc.input}" if arc.input else f"{arc.downstream}"
    if arc.comparison is not None:
        asked = arc.comparison
        condition = f", if {asked.output}{f'.{asked.path}' if asked.path else ''} {asked.operator} {asked.value!r}"
    else:
        condition = "" if arc.on is On.SUCCESS else f", on {arc.on}"
    return f"{source} -> {sink}{condition}"


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _VALUE_CHARACTERS_MAX else f"{text[: _VALUE_CHARACTERS_MAX - 3]}..."
