"""Files as streams: what a chunk is, when it is sent, and what is said of a file that is none."""

import asyncio
import io
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starloom import Graph
from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.errors import InvalidInput
from starloom.dag.values import Port, PortType
from starloom.orchestrator.cli.feeding import FRAME_SECONDS, Source, feed, read_sources


class Fed:
    """What a job is fed with."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, float | None]] = []
        self.closed = False

    async def send(self, port: str, value: Any, at: float | None = None) -> int:
        assert port == "mic"
        self.sent.append((value, at))
        return len(self.sent) - 1

    async def close(self, port: str) -> int:
        self.closed = True
        return len(self.sent)


async def fed(port_type: PortType, path: object, rate: float = 0.0) -> list[tuple[Any, float | None]]:
    """All that a file gives."""
    job: Any = Fed()
    assert await feed(job, Source("mic", Port(port_type, stream=True), str(path)), rate) == len(job.sent)
    assert job.closed
    return list(job.sent)


def sound(path: Path, seconds: float, channels: int = 1, rate: int = 8_000) -> None:
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(np.arange(round(seconds * rate) * channels, dtype="<i2").tobytes())


async def test_sound_comes_in_frames_with_their_times(tmp_path: Path) -> None:
    for channels in (1, 2):
        sound(tmp_path / "a.wav", 0.1, channels)
        found = await fed(PortType.AUDIO, tmp_path / "a.wav")
        assert [at for _, at in found] == pytest.approx([0, 0.032, 0.064, 0.096])
        assert [len(audio.samples) for audio, _ in found] == [256, 256, 256, 32]
        assert {audio.sample_rate_hz for audio, _ in found} == {8_000}
    with wave.open(str(tmp_path / "a.wav")) as stream:
        assert stream.getnchannels() == 2
    whole = np.concatenate([audio.samples for audio, _ in found])
    assert whole[:2] == pytest.approx([0.5 / 2**15, 2.5 / 2**15])


async def test_sound_is_sent_when_its_time_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound(tmp_path / "a.wav", 0.1)
    loop = asyncio.get_running_loop()
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(loop, "time", lambda: 100.0)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await fed(PortType.AUDIO, tmp_path / "a.wav", rate=2.0)
    assert waits == pytest.approx([number * FRAME_SECONDS / 2 for number in range(4)])


async def test_lines_blocks_and_parts(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\r\n\ntwo\n{")
    assert await fed(PortType.TEXT, tmp_path / "a") == [("one", None), ("", None), ("two", None), ("{", None)]
    (tmp_path / "b").write_bytes(b'{"a": 1}\n\n[2]\n')
    assert await fed(PortType.JSON, tmp_path / "b") == [({"a": 1}, None), ([2], None)]
    (tmp_path / "c").write_bytes(bytes(100_000))
    assert [len(data) for data, _ in await fed(PortType.BYTES, tmp_path / "c")] == [65_536, 34_464]
    np.save(tmp_path / "d.npy", np.arange(6).reshape(3, 2))
    assert [part.tolist() for part, _ in await fed(PortType.TENSOR, tmp_path / "d.npy")] == [[0, 1], [2, 3], [4, 5]]


async def test_a_video_comes_in_pictures(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (32, 16))
    for value in (0, 150, 255):
        writer.write(np.full((16, 32, 3), value, np.uint8))
    writer.release()
    found = await fed(PortType.IMAGE, path)
    assert [at for _, at in found] == pytest.approx([0, 0.1, 0.2])
    assert [picture.shape for picture, _ in found] == [(16, 32, 3)] * 3
    assert [picture.mean() for picture, _ in found] == pytest.approx([0, 150, 255], abs=5)


async def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo")))
    assert await fed(PortType.TEXT, "-") == [("one", None), ("two", None)]


async def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"no sound, no array, no json \xff\n")
    np.save(tmp_path / "b.npy", np.float32(1))
    for port_type, name in (
        (PortType.AUDIO, "a"),
        (PortType.TENSOR, "a"),
        (PortType.JSON, "a"),
        (PortType.TEXT, "a"),
        (PortType.IMAGE, "a"),
        (PortType.TENSOR, "b.npy"),
    ):
        with pytest.raises(InvalidInput, match=f"inputs.mic: .*{name} cannot be read as stream of {port_type}"):
            await fed(port_type, tmp_path / name)
    monkeypatch.setattr(limits, "STREAM_CHUNK_BYTES_MAX", 10)
    with pytest.raises(InvalidInput, match="a line has more bytes than STREAM_CHUNK_BYTES_MAX = 10"):
        await fed(PortType.TEXT, tmp_path / "a")


def test_what_is_wrong_with_the_arguments_is_told_at_once(tmp_path: Path) -> None:
    graph = Graph("fed")
    for name in ("mic", "two", "three"):
        graph.input(name, PortType.TEXT, stream=True)
    graph.input("value", PortType.TEXT)
    made = Constellation(name="fed", stages={}, inputs=dict(graph._inputs))
    (tmp_path / "a").touch()
    given = ["mic", "=a", "value=a", "mik=a", f"mic={tmp_path / 'a'}", "mic=b", "two=-", "three=-", f"x={tmp_path}"]
    with pytest.raises(InvalidInput) as caught:
        read_sources(made, given)
    assert [str(problem) for problem in caught.value.problems] == [
        "--stream: 'mic' is not NAME=PATH",
        "--stream: '=a' is not NAME=PATH",
        "inputs.value: is no input stream; there are: mic, two, three",
        "inputs.mik: is no input stream; there are: mic, two, three",
        "inputs.mic: is given twice",
        "inputs.x: is no input stream; there are: mic, two, three",
        "--stream: standard input can feed only one stream",
    ]
    assert read_sources(made, [f"mic={tmp_path / 'a'}"]) == [Source("mic", made.inputs["mic"], str(tmp_path / "a"))]
