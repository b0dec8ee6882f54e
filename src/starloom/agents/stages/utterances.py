"""Speech as it comes, cut into utterances: what `voice.speech_runs` finds in a whole recording, found frame by frame. Pure."""

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from starloom.agents.stages.voice import FRAME_SAMPLES, HYSTERESIS, RATE_HZ


class Piece(NamedTuple):
    """Sound of an utterance, float32 [samples] at 16 kHz, from sample `start` of the stream; without samples, its end."""

    samples: NDArray[np.float32]
    start: int

    @property
    def ends(self) -> bool:
        return not len(self.samples)


class Utterances:
    """Takes frames with their probabilities of speech, and gives the utterances in them, piece by piece.

    Speech begins at `threshold`, once it has lasted `speech_frames`, and ends below `threshold` - 0.15. Speech that
    comes back within `merge_frames` goes on at once. After `pause_frames` without any the utterance is over. Silence
    amid an utterance is held back until speech comes back, so that what was given ends with speech, and `padding`
    samples; as much stands before the beginning.
    """

    def __init__(
        self, threshold: float, *, speech_frames: int, merge_frames: int, pause_frames: int, padding: int
    ) -> None:
        self._threshold = threshold
        self._speech_frames = max(1, speech_frames)
        self._merge_frames = merge_frames
        self._padding = padding
        # What comes after the last speech has to hold the padding.
        self._pause_frames = max(pause_frames, merge_frames, -(-padding // FRAME_SAMPLES))
        #: the newest frames that were not given, the first of them, and how many there are in the stream
        self._held: deque[NDArray[np.float32]] = deque()
        self._first = 0
        self._count = 0
        #: where speech began that goes on, and where it ended last; frames
        self._run: int | None = None
        self._ended = 0
        self._open = False

    def push(self, frame: NDArray[np.float32], probability: float) -> list[Piece]:
        """The next 512 samples, with their probability of speech."""
        now = self._count
        self._count += 1
        self._held.append(frame)
        if self._run is None and probability >= self._threshold:
            self._run = now
        elif self._run is not None and probability < max(self._threshold - HYSTERESIS, 0.0):
            self._run = None
        if self._run is not None and self._counts(self._run):
            return self._speak()
        if self._open and self._run is None and self._count - self._ended >= self._pause_frames:
            return self._close(self._ended * FRAME_SAMPLES + self._padding)
        if not self._open and self._run is None:
            self._forget()
        return []

    def flush(self, samples: int) -> list[Piece]:
        """The stream is over, after so many samples: the last frame may have been filled up with silence."""
        return self._close(min(self._ended * FRAME_SAMPLES + self._padding, samples)) if self._open else []

    def _counts(self, run: int) -> bool:
        """Whether speech from that frame on is more than a burst."""
        resumed = self._open and run - self._ended < self._merge_frames
        return resumed or self._count - run >= self._speech_frames

    def _speak(self) -> list[Piece]:
        begin = self._first * FRAME_SAMPLES
        if not self._open:
            assert self._run is not None
            begin = max(begin, self._run * FRAME_SAMPLES - self._padding)
        self._open, self._ended = True, self._count
        return self._give(begin, self._count * FRAME_SAMPLES)

    def _close(self, end: int) -> list[Piece]:
        """Ends the utterance, with the padding if it has not been given yet."""
        self._open = False
        begin = self._first * FRAME_SAMPLES
        pieces = self._give(begin, end) if end > begin else []
        return [*pieces, Piece(np.zeros(0, np.float32), max(begin, end))]

    def _give(self, begin: int, end: int) -> list[Piece]:
        offset = self._first * FRAME_SAMPLES
        samples = np.concatenate(self._held)[begin - offset : end - offset]
        if self._open:
            self._held.clear()
            self._first = self._count
        else:
            self._forget()
        return [Piece(samples, begin)]

    def _forget(self) -> None:
        """Before speech, no more is kept than the padding."""
        kept = -(-self._padding // FRAME_SAMPLES)
        while len(self._held) > kept:
            self._held.popleft()
            self._first += 1


def frames_of(seconds: float) -> int:
    """Seconds as frames of 512 samples at 16 kHz."""
    return round(seconds * RATE_HZ / FRAME_SAMPLES)
