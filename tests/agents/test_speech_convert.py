"""The Whisper converter: its graphs against a second implementation, and what it refuses."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from starloom.agents.convert import ctranslate2, whisper
from starloom.agents.convert.graphs import quantised
from starloom.dag.errors import InvalidInput

WIDTH, HEADS, LAYERS, MELS, VOCABULARY = 24, 3, 2, 5, 40
CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
Array = NDArray[Any]
Weights = dict[str, Array]


@pytest.fixture
def weights() -> Weights:
    """A Whisper of random weights: two layers, three heads, 24 wide."""
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.3).astype(np.float16)

    made: Weights = {
        "encoder/num_heads": np.array(HEADS, np.int16),
        "decoder/num_heads": np.array(HEADS, np.int16),
        "encoder/conv1/weight": normal(WIDTH, MELS, 3),
        "encoder/conv1/bias": normal(WIDTH),
        "encoder/conv2/weight": normal(WIDTH, WIDTH, 3),
        "encoder/conv2/bias": normal(WIDTH),
        "encoder/position_encodings/encodings": normal(50, WIDTH),
        "decoder/position_encodings/encodings": normal(30, WIDTH),
        "decoder/embeddings/weight": normal(VOCABULARY, WIDTH),
    }

    def linear(name: str, rows: int, columns: int = WIDTH) -> None:
        made[f"{name}/weight"], made[f"{name}/bias"] = normal(rows, columns), normal(rows)

    def norm(name: str) -> None:
        made[f"{name}/gamma"], made[f"{name}/beta"] = normal(WIDTH) + np.float16(1), normal(WIDTH)

    for part in ("encoder", "decoder"):
        norm(f"{part}/layer_norm")
        for n in range(LAYERS):
            layer = f"{part}/layer_{n}"
            for block in ("self_attention", "ffn", *(["attention"] if part == "decoder" else [])):
                norm(f"{layer}/{block}/layer_norm")
            linear(f"{layer}/self_attention/linear_0", 3 * WIDTH)
            linear(f"{layer}/self_attention/linear_1", WIDTH)
            linear(f"{layer}/ffn/linear_0", 4 * WIDTH)
            linear(f"{layer}/ffn/linear_1", WIDTH, 4 * WIDTH)
            if part == "decoder":
                for m, rows in enumerate((WIDTH, 2 * WIDTH, WIDTH)):
                    linear(f"{layer}/attention/linear_{m}", rows)
    return made


def packed(weights: Weights, name: str = "WhisperSpec", version: int = 6) -> bytes:
    """The weights as a CTranslate2 file."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", version) + text(name) + struct.pack("<II", 3, len(weights))
    for key, array in weights.items():
        data = array.tobytes()
        out += text(key) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", CODES[array.dtype.name], len(data)) + data
    return out + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


