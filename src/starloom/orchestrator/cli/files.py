"""Job inputs from the command line, and outputs as files.

| port | `--input NAME=VALUE` | file of an output |
|---|---|---|
| bytes | a path | as they are, `.bin` |
| text | the text, or `@` and a path | `.txt` |
| json | JSON, or `@` and a path | `.json` |
| audio | a path of a WAV file (PCM) | `.wav`, 16 bit |
| image | a path of a picture, or of a NumPy file | `.png`, or `.npy` without OpenCV |
| tensor | a path of a NumPy file | `.npy` |

A path may have an `@` before it everywhere.
"""

import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.values import Port, PortType, ValueRef
from starloom.orchestrator.filebytes import read_at_most

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from starloom.agents.values import Audio
    from starloom.orchestrator.infos import StreamItem

INLINE_TYPES: Final = (PortType.TEXT, PortType.JSON)
"""The types whose values stand in a command's JSON as they are."""

_SHOWN_CHARACTERS: Final = 600
_SCALES: Final = {1: 2.0**7, 2: 2.0**15, 3: 2.0**23, 4: 2.0**31}


def read_inputs(constellation: Constellation, given: Sequence[str]) -> dict[str, Any]:
    """The values of `NAME=VALUE` arguments, by the types of the constellation's inputs.

    Raises InvalidInput with everything that is wrong, names and types included, before anything is sent.
    """
    from starloom.orchestrator.clientinputs import encode_inputs

    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for argument in given:
        name, equals, text = argument.partition("=")
        if not equals or not name:
            problems.append(Problem("--input", f"{argument!r} is not NAME=VALUE"))
        elif name in values:
            problems.append(Problem(f"inputs.{name}", "is given twice"))
        else:
            port = constellation.inputs.get(name)
            try:
                values[name] = _read(port, text) if port else text
            except (OSError, ValueError, wave.Error, EOFError) as error:
                problems.append(Problem(f"inputs.{name}", f"{text} cannot be read as {port}: {_reason(error)}"))
                values[name] = None
    faulty = {problem.place for problem in problems}
    try:
        encode_inputs(constellation, values)
    except InvalidInput as error:
        problems += [problem for problem in error.problems if problem.place not in faulty]
    if problems:
        raise InvalidInput(problems, f"the inputs of {constellation.name!r} are not right")
    return values


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _read(port: Port, text: str) -> Any:
    path = Path(text.removeprefix("@"))
    match port.type:
        case PortType.TEXT:
            return _read_whole(path).decode() if text.startswith("@") else text
        case PortType.JSON:
            return msgspec.json.decode(_read_whole(path) if text.startswith("@") else text)
        case PortType.AUDIO:
            return _read_wav(path)
        case PortType.IMAGE:
            return _read_image(path)
        case PortType.TENSOR:
            return _read_array(path)
        case _:
            # A pipe can be read only once.
            return path if path.is_file() else _read_whole(path)


def _read_whole(path: Path) -> bytes:
    data = read_at_most(path, limits.JOB_INPUT_BYTES_MAX)
    if len(data) > limits.JOB_INPUT_BYTES_MAX:
        raise ValueError(f"it has more bytes than JOB_INPUT_BYTES_MAX = {limits.JOB_INPUT_BYTES_MAX}")
    return data


def _read_array(path: Path) -> Any:
    import numpy as np

    return np.load(path, allow_pickle=False)


def _read_wav(path: Path) -> "Audio":
    from starloom.agents.values import Audio

    with wave.open(str(path), "rb") as stream:
        width, channels, rate = stream.getsampwidth(), stream.getnchannels(), stream.getframerate()
        data = stream.readframes(stream.getnframes())
    return Audio(samples_of(data, width, channels), rate)


