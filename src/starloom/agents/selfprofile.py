"""What an agent measures of its node at its first start on a machine, and keeps, so that run times there can be predicted.

    <cache>/profiles/<key>.json     seconds of the samples, by machine, runtime, provider and the samples' digest
    <cache>/profiles/graphs.json    what graphs ask, by the digests of their files and their inputs' sizes

Agents of one machine share these, and one measures at a time. What is damaged, or of another machine, is made anew. The
work is done in a thread of the lowest priority beside the agent's own, and ends in time however slow the machine is.
"""

import fcntl
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final, NamedTuple

import msgspec
from blake3 import blake3

from starloom.agents import samples
from starloom.agents.modelstore import ModelStore, default_root
from starloom.agents.wholefile import write_whole
from starloom.dag import limits
from starloom.dag.errors import StarloomError
from starloom.dag.kinds import GraphUse, KindSpec
from starloom.devices.demand import COLUMNS, Demand, together
from starloom.devices.node import Measured

_log = logging.getLogger(__name__)

ROUNDS: Final = 7
"""Runs of each sample, of which the least counts; as many of them as there is time for."""
READING: Final = 1
"""Counts the changes of what is read of graphs: demands that were kept before are read again."""
_GRAPHS_NAME: Final = "graphs.json"
_LOOK_SECONDS: Final = 0.05
_LOWEST_PRIORITY: Final = 19
_CPU: Final = "CPUExecutionProvider"
#: what a file raises that holds something else
_UNREADABLE: Final = (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What seconds were measured for. `machine` is the processor's own name; `threads` are those of a session."""

    machine: str
    runtime: str
    provider: str
    threads: int
    samples: str

    @property
    def file_name(self) -> str:
        return f"{blake3(msgspec.json.encode(self)).hexdigest()[:16]}.json"


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    key: Key
    seconds: tuple[float, ...]


class Means(NamedTuple):
    """What an agent profiles with: the folder of what is kept, its providers by target, threads of a session, kinds, models."""

    folder: Path
    providers: Mapping[str, str]
    threads: int
    kinds: Sequence[KindSpec]
    store: ModelStore


def default_folder() -> Path:
    """Beside the user's model store."""
    return default_root().parent / "profiles"


def kept(means: Means) -> Measured | None:
    """What earlier starts have kept; None where that is nothing. Measures nothing."""
    asks, _ = _asks(means, _read_graphs(means.folder))
    return _measured(means, {each: _read_seconds(means, each) for each in means.providers.values()}, asks)


def lacking(means: Means) -> bool:
    """Whether there is anything that `complete` would do."""
    seconds = [_read_seconds(means, provider) for provider in means.providers.values()]
    return not all(map(all, seconds)) or bool(_asks(means, _read_graphs(means.folder))[1])


class Profiling:
    """Completes what is kept in a thread of its own, of the lowest priority, and calls `done` there with all of it.

    Does nothing where nothing is lacking. A start is when a machine is busiest, so what is still lacking is looked at
    again, AGENT_PROFILE_ROUNDS times in all, and `done` is called with each that is new.
    """

    def __init__(self, means: Means, done: Callable[[Measured], None]) -> None:
        self._means = means
        self._done = done
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="profile", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Returns once nothing of it runs any more, which takes a run of a sample or the reading of a file."""
        self._stopped.set()
        self.join()

    def join(self) -> None:
        """Returns once all is done."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        lower_priority()
        try:
            told = None
            for _ in range(limits.AGENT_PROFILE_ROUNDS if lacking(self._means) else 0):
                found = complete(self._means, lambda: not self._stopped.is_set())
                if found is not None and found != told and not self._stopped.is_set():
                    self._done(found)
                    told = found
                if not lacking(self._means) or self._stopped.wait(limits.AGENT_PROFILE_WAIT_SECONDS):
                    return
        # An agent works as well without, and its node is taken to be like others.
        except Exception:
            _log.exception("this node could not be profiled; run times on it are told by those on others")


def complete(means: Means, goes_on: Callable[[], bool] = lambda: True) -> Measured | None:
    """Measures and reads what is not kept, keeps it, and returns all of it; what there was no time for is for the next start.

    Takes AGENT_PROFILE_SECONDS and AGENT_GRAPHS_SECONDS at most, and a run or a file more; ends once `goes_on()` is false.
    Before that it waits its turn, for AGENT_PROFILE_WAIT_SECONDS; without one it returns what is kept. Raises OSError where
    nothing can be kept.
    """
    means.folder.mkdir(parents=True, exist_ok=True)
    with _alone(means.folder, time.monotonic() + limits.AGENT_PROFILE_WAIT_SECONDS, goes_on) as alone:
        if not alone:
            return kept(means)
        end = time.monotonic() + limits.AGENT_PROFILE_SECONDS
        found: dict[str, tuple[float, ...]] = {}
        for provider in dict.fromkeys(means.providers.values()):
            known = dict(zip(samples.load().names, _read_seconds(means, provider), strict=True))
            missing = [name for name, seconds in known.items() if not seconds]
            if missing:
                left = max(0.0, end - time.monotonic())
                made = measure(provider, missing, means.threads, budget_seconds=left, goes_on=goes_on)
                known |= dict(zip(missing, made, strict=True))
                _write_seconds(means, provider, tuple(known.values()))
            found[provider] = tuple(known.values())
        return _measured(means, found, _read_asks(means, goes_on))


def _measured(
    means: Means, seconds: Mapping[str, Sequence[float]], asks: dict[str, dict[str, Demand]]
) -> Measured | None:
    told = {target: tuple(seconds[each]) for target, each in means.providers.items() if any(seconds[each])}
    return Measured(samples=samples.load().digest, seconds=told, asks=asks) if told or asks else None


def measure(
    provider: str,
    names: Iterable[str],
    threads: int = 1,
    *,
    rounds: int = ROUNDS,
    budget_seconds: float = limits.AGENT_PROFILE_SECONDS,
    goes_on: Callable[[], bool] = lambda: True,
) -> tuple[float, ...]:
    """The least seconds of one run of each sample, in their order; 0 for those that the budget was spent before.

    On one thread of a processor these are of its own time: what else the machine does is no property of it.
    """
    import onnxruntime as ort

    from starloom.agents.sessions import session_options

    clock = time.thread_time if provider == _CPU and threads == 1 else time.perf_counter
    end = time.monotonic() + budget_seconds
    least: dict[str, float] = dict.fromkeys(names, 0.0)
    ready: list[tuple[str, Any, Mapping[str, Any]]] = []

    def spent() -> bool:
        return time.monotonic() >= end or not goes_on()

    for name in least:
        if spent():
            return tuple(least.values())
        session = ort.InferenceSession(str(samples.path(name)), session_options(threads), providers=[provider])
        ready.append((name, session, _feeds(session)))
        # The first run takes memory that later ones use again.
        session.run(None, ready[-1][2])
        least[name] = _timed(session, ready[-1][2], clock)
    for _ in range(rounds - 1):
        for name, session, feeds in ready:
            if spent():
                return tuple(least.values())
            least[name] = min(least[name], _timed(session, feeds, clock))
    return tuple(least.values())


def lower_priority() -> None:
    """Has the thread that calls this give way to all others, for good; where the system has no such thing, nothing."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _LOWEST_PRIORITY)
    except (AttributeError, OSError):
        _log.debug("this thread's priority cannot be lowered")


def machine() -> str:
    """The processor, by the name that it has for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()} {named or platform.processor()}".strip()


