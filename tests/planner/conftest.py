"""The planner's tests compile what they use, the first time on a machine: that takes a while where it is busy."""

from pathlib import Path

import pytest

COMPILING_SECONDS = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each test of this folder that much longer."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(COMPILING_SECONDS))
