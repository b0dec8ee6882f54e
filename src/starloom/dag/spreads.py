"""What can be wrong with stages that are spread: each by itself, and those of a group beside each other."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from starloom.dag import limits
from starloom.dag.checks import name_fault, number_fault, text_fault
from starloom.dag.constellation import Spread, StageSpec
from starloom.dag.errors import Problem


def spread_problems(place: str, stage: StageSpec, spread: Spread) -> Iterator[Problem]:
    """Everything wrong with how one stage is spread."""
    if fault := name_fault(spread.group):
        yield Problem(f"{place}.spread.group", fault)
    if fault := text_fault(spread.over) or (
        f"has {len(spread.over)} characters, over NAME_CHARACTERS_MAX = {limits.NAME_CHARACTERS_MAX}"
        if len(spread.over) > limits.NAME_CHARACTERS_MAX
        else ""
    ):
        yield Problem(f"{place}.spread.over", fault)
    if fault := number_fault(spread.seconds, at_most=limits.DURATION_SECONDS_MAX, unit="seconds, 0 for never together"):
        yield Problem(f"{place}.spread.seconds", fault)
    if stage.colocate:
        what = f"the stage stands where those of {stage.colocate!r} do, and cannot be spread by itself; leave one of both out"
        yield Problem(f"{place}.spread", what)
    if stage.policy.straggler is not None and not spread.seconds:
        what = f"the stage stands apart from those of {spread.group!r}, and a copy might not; leave it out"
        yield Problem(f"{place}.straggler", what)


def group_problems(stages: Iterable[StageSpec], only: Collection[str] | None = None) -> Iterator[Problem]:
    """Where stages of a group do not say the same, or are too many; of some groups, or all."""
    groups: defaultdict[str, list[StageSpec]] = defaultdict(list)
    for stage in stages:
        if stage.spread is not None and (only is None or stage.spread.group in only):
            groups[stage.spread.group].append(stage)
    for group, members in groups.items():
        first = members[0]
        for other in members[1:]:
            if other.spread != first.spread:
                what = f"says of {group!r} what {first.id} does not; let all of a group say the same over and seconds"
                yield Problem(f"stages.{other.id}.spread", what)
        if len(members) > limits.SPREAD_STAGES_MAX:
            over = f"over SPREAD_STAGES_MAX = {limits.SPREAD_STAGES_MAX}"
            yield Problem(
                f"stages.{first.id}.spread", f"{len(members)} stages of {group!r} are {over}; make more groups"
            )
