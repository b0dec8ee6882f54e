"""A client of OpenAI-compatible endpoints that never hangs: every wait has a bound, and a cancel closes the socket.

Over the standard library's HTTP, in the stage's worker thread. It follows no redirects and uses no
proxies. A request is sent again only while no part of an answer has come.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from starloom.agents.language.connection import Connection
from starloom.agents.language.reply import DONE, EventData, Reply
from starloom.agents.stage import CancelToken
from starloom.dag import limits
from starloom.dag.errors import DeadlineExceeded, InvalidInput, Problem, StageError, StarloomError

ALLOWED_VARIABLE: Final = "STARLOOM_ENDPOINTS"
"""A node's variable: addresses, apart by commas, that requests of this node may begin with. Unset: all."""

_KEY_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*_API_KEY")
_KEY = re.compile(r"[\x21-\x7e]+")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_OPTIONAL = ("temperature", "top_p", "seed")


class Address(NamedTuple):
    """Where requests go. `key` is secret: it is in no error and no log."""

    host: str
    port: int
    path: str
    is_encrypted: bool
    key: str

    def __repr__(self) -> str:
        return f"{self.host}:{self.port}{self.path}"


class Patience(NamedTuple):
    """Seconds to wait: for the connection, for the answer's beginning, between its pieces, and for all of it."""

    connect: float
    first: float
    gap: float
    total: float


