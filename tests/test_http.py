from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from sentinel.adapters.http import HttpServer
from sentinel.errors import SentinelError


class Daemon:
    """What a server is asked about, changed by the tests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.health: tuple[bool, list[str]] = (True, [])
        self.ready: tuple[bool, list[str]] = (True, [])


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def server(daemon: Daemon) -> Iterator[HttpServer]:
    server = HttpServer("127.0.0.1", 0, daemon.registry, lambda: daemon.health, lambda: daemon.ready)
    server.start()
    yield server
    server.stop()


def get(server: HttpServer, path: str, **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.getheader("content-type", ""), response.read().decode()
    finally:
        connection.close()


class TestMetrics:
    def test_are_plain_text_by_default(self, server: HttpServer, daemon: Daemon) -> None:
        Counter("bolts", "Bolts.", registry=daemon.registry).inc(3)
        status, kind, body = get(server, "/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert "bolts_total 3.0\n" in body

    def test_are_openmetrics_for_who_asks(self, server: HttpServer) -> None:
        _, kind, body = get(server, "/metrics", Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        assert kind.startswith("application/openmetrics-text; version=1.0.0")
        assert body.endswith("# EOF\n")


class TestHealth:
    @pytest.mark.parametrize("path", ["/healthz", "/readyz"])
    def test_is_200_when_well(self, server: HttpServer, path: str) -> None:
        status, kind, body = get(server, path)
        assert (status, kind, json.loads(body)) == (200, "application/json", {"ok": True, "reasons": []})

    def test_is_503_with_reasons_when_not(self, server: HttpServer, daemon: Daemon) -> None:
        daemon.health = (False, ["no turn for 40 s"])
        daemon.ready = (False, ["profile pump has no model", "not subscribed"])
        status, _, body = get(server, "/healthz")
        assert (status, json.loads(body)["reasons"]) == (503, ["no turn for 40 s"])
        status, _, body = get(server, "/readyz")
        assert (status, json.loads(body)["reasons"]) == (503, ["profile pump has no model", "not subscribed"])

    def test_follows_the_daemon(self, server: HttpServer, daemon: Daemon) -> None:
        assert get(server, "/readyz")[0] == 200
        daemon.ready = (False, ["broker gone"])
        assert get(server, "/readyz")[0] == 503
        daemon.ready = (True, [])
        assert get(server, "/readyz")[0] == 200


class TestServer:
    def test_index_links_all_pages(self, server: HttpServer) -> None:
        status, kind, body = get(server, "/")
        assert (status, kind) == (200, "text/html; charset=utf-8")
        for path in ("metrics", "healthz", "readyz"):
            assert f'href="{path}"' in body
            assert get(server, f"/{path}")[0] == 200

    def test_anything_else_is_not_found(self, server: HttpServer) -> None:
        assert get(server, "/etc/passwd")[0] == 404

    def test_port_0_becomes_the_real_one(self, server: HttpServer) -> None:
        assert server.port > 0
        assert server.url == f"http://127.0.0.1:{server.port}"

    @pytest.mark.parametrize(
        ("host", "url"),
        [("0.0.0.0", "http://127.0.0.1:9108"), ("", "http://127.0.0.1:9108"), ("::1", "http://[::1]:9108")],
    )
    def test_url_can_be_opened_from_this_machine(self, daemon: Daemon, host: str, url: str) -> None:
        assert HttpServer(host, 9108, daemon.registry, lambda: daemon.health, lambda: daemon.ready).url == url

    def test_a_taken_port_is_an_error_with_a_remedy(self, daemon: Daemon) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            server = HttpServer("127.0.0.1", port, daemon.registry, lambda: daemon.health, lambda: daemon.ready)
            with pytest.raises(SentinelError, match=rf"127\.0\.0\.1:{port}.*in use.*\[http\] host or port"):
                server.start()
            server.stop()

    def test_an_unknown_host_is_an_error_with_a_remedy(self, daemon: Daemon) -> None:
        server = HttpServer("no.such.host.invalid", 0, daemon.registry, lambda: daemon.health, lambda: daemon.ready)
        with pytest.raises(SentinelError, match=r"no\.such\.host\.invalid.*another \[http\] host or port"):
            server.start()

    def test_stop_frees_the_port_at_once_even_with_a_client_connected(self, daemon: Daemon) -> None:
        server = HttpServer("127.0.0.1", 0, daemon.registry, lambda: daemon.health, lambda: daemon.ready)
        server.start()
        client = socket.create_connection(("127.0.0.1", server.port))
        begin = time.monotonic()
        server.stop(timeout=5)
        assert time.monotonic() - begin < 3
        client.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
        assert "http" not in {thread.name for thread in threading.enumerate()}
        server.stop()

    def test_answers_while_the_main_thread_is_busy(self, server: HttpServer) -> None:
        answers: list[int] = []
        client = threading.Thread(target=lambda: answers.append(get(server, "/healthz")[0]))
        client.start()
        deadline = time.monotonic() + 10
        while client.is_alive() and time.monotonic() < deadline:
            sum(range(10000))
        assert answers == [200]

    def test_leaves_the_root_logger_and_signals_alone(self, daemon: Daemon) -> None:
        handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
        server = HttpServer("127.0.0.1", 0, daemon.registry, lambda: daemon.health, lambda: daemon.ready)
        server.start()
        get(server, "/")
        server.stop()
        assert (list(logging.getLogger().handlers), logging.getLogger().level) == (handlers, level)