class Reference:
    """A Whisper in plain numpy, float64: one position, one head, one product at a time, without a cache."""

    def __init__(self, weights: Weights) -> None:
        self.w = {name: array.astype(np.float64) for name, array in weights.items()}

    def linear(self, x: Array, name: str) -> Array:
        return np.asarray(np.einsum("ti,oi->to", x, self.w[f"{name}/weight"]) + self.w[f"{name}/bias"])

    def norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
        return np.asarray(centred / deviation * self.w[f"{name}/gamma"] + self.w[f"{name}/beta"])

    @staticmethod
    def gelu(x: Array) -> Array:
        from math import erf

        return np.asarray(x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2))))

    def conv(self, x: Array, name: str, stride: int) -> Array:
        padded = np.pad(x, ((0, 0), (1, 1)))
        kernel, bias = self.w[f"{name}/weight"], self.w[f"{name}/bias"]
        columns = [np.einsum("oik,ik->o", kernel, padded[:, t : t + 3]) for t in range(0, x.shape[1], stride)]
        return self.gelu(np.stack(columns, axis=1) + bias[:, None])

    def attend(self, q: Array, k: Array, v: Array, causal: bool) -> Array:
        out, size = np.zeros_like(q), WIDTH // HEADS
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(q)):
                end = t + 1 if causal else len(k)
                scores = np.exp(k[:end, part] @ q[t, part] / np.sqrt(size))
                out[t, part] = scores @ v[:end, part] / scores.sum()
        return out

    def self_attention(self, x: Array, layer: str, causal: bool) -> Array:
        name = f"{layer}/self_attention"
        mixed = self.linear(self.norm(x, f"{name}/layer_norm"), f"{name}/linear_0")
        q, k, v = (mixed[:, n * WIDTH : (n + 1) * WIDTH] for n in range(3))
        return x + self.linear(self.attend(q, k, v, causal), f"{name}/linear_1")

    def feed_forward(self, x: Array, layer: str) -> Array:
        hidden = self.gelu(self.linear(self.norm(x, f"{layer}/ffn/layer_norm"), f"{layer}/ffn/linear_0"))
        return x + self.linear(hidden, f"{layer}/ffn/linear_1")

    def encode(self, mel: Array) -> Array:
        x = self.conv(self.conv(mel, "encoder/conv1", 1), "encoder/conv2", 2).T
        x = x + self.w["encoder/position_encodings/encodings"][: len(x)]
        for n in range(LAYERS):
            x = self.feed_forward(self.self_attention(x, f"encoder/layer_{n}", False), f"encoder/layer_{n}")
        return self.norm(x, "encoder/layer_norm")

    def logits(self, mel: Array, ids: list[int]) -> Array:
        """Logits of the last of `ids`: float64 [vocabulary]."""
        heard = self.encode(mel)
        x = self.w["decoder/embeddings/weight"][ids] + self.w["decoder/position_encodings/encodings"][: len(ids)]
        for n in range(LAYERS):
            layer = f"decoder/layer_{n}"
            x = self.self_attention(x, layer, True)
            pair = self.linear(heard, f"{layer}/attention/linear_1")
            q = self.linear(self.norm(x, f"{layer}/attention/layer_norm"), f"{layer}/attention/linear_0")
            mixed = self.attend(q, pair[:, :WIDTH], pair[:, WIDTH:], False)
            x = self.feed_forward(x + self.linear(mixed, f"{layer}/attention/linear_2"), layer)
        return np.asarray(self.norm(x, "decoder/layer_norm")[-1] @ self.w["decoder/embeddings/weight"].T)