def _feeds(session: Any) -> dict[str, Any]:
    import numpy as np

    return {
        port.name: np.linspace(-1, 1, int(np.prod(port.shape)), dtype=np.float32).reshape(port.shape)
        for port in session.get_inputs()
    }


def _timed(session: Any, feeds: Mapping[str, Any], clock: Callable[[], float]) -> float:
    began = clock()
    session.run(None, feeds)
    # A clock that stands still between two readings would tell of no run at all.
    return max(clock() - began, 1e-9)


def _key(means: Means, provider: str) -> Key:
    import onnxruntime as ort

    return Key(
        machine=machine(),
        runtime=ort.__version__,
        provider=provider,
        threads=means.threads,
        samples=samples.load().digest,
    )


def _read_seconds(means: Means, provider: str) -> tuple[float, ...]:
    """What is kept of a provider, in the order of the samples, 0 for what is not; all 0 if it is damaged or of another."""
    key = _key(means, provider)
    path = means.folder / key.file_name
    nothing = (0.0,) * len(samples.load().names)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except FileNotFoundError:
        return nothing
    except _UNREADABLE as error:
        _log.warning("the profile %s cannot be read, and is made anew: %s", path, error)
        return nothing
    sound = len(found.seconds) == len(nothing) and all(isfinite(each) and each >= 0 for each in found.seconds)
    if found.key != key or not sound:
        _log.warning("the profile %s is of something else, and is made anew", path)
        return nothing
    return found.seconds


