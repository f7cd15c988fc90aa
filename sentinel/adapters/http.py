"""The HTTP endpoint: metrics, health and pages, answered from a thread of its own."""

from __future__ import annotations

import asyncio
import base64
import hmac
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sentinel.errors import SentinelError

Check = Callable[[], tuple[bool, list[str]]]
"""Whether all is well, and if not, why. Called from the HTTP thread; must not block."""

MOST_CONNECTIONS = 64  # at a time, TLS handshakes included; more are closed at once
CONNECTION_SECONDS = 20.0  # for handshake, request and answer, of which there is one a connection
MOST_HEADER_BYTES = 16384
METHODS = ("GET", "HEAD")
PROBES = ("/healthz", "/readyz")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may read: those with the bearer token, and those with the user name and password. None of them: everybody.

    Those with the password may also command; a token is for machines that read.
    """

    token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def schemes(self) -> list[str]:
        """Values of WWW-Authenticate."""
        bearer = [] if self.token is None else ["Bearer"]
        return bearer if self.password is None else [*bearer, 'Basic realm="sentinel", charset="UTF-8"']

    def allows(self, authorization: str) -> bool:
        """Whether the value of a header Authorization opens. Takes as long for any wrong secret."""
        expected = []
        if self.token is not None:
            expected.append(("bearer", self.token.encode()))
        if self.password is not None:
            expected.append(("basic", base64.b64encode(f"{self.username}:{self.password}".encode())))
        scheme, _, given = authorization.partition(" ")
        secret = given.strip().encode("latin-1", "replace")
        found = [hmac.compare_digest(secret, wanted) and scheme.lower() == kind for kind, wanted in expected]
        return any(found) or not expected

    @property
    def commands(self) -> bool:
        """Whether anybody may command."""
        return self.password is not None

    def may_command(self, authorization: str) -> bool:
        """Whether the value of a header Authorization is that of somebody who may command."""
        return self.commands and replace(self, token=None).allows(authorization)


class HttpServer:
    """Serves `/metrics`, `/healthz`, `/readyz` and the pages it is given until stopped.

    `/metrics` is in the plain text format, or OpenMetrics for a client that asks for it. `/healthz` and `/readyz`
    answer 200 or 503 with `{"ok": …, "reasons": […]}`; those who may not read get no reasons, but the answer itself:
    a probe has no secret, and what it learns is that the process works.

    Bounded, so that nobody takes the process's memory, threads or descriptors: connections and their time, one request
    each, the size of its header, no body. Nothing changes anything but the pages' routes of method POST: they answer
    those alone who may command, and whose browser says that one of our own pages sent it.

    Args:
        port: 0: any free one, see `port` after `start`.
        tls: None: none.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        health: Check,
        ready: Check,
        *,
        pages: Sequence[Route] = (),
        access: Access = Access(),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._registry = registry
        self._health = health
        self._ready = ready
        self._access = access
        self._thread: threading.Thread | None = None
        app = Starlette(
            routes=[
                Route("/metrics", self._metrics),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                *pages,
            ]
        )
        config = uvicorn.Config(
            _Guard(app, access, [route for route in pages if "POST" in (route.methods or ())]),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # what strangers send is not worth a line each
            access_log=False,
            server_header=False,
            proxy_headers=False,
            headers=[("connection", "close")],
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = tls
        self._scheme = "http" if tls is None else "https"
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """Base address that a client on this machine can use."""
        wildcards = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised, not bound
        host = wildcards.get(self.host, self.host)
        return f"{self._scheme}://[{host}]:{self.port}" if ":" in host else f"{self._scheme}://{host}:{self.port}"

    def start(self) -> None:
        """Bind and begin to answer.

        Raises:
            SentinelError: the address cannot be bound; says what to do.
        """
        listener = self._bind()
        self.port = listener.getsockname()[1]
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._server.serve(sockets=[listener])), name="http", daemon=True
        )
        self._thread.start()
        structlog.get_logger().info("http.listening", url=self.url)

    def stop(self, timeout: float = 2.0) -> None:
        """Close the listening socket and end the thread. Blocks up to `timeout` seconds; idempotent."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    def _bind(self) -> socket.socket:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                self.host or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.create_server(address, family=family, backlog=128) as opened:
                return _Listener(fileno=opened.detach())
        except OSError as error:
            reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
            raise SentinelError(
                f"cannot serve HTTP on {self.host}:{self.port}: {reason}; "
                "stop what uses the address, or set another [http] host or port, as with --http-port (0: any free one)"
            ) from error

    async def _metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})

    async def _healthz(self, request: Request) -> Response:
        return self._answer(request, self._health)

    async def _readyz(self, request: Request) -> Response:
        return self._answer(request, self._ready)

    def _answer(self, request: Request, check: Check) -> Response:
        ok, reasons = check()
        told = reasons if self._access.allows(request.headers.get("authorization", "")) else []
        return JSONResponse({"ok": ok, "reasons": told}, status_code=200 if ok else 503)


class _Guard:
    """Lets through requests that carry nothing and may do what they ask for; answers all others itself."""

    def __init__(self, app: ASGIApp, access: Access, commands: Sequence[Route]) -> None:
        self._app = app
        self._access = access
        self._commands = commands if access.commands else ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        answer: ASGIApp = self._app
        command = any(route.matches(scope)[0] is Match.FULL for route in self._commands)
        if scope["method"] not in METHODS and not command:
            answer = Response("nothing here changes anything\n", 405, {"allow": ", ".join(METHODS)})
        elif headers.get("content-length", "0").strip() != "0" or "transfer-encoding" in headers:
            answer = Response("a request has no body here\n", 413)
        elif scope["path"] not in PROBES and not self._access.allows(headers.get("authorization", "")):
            answer = Response("who are you?\n", 401)
            for scheme in self._access.schemes:
                answer.headers.append("www-authenticate", scheme)
        elif command and not self._access.may_command(headers.get("authorization", "")):
            answer = Response("commands take the user name and password\n", 403)
        elif command and not _of_our_own(headers):
            answer = Response("commands come from our own pages\n", 403)
        await answer(scope, receive, send)


def _of_our_own(headers: Headers) -> bool:
    """Whether a browser says that one of our own pages sent a request: it adds a password to any site's by itself.

    Browsers tell `Sec-Fetch-Site` over HTTPS and on the loopback, and `Origin` with every POST.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    _, _, origin = headers.get("origin", "").partition("://")
    return bool(origin) and origin == headers.get("host")


class _Listener(socket.socket):
    """Accepts `MOST_CONNECTIONS` at a time and cuts each after `CONNECTION_SECONDS`, whatever it does or does not do.

    That is below TLS and HTTP, so a handshake or a header that never ends, and an answer that is never read, are bounded
    alike. For asyncio, whose loop calls `accept`.
    """

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def accept(self) -> tuple[socket.socket, object]:
        connection, address = super().accept()
        if sum(one.fileno() >= 0 for one in self._open) >= MOST_CONNECTIONS:
            connection.close()
            raise BlockingIOError  # none for now; asyncio comes again for the next
        self._open.add(connection)
        asyncio.get_running_loop().call_later(CONNECTION_SECONDS, _cut, weakref.ref(connection))
        return connection, address


def _cut(reference: weakref.ref[socket.socket]) -> None:
    connection = reference()
    if connection is not None and connection.fileno() >= 0:
        with suppress(OSError):  # it is gone already
            connection.shutdown(socket.SHUT_RDWR)
