"""What the language tests share: the tiny Llama, what transformers said of it, and variants made by surgery on its graph."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, compose, helper

from starloom.agents.language.model import LanguageModel, load
from starloom.agents.manifest import Manifest
from starloom.agents.modelpull import add
from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import CallModels, SessionPool
from starloom.agents.stage import CancelToken

DATA = Path(__file__).resolve().parents[1] / "data" / "language"
TINY = DATA / "tiny"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
PROMPTS: dict[str, list[int]] = EXPECTED["prompts"]

Surgery = Callable[[Any], None]
"""A change of an `onnx.GraphProto`, in place."""


def copy(folder: Path, surgery: Surgery | None = None, **files: Any) -> Path:
    """The tiny model in `folder`, its graph changed; `files` replaces JSON files by their stem, or drops them for None."""
    shutil.copytree(TINY, folder)
    if surgery:
        model = onnx.load(str(TINY / "model.onnx"))
        surgery(model.graph)
        onnx.save(model, str(folder / "model.onnx"))
    for stem, content in files.items():
        path = folder / f"{stem}.json"
        if content is None:
            path.unlink()
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def stored(root: Path, folder: Path = TINY, kind: str = "custom") -> ModelStore:
    """A store under `root` with the folder's model in it, as `tiny`."""
    store = ModelStore(root, Manifest())
    add(store, folder, "tiny", kind, "Apache-2.0")
    return store


def models(store: ModelStore, cancel: CancelToken | None = None) -> CallModels:
    return SessionPool(store, limit=2).for_call(cancel or CancelToken())


def loaded(root: Path, folder: Path = TINY) -> LanguageModel:
    return load(models(stored(root, folder)), "tiny")


@cache
def config() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    return found


def named(ports: Any, name: str) -> Any:
    return next(port for port in ports if port.name == name)


def past(graph: Any) -> list[str]:
    return [port.name for port in graph.input if port.name.startswith("past_key_values.")]


def present(graph: Any) -> list[str]:
    return [port.name for port in graph.output if port.name.startswith("present.")]


def front(graph: Any, nodes: list[Any]) -> None:
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])


