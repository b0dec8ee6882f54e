"""Compiles all of the planner that is compiled, which its first use does else: `python -m starloom.orchestrator.planner.warming`."""

from starloom.orchestrator.planner import contending, pacing, planning, reserve


def warm_up() -> None:
    """Compiles what was not compiled on this machine before: a minute or two; reads the rest."""
    planning.warm_up()
    contending.warm_up()
    pacing.warm_up()
    reserve.warm_up()


if __name__ == "__main__":
    warm_up()
