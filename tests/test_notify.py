from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sentinel.adapters.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The manager's end of the protocol, and its address as the environment gives it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@sentinel-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        listener.settimeout(5)
        yield listener, name


def received(listener: socket.socket) -> list[str]:
    return listener.recv(4096).decode().split("\n")


def is_silent(listener: socket.socket) -> bool:
    listener.settimeout(0.05)
    try:
        listener.recv(4096)
    except TimeoutError:
        return True
    return False


class TestStates:
    def test_each_is_one_datagram(self, manager: tuple[socket.socket, str]) -> None:
        listener, address = manager
        notifier = Notifier({"NOTIFY_SOCKET": address})
        notifier.ready("2 profiles,\n40 devices")
        assert received(listener) == ["READY=1", "STATUS=2 profiles, 40 devices"]
        notifier.status("learning")
        assert received(listener) == ["STATUS=learning"]
        notifier.extend_timeout(2.5)
        assert received(listener) == ["EXTEND_TIMEOUT_USEC=2500000"]
        notifier.stopping()
        assert received(listener) == ["STOPPING=1"]
        notifier.close()

    def test_a_reload_carries_the_monotonic_time(self, manager: tuple[socket.socket, str]) -> None:
        listener, address = manager
        notifier = Notifier({"NOTIFY_SOCKET": address})
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.reloading()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        reloading, stamp = received(listener)
        assert reloading == "RELOADING=1"
        assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= after
        notifier.close()

    def test_nothing_is_sent_after_close(self, manager: tuple[socket.socket, str]) -> None:
        listener, address = manager
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
        notifier.close()
        notifier.ready()
        notifier.watchdog()
        assert is_silent(listener)


class TestWatchdog:
    def test_is_fed_at_half_its_limit_however_often_it_is_called(self, manager: tuple[socket.socket, str]) -> None:
        listener, address = manager
        now = 100.0
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"}, clock=lambda: now)
        assert notifier.watchdog_interval == 15
        for _ in range(3):
            notifier.watchdog()
        assert received(listener) == ["WATCHDOG=1"]
        assert is_silent(listener)
        now = 115.0
        listener.settimeout(5)
        notifier.watchdog()
        assert received(listener) == ["WATCHDOG=1"]
        notifier.close()

    @pytest.mark.parametrize(
        "environ",
        [
            {},
            {"WATCHDOG_USEC": "0"},
            {"WATCHDOG_USEC": "soon"},
            {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)},
        ],
    )
    def test_is_not_fed_unless_asked_of_this_process(
        self, manager: tuple[socket.socket, str], environ: dict[str, str]
    ) -> None:
        listener, address = manager
        notifier = Notifier({"NOTIFY_SOCKET": address, **environ})
        assert notifier.watchdog_interval is None
        notifier.watchdog()
        assert is_silent(listener)
        notifier.close()

    def test_is_fed_when_asked_of_this_process_by_pid(self, manager: tuple[socket.socket, str]) -> None:
        listener, address = manager
        environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}
        notifier = Notifier(environ)
        notifier.watchdog()
        assert received(listener) == ["WATCHDOG=1"]
        notifier.close()


class TestWithoutAManager:
    @pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}])
    def test_nothing_happens(self, environ: dict[str, str]) -> None:
        notifier = Notifier({**environ, "WATCHDOG_USEC": "1000"})
        assert notifier.watchdog_interval is None
        notifier.ready()
        notifier.watchdog()
        notifier.close()

    def test_a_manager_that_went_away_is_no_error(self, tmp_path: Path) -> None:
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000"})
        notifier.ready()
        notifier.watchdog()
        notifier.close()
