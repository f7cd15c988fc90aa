"""The service manager's notification protocol (sd_notify(3)), without its library."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

_SEND_TIMEOUT = 1.0


class Notifier:
    """Tells systemd how the service stands. Does nothing where no manager listens.

    Each call sends one datagram; it blocks up to 1 s if the manager's queue is full. A datagram that cannot be
    sent is dropped: the manager's own timeouts then decide.

    Args:
        environ: where `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are looked up.
        clock: monotonic, for the pace of `watchdog`.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._socket: socket.socket | None = None
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith(("/", "@")):
            if self._address.startswith("@"):
                self._address = "\0" + self._address[1:]
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(_SEND_TIMEOUT)
        self.watchdog_interval = _watchdog_interval(environ) if self._socket else None
        self._next_ping = 0.0

    def ready(self, status: str = "") -> None:
        """Start-up or a reload is complete."""
        self._send("READY=1", *_status(status))

    def reloading(self) -> None:
        """A reload begins; `ready` must follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        """The shutdown begins."""
        self._send("STOPPING=1", *_status(status))

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(*_status(text))

    def extend_timeout(self, seconds: float) -> None:
        """Ask for so much more time, from now, to start, reload or stop. Repeat it before it has passed."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def watchdog(self) -> None:
        """Say that work goes on. Call it every turn: it sends at the pace that the manager asks for, if it does."""
        if self.watchdog_interval is not None and self._clock() >= self._next_ping:
            self._next_ping = self._clock() + self.watchdog_interval
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Send nothing from now on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.watchdog_interval = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            try:
                self._socket.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={' '.join(text.split())}",) if text else ()


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Seconds between pings, half the manager's limit as sd_watchdog_enabled(3) advises; None: not wanted."""
    limit = environ.get("WATCHDOG_USEC", "")
    wanted_of = environ.get("WATCHDOG_PID", str(os.getpid()))
    if not limit.isdecimal() or int(limit) == 0 or wanted_of != str(os.getpid()):
        return None
    return int(limit) / 1e6 / 2