def samples_of(data: bytes, width: int, channels: int) -> "NDArray[np.float32]":
    """PCM as samples in [-1, 1], float32 [frames], the channels' mean. `width` is a sample's bytes. Raises ValueError."""
    import numpy as np

    if width not in _SCALES:
        raise ValueError(f"samples of {width} bytes are not supported")
    if width == 1:
        samples = np.frombuffer(data, np.uint8).astype(np.float32) - _SCALES[1]
    else:
        # Each sample becomes the upper bytes of a 32-bit one, and is scaled down again.
        padded = np.zeros((len(data) // width, 4), np.uint8)
        padded[:, 4 - width :] = np.frombuffer(data, np.uint8)[: len(padded) * width].reshape(-1, width)
        samples = padded.view("<i4")[:, 0].astype(np.float32) / 2.0 ** (8 * (4 - width))
    frames = samples[: len(samples) // channels * channels].reshape(-1, channels)
    mono: NDArray[np.float32] = (frames.mean(axis=1) / _SCALES[width]).astype(np.float32)
    return mono


def _read_image(path: Path) -> Any:
    if path.suffix == ".npy":
        return _read_array(path)
    try:
        import cv2
    except ImportError:
        raise ValueError(
            "reading pictures needs OpenCV; run `pip install starloom[agent]`, or give a .npy file"
        ) from None
    import numpy as np

    picture = cv2.imdecode(np.frombuffer(_read_whole(path), np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("is no picture")
    return np.ascontiguousarray(picture[:, :, ::-1])


def is_shown(ref: ValueRef) -> bool:
    """Whether an output stands in a command's answer as it is."""
    return ref.type in INLINE_TYPES and not ref.stream


def output_json(ref: ValueRef, value: Any = None, path: Path | None = None) -> Any:
    """An output as it stands in a command's JSON: text and JSON as they are, anything else described."""
    if is_shown(ref):
        return value
    described: dict[str, Any] = {"type": ref.type, "bytes": ref.bytes, "digest": ref.digest, "meta": ref.meta}
    return {**described, "path": str(path)} if path else described


def output_text(ref: ValueRef, value: Any = None, path: Path | None = None) -> str:
    """An output for people: text and JSON as they are, anything else described; or the file that it lies in."""
    if path:
        return str(path)
    if ref.stream:
        return f"<stream of {ref.type}, {ref.meta.get('chunks', 0)} chunks, {ref.bytes} bytes>"
    if ref.type is PortType.TEXT:
        return str(value)
    if ref.type is PortType.JSON:
        return msgspec.json.encode(value).decode()
    meta = "".join(f", {name} {item}" for name, item in ref.meta.items())
    return f"<{ref.type}, {ref.bytes} bytes{meta}>"


def chunk_json(port_type: PortType, item: "StreamItem") -> Any:
    """A chunk's value as it stands in a command's JSON: text and JSON as they are, anything else described."""
    if port_type in INLINE_TYPES:
        return item.value
    if port_type is PortType.AUDIO:
        return {"type": port_type, "seconds": item.value.seconds, "sample_rate_hz": item.value.sample_rate_hz}
    if port_type is PortType.BYTES:
        return {"type": port_type, "bytes": len(item.value)}
    return {"type": port_type, "shape": list(item.value.shape), "dtype": str(item.value.dtype)}


def chunk_text(port_type: PortType, item: "StreamItem") -> str:
    """A chunk for people, in a line."""
    if port_type is PortType.TEXT:
        return str(item.value)
    return msgspec.json.encode(chunk_json(port_type, item)).decode()


def shorter(text: str) -> str:
    """The beginning of a long text, where it is one of several."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} ... (`get --output` has it whole)"


def save_all(folder: Path, outputs: Mapping[str, tuple[ValueRef, Any]]) -> dict[str, Path]:
    """Writes each output to a file of its name in `folder`, which is made; returns the paths by name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput([Problem(str(folder), _reason(error))], "the folder for outputs cannot be made") from error
    return {name: save(folder / name, ref, value, suffix=True) for name, (ref, value) in outputs.items()}


def save(path: Path, ref: ValueRef, value: Any, *, suffix: bool = False) -> Path:
    """Writes an output to a file, with `suffix` to one of that name and the type's suffix; returns its path.

    Raises InvalidInput if the file cannot be written.
    """
    writer, usual = _writer(ref.type)
    if ref.stream:
        writer, usual = _writer_of_stream(ref.type, writer, usual)
    path = path.with_name(f"{path.name}{usual}") if suffix else path
    try:
        writer(path, value)
    except OSError as error:
        raise InvalidInput([Problem(str(path), _reason(error))], "an output cannot be written") from error
    return path


_Writer = Callable[[Path, Any], Any]


def _writer(port_type: PortType) -> tuple[_Writer, str]:
    match port_type:
        case PortType.TEXT:
            return lambda path, value: path.write_text(value, "utf-8"), ".txt"
        case PortType.JSON:
            return lambda path, value: path.write_bytes(
                msgspec.json.format(msgspec.json.encode(value)) + b"\n"
            ), ".json"
        case PortType.AUDIO:
            return _write_wav, ".wav"
        case PortType.IMAGE if _has_opencv():
            return _write_png, ".png"
        case PortType.IMAGE | PortType.TENSOR:
            return _write_array, ".npy"
        case _:
            return lambda path, value: path.write_bytes(value), ".bin"


def _writer_of_stream(port_type: PortType, writer: _Writer, usual: str) -> tuple[_Writer, str]:
    """A stream's chunks in one file: text and JSON by lines, sound in a row, pictures and tensors along a first axis."""
    match port_type:
        case PortType.TEXT:
            return lambda path, chunks: path.write_text("".join(f"{chunk}\n" for chunk in chunks), "utf-8"), usual
        case PortType.JSON:
            lines = msgspec.json.Encoder().encode_lines
            return lambda path, chunks: path.write_bytes(lines(chunks)), ".jsonl"
        case PortType.AUDIO:
            return lambda path, chunks: writer(path, _in_a_row(chunks)), usual
        case PortType.BYTES:
            return lambda path, chunks: path.write_bytes(b"".join(chunks)), usual
        case _:
            return _write_array, ".npy"


def _in_a_row(chunks: Sequence["Audio"]) -> "Audio":
    import numpy as np

    from starloom.agents.values import Audio

    rates = {chunk.sample_rate_hz for chunk in chunks}
    if len(rates) != 1:
        raise OSError("its chunks have no common sample rate" if rates else "it has no chunks")
    return Audio(np.concatenate([chunk.samples for chunk in chunks]), rates.pop())


def _has_opencv() -> bool:
    from importlib.util import find_spec

    return find_spec("cv2") is not None


def _write_wav(path: Path, audio: "Audio") -> None:
    import numpy as np

    samples = np.clip(np.rint(audio.samples * _SCALES[2]), -_SCALES[2], _SCALES[2] - 1).astype("<i2")
    with path.open("wb") as file, wave.open(file, "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(audio.sample_rate_hz)
        stream.writeframes(samples.tobytes())


def _write_png(path: Path, picture: Any) -> None:
    import cv2

    done, data = cv2.imencode(".png", picture[:, :, ::-1])
    if not done:
        raise OSError("the picture cannot be encoded")
    path.write_bytes(data.tobytes())


def _write_array(path: Path, array: Any) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
