"""What stages measure of themselves, under names that tell the unit."""

from collections.abc import Sequence

import numpy as np

from starloom.agents.stage import StageCall


def tell_times(call: StageCall, what: str, seconds: Sequence[float]) -> dict[str, float]:
    """Puts into the report how often something was done, and what it took: the median, the 95th percentile and the most.

    Returns the times, by their names: `<what>_seconds_median`, `_p95` and `_most`; none where there are none.
    """
    call.figure(f"{what}s", float(len(seconds)))
    if not seconds:
        return {}
    values = np.percentile(seconds, (50, 95, 100)).tolist()
    times = {f"{what}_seconds_{name}": value for name, value in zip(("median", "p95", "most"), values, strict=True)}
    for name, value in times.items():
        call.figure(name, value)
    return times
