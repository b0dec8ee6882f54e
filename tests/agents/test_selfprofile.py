"""What an agent measures of its node and keeps: bounded, shared, made anew where it is damaged or of another machine."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tools import samples as maker

from starloom.agents import samples, selfprofile
from starloom.agents.graphreading import read
from starloom.agents.manifest import Manifest, ModelEntry, ModelFile, Source
from starloom.agents.modelstore import ModelStore, sha256_of
from starloom.agents.selfprofile import Means, Profiling, complete, kept, lacking, measure
from starloom.dag import limits
from starloom.dag.kinds import Cost, GraphUse, KindSpec
from starloom.devices.demand import COLUMNS, demand, together
from starloom.devices.graphs import Graph, Operator
from starloom.devices.node import Measured

CPU = "CPUExecutionProvider"
USE = GraphUse(model="little", sizes={"batch": 2}, times=3)
KIND = KindSpec(name="t.little", models=("little",), cost=Cost(graphs=(USE,)))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """With one model, of one product."""
    import numpy as np

    weight = numpy_helper.from_array(np.zeros((5, 7), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "little",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 7])],
        [weight],
    )
    made = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(made))
    file = ModelFile(path="model.onnx", name="model.onnx", sha256=sha256_of(made), bytes=made.stat().st_size)
    entry = ModelEntry(
        name="little", version="1", kind="test", licence="MIT", sources=(Source(folder=str(tmp_path)),), files=(file,)
    )
    found = ModelStore(tmp_path / "models", Manifest([entry]))
    found.folder("little").mkdir(parents=True)
    made.rename(found.folder("little") / "model.onnx")
    record = {
        "name": "little",
        "version": "1",
        "key": entry.key,
        "source": "",
        "converter": 1,
        "read": [],
        "stored": [],
    }
    (found.folder("little") / "record.json").write_bytes(msgspec.json.encode(record))
    return found


@pytest.fixture
def means(tmp_path: Path, store: ModelStore) -> Means:
    return Means(tmp_path / "profiles", {"cpu": CPU, "npu": CPU}, 1, [KIND], store)


class Bench:
    """Stands for the measuring: gives each sample a second for its place, and counts."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.gives: Callable[[str], float] = lambda name: 1.0 + samples.load().names.index(name)

    def __call__(self, provider: str, names: Sequence[str], threads: int, **_: Any) -> tuple[float, ...]:
        self.asked.append(list(names))
        return tuple(map(self.gives, names))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    monkeypatch.setattr(selfprofile, "measure", made)
    return made


NAMES = list(samples.load().names)
ALL = tuple(1.0 + place for place in range(len(NAMES)))


