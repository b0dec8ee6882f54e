"""OpenAI-compatible endpoints, good and bad, as a small server on this machine plays them."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, cast

import pytest

from starloom.agents.language import connection, endpoint
from starloom.agents.language.connection import Connection
from starloom.agents.language.reply import EventData, Reply
from starloom.agents.stage import CancelToken, Models, StageCall
from starloom.agents.stages.language import Endpoint
from starloom.dag.errors import Cancelled, DeadlineExceeded, InvalidInput, StageError

Script = Callable[["Handler"], None]
KEY = "sk-very-secret"


class Server(ThreadingHTTPServer):
    """Plays one script a request, the last one again and again; `asked` are the requests it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts: list[Script] = []
        self.asked: list[dict[str, Any]] = []
        self.changed = threading.Condition()
        self.headers: list[Mapping[str, str]] = []
        self.arrived = threading.Event()
        self.over = threading.Event()

    def until_asked(self, times: int) -> None:
        """Of a request whose client has gone it may hear later."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= times, 60)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = cast(Server, self.server)
        assert self.path == "/v1/chat/completions"
        with server.changed:
            server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            server.changed.notify_all()
        server.headers.append(dict(self.headers))
        server.arrived.set()
        script = server.scripts[min(len(server.asked), len(server.scripts)) - 1]
        script(self)

    def log_message(self, *_: Any) -> None:
        return

    def answer(self, status: int, content: Any, kind: str = "application/json", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def open_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def hang(self) -> None:
        """Says no more until the test is over, and then ends the connection."""
        cast(Server, self.server).over.wait()
        self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.over.set()
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starloom.dag.limits.ENDPOINT_BACKOFF_FIRST_SECONDS", 0.001)
    monkeypatch.delenv(endpoint.ALLOWED_VARIABLE, raising=False)
    monkeypatch.setenv("TEST_API_KEY", KEY)


def call(
    server: Server,
    *,
    cancel: CancelToken | None = None,
    progress: Callable[[float], None] = lambda _: None,
    **given: Any,
) -> dict[str, Any]:
    params = {name: param.default for name, param in Endpoint.spec.params.items()}
    params |= {"url": server.url, "model": "big", "first_seconds": 20, "gap_seconds": 20, **given}
    inputs = {"prompt": "What is a node?"}
    stage = StageCall(
        inputs, params, cast(Models, None), make_key=lambda: "work-1", cancel=cancel or CancelToken(), progress=progress
    )
    outputs = Endpoint().run(stage)
    assert isinstance(outputs, dict)
    return outputs


def event(**delta: Any) -> str:
    finish = delta.pop("finish", None)
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n"


def whole(handler: Handler) -> None:
    message = {"role": "assistant", "content": "A machine."}
    handler.answer(
        200,
        {
            "model": "big-2",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
        },
    )


def streamed(handler: Handler) -> None:
    handler.open_stream()
    for text in (": keep alive\n\n", event(role="assistant", content=""), event(content="A "), event(content="mach")):
        handler.chunk(text)
    last = event(content="ine \U0001f600.", finish="length").encode()
    # A piece may end anywhere, in the middle of a character as well.
    handler.wfile.write(b"%x\r\n%b\r\n%x\r\n%b\r\n" % (40, last[:40], len(last) - 40, last[40:]))
    handler.chunk('data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}\r\n\r\n')
    handler.chunk("data: [DONE]\n\n")
    handler.chunk("")


def test_a_whole_answer(server: Server) -> None:
    server.scripts = [whole]
    outputs = call(
        server,
        stream=False,
        system="Be brief.",
        temperature=0.5,
        seed=3,
        stop=["\n"],
        max_tokens=7,
        api_key_env="TEST_API_KEY",
        extra={"user": "me", "max_tokens": None},
    )
    assert outputs["text"] == "A machine."
    details = outputs["details"]
    assert (details["finish"], details["model"], details["requests"]) == ("stop", "big-2", 1)
    assert (details["prompt_tokens"], details["tokens"], details["tool_calls"]) == (9, 3, [])
    assert server.asked == [
        {
            "model": "big",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is a node?"},
            ],
            "stream": False,
            "temperature": 0.5,
            "seed": 3,
            "stop": ["\n"],
            "user": "me",
        }
    ]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["Idempotency-Key"] == "work-1"


def test_a_streamed_answer(server: Server) -> None:
    server.scripts = [streamed]
    seen: list[float] = []
    outputs = call(server, max_tokens=4, progress=seen.append)
    assert outputs["text"] == "A machine \U0001f600."
    assert seen == [0.25, 0.5, 0.75]
    details = outputs["details"]
    assert (details["finish"], details["prompt_tokens"], details["tokens"]) == ("length", 9, 5)
    assert 0 < details["first_token_seconds"] <= details["seconds"]
    assert server.asked[0]["stream_options"] == {"include_usage": True}
    assert "Authorization" not in server.headers[0]


def test_an_endpoint_that_cannot_stream_may_answer_whole(server: Server) -> None:
    server.scripts = [whole]
    assert call(server)["text"] == "A machine."


def test_tool_calls_are_passed_on_from_pieces(server: Server) -> None:
    def script(handler: Handler) -> None:
        handler.open_stream()
        first = {"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": ""}}
        handler.chunk(event(role="assistant", content=None, tool_calls=[first]))
        for piece in ('{"wh', 'ere": 1}'):
            handler.chunk(event(tool_calls=[{"index": 0, "function": {"arguments": piece}}]))
        second = {"index": 1, "id": "b", "function": {"name": "go", "arguments": "{}"}}
        handler.chunk(event(tool_calls=[second], finish="tool_calls"))
        handler.chunk("data: [DONE]\n\n")
        handler.chunk("")

    server.scripts = [script]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    outputs = call(server, tools=tools)
    assert server.asked[0]["tools"] == tools
    assert outputs["text"] == ""
    assert outputs["details"]["finish"] == "tool_calls"
    assert outputs["details"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"where": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "go", "arguments": "{}"}},
    ]


def test_tool_calls_of_a_whole_answer_without_numbers() -> None:
    reply = Reply()
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in ("a", "b")]
    answer = {"choices": [{"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}]}
    assert list(reply.take(json.dumps(answer))) == ["", ""]
    assert reply.details()["tool_calls"] == calls
    with pytest.raises(StageError, match="tool call 5, but only 2 have begun"):
        list(reply.take(json.dumps({"choices": [{"delta": {"tool_calls": [{"index": 5}]}}]})))


def test_one_hang_before_the_first_byte_is_tried_again_and_then_named(server: Server) -> None:
    server.scripts = [lambda handler: handler.hang()]
    with pytest.raises(DeadlineExceeded, match=r"127.0.0.1.*no answer within first_seconds = 0.05"):
        call(server, first_seconds=0.05, retries=1)
    server.until_asked(2)
    assert len(server.asked) == 2


def test_keeping_alive_is_no_answer(server: Server) -> None:
    def script(handler: Handler) -> None:
        handler.open_stream()
        while not server.over.wait(0.01):
            handler.chunk(": still thinking\n\n")

    server.scripts = [script]
    with pytest.raises(DeadlineExceeded, match=r"no answer within first_seconds = 0.1"):
        call(server, first_seconds=0.1, retries=0)


def test_a_hang_in_mid_stream_is_named_and_not_asked_again(server: Server) -> None:
    def script(handler: Handler) -> None:
        handler.open_stream()
        handler.chunk(event(content="A mach"))
        handler.hang()

    server.scripts = [script]
    with pytest.raises(StageError, match=r"after 6 characters, no more for gap_seconds = 0.05") as caught:
        call(server, gap_seconds=0.05)
    assert caught.value.transient
    assert len(server.asked) == 1


def test_a_break_in_mid_stream_is_named_and_not_asked_again(server: Server) -> None:
    def script(handler: Handler) -> None:
        handler.open_stream()
        handler.chunk(event(content="A mach"))
        handler.close_connection = True

    server.scripts = [script]
    with pytest.raises(StageError, match=r"after 6 characters, broke off: the stream ended") as caught:
        call(server)
    assert caught.value.transient
    assert len(server.asked) == 1


def test_a_break_before_an_answer_is_tried_again(server: Server) -> None:
    def script(handler: Handler) -> None:
        handler.close_connection = True

    server.scripts = [script, script, streamed]
    outputs = call(server)
    assert outputs["text"] == "A machine \U0001f600."
    assert outputs["details"]["requests"] == 3


def test_a_stream_that_ends_without_its_last_mark_is_whole_if_it_said_why(server: Server) -> None:
    def script(handler: Handler) -> None:
        handler.open_stream()
        handler.chunk(event(content="A machine.", finish="stop").rstrip("\n"))
        handler.chunk("")

    server.scripts = [script]
    assert call(server)["details"]["finish"] == "stop"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(server: Server, status: int) -> None:
    server.scripts = [lambda handler: handler.answer(status, {"error": "busy"}, Retry_After="0"), whole]
    outputs = call(server)
    assert outputs["text"] == "A machine."
    assert outputs["details"]["requests"] == 2


def test_an_endpoint_that_stays_busy_is_named_and_left_to_the_stages_retries(server: Server) -> None:
    server.scripts = [lambda handler: handler.answer(503, {"error": {"message": "overloaded"}})]
    with pytest.raises(StageError, match=r"answered 503 Service Unavailable: .*overloaded") as caught:
        call(server, retries=2)
    assert caught.value.transient
    assert len(server.asked) == 3


def test_a_wait_that_is_longer_than_the_budget_is_not_begun(server: Server) -> None:
    server.scripts = [lambda handler: handler.answer(429, {"error": "slow down"}, Retry_After="3600")]
    with pytest.raises(StageError, match="answered 429"):
        call(server, seconds_max=60)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_a_refusal_is_final_and_shows_no_key(server: Server, status: int) -> None:
    server.scripts = [lambda handler: handler.answer(status, {"error": f"bad key {KEY}"}, Location="http://127.0.0.1/")]
    with pytest.raises(StageError, match=rf"answered {status}") as caught:
        call(server, api_key_env="TEST_API_KEY")
    assert not caught.value.transient
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b'{"choices": [', "application/json", "sent what is no answer"),
        (b"<html>", "text/html", "sent what is no answer"),
        (b'{"choices": [{"message": {"content": 5}}]}', "application/json", r"sent what is no answer: Expected `str"),
        (b"data: {oh no}\n\n", "text/event-stream", "sent what is no answer"),
        (
            b'data: {"error": {"message": "key sk-very-secret ran out"}}\n\n',
            "text/event-stream",
            r"reported: key \*\*\*",
        ),
        (b"data: " + b"x" * 200, "text/event-stream", "ENDPOINT_RESPONSE_BYTES_MAX"),
    ],
)
def test_nonsense_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes, kind: str, reason: str
) -> None:
    monkeypatch.setattr("starloom.dag.limits.ENDPOINT_LINE_BYTES_MAX", 150)
    server.scripts = [lambda handler: handler.answer(200, content, kind)]
    with pytest.raises(StageError, match=reason) as caught:
        call(server, api_key_env="TEST_API_KEY")
    assert not caught.value.transient
    assert len(server.asked) == 1


def test_an_endless_answer_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starloom.dag.limits.ENDPOINT_RESPONSE_BYTES_MAX", 1_000)
    server.scripts = [lambda handler: handler.answer(200, event(content="x").encode() * 100, "text/event-stream")]
    with pytest.raises(StageError, match="ENDPOINT_RESPONSE_BYTES_MAX"):
        call(server)
    server.scripts = [lambda handler: handler.answer(200, b" " * 2_000)]
    with pytest.raises(StageError, match="ENDPOINT_RESPONSE_BYTES_MAX"):
        call(server)


class Alarm:
    """Stands for the timer that ends a connection; the time is over once a test says so."""

    daemon = False
    late = 0.0
    ring: Callable[[], None]

    def __init__(self, _: float, ring: Callable[[], None]) -> None:
        Alarm.ring = ring

    def start(self) -> None:
        return

    def cancel(self) -> None:
        return

    @staticmethod
    def monotonic() -> float:
        return time.monotonic() + Alarm.late


def test_an_answer_that_runs_on_is_cut_off_by_its_budget_and_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Alarm, "late", 0.0)
    monkeypatch.setattr(connection, "time", Alarm)
    monkeypatch.setattr(connection, "threading", SimpleNamespace(Timer=Alarm, Lock=threading.Lock))

    def script(handler: Handler) -> None:
        handler.open_stream()
        while not server.over.wait(0.01):
            handler.chunk(event(content="on "))

    come: list[float] = []

    def progress(at: float) -> None:
        come.append(at)
        if len(come) == 2:
            Alarm.late = 3600.0
            Alarm.ring()

    server.scripts = [script]
    outputs = call(server, seconds_max=3600, progress=progress)
    assert outputs["details"]["finish"] == "time"
    assert outputs["text"].startswith("on on ")


def test_single_bytes_do_not_stretch_the_budget(server: Server) -> None:
    def script(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not server.over.wait(0.01):
            handler.wfile.write(b"x")

    server.scripts = [script]
    with pytest.raises(DeadlineExceeded, match=r"no answer within seconds_max = 0.3"):
        call(server, seconds_max=0.3)


def in_thread(server: Server, cancel: CancelToken, ready: threading.Event) -> list[BaseException]:
    """Calls, cancels once `ready`, and gives what the call raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call(server, cancel=cancel, progress=lambda _: ready.set())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(60)
    cancel.cancel()
    thread.join()
    return raised


