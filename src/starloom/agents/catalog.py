"""The stage kinds of this machine: those that ship, and those of installed packages.

The shipped kinds' signatures lie in `data/kinds.json`, so that a constellation can be checked, planned
and submitted where ONNX Runtime, OpenCV and libsndfile are not installed; code is imported when a stage
is first asked for. After a change of a shipped kind, write the file anew, which a test asks for:

    python -m starloom.agents.catalog > kinds.json && mv kinds.json src/starloom/agents/data/kinds.json
"""

import importlib
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from threading import RLock
from typing import Any, Final

import msgspec

from starloom.agents.stage import Stage, StageClass, StreamStage
from starloom.dag.errors import NotFound, Problem, StageError
from starloom.dag.kinds import KindCatalog, KindSpec

GROUP: Final = "starloom.stages"
"""The group of entry points whose objects are stage classes; their names are for people only."""

_STAGES = "starloom.agents.stages"

SHIPPED: Final[Mapping[str, str]] = {
    "basic.noop": f"{_STAGES}.basic:Noop",
    "basic.echo": f"{_STAGES}.basic:Echo",
    "basic.add": f"{_STAGES}.basic:Add",
    "basic.sleep": f"{_STAGES}.basic:Sleep",
    "basic.fail": f"{_STAGES}.basic:Fail",
    "basic.count": f"{_STAGES}.basic:Count",
    "basic.make_bytes": f"{_STAGES}.basic:MakeBytes",
    "basic.make_tensor": f"{_STAGES}.tensors:MakeTensor",
    "synthetic.work": f"{_STAGES}.synthetic:Work",
    "stream.window": f"{_STAGES}.stream:Windows",
    "stream.join": f"{_STAGES}.stream:JoinStreams",
    "stream.latest": f"{_STAGES}.stream:Latest",
    "audio.decode": f"{_STAGES}.audio:DecodeAudio",
    "audio.encode": f"{_STAGES}.audio:EncodeAudio",
    "speech.detect": f"{_STAGES}.voice:DetectSpeech",
    "speech.transcribe": f"{_STAGES}.transcribe:Transcribe",
    "speech.synthesise": f"{_STAGES}.synthesise:Synthesise",
    "audio.frames": f"{_STAGES}.captions:Frames",
    "speech.listen": f"{_STAGES}.captions:Listen",
    "speech.caption": f"{_STAGES}.captions:Caption",
    "image.decode": f"{_STAGES}.image:DecodeImage",
    "vision.faces": f"{_STAGES}.faces:DetectFaces",
    "vision.watch": f"{_STAGES}.video:WatchFaces",
    "video.frames": f"{_STAGES}.video:VideoFrames",
    "text.detect": f"{_STAGES}.reading:DetectText",
    "text.recognise": f"{_STAGES}.reading:RecogniseText",
    "text.read": f"{_STAGES}.regions:ReadText",
    "text.merge": f"{_STAGES}.textlines:MergeText",
    "text.embed": f"{_STAGES}.embed:Embed",
    "text.embed_together": f"{_STAGES}.embed:EmbedTogether",
    "text.retrieve": f"{_STAGES}.retrieve:Retrieve",
    "text.answer": f"{_STAGES}.answer:Answer",
    "language.answer": f"{_STAGES}.reader:ReadAndAnswer",
    "language.generate": f"{_STAGES}.language:Generate",
    "language.endpoint": f"{_STAGES}.language:Endpoint",
}
"""`module:class` of each kind that ships."""


