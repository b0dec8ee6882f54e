"""Job inputs from the command line, and outputs as files."""

import os
import sys
import threading
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starloom.agents.values import Audio, decode, encode, refer
from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.errors import InvalidInput
from starloom.dag.values import Port, PortType, ValueRef
from starloom.orchestrator.cli.files import output_json, output_text, read_inputs, save, save_all, shorter


def asking(**ports: Port | PortType) -> Constellation:
    """A constellation with these inputs."""
    inputs = {name: port if isinstance(port, Port) else Port(port) for name, port in ports.items()}
    return Constellation(name="asking", stages={}, inputs=inputs)


def problems(constellation: Constellation, *given: str) -> dict[str, str]:
    with pytest.raises(InvalidInput) as raised:
        read_inputs(constellation, given)
    return {problem.place: problem.what for problem in raised.value.problems}


def reference(port_type: PortType, value: Any) -> ValueRef:
    return refer(port_type, *encode(port_type, value), "")


def test_text_is_taken_as_it_is_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "words"
    file.write_text("Grüße", "utf-8")
    asked = asking(a=PortType.TEXT, b=PortType.TEXT)
    assert read_inputs(asked, ["a=x=y", f"b=@{file}"]) == {"a": "x=y", "b": "Grüße"}
    assert read_inputs(asked, ["a=", "b=words"]) == {"a": "", "b": "words"}


def test_json_is_taken_as_it_is_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_text('{"k": [1, null]}')
    asked = asking(a=PortType.JSON, b=PortType.JSON)
    assert read_inputs(asked, ["a=[1.5]", f"b=@{file}"]) == {"a": [1.5], "b": {"k": [1, None]}}
    assert "cannot be read as json" in problems(asked, "a={", "b=1")["inputs.a"]


@pytest.mark.parametrize("prefix", ["", "@"])
def test_bytes_are_a_file(tmp_path: Path, prefix: str) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"1234")
    assert read_inputs(asking(a=PortType.BYTES), [f"a={prefix}{file}"]) == {"a": file}


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    asked = asking(
        gone=PortType.BYTES,
        folder=PortType.BYTES,
        twice=PortType.TEXT,
        missing=PortType.JSON,
        maybe=Port(PortType.TEXT, optional=True),
        flow=Port(PortType.TEXT, stream=True),
    )
    given = [f"gone={tmp_path / 'no'}", f"folder={tmp_path}", "twice=1", "twice=2", "flaw=x", "flow=x", "=x"]
    found = problems(asked, *given)
    assert found.pop("inputs.gone").endswith("cannot be read as bytes: No such file or directory")
    assert found.pop("inputs.folder").endswith("Is a directory")
    assert found == {
        "inputs.twice": "is given twice",
        "inputs.missing": "is missing; it takes json",
        "inputs.flaw": "the constellation has no such input; did you mean 'flow'?",
        "inputs.flow": "is a stream, which takes no value; feed it once the job is accepted",
        "--input": "'=x' is not NAME=VALUE",
    }


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOB_INPUT_BYTES_MAX", 3)
    found = problems(asking(a=PortType.TEXT, b=PortType.TEXT), "a=12", "b=34")
    assert found == {"inputs": "have 4 bytes together, over JOB_INPUT_BYTES_MAX = 3"}


def test_a_file_far_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_bytes(b"1234")
    monkeypatch.setattr(limits, "JOB_INPUT_BYTES_MAX", 3)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("the file was read"))
    found = problems(asking(a=PortType.BYTES), f"a={tmp_path / 'data'}")
    assert found == {"inputs.a": f"{tmp_path / 'data'} has 4 bytes or more, over JOB_INPUT_BYTES_MAX = 3"}


@pytest.mark.parametrize("port", [PortType.BYTES, PortType.TEXT, PortType.JSON, PortType.IMAGE])
def test_a_device_without_an_end_is_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch, port: PortType) -> None:
    monkeypatch.setattr(limits, "JOB_INPUT_BYTES_MAX", 1000)
    assert "has more bytes than JOB_INPUT_BYTES_MAX = 1000" in problems(asking(a=port), "a=@/dev/zero")["inputs.a"]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(b"1234",))
    writer.start()
    assert read_inputs(asking(a=PortType.BYTES), [f"a={fifo}"]) == {"a": b"1234"}
    writer.join()


def test_a_long_text_is_cut_where_it_is_one_of_several() -> None:
    assert shorter("x" * 600) == "x" * 600
    assert shorter("x" * 601).startswith("x" * 600 + " ... ")


def write_wav(path: Path, frames: bytes, width: int, channels: int = 1, rate: int = 8_000) -> None:
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(width)
        stream.setframerate(rate)
        stream.writeframes(frames)


@pytest.mark.parametrize(
    ("width", "frames"),
    [
        (1, bytes([128, 192, 0])),
        (2, b"\x00\x00\x00\x40\x00\x80"),
        (3, b"\x00\x00\x00\x00\x00\x40\x00\x00\x80"),
        (4, b"\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x80"),
    ],
)
def test_a_wav_file_of_any_width_is_sound(tmp_path: Path, width: int, frames: bytes) -> None:
    write_wav(tmp_path / "sound.wav", frames, width)
    audio = read_inputs(asking(a=PortType.AUDIO), [f"a={tmp_path / 'sound.wav'}"])["a"]
    assert audio.sample_rate_hz == 8_000
    np.testing.assert_array_equal(audio.samples, np.array([0.0, 0.5, -1.0], np.float32))