class _TryAgain(Exception):
    """Nothing of an answer came; the same request may have more luck. `after`: seconds that the endpoint asks for."""

    def __init__(self, error: StarloomError, after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


def check(params: Mapping[str, Any]) -> None:
    """Raises InvalidInput, listing all parameters of `language.endpoint` that are out of range."""
    problems = []
    for name in ("connect_seconds", "first_seconds", "gap_seconds", "seconds_max"):
        if not 0 < params[name] <= limits.LANGUAGE_SECONDS_MAX:
            what = f"{params[name]} is not above 0 and up to LANGUAGE_SECONDS_MAX = {limits.LANGUAGE_SECONDS_MAX:g}"
            problems.append(Problem(name, what))
    if not 0 <= params["retries"] <= limits.RETRIES_MAX:
        problems.append(Problem("retries", f"{params['retries']} is not from 0 to {limits.RETRIES_MAX}"))
    if params["max_tokens"] < 1:
        problems.append(Problem("max_tokens", f"{params['max_tokens']} is not above 0"))
    if problems:
        raise InvalidInput(problems, "the parameters of language.endpoint are out of range")


def address(url: str, key_variable: str, environment: Mapping[str, str] = os.environ) -> Address:
    """The address of `url`'s chat completions, with the key of the node's variable.

    Raises InvalidInput for an address or a variable that cannot be used, or that this node does not allow:
    a job names both, and must not read the node's other secrets, nor send a key where others can read it.
    """
    problems = []
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.username is not None:
        problems.append(Problem("url", f"{parts.hostname or url!r} is no plain http or https address"))
    allowed = environment.get(ALLOWED_VARIABLE, "")
    if allowed and not any(_covers(one.strip(), url) for one in allowed.split(",")):
        problems.append(Problem("url", f"is not among the addresses that this node allows in {ALLOWED_VARIABLE}"))
    key = environment.get(key_variable, "").strip() if key_variable else ""
    if key_variable and not _KEY_VARIABLE.fullmatch(key_variable):
        problems.append(Problem("api_key_env", f"{key_variable!r} is no name in capitals that ends in _API_KEY"))
    elif key_variable and not _KEY.fullmatch(key):
        problems.append(Problem("api_key_env", f"{key_variable} is not set on this node, or holds no key"))
    elif key and parts.scheme == "http" and host not in _LOOPBACK:
        problems.append(Problem("url", "would carry the key unencrypted; use https"))
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        problems.append(Problem("url", str(error)))
    if problems:
        raise InvalidInput(problems, "this endpoint cannot be used")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    return Address(host, port, path, parts.scheme == "https", key)


def _covers(allowed: str, url: str) -> bool:
    """Whether an address lies under an allowed one: `https://a.org/v1` covers `https://a.org/v1/x`, not `/v10`."""
    one, other = urlsplit(allowed), urlsplit(url)
    if (one.scheme, one.hostname, one.port) != (other.scheme, other.hostname, other.port) or not one.hostname:
        return False
    return f"{other.path.rstrip('/')}/".startswith(f"{one.path.rstrip('/')}/") and ".." not in other.path


def body(params: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> bytes:
    """The request's JSON."""
    fields: dict[str, Any] = {
        "model": params["model"],
        "messages": messages,
        "max_tokens": params["max_tokens"],
        "stream": params["stream"],
        **{name: params[name] for name in _OPTIONAL if params[name] is not None},
        **{name: params[name] for name in ("stop", "tools") if params[name]},
    }
    if params["stream"]:
        fields["stream_options"] = {"include_usage": True}
    fields |= params["extra"]
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


class Client:
    """Requests to one address for one call. `key` names the work: sent along, so that a repeat is known as such."""

    def __init__(self, target: Address, patience: Patience, retries: int, cancel: CancelToken, key: str = "") -> None:
        self._address = target
        self._patience = patience
        self._retries = retries
        self._cancel = cancel
        self._key = key
        self._woken = threading.Event()

    def complete(self, request: bytes, seen: Callable[[str], None] = lambda _: None) -> Reply:
        """The answer; `seen` is called with each piece of it, as it comes.

        Raises Cancelled; DeadlineExceeded where the endpoint took longer than one of the bounds; StageError,
        transient if another try may do, for what it refused or broke off. An answer that `total` cuts off after
        it has begun is returned, with the finish `time`.
        """
        began = time.monotonic()
        end = began + self._patience.total
        forget = self._cancel.on_cancel(self._woken.set)
        try:
            for attempt in range(self._retries + 1):
                try:
                    reply = self._once(request, began, end, seen)
                    reply.requests = attempt + 1
                    return reply
                except _TryAgain as again:
                    wait = max(again.after, min(_backoff(attempt), limits.ENDPOINT_BACKOFF_LAST_SECONDS))
                    if attempt == self._retries or time.monotonic() + wait >= end:
                        raise again.error from again.__cause__
                self._woken.wait(wait)
                self._cancel.raise_if_cancelled()
            raise AssertionError("the last attempt returns or raises")
        finally:
            forget()

    def _once(self, request: bytes, began: float, end: float, seen: Callable[[str], None]) -> Reply:
        reply = Reply()
        with Connection(self._address.host, self._address.port, self._address.is_encrypted, end) as connection:
            forget = self._cancel.on_cancel(connection.abort)
            try:
                connection.open(self._patience.connect)
                begins = time.monotonic() + self._patience.first
                response = connection.send(self._address.path, self._headers(), request, self._patience.first)
                self._check_status(response, connection)
                for piece in self._pieces(response, connection, reply, begins):
                    reply.seconds = time.monotonic() - began
                    if reply.first_token_seconds is None:
                        reply.first_token_seconds = reply.seconds
                    seen(piece)
                reply.seconds = time.monotonic() - began
                return reply
            except _TryAgain:
                self._cancel.raise_if_cancelled()
                raise
            # What a broken-off wait looks like depends on where it was, half a head or half an answer among them.
            except (OSError, HTTPException, ValueError, StageError) as error:
                self._cancel.raise_if_cancelled()
                if connection.expired and reply.has_begun:
                    reply.finish, reply.seconds = "time", time.monotonic() - began
                    return reply
                raise self._failure(error, connection, reply) from error
            finally:
                forget()

    def _headers(self) -> dict[str, str]:
        found = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        # A compressed stream would come in larger pieces, later.
        found["Accept-Encoding"] = "identity"
        if self._address.key:
            found["Authorization"] = f"Bearer {self._address.key}"
        if self._key:
            found["Idempotency-Key"] = self._key
        return found

    def _check_status(self, response: HTTPResponse, connection: Connection) -> None:
        if response.status == 200:
            return
        connection.wait_at_most(self._patience.gap)
        said = response.read(limits.ENDPOINT_SAID_CHARACTERS_MAX * 4).decode(errors="replace")
        said = " ".join(said.split())[: limits.ENDPOINT_SAID_CHARACTERS_MAX]
        again = response.status in (408, 429) or response.status >= 500
        what = self._safe(f"{self._address} answered {response.status} {response.reason}: {said}")
        error = StageError(what, transient=again)
        if not again:
            raise error
        raise _TryAgain(error, _seconds(response.getheader("Retry-After", "")))

    def _pieces(self, response: HTTPResponse, connection: Connection, reply: Reply, begins: float) -> Iterator[str]:
        """The pieces of the answer, the first one before the time `begins`. Raises ConnectionError if it breaks off, and what `Reply.take` does."""
        if not response.getheader("Content-Type", "").startswith("text/event-stream"):
            yield from reply.take(self._whole(response))
            return
        events = EventData()
        received = 0
        while True:
            # What keeps a connection alive is no answer, but between pieces it shows that one is being made.
            left = begins - time.monotonic()
            if not reply.has_begun and left <= 0:
                raise TimeoutError("the answer did not begin")
            connection.wait_at_most(self._patience.gap if reply.has_begun else left)
            line = response.readline(limits.ENDPOINT_LINE_BYTES_MAX)
            received += len(line)
            if received > limits.ENDPOINT_RESPONSE_BYTES_MAX or len(line) == limits.ENDPOINT_LINE_BYTES_MAX:
                raise StageError(f"{self._address} sent more than ENDPOINT_RESPONSE_BYTES_MAX, or an endless line")
            data = events.push(line.decode(errors="replace").rstrip("\r\n")) if line else events.flush()
            if data == DONE:
                return
            if data is not None:
                yield from reply.take(data)
            if not line and not reply.finish:
                raise ConnectionError("the stream ended before the answer did")
            if not line:
                return

    def _safe(self, said: str) -> str:
        """An error's text without the key: some endpoints repeat what they were sent."""
        return said.replace(self._address.key, "***") if self._address.key else said

    def _whole(self, response: HTTPResponse) -> bytes:
        data = response.read(limits.ENDPOINT_RESPONSE_BYTES_MAX + 1)
        if len(data) > limits.ENDPOINT_RESPONSE_BYTES_MAX:
            raise StageError(f"{self._address} sent more than ENDPOINT_RESPONSE_BYTES_MAX")
        return data

    def _failure(self, error: Exception, connection: Connection, reply: Reply) -> Exception:
        """What to raise for a broken connection, a wait that was too long, or an answer that is none."""
        where = f"{self._address}: "
        if connection.expired:
            return DeadlineExceeded(f"{where}no answer within seconds_max = {self._patience.total:g}")
        if isinstance(error, StageError):
            return StageError(self._safe(str(error)), transient=error.transient)
        late = isinstance(error, TimeoutError)
        if reply.has_begun:
            what = f"no more for gap_seconds = {self._patience.gap:g}" if late else f"broke off: {error}"
            return StageError(f"{where}after {len(reply.text)} characters, {what}", transient=True)
        if not connection.is_open:
            what = f"no connection within connect_seconds = {self._patience.connect:g}" if late else str(error)
        else:
            what = f"no answer within first_seconds = {self._patience.first:g}" if late else f"broke off: {error}"
        return _TryAgain(DeadlineExceeded(where + what) if late else StageError(where + what, transient=True))


def _backoff(attempt: int) -> float:
    return float(limits.ENDPOINT_BACKOFF_FIRST_SECONDS * limits.BACKOFF_FACTOR**attempt)


def _seconds(text: str) -> float:
    """A Retry-After header in seconds; 0 for none, or for a date."""
    return float(text) if text.isdecimal() else 0.0
