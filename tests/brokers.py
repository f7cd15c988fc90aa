"""A real mosquitto on a free port, an ordinary client for it, and a wire in between that can be cut."""

from __future__ import annotations

import base64
import hashlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from sentinel.adapters.mqtt.memory import Delivery
from tests.servers import binary, free_port

__all__ = ["Link", "Mosquitto", "PlainClient", "free_port", "plain_client", "wait_until", "write_password"]


def wait_until(condition: Callable[[], object], timeout: float = 10.0, what: str = "") -> None:
    """Poll until `condition` is true; fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what or condition}")
        time.sleep(0.01)


class Mosquitto:
    """A mosquitto that keeps its sessions in `directory` over `stop` and `start`.

    Args:
        directory: an empty, writable directory.
        listener: options of its one listener, e.g. `cafile …`.
        options: further lines of its configuration; the queue is unbounded unless said otherwise.
    """

    def __init__(self, directory: Path, listener: Sequence[str] = (), options: Sequence[str] = ()) -> None:
        self.port = free_port()
        self._binary = binary("mosquitto")
        self._config = directory / "mosquitto.conf"
        self._log = directory / "mosquitto.log"
        anonymous = () if any(line.startswith("password_file") for line in options) else ("allow_anonymous true",)
        self._config.write_text(
            "\n".join(
                (
                    "user root",
                    "per_listener_settings false",
                    "max_queued_messages 0",
                    "persistence true",
                    f"persistence_location {directory}/",
                    "log_dest stderr",
                    "connection_messages true",
                    "sys_interval 1",
                    *anonymous,
                    *options,
                    f"listener {self.port} 127.0.0.1",
                    "socket_domain ipv4",
                    *listener,
                )
            )
            + "\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([self._binary, "-c", str(self._config)], stderr=log, stdout=log)

        def listens() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                pytest.fail(f"mosquitto ended: {self.log}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(listens, what="mosquitto listens")

    def stop(self) -> None:
        """Stop cleanly: it writes its sessions to the disk."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop at once, sessions lost."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(10)
        self._process = None


def write_password(path: Path, user: str, password: str) -> None:
    """A password file of mosquitto: PBKDF2 with SHA-512."""
    salt = b"0123456789ab"
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    path.write_text(f"{user}:$7$101${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}\n")
    path.chmod(0o600)


class PlainClient:
    """An ordinary client with a thread of its own: paho as most people use it."""

    def __init__(
        self, port: int, *topics: str, qos: int = 1, setup: Callable[[paho.Client], None] | None = None
    ) -> None:
        self.got: list[Delivery] = []
        self.arrived: list[float] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.max_inflight_messages_set(1000)
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        if setup is not None:
            setup(self._client)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if topics:
            self._client.subscribe([(topic, qos) for topic in topics])
            if not self._subscribed.wait(10):
                pytest.fail("the plain client's subscription was not acknowledged")

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self.arrived.append(time.perf_counter())
        self.got.append(Delivery(message.topic, bytes(message.payload), message.qos, message.retain))

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        """Publish, and wait until it is out (QoS 0) or acknowledged (QoS 1)."""
        self._client.publish(topic, payload, qos, retain).wait_for_publish(10)

    def publish_all(self, publishes: Sequence[tuple[str, bytes]], qos: int = 1) -> None:
        """Publish many as fast as the broker takes them; returns when all are out."""
        handles = [self._client.publish(topic, payload, qos) for topic, payload in publishes]
        for handle in handles:
            handle.wait_for_publish(60)

    def close(self) -> None:
        """Disconnect and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def plain_client(port: int, *topics: str, qos: int = 1) -> Iterator[PlainClient]:
    """A `PlainClient` for the time of a `with`."""
    client = PlainClient(port, *topics, qos=qos)
    try:
        yield client
    finally:
        client.close()


class Link:
    """A TCP relay to `port` that can be cut, held or slowed.

    Attributes:
        downstream: all that came from `port`, in order, for each connection.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.downstream: list[bytearray] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._rate = 0
        self._pairs: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break every connection that is open; new ones are relayed again."""
        for end in self._pairs:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Half-open: accept, but forward nothing, until `flow`."""
        self._flowing.clear()

    def flow(self, rate: int = 0) -> None:
        """Forward at most `rate` bytes a second each way; 0: as fast as it goes."""
        self._rate = rate
        self._flowing.set()

    def close(self) -> None:
        """Stop listening and break every connection."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        self.flow()
        for thread in self._threads:
            thread.join(5)
        for end in self._pairs:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._pairs += [near, far]
            self.downstream.append(bytearray())
            for source, sink, tap in ((near, far, bytearray()), (far, near, self.downstream[-1])):
                thread = threading.Thread(target=self._relay, args=(source, sink, tap), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _relay(self, source: socket.socket, sink: socket.socket, tap: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(1024 if self._rate else 65536):
                self._flowing.wait()
                if self._rate:
                    time.sleep(len(data) / self._rate)
                sink.sendall(data)
                tap += data
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
