"""A plan as a picture: rows of places over time, as text for a terminal, and as SVG for a page."""

from collections.abc import Iterator
from html import escape

import numpy as np

from starloom.orchestrator.planner.problem import NO_MODEL, Plan, Problem

_ROW, _LEFT, _TOP, _FOOT = 26, 150, 34, 30
_PIXELS = 900
_HUES = 12
LABEL_WIDTH = 22
"""Characters for the name of a place."""


def lanes(problem: Problem, plan: Plan, place: int) -> list[list[int]]:
    """The stages that take time on a place, or in its slots, in rows in which no two overlap; as many as run at one time."""
    here = np.flatnonzero((problem.arrays.shares[plan.place] == place) & (plan.finish > plan.start))
    rows: list[list[int]] = []
    for stage in sorted(here.tolist(), key=lambda each: (plan.start[each], each)):
        free = next((row for row in rows if plan.finish[row[-1]] <= plan.start[stage] + 1e-9), None)
        if free is None:
            rows.append([stage])
        else:
            free.append(stage)
    return rows


def text(problem: Problem, plan: Plan, width: int = 100) -> str:
    """One line for each lane that is used, and a scale; a stage is its name, as far as it fits, between bars."""
    span = max(plan.makespan, 1e-12)
    room = max(10, width - LABEL_WIDTH)
    lines = []
    for place, what in enumerate(problem.places):
        for number, row in enumerate(lanes(problem, plan, place)):
            cells = [" "] * room
            for stage in row:
                _bar(cells, problem.stages[stage], plan.start[stage] / span, plan.finish[stage] / span)
            label = _shown(str(what)) if number == 0 else ""
            lines.append(f"{label:{LABEL_WIDTH}}" + "".join(cells).rstrip())
    scale = f"0{f'{plan.makespan:.3g} s':>{room - 1}}"
    return "\n".join([*lines, " " * LABEL_WIDTH + scale])


def _shown(label: str) -> str:
    """A label that has room: of a long one both ends, for names are often told apart by their last letters."""
    most = LABEL_WIDTH - 1
    return label if len(label) <= most else f"{label[: most - 10]}..{label[-8:]}"


def _bar(cells: list[str], name: str, begin: float, end: float) -> None:
    first = min(int(begin * len(cells)), len(cells) - 1)
    last = max(first + 1, min(round(end * len(cells)), len(cells)))
    size = last - first
    inner = name[: size - 2].center(size - 2, "-") if size > 2 else ""
    cells[first:last] = f"[{inner}]" if size > 1 else "|"


def svg(problem: Problem, plan: Plan, title: str) -> str:
    """The same as SVG: loading is hatched, and each stage tells its times when pointed at."""
    rows = [(what, row) for place, what in enumerate(problem.places) for row in lanes(problem, plan, place)]
    height = _TOP + _ROW * len(rows) + _FOOT
    width = _LEFT + _PIXELS + 20
    scale = _PIXELS / max(plan.makespan, 1e-12)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
        '<defs><pattern id="load" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">',
        '<line x1="0" y1="0" x2="0" y2="5" stroke="#fff" stroke-width="2"/></pattern></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="20" font-size="14">{escape(title)}: {plan.makespan:.3g} s</text>',
    ]
    parts.extend(_scale(plan.makespan, scale, height))
    before = None
    for number, (what, row) in enumerate(rows):
        top = _TOP + _ROW * number
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + _PIXELS}" y1="{top}" y2="{top}" stroke="#eee"/>')
        if what != before:
            whole, shown = str(what), _shown(str(what))
            told = f"<title>{escape(whole)}</title>" if shown != whole else ""
            parts.append(f'<text x="8" y="{top + 17}">{told}{escape(shown)}</text>')
        before = what
        for stage in row:
            parts.extend(_box(problem, plan, stage, top, scale))
    return "\n".join([*parts, "</svg>\n"])


def _box(problem: Problem, plan: Plan, stage: int, top: int, scale: float) -> Iterator[str]:
    arrays = problem.arrays
    name = problem.stages[stage]
    left, wide = _LEFT + plan.start[stage] * scale, max(1.0, (plan.finish[stage] - plan.start[stage]) * scale)
    hue = sum(map(ord, name)) * 7 % _HUES * (360 // _HUES)
    told = f"{name}: {plan.start[stage]:.4g} to {plan.finish[stage]:.4g} s on {problem.places[plan.place[stage]]}"
    yield f"<g><title>{escape(told)}</title>"
    yield f'<rect x="{left:.1f}" y="{top + 3}" width="{wide:.1f}" height="{_ROW - 6}" rx="3" fill="hsl({hue},55%,72%)"/>'
    if plan.loads[stage] and arrays.model[stage] != NO_MODEL:
        loads = arrays.load_seconds[arrays.model[stage], plan.place[stage]] * scale
        yield f'<rect x="{left:.1f}" y="{top + 3}" width="{loads:.1f}" height="{_ROW - 6}" fill="url(#load)"/>'
    letters = int(wide / 6.5)
    if letters >= 2:
        yield f'<text x="{left + 3:.1f}" y="{top + 17}">{escape(name[:letters])}</text>'
    yield "</g>"


def _scale(makespan: float, scale: float, height: int) -> Iterator[str]:
    for tenth in range(0, 11, 2):
        at = makespan * tenth / 10
        left = _LEFT + at * scale
        yield f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP}" y2="{height - _FOOT}" stroke="#ccc" stroke-dasharray="2 3"/>'
        anchor = "middle" if tenth < 10 else "end"
        yield f'<text x="{left:.1f}" y="{height - 10}" text-anchor="{anchor}">{at:.3g} s</text>'