def test_a_cancel_ends_a_wait_for_the_answer(server: Server) -> None:
    server.scripts = [lambda handler: handler.hang()]
    [error] = in_thread(server, CancelToken(), server.arrived)
    assert isinstance(error, Cancelled)


def test_a_cancel_ends_a_stream(server: Server) -> None:
    def script(handler: Handler) -> None:
        handler.open_stream()
        handler.chunk(event(content="A mach"))
        handler.hang()

    server.scripts = [script]
    [error] = in_thread(server, CancelToken(), threading.Event())
    assert isinstance(error, Cancelled)


def test_a_cancel_ends_a_back_off(server: Server) -> None:
    answered = threading.Event()

    def script(handler: Handler) -> None:
        handler.answer(429, {}, Retry_After="300")
        answered.set()

    server.scripts = [script]
    [error] = in_thread(server, CancelToken(), answered)
    assert isinstance(error, Cancelled)
    assert len(server.asked) == 1


def test_a_cancel_before_the_call_sends_nothing(server: Server) -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        call(server, cancel=cancel)
    assert server.asked == []


def test_nobody_there_is_tried_again_and_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    address = endpoint.address(f"http://127.0.0.1:{port}/v1", "")
    client = endpoint.Client(address, endpoint.Patience(5, 5, 5, 60), 1, CancelToken())
    with pytest.raises(StageError, match=rf"127.0.0.1:{port}/v1/chat/completions: .*refused") as caught:
        client.complete(b"{}")
    assert caught.value.transient


