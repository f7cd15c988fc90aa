"""The daemon with every kind of secret, as a user runs it: none of them shows up anywhere."""

from __future__ import annotations

import base64
import http.client
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.brokers import Mosquitto, PlainClient, wait_until, write_password
from tests.servers import free_port

WRONG, PASSWORD, TOKEN, HTTP_PASSWORD = (f"hunter2-{what}-7f3a9c" for what in ("wrong", "mqtt", "token", "http"))
BASIC = base64.b64encode(f"prometheus:{HTTP_PASSWORD}".encode()).decode()
CONFIG = """
[mqtt]
port = {broker}
username = "sentinel"
password_file = "mqtt.secret"
commands = true
[http]
port = {http}
token_file = "token.secret"
username = "prometheus"
password_file = "http.secret"
[store]
path = "./state"
snapshot_interval = "1s"
[profiles.pump]
topic = "plant/{{device}}/telemetry"
"""


class Run(NamedTuple):
    """All that one run of the daemon let out, by where."""

    outputs: dict[str, bytes]
    log: str


def answer(port: int, path: str, authorization: str = "", method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, headers={"Authorization": authorization} if authorization else {})
        response = connection.getresponse()
        return response.status, str(response.headers).encode() + response.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Starts with a wrong password, gets the right one, is asked for everything, is reloaded, and ends."""
    folder = tmp_path_factory.mktemp("secrets")
    broker_folder = tmp_path_factory.mktemp("broker")
    write_password(broker_folder / "passwords", "sentinel", PASSWORD)
    for name, secret in (("mqtt", WRONG), ("token", TOKEN), ("http", HTTP_PASSWORD)):
        (folder / f"{name}.secret").write_text(secret + "\n")
    port, outputs = free_port(), {}
    command = [sys.executable, "-m", "sentinel"]
    with Mosquitto(broker_folder, options=[f"password_file {broker_folder}/passwords"]) as broker:
        (folder / "sentinel.toml").write_text(CONFIG.format(broker=broker.port, http=port))
        shown = subprocess.run(
            [*command, "check-config", "--config", "sentinel.toml"], cwd=folder, capture_output=True, check=True
        )
        outputs["check-config"] = shown.stdout + shown.stderr
        with (folder / "log").open("wb") as log:
            daemon = subprocess.Popen(
                [*command, "run", "--config", "sentinel.toml"], cwd=folder, stdout=log, stderr=log
            )
        try:
            wait_until(lambda: b"check mqtt.username" in answer(port, "/readyz", f"Bearer {TOKEN}")[1], 60)
            outputs["not ready"] = answer(port, "/readyz", f"Bearer {TOKEN}")[1]
            (folder / "mqtt.secret").write_text(PASSWORD + "\n")
            wait_until(lambda: answer(port, "/readyz")[0] == 200, 60)
            client = PlainClient(broker.port, "#", setup=lambda one: one.username_pw_set("sentinel", PASSWORD))
            for reading in (b'{"x": 1}', b"rubbish", b'{"x": 1e400}'):
                client.publish("plant/a/telemetry", reading)
            client.publish("sentinel/command/shelve/pump/a", b"rubbish")
            client.publish("sentinel/command/forget/pump/a", b"")
            for authorization in ("", f"Bearer {TOKEN}", f"Basic {BASIC}", f"Bearer {WRONG}"):
                for path in ("/", "/metrics", "/healthz", "/readyz", "/none"):
                    for method in ("GET", "POST"):
                        outputs[f"{method} {path} {authorization}"] = answer(port, path, authorization, method)[1]
            (folder / "http.secret").write_text("")
            daemon.send_signal(signal.SIGHUP)
            wait_until(lambda: b"reload refused" in (folder / "log").read_bytes(), 30)
            (folder / "http.secret").write_text(HTTP_PASSWORD)
            outputs["command line"] = Path(f"/proc/{daemon.pid}/cmdline").read_bytes()
            outputs["environment"] = Path(f"/proc/{daemon.pid}/environ").read_bytes()
            wait_until(lambda: any(one.topic.startswith("sentinel/dead-letter/") for one in client.got), 30)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(20) == 0
            wait_until(lambda: b"offline" in [one for one in client.got if one.topic == "sentinel/status"][-1].payload)
            client.close()
        finally:
            with suppress(ProcessLookupError):
                daemon.kill()
            daemon.wait()
    outputs["messages"] = b"\n".join(one.topic.encode() + b" " + one.payload for one in client.got)
    outputs["log"] = (folder / "log").read_bytes()
    outputs |= {str(file): file.read_bytes() for file in (folder / "state").rglob("*") if file.is_file()}
    return Run(outputs, outputs["log"].decode())


def test_no_secret_is_in_any_output_of_the_daemon(run: Run) -> None:
    assert len(run.outputs) > 45
    for secret in (WRONG, PASSWORD, TOKEN, HTTP_PASSWORD, BASIC, "hunter2"):
        for form in (secret.encode(), base64.b64encode(secret.encode()), secret.encode().hex().encode()):
            assert [where for where, output in run.outputs.items() if form in output] == []


def test_what_was_said_instead_names_the_remedy(run: Run) -> None:
    assert "check mqtt.username and the file mqtt.password_file" in run.log
    assert "http.secret" in run.log
    assert "is empty: write the secret into it" in run.log
    assert b"password_file" in run.outputs["check-config"]
    assert b"mqtt.secret" in run.outputs["check-config"]


def test_each_secret_opens_what_it_should(run: Run) -> None:
    for authorization in (f"Bearer {TOKEN}", f"Basic {BASIC}"):
        assert b"sentinel_build_info" in run.outputs[f"GET /metrics {authorization}"]
    for authorization in ("", f"Bearer {WRONG}"):
        assert b"sentinel_build_info" not in run.outputs[f"GET /metrics {authorization}"]
