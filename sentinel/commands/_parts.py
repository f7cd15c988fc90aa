"""The demo's broker, plant and daemon, each a process of its own that ends with its parent."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sentinel.commands._publisher import Publisher
from sentinel.commands.simulate import print_faults, publish_fleets
from sentinel.errors import Unavailable
from sentinel.settings import MqttSettings
from sentinel.simulate import PUMP, ROOM, Fault, Faults, Fleet

HOST = "127.0.0.1"
PUMPS, ROOMS = 16, 8
RATE = 10.0  # readings a second and device
FAULT_EVERY = 6.0  # seconds; closer together where time is short
FAULTS_AT_LEAST = 8
_START_LIMIT = 30.0
_STOP_LIMIT = 12.0


@contextmanager
def child(part: str, *args: str, log: Path, pipes: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run a part of the demo until the block ends; it ends with this process too. Its output goes to `log`.

    A session of its own keeps a terminal's Ctrl-C from it.
    """
    code = f"from sentinel.commands import _parts; _parts.run_part({part!r}, {os.getpid()}, *{args!r})"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def run_part(part: str, parent: int, *args: str) -> None:
    """Be the broker, the plant or the daemon, and end when `parent` does (on Linux; elsewhere by its word alone)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; outlives execv
        if os.getppid() != parent:
            return
    match part:
        case "broker":
            _run_broker(int(args[0]))
        case "plant":
            _run_plant(int(args[0]), int(args[1]))
        case "daemon":
            os.execv(sys.executable, [sys.executable, "-m", "sentinel", "run", "--config", args[0]])  # noqa: S606


def _run_broker(port: int) -> None:
    import asyncio
    import logging

    from amqtt.broker import Broker
    from amqtt.contexts import BrokerConfig, ListenerConfig

    logging.basicConfig(level=logging.WARNING)

    async def serve() -> None:
        plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        listeners = {"default": ListenerConfig(bind=f"{HOST}:{port}")}
        await Broker(BrokerConfig(listeners=listeners, plugins=plugins)).start()
        await asyncio.Event().wait()

    asyncio.run(serve())


def _run_plant(port: int, seed: int) -> None:
    """Publish the fleets; a line on stdin, the time after which no fault starts (0: none), begins the faults."""
    interval = 1 / RATE
    # Close together, so that the daemon takes them in few turns: this machine has the trainers to feed as well.
    fleets = [
        Fleet(PUMP, PUMPS, interval=interval, seed=seed, spread=0.2),
        Fleet(ROOM, ROOMS, interval=interval, seed=seed + 1, spread=0.2),
    ]
    asked: queue.Queue[float] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(float(line))

    threading.Thread(target=listen, daemon=True).start()
    faults: Faults | None = None

    def inject(now: float) -> list[Fault]:
        nonlocal faults
        with suppress(queue.Empty):
            stop = asked.get_nowait()
            every = min(FAULT_EVERY, max(stop - now, 1.0) / FAULTS_AT_LEAST) if stop else FAULT_EVERY
            faults = Faults(fleets, now, every, seed=seed, stop=stop or float("inf"))
        return faults.begin(now) if faults else []

    with Publisher(MqttSettings(host=HOST, port=port)) as publisher:
        publish_fleets(publisher, fleets, seconds=None, start=time.time(), inject=inject, tell=print_faults)


def free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with suppress(OSError), socket.create_server((HOST, port)) as server:
            return int(server.getsockname()[1])
    raise Unavailable(f"no free port on {HOST}")


def await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
            return
        time.sleep(0.05)
    raise Unavailable(f"the demo's broker did not start:\n{tail(log)}")


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])