def test_somebody_who_does_not_encrypt_is_named(server: Server) -> None:
    server.scripts = [whole]
    address = endpoint.address(server.url.replace("http:", "https:"), "")
    client = endpoint.Client(address, endpoint.Patience(5, 5, 5, 60), 0, CancelToken())
    with pytest.raises(StageError, match=r"127.0.0.1.*SSL|127.0.0.1.*reset|127.0.0.1.*EOF"):
        client.complete(b"{}")


def test_an_aborted_connection_is_not_opened(server: Server) -> None:
    with Connection("127.0.0.1", server.server_address[1], False, time.monotonic() + 60) as connection:
        connection.abort()
        with pytest.raises(ConnectionAbortedError):
            connection.open(5)
        assert not connection.is_open


@pytest.mark.parametrize(
    ("url", "variable", "reason"),
    [
        ("ftp://example.org/v1", "", "no plain http or https address"),
        ("https:///v1", "", "no plain http or https address"),
        ("https://me:pass@example.org/v1", "", "'?example.org'? is no plain"),
        ("https://example.org:99999/v1", "", "[Pp]ort"),
        ("https://example.org/v1", "AWS_SECRET_ACCESS_KEY_ID", "ends in _API_KEY"),
        ("https://example.org/v1", "OTHER_API_KEY", "OTHER_API_KEY is not set"),
        ("https://example.org/v1", "BAD_API_KEY", "holds no key"),
        ("http://example.org/v1", "GOOD_API_KEY", "would carry the key unencrypted"),
    ],
)
def test_addresses_and_keys_that_cannot_be_used(url: str, variable: str, reason: str) -> None:
    environment = {"GOOD_API_KEY": "abc", "BAD_API_KEY": "a\r\nX: b", "AWS_SECRET_ACCESS_KEY_ID": "xyz"}
    with pytest.raises(InvalidInput, match=reason) as caught:
        endpoint.address(url, variable, environment)
    assert not any(secret in str(caught.value) for secret in ("abc", "a\r", "xyz", "pass@"))