def test_channels_are_averaged(tmp_path: Path) -> None:
    write_wav(tmp_path / "sound.wav", b"\x00\x40\x00\x00\x00\x00\x00\xc0", 2, channels=2)
    audio = read_inputs(asking(a=PortType.AUDIO), [f"a={tmp_path / 'sound.wav'}"])["a"]
    np.testing.assert_array_equal(audio.samples, np.array([0.25, -0.25], np.float32))


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound at all"])
def test_a_file_that_is_no_sound_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sound.wav").write_bytes(content)
    found = problems(asking(a=PortType.AUDIO), f"a={tmp_path / 'sound.wav'}")
    assert "cannot be read as audio" in found["inputs.a"]


def test_a_tensor_is_a_numpy_file_without_pickles(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "good.npy", array)
    np.save(tmp_path / "bad.npy", np.array([{}], dtype=object), allow_pickle=True)
    asked = asking(a=PortType.TENSOR)
    np.testing.assert_array_equal(read_inputs(asked, [f"a={tmp_path / 'good.npy'}"])["a"], array)
    assert "cannot be read as tensor" in problems(asked, f"a={tmp_path / 'bad.npy'}")["inputs.a"]


def test_a_picture_is_read_in_rgb(tmp_path: Path, example_folder: Path) -> None:
    asked = asking(a=PortType.IMAGE)
    picture = read_inputs(asked, [f"a={example_folder / 'photo.jpg'}"])["a"]
    assert picture.shape == (512, 1280, 3)
    path = save(tmp_path / "copy.png", reference(PortType.IMAGE, picture), picture)
    np.testing.assert_array_equal(read_inputs(asked, [f"a={path}"])["a"], picture)
    (tmp_path / "text.png").write_text("no picture")
    assert "is no picture" in problems(asked, f"a={tmp_path / 'text.png'}")["inputs.a"]


def test_without_opencv_pictures_are_numpy_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    asked = asking(a=PortType.IMAGE)
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = save(tmp_path / "picture", reference(PortType.IMAGE, picture), picture, suffix=True)
    assert path.name == "picture.npy"
    np.testing.assert_array_equal(read_inputs(asked, [f"a={path}"])["a"], picture)
    (tmp_path / "picture.png").write_bytes(b"")
    assert "pip install starloom[agent]" in problems(asked, f"a={tmp_path / 'picture.png'}")["inputs.a"]


VALUES: dict[str, tuple[PortType, Any]] = {
    "text.txt": (PortType.TEXT, "Grüße"),
    "json.json": (PortType.JSON, {"faces": [1]}),
    "bytes.bin": (PortType.BYTES, b"\x00\xff"),
    "sound.wav": (PortType.AUDIO, Audio(np.array([0.0, 0.5, -1.0], np.float32), 24_000)),
    "tensor.npy": (PortType.TENSOR, np.arange(3.0)),
    "picture.png": (PortType.IMAGE, np.zeros((2, 2, 3), np.uint8)),
}


def test_outputs_become_files_of_their_type(tmp_path: Path) -> None:
    outputs = {file.partition(".")[0]: (reference(*typed), typed[1]) for file, typed in VALUES.items()}
    paths = save_all(tmp_path / "new" / "folder", outputs)
    assert sorted(path.name for path in paths.values()) == sorted(VALUES)
    assert paths["text"].read_text("utf-8") == "Grüße"
    assert paths["bytes"].read_bytes() == b"\x00\xff"
    with wave.open(str(paths["sound"])) as stream:
        assert (stream.getnchannels(), stream.getsampwidth(), stream.getframerate()) == (1, 2, 24_000)
        assert stream.readframes(3) == b"\x00\x00\x00\x40\x00\x80"


def test_a_sound_too_loud_is_clipped(tmp_path: Path) -> None:
    loud = Audio(np.array([2.0, -2.0], np.float32), 8_000)
    path = save(tmp_path / "loud.wav", reference(PortType.AUDIO, loud), loud)
    with wave.open(str(path)) as stream:
        assert stream.readframes(2) == b"\xff\x7f\x00\x80"


def test_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ref = reference(PortType.TEXT, "x")
    with pytest.raises(InvalidInput, match="file"):
        save_all(tmp_path / "file", {"a": (ref, "x")})
    with pytest.raises(InvalidInput, match="No such file or directory"):
        save(tmp_path / "none" / "file", ref, "x")


def test_outputs_in_json_are_values_or_descriptions(tmp_path: Path) -> None:
    audio = Audio(np.zeros(4, np.float32), 8_000)
    ref = reference(PortType.AUDIO, audio)
    described = {"type": "audio", "bytes": 16, "digest": ref.digest, "meta": {"sample_rate_hz": 8_000}}
    assert output_json(ref) == described
    assert output_json(ref, audio, tmp_path / "a.wav") == {**described, "path": str(tmp_path / "a.wav")}
    assert output_json(reference(PortType.JSON, [1]), [1]) == [1]
    assert output_text(ref) == "<audio, 16 bytes, sample_rate_hz 8000>"
    assert output_text(reference(PortType.TEXT, "x"), "x") == "x"
    assert output_text(reference(PortType.JSON, [1]), [1]) == "[1]"
    assert output_text(ref, audio, tmp_path / "a.wav") == str(tmp_path / "a.wav")
    assert decode(ref.type, ref.inline or b"", ref.meta).sample_rate_hz == 8_000
