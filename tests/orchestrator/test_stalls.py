"""What held the orchestrator up is told in its log, and nothing is where nothing did."""

import logging
import time

import pytest

from starloom.orchestrator.stalls import Stalls


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


def ago(seconds: float) -> float:
    return time.monotonic() - seconds


def test_what_goes_well_is_not_told(log: pytest.LogCaptureFixture) -> None:
    stalls = Stalls()
    handed = stalls.handed(3)
    stalls.wrote(handed, handed, 3)
    stalls.took("deciding on inputs:", 3, ago(0))
    stalls.look(ago(0))
    assert not log.records


def test_a_slow_commit_is_told_with_what_it_waited_for(log: pytest.LogCaptureFixture) -> None:
    Stalls().wrote(ago(50), ago(20), 7)
    [record] = log.messages
    assert "took 50.0 s to commit 7 facts" in record
    assert "30.0 s until its thread came to them, 20.0 s until the disk had them" in record


def test_a_commit_under_way_is_told_once_and_not_when_it_is_over(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalls = Stalls()
    began = stalls.handed(7)
    monkeypatch.setattr(time, "monotonic", lambda: began + 40)
    stalls.look(began + 40)
    stalls.look(began + 40)
    [record] = log.messages
    assert "has been committing 7 facts for 40.0 s" in record
    stalls.wrote(began + 40, began + 40, 7)
    stalls.look(began + 40)
    assert len(log.messages) == 1


def test_a_loop_that_stood_still_is_told_by_what_it_did_where_that_is_known(log: pytest.LogCaptureFixture) -> None:
    stalls = Stalls()
    stalls.took("deciding on inputs:", 512, ago(33))
    stalls.look(ago(33))
    [record] = log.messages
    assert "deciding on inputs: 512 took 33.0 s" in record
    stalls.look(ago(33))
    assert "did not turn for 33.0 s or more" in log.messages[1]
    assert "its thread computed for 0.0 s" in log.messages[1]


def test_a_standstill_behind_what_was_told_of_is_told_as_well(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalls = Stalls()
    now = time.monotonic()
    stalls.took("deciding on inputs:", 512, now - 1.5)
    monkeypatch.setattr(time, "monotonic", lambda: now + 41)
    stalls.look(now + 1)
    assert "did not turn for 40.0 s or more" in log.messages[1]