class TestKept:
    def test_targets_of_one_provider_are_measured_once_and_the_next_start_reads_it(
        self, means: Means, bench: Bench
    ) -> None:
        assert kept(means) is None
        assert lacking(means)
        found = complete(means)
        assert found is not None
        assert found.seconds == {"cpu": ALL, "npu": ALL}
        assert found.samples == samples.load().digest
        assert bench.asked == [NAMES]
        assert kept(means) == found
        assert not lacking(means)
        assert complete(means) == found
        assert bench.asked == [NAMES]

    def test_what_there_was_no_time_for_is_measured_at_the_next_start(self, means: Means, bench: Bench) -> None:
        bench.gives = lambda name: 0.0 if name in NAMES[5:] else 1.0
        first = complete(means)
        assert first is not None
        assert first.seconds["cpu"] == (1.0,) * 5 + (0.0,) * (len(NAMES) - 5)
        assert lacking(means)
        bench.gives = lambda _: 2.0
        second = complete(means)
        assert second is not None
        assert second.seconds["cpu"] == (1.0,) * 5 + (2.0,) * (len(NAMES) - 5)
        assert bench.asked == [NAMES, NAMES[5:]]
        assert not lacking(means)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda data: data[: len(data) // 2],
            lambda data: b"",
            lambda data: b"\xff" + data,
            lambda data: data[:-1] + b',"more":' + b"[" * 100_000,
            lambda data: data.replace(b'"seconds":[1.0', b'"seconds":[-1.0'),
            lambda data: data.replace(b'"seconds":[1.0,', b'"seconds":['),
            lambda data: data.replace(b'"machine":"', b'"machine":"another '),
            lambda data: data.replace(samples.load().digest.encode(), b"0123456789abcdef"),
        ],
    )
    def test_what_is_damaged_or_of_something_else_is_made_anew_and_the_log_says_so(
        self, means: Means, bench: Bench, spoil: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
    ) -> None:
        complete(means)
        [path] = [each for each in means.folder.iterdir() if each.name != "graphs.json"]
        data = path.read_bytes()
        assert spoil(data) != data
        path.write_bytes(spoil(data))
        with caplog.at_level(logging.WARNING):
            assert lacking(means)
        assert "made anew" in caplog.text
        found = complete(means)
        assert found is not None
        assert found.seconds["cpu"] == ALL
        assert bench.asked == [NAMES, NAMES]
        assert path.read_bytes() == data

    @pytest.mark.parametrize("field", ["machine", "runtime", "threads"])
    def test_another_machine_runtime_or_count_of_threads_has_a_profile_of_its_own(
        self, means: Means, bench: Bench, monkeypatch: pytest.MonkeyPatch, field: str
    ) -> None:
        complete(means)
        if field == "machine":
            monkeypatch.setattr(selfprofile, "machine", lambda: "another processor")
        elif field == "runtime":
            monkeypatch.setattr("onnxruntime.__version__", "0.0.1")
        else:
            means = means._replace(threads=2)
        assert lacking(means)
        complete(means)
        assert bench.asked == [NAMES, NAMES]
        assert len(list(means.folder.iterdir())) == 3

    def test_one_measures_at_a_time_and_the_other_reads_it(self, means: Means, bench: Bench) -> None:
        begun, goes = threading.Event(), threading.Event()

        def slowly(name: str) -> float:
            begun.set()
            goes.wait(10)
            return 1.0

        bench.gives = slowly
        results: list[Measured | None] = []
        threads = [threading.Thread(target=lambda: results.append(complete(means))) for _ in range(2)]
        threads[0].start()
        assert begun.wait(10)
        threads[1].start()
        goes.set()
        for each in threads:
            each.join(10)
        assert len(results) == 2
        assert results[0] == results[1] != None  # noqa: E711
        assert bench.asked == [NAMES]

    def test_a_folder_that_cannot_be_made_is_told(self, means: Means, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            complete(means._replace(folder=tmp_path / "file" / "profiles"))


class TestGraphs:
    def test_what_a_kind_asks_is_read_once_from_its_models_file(
        self, means: Means, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = complete(means)
        assert found is not None
        file = means.store.file("little", "model.onnx")
        assert found.asks == {"t.little": {"cpu": together([(3, demand(read(file, {"batch": 2})))])}}
        asked = dict(zip(COLUMNS, found.asks["t.little"]["cpu"], strict=True))
        assert (asked["calls"], asked["operators"], asked["products"]) == (3, 3, 3 * 2 * 2 * 7 * 5)
        monkeypatch.setattr("starloom.agents.graphreading.read", None)
        assert complete(means) == found

    def test_other_sizes_are_read_anew(self, means: Means, bench: Bench) -> None:
        complete(means)
        larger = msgspec.structs.replace(KIND, cost=Cost(graphs=(msgspec.structs.replace(USE, sizes={"batch": 4}),)))
        assert lacking(means._replace(kinds=[larger]))

    def test_kinds_whose_models_are_not_here_and_targets_that_are_not_are_left_out(
        self, means: Means, bench: Bench
    ) -> None:
        absent = KindSpec(name="t.absent", cost=Cost(graphs=(USE, GraphUse(model="nowhere"))))
        other = KindSpec(name="t.other", targets=("gpu",), cost=Cost(graphs=(USE,)))
        only = KindSpec(
            name="t.only",
            targets=("cpu", "npu"),
            cost=Cost(graphs=(msgspec.structs.replace(USE, targets=("npu",)),)),
        )
        found = complete(means._replace(kinds=[absent, other, only]))
        assert found is not None
        assert {kind: list(by_target) for kind, by_target in found.asks.items()} == {"t.only": ["npu"]}

    def test_a_graph_that_cannot_be_read_is_told_and_left_out(
        self, means: Means, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        sizeless = msgspec.structs.replace(KIND, cost=Cost(graphs=(GraphUse(model="little"),)))
        found = complete(means._replace(kinds=[sizeless]))
        assert found is not None
        assert found.asks == {}
        assert "little/model.onnx" in caplog.text
        assert "batch" in caplog.text

    def test_whole_number_products_are_told_from_others(self) -> None:
        conv = Operator("Conv 3x3", flops=100.0, bytes=10.0)
        assert demand(Graph((conv,)))[COLUMNS.index("convolutions")] == 100.0
        between = (Operator("DequantizeLinear", bytes=8.0), conv, Operator("QuantizeLinear", bytes=8.0))
        found = dict(zip(COLUMNS, demand(Graph(between)), strict=True))
        assert (found["convolutions"], found["integers"], found["operators"]) == (0.0, 100.0, 2.0)


class TestMeasure:
    def test_each_sample_runs_here(self) -> None:
        found = measure(CPU, NAMES, rounds=1, budget_seconds=60.0)
        assert len(found) == len(NAMES)
        assert all(each > 0 for each in found)

    def test_it_ends_when_its_time_is_over(self) -> None:
        assert measure(CPU, NAMES, budget_seconds=0.0) == (0.0,) * len(NAMES)
        left = iter([True, True])
        found = measure(CPU, NAMES, budget_seconds=60.0, goes_on=lambda: next(left, False))
        assert [each > 0 for each in found] == [True, True] + [False] * (len(NAMES) - 2)

    def test_its_budget_is_what_is_left_in_all(self, means: Means, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two providers share it, and all together stay under five seconds."""
        budgets: list[float] = []

        def slow(provider: str, names: Sequence[str], threads: int, *, budget_seconds: float, **_: Any) -> Any:
            budgets.append(budget_seconds)
            clock[0] += budget_seconds
            return (0.0,) * len(names)

        clock = [100.0]
        monkeypatch.setattr(selfprofile, "measure", slow)
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        complete(means._replace(providers={"cpu": CPU, "gpu": "CUDAExecutionProvider"}))
        assert budgets == [limits.AGENT_PROFILE_SECONDS, 0.0]
        assert limits.AGENT_PROFILE_SECONDS + limits.AGENT_GRAPHS_SECONDS < 5.0


class TestBeside:
    def test_it_is_told_from_a_thread_that_ends(self, means: Means, bench: Bench) -> None:
        found: list[tuple[Measured, str]] = []
        told = threading.Event()

        def done(measured: Measured) -> None:
            found.append((measured, threading.current_thread().name))
            told.set()

        profiling = Profiling(means, done)
        profiling.start()
        assert told.wait(10)
        profiling.stop()
        assert found == [(kept(means), "profile")]
        again = Profiling(means, done)
        again.start()
        again.stop()
        assert len(found) == 1, "nothing was lacking"

    def test_what_a_busy_start_left_is_gone_on_with(
        self, means: Means, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "AGENT_PROFILE_WAIT_SECONDS", 0.01)
        bench.gives = lambda name: 1.0 if len(bench.asked) == NAMES.index(name) + 1 else 0.0
        found: list[Measured] = []
        profiling = Profiling(means, found.append)
        profiling.start()
        profiling.join()
        measured = [sum(each > 0 for each in told.seconds["cpu"]) for told in found]
        assert measured == list(range(1, limits.AGENT_PROFILE_ROUNDS + 1))
        assert bench.asked == [NAMES[place:] for place in range(limits.AGENT_PROFILE_ROUNDS)]

    def test_only_its_own_thread_gives_way(self, means: Means, bench: Bench) -> None:
        seen: list[int] = []

        def gives(_: str) -> float:
            seen.append(os.getpriority(os.PRIO_PROCESS, 0))
            return 1.0

        bench.gives = gives
        before = os.getpriority(os.PRIO_PROCESS, 0)
        profiling = Profiling(means, lambda _: None)
        profiling.start()
        profiling.join()
        assert set(seen) == {19}
        assert os.getpriority(os.PRIO_PROCESS, 0) == before

    def test_stopped_it_says_nothing(self, means: Means, bench: Bench) -> None:
        begun, goes = threading.Event(), threading.Event()

        def slowly(name: str) -> float:
            begun.set()
            goes.wait(10)
            return 1.0

        bench.gives = slowly
        found: list[Measured] = []
        profiling = Profiling(means, found.append)
        profiling.start()
        assert begun.wait(10)
        stopping = threading.Thread(target=profiling.stop)
        stopping.start()
        while not profiling.stopped:
            pass
        goes.set()
        stopping.join(10)
        assert found == []

    def test_what_goes_wrong_is_logged(self, means: Means, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "file").write_text("")
        profiling = Profiling(means._replace(folder=tmp_path / "file" / "profiles"), lambda _: None)
        profiling.start()
        profiling.stop()
        assert "could not be profiled" in caplog.text


class TestSamples:
    def test_the_files_are_those_that_the_tool_makes(self) -> None:
        made = maker.made()
        assert list(made) == NAMES
        assert {name: samples.path(name).read_bytes() for name in NAMES} == made
        assert samples.load().digest == samples.digest(list(made.values()))

    def test_the_table_says_what_they_ask(self) -> None:
        table = samples.load()
        assert table.demands == tuple(demand(read(samples.path(name))) for name in NAMES)
        assert len(table.reference) == len(NAMES)
        assert len(table.costs) == len(COLUMNS)
        assert maker.table(maker.FOLDER, table.reference) == (maker.FOLDER / samples.TABLE_NAME).read_bytes()

    def test_every_column_is_asked_of_by_some_sample(self) -> None:
        for place, column in enumerate(COLUMNS):
            assert any(each[place] for each in samples.load().demands), column

    def test_speed_is_told_by_those_that_were_measured(self) -> None:
        reference = samples.load().reference
        assert samples.speed(reference) == pytest.approx(1.0)
        assert samples.speed([each / 2 for each in reference]) == pytest.approx(2.0)
        assert samples.speed([reference[0] * 4, *[0.0] * (len(NAMES) - 1)]) == pytest.approx(0.25)
        assert samples.speed([0.0] * len(NAMES)) is None
