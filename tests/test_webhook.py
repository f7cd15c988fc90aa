"""Alerts by HTTP, to a real server that is down, slow, wrong or well."""

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple, Self

import jsonschema
import pytest
from structlog.testing import capture_logs

from sentinel.adapters.mqtt.memory import MemoryBroker
from sentinel.adapters.sinks import load_schema, webhook
from sentinel.adapters.sinks.webhook import Webhook
from sentinel.adapters.store import MemoryStore
from sentinel.adapters.store.memory import MemoryDisk
from sentinel.errors import ConfigError
from sentinel.records import Transition, WebhookFate
from sentinel.service import Service
from sentinel.settings import load_settings
from tests import fleets
from tests.brokers import free_port, wait_until
from tests.certificates import Authority
from tests.test_sinks import make_alert

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
KEY = bytes(range(32))


class Request(NamedTuple):
    """One POST as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """An HTTP server that answers what a test says, the last for ever; 0: nothing, until it is told to end."""

    def __init__(self, port: int = 0, certificate: tuple[Path, Path] | None = None) -> None:
        self.got: list[Request] = []
        self.answers: list[int] = [204]
        self.headers: dict[str, str] = {}
        self.connections = 0
        self.ended = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                receiver.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.got.append(Request(self.path, headers, body))
                answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
                if answer == 0:
                    receiver.ended.wait(20)
                    self.close_connection = True
                    return
                self.send_response(answer)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Sender:
    """A webhook, and what became of its messages."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self.counts: Counter[WebhookFate] = Counter()
        self.webhook = Webhook(url, KEY, tls or ssl.create_default_context(), self.count)
        self._lock = threading.Lock()

    def count(self, fate: WebhookFate) -> None:
        with self._lock:
            self.counts[fate] += 1

    def emit(self, *devices: str) -> None:
        alerts = [replace(make_alert(name), id=name) for name in devices]
        self.webhook.emit([Transition(alert, alert) for alert in alerts])

    def ends(self, **expected: int) -> None:
        """Waits until these are the counts, but for attempts again."""

        def there() -> bool:
            return {fate: n for fate, n in self.counts.items() if fate != "retried"} == expected

        wait_until(there, what=f"{expected}, not {self.counts}")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(webhook, "LONGEST_WAIT", 0.1)


@contextmanager
def sending(url: str, tls: ssl.SSLContext | None = None) -> Iterator[Sender]:
    sender = Sender(url, tls)
    sender.webhook.start()
    yield sender
    sender.webhook.close(5.0)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def test_transitions_arrive_in_order_on_one_connection_signed_and_as_the_schema_says(receiver: Receiver) -> None:
    with sending(f"http://127.0.0.1:{receiver.port}/hook?to=shift") as sender:
        sender.emit("a", "b", "c")
        sender.ends(delivered=3)
    assert [request.id for request in receiver.got] == ["a-1", "b-1", "c-1"]
    assert receiver.connections == 1
    for path, headers, body in receiver.got:
        jsonschema.validate(json.loads(body), load_schema())
        assert path == "/hook?to=shift"
        assert headers["content-type"] == "application/json"
        at = headers["webhook-timestamp"]
        assert abs(int(at) - time.time()) < 60
        signed = f"{headers['webhook-id']}.{at}.".encode() + body
        expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"


def test_a_receiver_that_is_down_gets_everything_when_it_is_back() -> None:
    port = free_port()
    with capture_logs() as logs, sending(f"http://127.0.0.1:{port}/secret") as sender:
        sender.emit("a", "b")
        wait_until(lambda: sender.counts["retried"] >= 3)
        assert len(sender.webhook) == 1
        with Receiver(port) as receiver:
            sender.ends(delivered=2)
            assert [request.id for request in receiver.got] == ["a-1", "b-1"]
    told = [line["event"] for line in logs]
    assert told == ["webhook: not delivered; tried again", "webhook: delivered again"], "once, not at each attempt"
    assert "ConnectionRefusedError" in logs[0]["reason"]
    assert "secret" not in str(logs)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_what_may_pass_is_tried_again_with_the_same_id(receiver: Receiver, status: int) -> None:
    receiver.answers = [status, status, 200]
    with sending(f"http://127.0.0.1:{receiver.port}") as sender:
        sender.emit("a")
        sender.ends(delivered=1)
    assert [request.id for request in receiver.got] == ["a-1"] * 3
    assert sender.counts["retried"] == 2


