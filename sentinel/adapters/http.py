"""The HTTP endpoint: metrics and health, answered from a thread of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable

import structlog
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sentinel.errors import SentinelError

Check = Callable[[], tuple[bool, list[str]]]
"""Whether all is well, and if not, why. Called from the HTTP thread; must not block."""

_INDEX = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Sentinel</title></head>
<body>
<h1>Sentinel</h1>
<ul>
<li><a href="metrics">/metrics</a>: for Prometheus</li>
<li><a href="healthz">/healthz</a>: 200 while it works</li>
<li><a href="readyz">/readyz</a>: 200 once nothing that is published is missed</li>
</ul>
</body>
</html>
"""


class HttpServer:
    """Serves `/metrics`, `/healthz`, `/readyz` and `/` until stopped.

    `/metrics` is in the plain text format, or OpenMetrics for a client that asks for it. `/healthz` and `/readyz`
    answer 200 or 503 with `{"ok": …, "reasons": […]}`.

    Args:
        port: 0: any free one, see `port` after `start`.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Check, ready: Check) -> None:
        self.host = host
        self.port = port
        self._registry = registry
        self._health = health
        self._ready = ready
        self._thread: threading.Thread | None = None
        app = Starlette(
            routes=[
                Route("/", self._index),
                Route("/metrics", self._metrics),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
            ]
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )

    @property
    def url(self) -> str:
        """Base address that a client on this machine can use."""
        wildcards = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised, not bound
        host = wildcards.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

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
            return socket.create_server(address, family=family, backlog=128)
        except OSError as error:
            reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
            raise SentinelError(
                f"cannot serve HTTP on {self.host}:{self.port}: {reason}; "
                "stop what uses the address, or set another [http] host or port (0: any free one)"
            ) from error

    async def _index(self, _: Request) -> Response:
        return HTMLResponse(_INDEX)

    async def _metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})

    async def _healthz(self, _: Request) -> Response:
        return _answer(self._health)

    async def _readyz(self, _: Request) -> Response:
        return _answer(self._ready)


def _answer(check: Check) -> Response:
    ok, reasons = check()
    return JSONResponse({"ok": ok, "reasons": reasons}, status_code=200 if ok else 503)
