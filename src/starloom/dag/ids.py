"""Names for things, and the token that fences one try of a stage."""

from typing import NewType

import msgspec

JobId = NewType("JobId", str)
StageId = NewType("StageId", str)
AgentId = NewType("AgentId", str)
"""An agent is named as its node is: one agent runs on one node."""

Revision = NewType("Revision", int)
"""Counts a job's constellations, from 1."""
Attempt = NewType("Attempt", int)
"""Counts the tries of one stage over a job's whole life, from 1, across patches and restarts."""
Epoch = NewType("Epoch", int)
"""Counts the orchestrator's starts on one journal, from 1."""


class FencingToken(msgspec.Struct, frozen=True, order=False, array_like=True):
    """Names one try of one stage. Compared for equality only: no token is newer than another."""

    epoch: Epoch
    attempt: Attempt

    def __str__(self) -> str:
        return f"{self.epoch}.{self.attempt}"


class TaskToken(msgspec.Struct, frozen=True, order=False, array_like=True):
    """A fencing token with the job and stage that it belongs to; unique across the cluster."""

    job: JobId
    stage: StageId
    token: FencingToken

    def __str__(self) -> str:
        return f"{self.job}/{self.stage}@{self.token}"