def _write_seconds(means: Means, provider: str, seconds: tuple[float, ...]) -> None:
    key = _key(means, provider)
    write_whole(means.folder / key.file_name, msgspec.json.encode(_Kept(key=key, seconds=seconds)))


def _read_graphs(folder: Path) -> dict[str, Demand]:
    try:
        found = msgspec.json.decode((folder / _GRAPHS_NAME).read_bytes(), type=dict[str, Demand])
    except FileNotFoundError:
        return {}
    except _UNREADABLE as error:
        _log.warning("%s cannot be read, and graphs are read again: %s", folder / _GRAPHS_NAME, error)
        return {}
    return {key: each for key, each in found.items() if len(each) == len(COLUMNS) and all(map(isfinite, each))}


def _asks(means: Means, known: Mapping[str, Demand]) -> tuple[dict[str, dict[str, Demand]], dict[str, GraphUse]]:
    """What each kind asks on each target by the graphs that are known, and those that are there and still to be read."""
    found: dict[str, dict[str, Demand]] = {}
    unread: dict[str, GraphUse] = {}
    for kind in means.kinds:
        for target in kind.targets:
            uses = [use for use in kind.cost.graphs if not use.targets or target in use.targets]
            keys = [_graph_key(means.store, use) for use in uses]
            if target not in means.providers or not uses or None in keys:
                continue
            named = {key: use for key, use in zip(keys, uses, strict=True) if key is not None}
            lacking = {key: use for key, use in named.items() if key not in known}
            unread |= lacking
            if not lacking:
                parts = [(use.times, known[key]) for key, use in zip(keys, uses, strict=True) if key is not None]
                found.setdefault(kind.name, {})[target] = together(parts)
    return found, unread


def _read_asks(means: Means, goes_on: Callable[[], bool]) -> dict[str, dict[str, Demand]]:
    """Reads graphs for AGENT_GRAPHS_SECONDS, and keeps what they ask."""
    end = time.monotonic() + limits.AGENT_GRAPHS_SECONDS
    known = _read_graphs(means.folder)
    _, unread = _asks(means, known)
    made: dict[str, Demand] = {}
    for key, use in unread.items():
        if time.monotonic() >= end or not goes_on():
            break
        demanded = _demand(means.store, use)
        if demanded is not None:
            made[key] = demanded
    if made:
        known |= made
        write_whole(means.folder / _GRAPHS_NAME, msgspec.json.encode(known))
    return _asks(means, known)[0]


def _graph_key(store: ModelStore, use: GraphUse) -> str | None:
    """Names a graph with its inputs' sizes; None where its file is not there."""
    try:
        digest = store.stored(use.model, use.file).sha256
    except (StarloomError, OSError):
        return None
    sizes = ",".join(f"{name}={size}" for name, size in sorted(use.sizes.items()))
    return f"{READING}:{digest}:{sizes}"


def _demand(store: ModelStore, use: GraphUse) -> Demand | None:
    """What one run of a graph asks; None for a file that cannot be read, which the log says."""
    try:
        from starloom.agents.graphreading import read
        from starloom.devices.demand import demand

        return demand(read(store.file(use.model, use.file), use.sizes))
    except ImportError:
        return None
    # Whatever a third party's graph brings the reader to, predictions only go without it.
    except Exception as error:
        _log.warning("what %s/%s asks cannot be read: %s", use.model, use.file, error)
        return None


@contextmanager
def _alone(folder: Path, end: float, goes_on: Callable[[], bool]) -> Iterator[bool]:
    """Whether it is this one's turn before `end`, in monotonic seconds: two that measure together measure each other."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end or not goes_on():
                    yield False
                    return
                time.sleep(_LOOK_SECONDS)
        yield True
    finally:
        os.close(descriptor)
