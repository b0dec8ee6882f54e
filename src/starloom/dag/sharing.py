"""Stages that share a node, and say things of it that no node can be: found without knowing any node."""

from collections.abc import Iterator, Mapping, Sequence

from starloom.dag import limits
from starloom.dag.constellation import PRIVATE_TIERS, Private, StageSpec, Tier
from starloom.dag.errors import Problem
from starloom.dag.ids import StageId

_Said = Sequence[tuple[StageId, str]]
"""Members of a group, and what each says of the node, as the end of a sentence about it."""


def sharing_problems(stages: Mapping[StageId, StageSpec], levels: Mapping[StageId, Private]) -> Iterator[Problem]:
    """The groups whose stages could not all run on one node, whatever nodes there are; a problem for each reason.

    `levels`: how far the data of stages may go, as `privacy.Labels.levels` has it. Stages that are cancelled need no node,
    and one that could not run by itself is no matter of its group. Linear in the number of stages.
    """
    groups: dict[str, list[StageSpec]] = {}
    for spec in stages.values():
        if spec.colocate and not spec.cancelled:
            groups.setdefault(spec.colocate, []).append(spec)
    for group, members in groups.items():
        if len(members) > 1:
            for said in (*_of_nodes(members), *_of_tiers(members, levels), *_of_labels(members)):
                shown = "; ".join(f"{name} {what}" for name, what in said[: limits.NODES_EXPLAINED_MAX])
                yield Problem(f"stages.{said[0][0]}.colocate", f"no node can run all of {group!r}: {shown}")


def _of_nodes(members: Sequence[StageSpec]) -> Iterator[_Said]:
    """Members that require different nodes, one for each."""
    nodes: dict[str, StageId] = {}
    for spec in members:
        if spec.requires.node:
            nodes.setdefault(spec.requires.node, spec.id)
    if len(nodes) > 1:
        yield [(stage, f"requires node {node}") for node, stage in nodes.items()]


def _of_tiers(members: Sequence[StageSpec], levels: Mapping[StageId, Private]) -> Iterator[_Said]:
    """Members whose tiers have none in common, one for each set of them."""
    left = frozenset(Tier)
    found: dict[frozenset[Tier], tuple[StageId, str]] = {}
    for spec in members:
        level, required = levels.get(spec.id), spec.requires.tiers
        may = frozenset(required or Tier) & frozenset(PRIVATE_TIERS[level] if level is not None else Tier)
        if not may or len(may) == len(Tier):
            continue
        what = [f"requires the {' or '.join(required)} tier"] if required else []
        what += [f"has data that is private to {level}"] if level is not None else []
        found.setdefault(may, (spec.id, " and ".join(what)))
        left &= may
    if not left:
        yield list(found.values())


def _of_labels(members: Sequence[StageSpec]) -> Iterator[_Said]:
    """Members that require different values of a node's label, for each label."""
    labels: dict[str, dict[str, StageId]] = {}
    for spec in members:
        for name, value in spec.requires.labels.items():
            labels.setdefault(name, {}).setdefault(value, spec.id)
    for name, values in labels.items():
        if len(values) > 1:
            yield [(stage, f"requires the label {name}={value}") for value, stage in values.items()]