def rename(graph: Any, old: str, new: str, *, outputs: bool = False) -> None:
    """Renames a tensor where nodes read it, and with `outputs` where they give it."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        if outputs:
            node.output[:] = [new if name == old else name for name in node.output]


def drop_input(graph: Any, name: str) -> None:
    graph.input.remove(named(graph.input, name))


def without_positions(graph: Any) -> None:
    """The graph counts its columns itself."""
    drop_input(graph, "position_ids")
    for name, value in (("two_", [2]), ("one_", [1]), ("zero_", [0])):
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], value))
    graph.initializer.append(helper.make_tensor("step_", TensorProto.INT64, [], [1]))
    front(
        graph,
        [
            helper.make_node("Shape", [past(graph)[0]], ["past_shape_"]),
            helper.make_node("Gather", ["past_shape_", "two_"], ["past_length_"]),
            helper.make_node("Shape", ["input_ids"], ["ids_shape_"]),
            helper.make_node("Gather", ["ids_shape_", "one_"], ["count_"]),
            helper.make_node("Add", ["past_length_", "count_"], ["total_"]),
            helper.make_node("Squeeze", ["past_length_"], ["first_"]),
            helper.make_node("Squeeze", ["total_"], ["end_"]),
            helper.make_node("Range", ["first_", "end_", "step_"], ["columns_"]),
            helper.make_node("Unsqueeze", ["columns_", "zero_"], ["position_ids"]),
        ],
    )


def half_cache(graph: Any) -> None:
    """Caches of float16 around the same float32 sums."""
    nodes = []
    for name in past(graph):
        named(graph.input, name).type.tensor_type.elem_type = TensorProto.FLOAT16
        rename(graph, name, f"{name}_single")
        nodes.append(helper.make_node("Cast", [name], [f"{name}_single"], to=TensorProto.FLOAT))
    front(graph, nodes)
    for name in present(graph):
        named(graph.output, name).type.tensor_type.elem_type = TensorProto.FLOAT16
        rename(graph, name, f"{name}_single", outputs=True)
        graph.node.append(helper.make_node("Cast", [f"{name}_single"], [name], to=TensorProto.FLOAT16))


def lengths_first(graph: Any) -> None:
    """Caches as [batch, length, heads, head size]."""

    def swap(port: Any) -> None:
        dims = port.type.tensor_type.shape.dim
        first, second = onnx.TensorShapeProto.Dimension(), onnx.TensorShapeProto.Dimension()
        first.CopyFrom(dims[1])
        second.CopyFrom(dims[2])
        dims[1].CopyFrom(second)
        dims[2].CopyFrom(first)

    nodes = []
    for name in past(graph):
        swap(named(graph.input, name))
        rename(graph, name, f"{name}_usual")
        nodes.append(helper.make_node("Transpose", [name], [f"{name}_usual"], perm=[0, 2, 1, 3]))
    front(graph, nodes)
    for name in present(graph):
        swap(named(graph.output, name))
        rename(graph, name, f"{name}_usual", outputs=True)
        graph.node.append(helper.make_node("Transpose", [f"{name}_usual"], [name], perm=[0, 2, 1, 3]))


def merged(graph: Any) -> None:
    """One branch with the past, one that ignores it, as merged exports have them."""
    names = past(graph)
    branches = []
    for prefix in ("with_", "without_"):
        branch = compose.add_prefix_graph(graph, prefix, rename_inputs=False, rename_initializers=False)
        del branch.input[:], branch.initializer[:]
        if prefix == "without_":
            nodes = []
            for name in names:
                rename(branch, name, f"{prefix}{name}")
                cut = [name, "from_", "from_", "axis_"]
                nodes.append(helper.make_node("Slice", cut, [f"{prefix}{name}"]))
            front(branch, nodes)
        branches.append(branch)
    del graph.node[:]
    graph.initializer.append(helper.make_tensor("from_", TensorProto.INT64, [1], [0]))
    graph.initializer.append(helper.make_tensor("axis_", TensorProto.INT64, [1], [2]))
    graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    outputs = [port.name for port in graph.output]
    graph.node.append(
        helper.make_node("If", ["use_cache_branch"], outputs, then_branch=branches[0], else_branch=branches[1])
    )


def without_cache(graph: Any) -> None:
    """A graph that reads its whole text for every token."""
    for name in past(graph):
        drop_input(graph, name)
        graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [1, 2, 0, 16], []))
    for name in present(graph):
        graph.output.remove(named(graph.output, name))


def one_row(graph: Any) -> None:
    """A batch of one, fixed."""
    for port in (*graph.input, *graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 1


def last_logits(graph: Any) -> None:
    """The input `num_logits_to_keep`, and the type int32 for tokens."""
    graph.input.append(helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, []))
    graph.initializer.append(helper.make_tensor("one_axis_", TensorProto.INT64, [1], [1]))
    graph.initializer.append(helper.make_tensor("minus_", TensorProto.INT64, [1], [-1]))
    graph.initializer.append(helper.make_tensor("far_", TensorProto.INT64, [1], [2**40]))
    named(graph.input, "input_ids").type.tensor_type.elem_type = TensorProto.INT32
    rename(graph, "input_ids", "ids_long_")
    rename(graph, "logits", "logits_all_", outputs=True)
    front(graph, [helper.make_node("Cast", ["input_ids"], ["ids_long_"], to=TensorProto.INT64)])
    graph.node.extend(
        [
            helper.make_node("Mul", ["num_logits_to_keep", "minus_"], ["start_"]),
            helper.make_node("Slice", ["logits_all_", "start_", "far_", "one_axis_"], ["logits"]),
        ]
    )