def session(model: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def heard(encoder: Any, mel: Array) -> dict[str, Array]:
    names = [port.name for port in encoder.get_outputs()]
    return dict(zip(names, encoder.run(None, {"mel": mel[None]}), strict=True))


def step(
    decoder: Any, cross: dict[str, Array], past: dict[str, Array], ids: list[int]
) -> tuple[Array, dict[str, Array]]:
    logits, *present = decoder.run(None, {"ids": np.array([ids], np.int64), **past, **cross})
    names = [port.name.replace("present", "past") for port in decoder.get_outputs()[1:]]
    return logits[0], dict(zip(names, present, strict=True))


def nothing_yet(cross: dict[str, Array]) -> dict[str, Array]:
    return {name.replace("cross", "past"): value[:, :, :0] for name, value in cross.items()}


@pytest.mark.parametrize("frames", [1, 7, 20])
def test_the_float_graphs_compute_what_plain_numpy_computes(weights: Weights, frames: int) -> None:
    mel = np.random.default_rng(frames).standard_normal((MELS, frames)).astype(np.float32)
    ids = [3, 39, 0, 17, 17]
    encoder, decoder = (
        session(whisper.build_encoder(weights, int8=False)),
        session(whisper.build_decoder(weights, int8=False)),
    )
    cross = heard(encoder, mel)
    pair = Reference(weights).linear(Reference(weights).encode(mel), "decoder/layer_1/attention/linear_1")
    value = pair[:, WIDTH:].reshape(-1, HEADS, WIDTH // HEADS).transpose(1, 0, 2)
    assert np.abs(cross["cross.1.value"][0] - value).max() < 1e-4

    at_once, _ = step(decoder, cross, nothing_yet(cross), ids)
    assert np.abs(at_once - Reference(weights).logits(mel, ids)).max() < 1e-4

    past = nothing_yet(cross)
    for n, token in enumerate(ids):
        logits, past = step(decoder, cross, past, [token])
        assert np.abs(logits - Reference(weights).logits(mel, ids[: n + 1])).max() < 1e-4
    assert past["past.0.key"].shape == (1, HEADS, len(ids), WIDTH // HEADS)


def test_a_cache_may_grow_by_several_tokens(weights: Weights) -> None:
    mel = np.random.default_rng(0).standard_normal((MELS, 8)).astype(np.float32)
    decoder = session(whisper.build_decoder(weights, int8=False))
    cross = heard(session(whisper.build_encoder(weights, int8=False)), mel)
    _, past = step(decoder, cross, nothing_yet(cross), [1, 2])
    logits, _ = step(decoder, cross, past, [3, 4, 5])
    assert np.abs(logits - Reference(weights).logits(mel, [1, 2, 3, 4, 5])).max() < 1e-4


def test_int8_stays_close_and_keeps_the_embedding_once(weights: Weights) -> None:
    mel = np.random.default_rng(1).standard_normal((MELS, 12)).astype(np.float32)
    model = whisper.build_decoder(weights)
    cross = heard(session(whisper.build_encoder(weights)), mel)
    logits, _ = step(session(model), cross, nothing_yet(cross), [5, 6])
    exact = Reference(weights).logits(mel, [5, 6])
    assert np.corrcoef(logits, exact)[0, 1] > 0.99
    large = [one for one in model.graph.initializer if np.prod(one.dims) >= VOCABULARY * WIDTH]
    assert [(one.data_type, list(one.dims)) for one in large if VOCABULARY in one.dims] == [
        (onnx.TensorProto.INT8, [WIDTH, VOCABULARY])
    ]


def test_quantised_is_within_half_a_step() -> None:
    weight = np.random.default_rng(2).standard_normal((30, 7)).astype(np.float32)
    weight *= np.arange(7, dtype=np.float32)
    integers, scales = quantised(weight)
    assert integers.dtype == np.int8
    assert (np.abs(integers * scales - weight) <= scales / 2 * 1.001).all()
    assert np.abs(integers[:, 1:]).max(axis=0).tolist() == [127] * 6
    assert not integers[:, 0].any()


def test_a_file_is_converted_to_the_same_bytes_each_time(weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(packed(weights))
    whisper.convert(tmp_path, tmp_path / "a")
    whisper.convert(tmp_path / "model.bin", tmp_path / "b")
    for name in ("encoder.onnx", "decoder.onnx"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() == getattr(whisper, f"build_{name[:-5]}")(
            weights
        ).SerializeToString()


def test_a_checkpoint_is_read_as_it_was_written(weights: Weights, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(packed(weights))
    found = ctranslate2.read(file)
    assert (found.name, found.revision) == ("WhisperSpec", 3)
    assert found.variables.keys() == weights.keys() | {"decoder/projection/weight"}
    for name, array in weights.items():
        assert found.variables[name].dtype == array.dtype
        assert np.array_equal(found.variables[name], array)
    assert found.variables["decoder/projection/weight"] is found.variables["decoder/embeddings/weight"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[:-1], "ends at byte"),
        (lambda data: data[:3], "ends at byte 3"),
        (lambda data: b"", "ends at byte 0"),
        (lambda data: struct.pack("<I", 99) + data[4:], "format version 99; 3 to 6 are known"),
        (
            lambda data: data.replace(b"decoder/embeddings/weight\0", b"decoder/embeddings/wrong!\0", 1),
            "'decoder/embeddings/weight'",
        ),
        (lambda data: data.replace(b"num_heads\0\0\x02", b"num_heads\0\0\x09", 1), "has type 9"),
        (lambda data: data.replace(b"num_heads\0\0\x02", b"num_heads\0\0\x03", 1), "comes with 2 bytes"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    weights: Weights, tmp_path: Path, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(spoil(packed(weights)))
    with pytest.raises(InvalidInput, match=r"CTranslate2 model cannot be read(.|\n)*model\.bin") as caught:
        ctranslate2.read(file)
    assert reason in str(caught.value)


def test_another_model_and_missing_weights_are_refused(weights: Weights, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(packed(weights, name="TransformerSpec"))
    with pytest.raises(InvalidInput, match="holds a TransformerSpec, not a WhisperSpec"):
        whisper.convert(file, tmp_path)
    for lost in ("decoder/num_heads", "encoder/layer_1/ffn/linear_1/bias", "encoder/conv1/weight"):
        file.write_bytes(packed({name: array for name, array in weights.items() if name != lost}))
        with pytest.raises(InvalidInput, match=f"{lost}: is missing"):
            whisper.convert(file, tmp_path)
