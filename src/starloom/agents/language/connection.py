"""One HTTP connection whose every wait has a bound, and which another thread can break off."""

import socket
import ssl
import threading
import time
from http.client import HTTPConnection, HTTPResponse
from typing import Self


class Connection:
    """A connection to `host`, for one request that must end before the monotonic time `end`, in seconds.

    After `abort`, or at `end`, whatever waits on the socket raises OSError or finds the stream at its
    end; `expired` tells the two apart. Use it in a `with`.
    """

    def __init__(self, host: str, port: int, is_encrypted: bool, end: float) -> None:
        self._host = host
        self._port = port
        self._end = end
        self._is_encrypted = is_encrypted
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = False
        self._http = HTTPConnection(host, port)
        self._response: HTTPResponse | None = None
        self.is_open = False
        # Bounds of single waits do not bound a peer that sends one byte at a time.
        self._timer = threading.Timer(max(0.0, end - time.monotonic()), self.abort)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._response is not None:
            self._response.close()
        self._http.close()
        with self._guard:
            if self._socket is not None:
                self._socket.close()

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self._end

    def abort(self) -> None:
        """Breaks the connection off, from any thread."""
        with self._guard:
            self._aborted = True
            if self._socket is not None:
                self._shut(self._socket)

    def open(self, seconds: float) -> None:
        """Connects within `seconds`, to the first of the host's addresses that answers. Raises OSError."""
        until = min(time.monotonic() + seconds, self._end)
        failure: OSError = OSError(f"{self._host} has no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM):
            try:
                plain = self._own(socket.socket(family, kind, protocol))
                plain.settimeout(_left(until))
                plain.connect(place)
                self._http.sock = self._own(self._encrypted(plain, until))
                self.is_open = True
                return
            except OSError as error:
                failure = error
        raise failure

    def send(self, path: str, headers: dict[str, str], body: bytes, seconds: float) -> HTTPResponse:
        """Posts, and returns the answer's head once it is there. Raises OSError or HTTPException."""
        self.wait_at_most(seconds)
        self._http.request("POST", path, body=body, headers=headers)
        self._response = self._http.getresponse()
        return self._response

    def wait_at_most(self, seconds: float) -> None:
        """Bounds each wait from now on. Raises TimeoutError if there is no time left at all."""
        assert self._socket is not None
        self._socket.settimeout(_left(min(time.monotonic() + seconds, self._end)))

    def _own(self, made: socket.socket) -> socket.socket:
        """Makes `abort` close this socket; raises OSError if it was called already."""
        with self._guard:
            if self._socket is not None and self._socket is not made:
                self._socket.close()
            self._socket = made
            if self._aborted:
                self._shut(made)
                raise ConnectionAbortedError("the connection was broken off")
        return made

    def _encrypted(self, plain: socket.socket, until: float) -> socket.socket:
        if not self._is_encrypted:
            return plain
        context = ssl.create_default_context()
        wrapped = context.wrap_socket(plain, server_hostname=self._host, do_handshake_on_connect=False)
        self._own(wrapped)
        wrapped.settimeout(_left(until))
        wrapped.do_handshake()
        return wrapped

    @staticmethod
    def _shut(made: socket.socket) -> None:
        try:
            made.shutdown(socket.SHUT_RDWR)
        except OSError:
            # It is not connected yet, or no longer; a connection that is being made fails at its bound.
            return


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