def test_the_receiver_says_how_long_to_wait(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "LONGEST_WAIT", 30.0)
    receiver.answers, receiver.headers = [503, 200], {"Retry-After": "1"}
    begun = time.monotonic()
    with sending(f"http://127.0.0.1:{receiver.port}") as sender:
        sender.emit("a")
        sender.ends(delivered=1)
    assert time.monotonic() - begun >= 1.0


@pytest.mark.parametrize("status", [302, 307, 400, 401, 404])
def test_what_is_refused_is_given_up_told_and_does_not_hold_up_the_next(receiver: Receiver, status: int) -> None:
    receiver.answers, receiver.headers = [status, 200], {"Location": f"http://127.0.0.1:{receiver.port}/elsewhere"}
    with capture_logs() as logs, sending(f"http://127.0.0.1:{receiver.port}/here") as sender:
        sender.emit("a", "b")
        sender.ends(refused=1, delivered=1)
    assert [(request.id, request.path) for request in receiver.got] == [("a-1", "/here"), ("b-1", "/here")]
    (line,) = logs
    assert (line["event"], line["id"]) == ("webhook: refused", "a-1")
    assert line["reason"].startswith(str(status))


def test_a_receiver_that_is_gone_is_asked_once_and_never_again(receiver: Receiver) -> None:
    receiver.answers = [410]
    with sending(f"http://127.0.0.1:{receiver.port}") as sender:
        sender.emit("a", "b")
        sender.ends(gone=2)
        sender.emit("c")
        sender.ends(gone=3)
    assert len(receiver.got) == 1


def test_a_slow_receiver_holds_up_nobody_and_is_tried_again(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT", 0.2)
    receiver.answers = [0, 200]
    with sending(f"http://127.0.0.1:{receiver.port}") as sender:
        begun = time.monotonic()
        sender.emit("a", "b")
        assert time.monotonic() - begun < 0.1
        sender.ends(delivered=2)
    assert [request.id for request in receiver.got] == ["a-1", "a-1", "b-1"]


def test_of_too_many_the_oldest_are_given_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "ROOM", 3)
    sender = Sender(f"http://127.0.0.1:{receiver.port}")
    sender.emit("a", "b", "c", "d", "e")
    assert sender.counts == {"overfull": 2}
    sender.webhook.start()
    sender.ends(overfull=2, delivered=3)
    assert [request.id for request in receiver.got] == ["c-1", "d-1", "e-1"]
    sender.webhook.close(5.0)


def test_what_is_too_old_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "KEEP", 0.1)
    with sending(f"http://127.0.0.1:{free_port()}") as sender:
        sender.emit("a", "b")
        sender.ends(expired=2)


def test_closing_is_bounded_and_counts_what_is_left(receiver: Receiver) -> None:
    receiver.answers = [0]
    with capture_logs() as logs, sending(f"http://127.0.0.1:{receiver.port}") as sender:
        sender.emit("a", "b", "c")
        wait_until(lambda: receiver.got)
        begun = time.monotonic()
        sender.webhook.close(0.3)
        assert time.monotonic() - begun < 1.0
        assert sender.counts == {"stopped": 2}
        assert logs[-1]["messages"] == 3
        receiver.ended.set()
        sender.ends(stopped=3)


