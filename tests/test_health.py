"""`sentinel health`, as a process, against the daemon's own HTTP server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from sentinel.adapters.http import Access, HttpServer
from sentinel.settings import load_settings
from tests.certificates import Authority
from tests.servers import free_port


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def serve(stack: ExitStack, config: Path, ok: bool = True, reasons: tuple[str, ...] = ()) -> None:
    """What `sentinel run` would answer with, under this configuration."""
    http = load_settings(config).http
    tls = None if http.tls is None else http.tls.context()
    server = HttpServer(
        http.host,
        http.port,
        CollectorRegistry(),
        lambda: (ok, list(reasons)),
        lambda: (ok, []),
        access=Access(http.token()),
        tls=tls,
    )
    server.start()
    stack.callback(server.stop)


def written(folder: Path, *lines: str) -> Path:
    config = folder / "sentinel.toml"
    config.write_text("\n".join(("[http]", f"port = {free_port()}", *lines)) + "\n")
    return config


def health(config: Path, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sentinel", "health", "--config", config],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_daemon_that_works_ends_with_0(tmp_path: Path, stack: ExitStack) -> None:
    config = written(tmp_path, 'host = "0.0.0.0"')
    serve(stack, config)
    assert health(config, http_proxy="http://127.0.0.1:9") == (0, "ok\n", "")


def test_one_that_hangs_ends_with_1_and_its_reason(tmp_path: Path, stack: ExitStack) -> None:
    config = written(tmp_path)
    serve(stack, config, ok=False, reasons=("no turn for 17 s",))
    assert health(config) == (1, "", "no turn for 17 s\n")


def test_the_token_is_given_over_tls_to_who_holds_the_certificates_key(tmp_path: Path, stack: ExitStack) -> None:
    cert, key = Authority(tmp_path).issue("plant", names="DNS:plant.example")
    (tmp_path / "token").write_text("secret\n")
    config = written(tmp_path, f'tls = {{ cert = "{cert}", key = "{key}" }}', 'token_file = "token"')
    serve(stack, config, ok=False, reasons=("no turn yet",))
    assert health(config) == (1, "", "no turn yet\n")


def test_another_certificate_is_refused(tmp_path: Path, stack: ExitStack) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("plant")
    other = authority.issue("other")[0]
    config = written(tmp_path, f'tls = {{ cert = "{cert}", key = "{key}" }}')
    serve(stack, config)
    cert.write_bytes(other.read_bytes())
    key.write_bytes((tmp_path / "other.key").read_bytes())
    code, _, said = health(config)
    assert code == 1
    assert "CERTIFICATE_VERIFY_FAILED" in said


def test_nobody_there_ends_with_1_and_says_what_to_do(tmp_path: Path) -> None:
    code, _, said = health(written(tmp_path))
    assert code == 1
    assert "Connection refused" in said
    assert said.endswith("is the daemon running with this configuration?\n")


def test_a_port_that_nobody_can_know_ends_with_2(tmp_path: Path) -> None:
    config = tmp_path / "sentinel.toml"
    config.write_text("[http]\nport = 0\n")
    assert health(config) == (2, "", f"error: {config}:2: http.port = 0: name a port, so that it can be asked\n")