class Catalog:
    """Kinds by name, and one instance of the class behind each, made when it is first asked for.

    `shipped` maps names to `module:class`, with their signatures in `signatures`; `points` are entry
    points of further kinds. An entry point that cannot be used is left out, and `problems` says why.
    Safe for threads. Raises InvalidInput if a kind has two different signatures.
    """

    def __init__(
        self,
        shipped: Mapping[str, str] = SHIPPED,
        signatures: Iterable[KindSpec] | None = None,
        points: Iterable[EntryPoint] | None = None,
    ) -> None:
        self.problems: list[Problem] = []
        self._guard = RLock()
        self._paths = dict(shipped)
        self._classes: dict[str, StageClass] = {}
        self._stages: dict[str, Stage | StreamStage] = {}
        self._kinds = KindCatalog(shipped_kinds() if signatures is None else signatures)
        for point in sorted(entry_points(group=GROUP) if points is None else points):
            self._add(point)

    @property
    def kinds(self) -> KindCatalog:
        """The signature of every kind, whether its code can be imported here or not."""
        return self._kinds

    def stage(self, name: str) -> Stage | StreamStage:
        """The one instance of that kind's class.

        Raises NotFound for an unknown kind, and StageError where an instance cannot be made: naming the
        extra to install if a module that a shipped kind needs is missing here.
        """
        with self._guard:
            if name not in self._stages:
                found = self._class(name)
                try:
                    self._stages[name] = found()
                except Exception as error:
                    raise StageError(f"kind {name}: {found.__qualname__}() failed: {error!r}") from error
            return self._stages[name]

    def usable(self) -> tuple[KindCatalog, list[Problem]]:
        """The kinds whose code can be imported here, and a problem for each other one. Imports them all."""
        found: list[KindSpec] = []
        problems: list[Problem] = []
        for name, kind in self._kinds.items():
            try:
                self.stage(name)
                found.append(kind)
            except StageError as error:
                problems.append(Problem(f"kinds.{name}", str(error)))
        return KindCatalog(found), problems

    def _class(self, name: str) -> StageClass:
        if name in self._classes:
            return self._classes[name]
        if name not in self._paths:
            raise NotFound(f"there is no kind {name!r}; known kinds: {', '.join(sorted(self._kinds))}")
        module, _, attribute = self._paths[name].partition(":")
        try:
            found: StageClass = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise StageError(
                f"kind {name} cannot run here: {error}; run `pip install starloom[agent]` on this node"
            ) from error
        self._classes[name] = found
        return found

    def _add(self, point: EntryPoint) -> None:
        place = f"entry point {point.name} = {point.value}"
        try:
            loaded = point.load()
        # A foreign module may raise anything at its import, and must not keep the agent from starting.
        except Exception as error:
            self.problems.append(Problem(place, f"cannot be imported: {type(error).__name__}: {error}"))
            return
        if fault := _fault(loaded):
            self.problems.append(Problem(place, fault))
            return
        name = loaded.spec.name
        self._kinds.add(loaded.spec)
        if name in self._paths or self._classes.setdefault(name, loaded) is not loaded:
            self.problems.append(Problem(place, f"kind {name} is there already, with this signature; that one is used"))


def _fault(loaded: Any) -> str:
    """What keeps an entry point's object from being used as a stage class, or an empty text."""
    if not isinstance(loaded, type) or not issubclass(loaded, Stage | StreamStage):
        return "is no subclass of starloom.agents.stage.Stage or StreamStage"
    if not isinstance(getattr(loaded, "spec", None), KindSpec):
        return "has no `spec` that is a KindSpec"
    if missing := sorted(getattr(loaded, "__abstractmethods__", ())):
        return f"does not define {', '.join(missing)}"
    return ""


@cache
def shipped_kinds() -> tuple[KindSpec, ...]:
    """The signatures of `data/kinds.json`, in the file's order."""
    data = files("starloom.agents").joinpath("data", "kinds.json").read_bytes()
    return msgspec.json.decode(data, type=tuple[KindSpec, ...])


def imported_kinds() -> bytes:
    """The signatures in the code of all shipped kinds, as `data/kinds.json` must have them. Imports them all."""
    catalog = Catalog(signatures=(), points=())
    kinds = [type(catalog.stage(name)).spec for name in SHIPPED]
    return msgspec.json.format(msgspec.json.encode(kinds), indent=1) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(imported_kinds())