def test_a_receiver_is_told_nothing_unless_its_certificate_holds(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    wrong = authority.issue("wrong", names="DNS:elsewhere.example")
    right = authority.issue("right")
    trusting = ssl.create_default_context(cafile=authority.ca)
    for certificate, tls in ((right, None), (wrong, trusting)):
        with Receiver(certificate=certificate) as receiver:
            with capture_logs() as logs, sending(f"https://127.0.0.1:{receiver.port}", tls) as sender:
                sender.emit("a")
                wait_until(lambda: sender.counts["retried"])
            assert "CERTIFICATE_VERIFY_FAILED" in logs[0]["reason"]
            assert receiver.got == []
    with Receiver(certificate=right) as receiver, sending(f"https://127.0.0.1:{receiver.port}", trusting) as sender:
        sender.emit("a")
        sender.ends(delivered=1)


CONFIG = """
[http]
port = 0
[[webhooks]]
url = "{url}"
secret_file = "hook.secret"
[[webhooks]]
url = "http://127.0.0.1:1/down"
[profiles.pump]
topic = "plant/{{device}}/telemetry"
channels = [{{ name = "pressure", unit = "bar", min = 0, max = 16 }}]
learn = "never"
"""


def test_the_daemon_tells_a_receiver_what_it_tells_the_broker_though_another_is_down(
    receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "hook.secret").write_text(SECRET)
    (tmp_path / "sentinel.toml").write_text(CONFIG.format(url=f"http://127.0.0.1:{receiver.port}"))
    broker, disk = MemoryBroker(), MemoryDisk()

    def started() -> Service:
        service = Service(load_settings(tmp_path / "sentinel.toml"), broker=broker, store=MemoryStore(disk))
        service.restore()
        service.start()
        fleets.settle(service)
        return service

    service = started()
    for pressure in (99.0, *[5.0] * 15):
        broker.publish_from_outside("plant/p1/telemetry", json.dumps({"pressure": pressure}).encode())
        fleets.settle(service)
    wait_until(lambda: len(receiver.got) == 2)
    assert [json.loads(request.body)["state"] for request in receiver.got] == ["firing", "resolved"]
    told = [one.payload for one in broker.published if one.topic == "sentinel/events/pump/p1"]
    assert [request.body for request in receiver.got] == told
    assert all("webhook-signature" in request.headers for request in receiver.got)
    service.store.close()
    service.webhooks[1].close(5.0)
    again = started()
    wait_until(lambda: len(receiver.got) == 4, what="after a crash they come again")
    assert [request.id for request in receiver.got[2:]] == [request.id for request in receiver.got[:2]]
    value = again.registry.get_sample_value("sentinel_webhook_messages_total", {"outcome": "delivered"})
    assert value == 2
    again.shutdown()
    service.webhooks[0].close(5.0)
    service.http.stop(1.0)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('url = "example.org"', "must be an address such as"),
        ('url = "ftp://example.org"', "must be an address such as"),
        ('url = "https://me:hunter2@example.org/"', "without a user name or a password"),
        ('url = "https://example.org:0/"', "must be an address such as"),
        ('url = "https://example.org/a b"', "must be an address such as"),
        ('secret_file = "good.secret"', "webhooks[0].url is missing"),
        ('url = "https://a.example"\nsecret_file = "bad.secret"', "24 to 64 bytes in base64"),
        ('url = "https://a.example"\nsecret_file = "none.secret"', "webhooks[0].secret_file"),
        ('url = "https://a.example"\nca = "bad.secret"', "webhooks[0].ca"),
        ('url = "https://a.example"\nsecret = "x"', "did you mean webhooks[0].secret_file?"),
    ],
)
def test_a_webhook_that_cannot_work_ends_the_start_and_names_the_key(tmp_path: Path, lines: str, problem: str) -> None:
    (tmp_path / "bad.secret").write_text("hunter2")
    (tmp_path / "good.secret").write_text(SECRET)
    (tmp_path / "sentinel.toml").write_text(f'[profiles.pump]\ntopic = "p/{{device}}"\n[[webhooks]]\n{lines}\n')
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "sentinel.toml")
    (told,) = caught.value.problems
    assert problem in told
    assert told.startswith(str(tmp_path / "sentinel.toml:"))
    assert "hunter2" not in told


def test_an_address_without_tls_beyond_this_machine_is_warned_of(tmp_path: Path) -> None:
    lines = "".join(f'[[webhooks]]\nurl = "{url}"\n' for url in ("http://127.0.0.1/", "http://a.example/"))
    (tmp_path / "sentinel.toml").write_text(f'[profiles.pump]\ntopic = "p/{{device}}"\n{lines}')
    assert load_settings(tmp_path / "sentinel.toml").warnings() == [
        "webhooks[1].url without https: alerts cross the network in clear"
    ]
