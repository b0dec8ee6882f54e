"""Comparisons: where paths lead, which values have an order, and what never raises."""

from typing import Any

import pytest

from starloom.dag.conditions import comparison_key, holds
from starloom.dag.constellation import Comparison, Operator

FACES = {"faces": [{"score": 0.5}, {"score": 0.9}], "1": "one"}


def compare(path: str, operator: Operator, value: Any) -> Comparison:
    return Comparison(output="found", path=path, operator=operator, value=value)


@pytest.mark.parametrize(
    ("path", "operator", "value", "expected"),
    [
        ("faces.1.score", ">=", 0.9, True),
        ("faces.2.score", ">=", 0.0, False),
        ("faces.2.score", "!=", 0.9, True),
        ("faces.-1.score", ">=", 0.0, False),
        ("faces.²", "!=", 1, True),
        ("1", "==", "one", True),
        ("faces.0.score", ">", True, False),
        ("faces.0.score", "<", "text", False),
        ("faces", "contains", 0.5, False),
        ("", "contains", "faces", True),
        ("faces.0.score", "contains", 0.5, False),
    ],
)
def test_what_holds(path: str, operator: Operator, value: Any, expected: bool) -> None:
    assert holds(compare(path, operator, value), FACES) is expected


def test_an_index_of_thousands_of_digits_leads_nowhere() -> None:
    assert not holds(compare("9" * 5_000, "==", 1), [1])
    assert holds(compare("9" * 5_000, "!=", 1), [1])


def test_true_is_not_one() -> None:
    assert not holds(compare("", "==", 1), True)
    assert not holds(compare("", "contains", 1), [True])


def test_equal_comparisons_have_one_key() -> None:
    assert comparison_key(compare("a", "==", {"x": 1, "y": 2})) == comparison_key(compare("a", "==", {"y": 2, "x": 1}))
