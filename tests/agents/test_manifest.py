"""The model manifest: the shipped one, and what a bad one is told."""

import hashlib
from typing import Any

import msgspec
import pytest

from starloom.agents.manifest import Manifest, ModelEntry, ModelFile, Source, parse, parse_toml, shipped
from starloom.dag.errors import InvalidInput, NotFound

DIGEST = hashlib.sha256(b"x").hexdigest()

GOOD: dict[str, Any] = {
    "name": "tiny",
    "version": "1.0",
    "kind": "test",
    "licence": "MIT",
    "sources": [{"package": "tiny", "version": "1.0"}],
    "files": [{"path": "tiny/a.bin", "name": "a.bin", "sha256": DIGEST, "bytes": 1}],
}


def one(**changes: Any) -> ModelEntry:
    return parse({"model": [{**GOOD, **changes}]}, "here")["tiny"]


def problems(*models: Any) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        parse({"model": list(models)}, "here")
    return [str(problem) for problem in caught.value.problems]


def test_shipped_models_are_pinned_and_free_to_redistribute() -> None:
    manifest = shipped()
    assert set(manifest) >= {"silero-vad", "whisper-tiny-en", "centerface", "ppocr-v6", "minilm-l6-v2", "hibari-en"}
    for entry in manifest.values():
        assert set(entry.licence.split(" AND ")) <= {"MIT", "Apache-2.0", "BSD-3-Clause"} or not entry.default
        assert all(
            (source.package and source.version) or source.installed or source.shipped for source in entry.sources
        )
        assert all(file.bytes > 0 and len(file.sha256) == 64 for file in entry.files)


def test_entry_without_converter_keeps_every_file() -> None:
    entry = one()
    assert entry.stored_names == ("a.bin",)
    assert not entry.default


def test_entry_with_converter_keeps_outputs_and_what_it_says() -> None:
    files = [{**GOOD["files"][0], "name": name} for name in ("weights.bin", "words.txt")]
    entry = one(files=files, convert="pack.mod:convert", outputs=["model.onnx"], keep=["words.txt"])
    assert entry.stored_names == ("model.onnx", "words.txt")


def test_every_problem_is_reported_with_its_place() -> None:
    bad_file = {"path": "../a", "name": "sub/a.bin", "sha256": "ABC", "bytes": 0}
    found = problems(
        {"name": "typed", "version": 3, "kind": "k", "licens": "MIT", "files": [{"path": "a", "bytes": "1"}]},
        {
            **GOOD,
            "name": "Bad Name",
            "sources": [{"package": "p"}, {"package": "p", "folder": "f"}],
            "files": [bad_file],
        },
        {**GOOD, "convert": "no function", "keep": ["b"]},
        "nothing",
    )
    text = "\n".join(found)
    for expected in (
        "here: models.typed.version: Expected `str`, got `int`",
        "here: models.typed.licens: is unknown",
        "here: models.typed.licence: is missing",
        "here: models.typed.files[0].name: is missing",
        "here: models.typed.files[0].bytes: Expected `int`, got `str`",
        "here: models.Bad Name.name: 'Bad Name' is not",
        "here: models.Bad Name.sources[0]: package p needs an exact version",
        "here: models.Bad Name.sources[1]: name exactly one",
        "here: models.Bad Name.files[0].path: '../a' is no path inside",
        "here: models.Bad Name.files[0].sha256: 'ABC' is not 64",
        "here: models.Bad Name.files[0].bytes: 0 is not above 0",
        "here: models.Bad Name.files: 'sub/a.bin' cannot be a file name",
        "here: models.tiny.convert: 'no function' is not `module:function`",
        "here: models.tiny.outputs: is empty",
        "here: models.tiny.keep: 'b' is no file",
        "here: models.3: is str instead of a table",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sources": []}, "sources: is empty"),
        ({"files": []}, "files: is empty"),
        ({"files": GOOD["files"] * 2}, "files: 'a.bin' stands twice"),
        ({"outputs": ["b"]}, "convert: is missing"),
        ({"files": [{**GOOD["files"][0], "name": "record.json"}]}, "'record.json' cannot be"),
        ({"convert": "m:f", "outputs": ["a.bin"], "keep": ["a.bin"]}, "'a.bin' is a kept source file as well"),
        ({"version": "../1"}, "version: '../1' is not"),
        ({"files": [{**GOOD["files"][0], "bytes": 2**40}]}, "over MODEL_BYTES_MAX"),
        ({"licence": ""}, "licence: is empty"),
    ],
)
def test_one_problem(change: dict[str, Any], expected: str) -> None:
    found = problems({**GOOD, **change})
    assert len(found) == 1
    assert expected in found[0]


def test_two_models_of_one_name() -> None:
    assert "taken by another model" in problems(GOOD, GOOD)[0]


def test_a_document_that_is_no_manifest() -> None:
    with pytest.raises(InvalidInput, match=r"models\.toml: is no TOML"):
        parse_toml("[[model", "models.toml")
    with pytest.raises(InvalidInput, match="must be a list"):
        parse([], "here")
    with pytest.raises(InvalidInput, match="here: modle: is unknown"):
        parse({"modle": []}, "here")


def test_key_follows_the_bytes_and_nothing_else() -> None:
    entry = one()
    other_digest = hashlib.sha256(b"y").hexdigest()
    assert one(about="words", licence="Apache-2.0", sources=[{"folder": "f"}], default=True).key == entry.key
    assert one(files=[{**GOOD["files"][0], "sha256": other_digest}]).key != entry.key
    converted = one(convert="m:f", outputs=["model.onnx"])
    assert converted.key != entry.key
    assert one(convert="m:f", outputs=["model.onnx"], converter=2).key != converted.key


def test_digest_of_several_files_is_that_of_their_sha256sum_lines() -> None:
    assert one().sha256 == DIGEST
    files = tuple(ModelFile(path=name, name=name, sha256=DIGEST, bytes=1) for name in ("b", "a"))
    entry = msgspec.structs.replace(one(), files=files)
    assert entry.sha256 == hashlib.sha256(f"{DIGEST}  a\n{DIGEST}  b\n".encode()).hexdigest()


def test_unknown_names_are_all_listed_with_the_known_ones() -> None:
    manifest = Manifest([one()])
    with pytest.raises(NotFound, match=r"'a', 'b'; known models: tiny"):
        manifest.select(["a", "tiny", "b"])
    assert manifest.select(None) == []
    assert manifest.select(["tiny", "tiny"]) == [one()]


def test_a_user_model_cannot_take_a_shipped_name() -> None:
    with pytest.raises(InvalidInput, match=r"user\.json: models\.tiny"):
        Manifest([one()]).merged(Manifest([one(kind="mine")]), "user.json")


def test_sources_name_themselves() -> None:
    assert str(Source(package="p", version="1")) == "p==1"
    assert str(Source(folder="f")) == "folder f"
    assert str(Source(installed="d")) == "installed d"
