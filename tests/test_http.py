from __future__ import annotations

import base64
import hmac
import http.client
import json
import logging
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sentinel.adapters.http import MOST_CONNECTIONS, MOST_HEADER_BYTES, Access, HttpServer
from sentinel.errors import SentinelError
from sentinel.settings.schema import HttpTlsSettings
from tests.brokers import wait_until
from tests.certificates import Authority


async def hello(request: Request) -> Response:
    return PlainTextResponse(request.method)


PAGES = [Route("/", hello), Route("/lamps/{name:path}", hello), Route("/lamps/{name:path}", hello, methods=["POST"])]


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
    server = serve(daemon, Access())
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


TOKEN, PASSWORD = "s3cret-token", "pass:wörd"


def serve(daemon: Daemon, access: Access, tls: ssl.SSLContext | None = None) -> HttpServer:
    server = HttpServer(
        "127.0.0.1",
        0,
        daemon.registry,
        lambda: daemon.health,
        lambda: daemon.ready,
        pages=PAGES,
        access=access,
        tls=tls,
    )
    server.start()
    return server


@pytest.fixture
def closed(daemon: Daemon) -> Iterator[HttpServer]:
    """A server that asks who is there."""
    server = serve(daemon, Access(TOKEN, "me", PASSWORD))
    yield server
    server.stop()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def exchange(server: HttpServer, request: bytes) -> bytes:
    """What a server says to raw bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(request)
        answer = b""
        with suppress(ConnectionResetError):
            while part := client.recv(65536):
                answer += part
        return answer


class TestAccess:
    @pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer  {TOKEN}", basic("me", PASSWORD)])
    def test_the_right_secret_opens(self, closed: HttpServer, authorization: str) -> None:
        for path in ("/", "/metrics", "/readyz"):
            assert get(closed, path, Authorization=authorization)[0] == 200

    @pytest.mark.parametrize(
        "authorization",
        [
            "",
            "Bearer",
            "Bearer ",
            TOKEN,
            f"Basic {TOKEN}",
            "Bearer " + basic("me", PASSWORD).split()[1],
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            basic("you", PASSWORD),
            basic("me", "wrong"),
            basic("me", ""),
            "Basic ???",
            "Bearer \xff",
        ],
    )
    def test_any_other_is_401_and_told_how_to_ask(self, closed: HttpServer, daemon: Daemon, authorization: str) -> None:
        Counter("bolts", "Bolts.", registry=daemon.registry)
        for path in ("/", "/metrics", "/etc/passwd"):
            connection = http.client.HTTPConnection("127.0.0.1", closed.port, timeout=5)
            connection.request("GET", path, headers={"Authorization": authorization} if authorization else {})
            response = connection.getresponse()
            assert response.status == 401
            assert response.headers.get_all("www-authenticate") == ["Bearer", 'Basic realm="sentinel", charset="UTF-8"']
            assert b"bolts" not in response.read()
            connection.close()

    def test_probes_need_no_secret_and_learn_no_reasons(self, closed: HttpServer, daemon: Daemon) -> None:
        daemon.ready = (False, ["profile pump has no model"])
        assert get(closed, "/healthz")[0] == 200
        status, _, body = get(closed, "/readyz")
        assert (status, json.loads(body)) == (503, {"ok": False, "reasons": []})
        status, _, body = get(closed, "/readyz", Authorization=f"Bearer {TOKEN}")
        assert (status, json.loads(body)["reasons"]) == (503, ["profile pump has no model"])

    def test_one_scheme_alone_is_the_only_one_offered(self, daemon: Daemon) -> None:
        assert Access(TOKEN).schemes == ["Bearer"]
        assert not Access(TOKEN).allows(basic("None", "None"))
        assert not Access(None, "me", PASSWORD).allows("Bearer None")
        assert Access().schemes == []
        assert Access().allows("")

    def test_secrets_are_compared_in_constant_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compared: list[tuple[bytes, bytes]] = []

        def compare(given: bytes, wanted: bytes) -> bool:
            compared.append((given, wanted))
            return given == wanted

        monkeypatch.setattr(hmac, "compare_digest", compare)
        assert Access(TOKEN, "me", PASSWORD).allows(f"Bearer {TOKEN}")
        assert len(compared) == 2, "each secret, whichever scheme was asked with"

    def test_an_access_does_not_show_its_secrets(self) -> None:
        assert repr(Access(TOKEN, "me", PASSWORD)) == "Access(username='me')"


class TestTls:
    def test_https_alone_is_answered(self, daemon: Daemon, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        cert, key = authority.issue("server")
        server = serve(daemon, Access(TOKEN), HttpTlsSettings(cert=cert, key=key).context())
        assert server.url == f"https://127.0.0.1:{server.port}"
        trusting = ssl.create_default_context(cafile=authority.ca)
        client = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=5, context=trusting)
        client.request("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert client.getresponse().status == 200
        client.close()
        assert exchange(server, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n") == b""
        old = ssl.create_default_context(cafile=authority.ca)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain:
            old.wrap_socket(plain, server_hostname="127.0.0.1")
        server.stop()

    def test_handshakes_that_never_come_do_not_keep_others_out(
        self, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sentinel.adapters.http.CONNECTION_SECONDS", 0.5)
        authority = Authority(tmp_path)
        cert, key = authority.issue("server")
        server = serve(daemon, Access(), HttpTlsSettings(cert=cert, key=key).context())
        trusting = ssl.create_default_context(cafile=authority.ca)

        def answers() -> bool:
            client = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=5, context=trusting)
            try:
                client.request("GET", "/healthz")
                return client.getresponse().status == 200
            except OSError:
                return False
            finally:
                client.close()

        with ExitStack() as silent:
            for _ in range(2 * MOST_CONNECTIONS):
                silent.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            wait_until(answers, 10)
        server.stop()


def post(server: HttpServer, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("POST", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class TestCommands:
    def test_the_password_and_our_own_page_may(self, closed: HttpServer) -> None:
        own = basic("me", PASSWORD)
        assert post(closed, "/lamps/a", Authorization=own, Sec_Fetch_Site="same-origin") == (200, "POST")
        origin = f"http://127.0.0.1:{closed.port}"
        assert post(closed, "/lamps/a", Authorization=own, Origin=origin) == (200, "POST")

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
            {"Sec_Fetch_Site": "none"},
            {"Origin": "null"},
            {"Origin": "http://evil.example"},
            {"Origin": "http://127.0.0.1:1"},
            {"Sec_Fetch_Site": "cross-site", "Origin": "own"},
        ],
    )
    def test_another_site_may_not_though_the_browser_adds_the_password(
        self, closed: HttpServer, headers: dict[str, str]
    ) -> None:
        if headers.get("Origin") == "own":
            headers = headers | {"Origin": f"http://127.0.0.1:{closed.port}"}
        status, said = post(closed, "/lamps/a", Authorization=basic("me", PASSWORD), **headers)
        assert (status, said) == (403, "commands come from our own pages\n")

    def test_a_token_reads_alone(self, closed: HttpServer) -> None:
        assert get(closed, "/lamps/a", Authorization=f"Bearer {TOKEN}")[0] == 200
        status, said = post(closed, "/lamps/a", Authorization=f"Bearer {TOKEN}", Sec_Fetch_Site="same-origin")
        assert (status, said) == (403, "commands take the user name and password\n")

    def test_who_says_no_secret_is_asked_for_it(self, closed: HttpServer) -> None:
        assert post(closed, "/lamps/a", Sec_Fetch_Site="same-origin")[0] == 401

    @pytest.mark.parametrize("access", [Access(), Access(TOKEN)])
    def test_where_there_is_no_password_nothing_can_be_commanded(self, daemon: Daemon, access: Access) -> None:
        server = serve(daemon, access)
        secret = {"Authorization": f"Bearer {TOKEN}"} if access.token else {}
        assert post(server, "/lamps/a", Sec_Fetch_Site="same-origin", **secret)[0] == 405
        server.stop()


class TestLimits:
    """Nobody changes anything, and nobody takes more than his share."""

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"])
    def test_a_method_that_might_change_something_is_405(self, closed: HttpServer, method: str) -> None:
        for path in ("/", "/metrics", "/healthz", "/readyz", "/command/forget/pump/d0"):
            answer = exchange(closed, f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 405 ")
            assert b"\r\nallow: GET, HEAD\r\n" in answer

    def test_head_has_no_body(self, server: HttpServer) -> None:
        answer = exchange(server, b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize("header", ["Content-Length: 5", "Transfer-Encoding: chunked"])
    def test_a_body_is_413_and_not_waited_for(self, server: HttpServer, header: str) -> None:
        answer = exchange(server, f"GET /metrics HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 413 ")

    def test_a_header_over_16_kib_is_refused(self, server: HttpServer) -> None:
        answer = exchange(server, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * MOST_HEADER_BYTES)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))

    def test_a_connection_is_closed_after_its_answer(self, server: HttpServer) -> None:
        request = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"
        assert exchange(server, request + request).count(b"HTTP/1.1 200 ") == 1

    def test_a_header_that_never_ends_is_cut(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sentinel.adapters.http.CONNECTION_SECONDS", 0.5)
        server = serve(daemon, Access())
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
            with suppress(OSError):
                while time.monotonic() < begun + 5:
                    slow.sendall(b"X: y\r\n")
                    time.sleep(0.05)
        assert 0.4 < time.monotonic() - begun < 3
        server.stop()

    def test_an_answer_that_is_never_read_is_cut(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sentinel.adapters.http.CONNECTION_SECONDS", 0.5)
        gauge = Gauge("much", "Much.", ["n"], registry=daemon.registry)
        for n in range(50_000):
            gauge.labels("n" * 100 + str(n)).set(n)
        server = serve(daemon, Access())
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as slow:
            slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(3)
            size = 0
            with suppress(ConnectionResetError):
                while part := slow.recv(1 << 20):
                    size += len(part)
        assert size < len(generate_latest(daemon.registry))
        assert get(server, "/healthz")[0] == 200
        server.stop()

    def test_too_many_connections_are_closed_at_once_and_descriptors_stay_bounded(self, server: HttpServer) -> None:
        def descriptors() -> int:
            return len(list(Path("/proc/self/fd").iterdir()))

        wait_until(lambda: answers(server), 5)
        before = descriptors()
        with ExitStack() as idle:
            for _ in range(3 * MOST_CONNECTIONS):
                idle.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            wait_until(lambda: descriptors() - before <= 4 * MOST_CONNECTIONS + 2, 5)
            with pytest.raises(OSError):
                get(server, "/healthz")
        wait_until(lambda: answers(server), 5)


def answers(server: HttpServer) -> bool:
    with suppress(OSError):
        return get(server, "/healthz")[0] == 200
    return False


class TestServer:
    def test_pages_are_served_beside_metrics_and_health(self, server: HttpServer) -> None:
        for path in ("/", "/lamps/a/b", "/metrics", "/healthz", "/readyz"):
            assert get(server, path)[0] == 200

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