def test_a_node_may_allow_only_some_addresses() -> None:
    environment = {endpoint.ALLOWED_VARIABLE: "https://example.org/v1, http://127.0.0.1:8080", "A_API_KEY": "abc"}
    found = endpoint.address("https://example.org/v1/", "A_API_KEY", environment)
    assert (found.host, found.port, found.path, found.key) == ("example.org", 443, "/v1/chat/completions", "abc")
    assert "abc" not in repr(found)
    assert endpoint.address("http://127.0.0.1:8080/a/chat/completions", "", environment).path == "/a/chat/completions"
    for url in ("https://example.org/v10", "https://example.org", "http://127.0.0.1:80", "https://example.org/v1/../x"):
        with pytest.raises(InvalidInput, match="not among the addresses"):
            endpoint.address(url, "", environment)


def test_parameters_out_of_range_are_all_named(server: Server) -> None:
    with pytest.raises(InvalidInput) as caught:
        call(server, connect_seconds=0, first_seconds=-1, gap_seconds=1e9, seconds_max=0, retries=-1, max_tokens=0)
    assert len(caught.value.problems) == 6


def test_events_are_told_apart_however_they_come() -> None:
    events = EventData()
    lines = ["event: message", "data: one", "data:two", "", "", ": ping", "id: 5", "data: three"]
    assert [found for line in lines if (found := events.push(line)) is not None] == ["one\ntwo"]
    assert events.flush() == "three"
    assert events.flush() is None
