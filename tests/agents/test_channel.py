"""The session's ends: numbers, acknowledgements, credits, and that no break loses or repeats a message."""

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from starloom.agents.channel import Channel, Frame, SequenceGap
from starloom.dag import limits


def numbers(frames: list[Frame[int]]) -> list[tuple[int, int]]:
    return [(frame.sequence, len(frame.messages)) for frame in frames]


def test_frames_are_numbered_from_one_and_bounded() -> None:
    channel: Channel[int, str] = Channel()
    size = limits.SESSION_FRAME_MESSAGES_MAX
    channel.send(range(size + 3))
    assert channel.waiting
    frames = channel.frames()
    assert numbers(frames) == [(1, size), (size + 1, 3)]
    assert [message for frame in frames for message in frame.messages] == list(range(size + 3))
    assert not channel.waiting
    assert channel.frames() == []


def test_credit_bounds_what_is_unacknowledged() -> None:
    channel: Channel[int, str] = Channel()
    channel.send(range(limits.SESSION_CREDITS + 10))
    assert sum(count for _, count in numbers(channel.frames())) == limits.SESSION_CREDITS
    assert channel.frames() == []
    assert channel.waiting
    channel.acknowledge(4)
    assert numbers(channel.frames()) == [(limits.SESSION_CREDITS + 1, 4)]


def test_acknowledgement_never_takes_what_was_not_sent() -> None:
    channel: Channel[int, str] = Channel()
    channel.send([1, 2])
    channel.acknowledge(99)
    assert list(channel.kept) == [1, 2]
    channel.frames()
    channel.acknowledge(99)
    channel.acknowledge(1)
    assert list(channel.kept) == []


def test_received_twice_is_taken_once_and_a_gap_is_an_error() -> None:
    channel: Channel[str, int] = Channel()
    frame = Frame(1, 0, (1, 2, 3))
    assert channel.receive(frame) == (1, 2, 3)
    assert channel.receive(frame) == ()
    assert channel.receive(Frame(2, 0, (2, 3, 4))) == (4,)
    assert channel.receive(Frame(0, 0, ())) == ()
    with pytest.raises(SequenceGap, match="frame 6 after 4"):
        channel.receive(Frame(6, 0, (6,)))
    assert channel.received == 4


def test_received_is_acknowledged_only_when_done() -> None:
    channel: Channel[str, int] = Channel()
    channel.receive(Frame(1, 0, (1, 2, 3)))
    assert channel.acknowledged == 0
    channel.done(2)
    channel.done(1)
    assert channel.acknowledged == 2
    channel.done()
    assert channel.acknowledged == 3


def test_resume_sends_again_what_did_not_arrive() -> None:
    channel: Channel[int, str] = Channel()
    channel.send([1, 2, 3])
    channel.frames()
    channel.acknowledge(1)
    channel.resume(2)
    assert [frame.messages for frame in channel.frames()] == [(3,)]
    channel.resume(0)
    assert [frame.messages for frame in channel.frames()] == [(2, 3)]
    assert not channel.can_resume(0)
    assert channel.can_resume(1)
    assert channel.can_resume(3)
    assert not channel.can_resume(4)


def test_restart_numbers_what_is_kept_from_one() -> None:
    channel: Channel[int, int] = Channel()
    channel.send([1, 2, 3])
    channel.frames()
    channel.acknowledge(2)
    channel.receive(Frame(1, 0, (7,)))
    channel.restart()
    assert (channel.received, channel.acknowledged) == (0, 0)
    assert channel.frames() == [Frame(1, 0, (3,))]


def test_repr_tells_the_state() -> None:
    channel: Channel[int, int] = Channel()
    channel.send([1])
    assert repr(channel) == "<Channel next=2 kept=1 unsent=1 received=0>"


class BrokenStreams(RuleBasedStateMachine):
    """Two ends and the frames on their way; a stream may break with any of them lost, and be resumed."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: tuple[Channel[int, int], Channel[int, int]] = (Channel(), Channel())
        self.lines: tuple[deque[Frame[int]], deque[Frame[int]]] = (deque(), deque())
        self.sent: tuple[list[int], list[int]] = ([], [])
        self.got: tuple[list[int], list[int]] = ([], [])

    @rule(end=st.sampled_from([0, 1]), count=st.integers(1, 5))
    def send(self, end: int, count: int) -> None:
        messages = list(range(len(self.sent[end]), len(self.sent[end]) + count))
        self.sent[end].extend(messages)
        self.ends[end].send(messages)

    @rule(end=st.sampled_from([0, 1]))
    def put_on_the_stream(self, end: int) -> None:
        self.lines[end].extend(self.ends[end].frames())
        self.lines[end].append(Frame(0, self.ends[end].acknowledged, ()))

    @rule(end=st.sampled_from([0, 1]), twice=st.booleans())
    def arrive(self, end: int, twice: bool) -> None:
        line = self.lines[1 - end]
        if line:
            frame = line.popleft()
            self.got[end].extend(self.ends[end].receive(frame))
            if twice:
                assert self.ends[end].receive(frame) == ()

    @rule(end=st.sampled_from([0, 1]), behind=st.integers(0, 3))
    def finish(self, end: int, behind: int) -> None:
        self.ends[end].done(max(0, self.ends[end].received - behind))

    @rule()
    def break_and_resume(self) -> None:
        for line in self.lines:
            line.clear()
        first, second = self.ends
        assert first.can_resume(second.received)
        assert second.can_resume(first.received)
        first.resume(second.received)
        second.resume(first.received)

    @precondition(lambda self: self.sent[0] or self.sent[1])
    @rule()
    def run_dry(self) -> None:
        for _ in range(20):
            for end in (0, 1):
                self.put_on_the_stream(end)
                while self.lines[1 - end]:
                    self.arrive(end, False)
                self.ends[end].done()
        for end in (0, 1):
            assert self.got[1 - end] == self.sent[end]
            assert not self.ends[end].kept

    @invariant()
    def arrives_once_and_in_order(self) -> None:
        for end in (0, 1):
            assert self.got[1 - end] == self.sent[end][: len(self.got[1 - end])]
            kept = len(self.ends[end].kept)
            assert list(self.ends[end].kept) == self.sent[end][len(self.sent[end]) - kept :]
            assert len(self.sent[end]) - kept <= len(self.got[1 - end])


BrokenStreams.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBrokenStreams = BrokenStreams.TestCase
