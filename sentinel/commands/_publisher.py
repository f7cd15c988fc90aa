"""A publisher that fills a broker: many MQTT 3.1.1 PUBLISH packets to a send, at QoS 0 or 1.

paho publishes about 5 000 messages a second at QoS 1; this does well over ten times that, which a soak
test needs. It only publishes; whatever subscribes uses paho.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterable
from functools import lru_cache
from types import TracebackType
from typing import Self

from paho.mqtt.client import convert_connack_rc_to_reason_code

from sentinel.adapters.mqtt.causes import Refused, explain, refusal
from sentinel.errors import DataError, Unavailable
from sentinel.settings import MqttSettings

_KEEPALIVE = 60
_BATCH = 65536  # bytes to a send
_LAST_ID = 65535
_CONNACK_SIZE = 4
_PUBACK, _PINGRESP = 0x40, 0xD0


class Publisher:
    """One connection to a broker, for publishing.

    Blocks: `publish` while `in_flight` messages wait for their acknowledgement; `drain` until none does.
    Raises: Unavailable when the broker refuses, goes away, or acknowledges nothing for `patience` seconds.
    Holds no copy of what it has sent: what was not acknowledged when the broker went away is lost.
    """

    def __init__(self, broker: MqttSettings, *, qos: int = 1, in_flight: int = 2000, patience: float = 30.0) -> None:
        self.sent = 0
        self.acknowledged = 0
        self._where = f"{broker.host}:{broker.port}"
        self._qos = qos
        self._in_flight = in_flight
        self._patience = patience
        self._out = bytearray()
        self._in = bytearray()
        try:
            self._socket = self._connect(broker)
        except OSError as error:
            raise Unavailable(explain(error, broker.host, broker.port, tls=broker.tls is not None)) from error

    def publish(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Send (topic, payload) pairs. A return does not mean that they were acknowledged."""
        out, qos = self._out, self._qos
        kind = b"\x32" if qos else b"\x30"
        for topic, payload in messages:
            head = _topic(topic)
            out += kind
            out += _length(len(head) + 2 * qos + len(payload))
            out += head
            if qos:
                out += (self.sent % _LAST_ID + 1).to_bytes(2)
            out += payload
            self.sent += 1
            if len(out) >= _BATCH:
                self._flush()
            if qos and self.sent - self.acknowledged >= self._in_flight:
                self._flush()
                self._await(self.sent - self._in_flight // 2)
        self._flush()
        self._receive(0)

    def drain(self) -> None:
        """Wait until all that was sent is acknowledged; at QoS 0, until it is handed to the system."""
        self._flush()
        if self._qos:
            self._await(self.sent)

    def sleep_until(self, deadline: float) -> None:
        """Wait until `time.monotonic()` is `deadline`, keeping the connection alive."""
        while True:
            now = time.monotonic()
            if now - self._active > _KEEPALIVE / 2:
                self._out += b"\xc0\x00"
                self._flush()
            if now >= deadline:
                return
            self._receive(min(deadline - now, _KEEPALIVE / 4))

    def close(self) -> None:
        """Say goodbye and close. Doesn't wait for acknowledgements; see `drain`."""
        try:
            self._out += b"\xe0\x00"
            self._flush()
        except Unavailable:
            pass
        finally:
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _connect(self, broker: MqttSettings) -> socket.socket:
        context, secret = None if broker.tls is None else broker.tls.context(), broker.password()
        connection = socket.create_connection((broker.host, broker.port), timeout=self._patience)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                connection = context.wrap_socket(connection, server_hostname=broker.host)
            _introduce(connection, broker.username, secret)
        except BaseException:
            connection.close()
            raise
        self._active = time.monotonic()
        return connection

    def _flush(self) -> None:
        # Sending may block: the broker's own answers are at most `in_flight` PUBACKs, which the buffers hold.
        if self._out:
            try:
                self._socket.sendall(self._out)
            except OSError as error:
                raise self._away(str(error)) from error
            self._out.clear()
            self._active = time.monotonic()

    def _await(self, acknowledged: int) -> None:
        deadline = time.monotonic() + self._patience
        before = self.acknowledged
        while self.acknowledged < acknowledged:
            self._receive(1.0)
            if self.acknowledged > before:
                before, deadline = self.acknowledged, time.monotonic() + self._patience
            elif time.monotonic() > deadline:
                raise self._away(f"no acknowledgement in {self._patience:g} s")

    def _receive(self, timeout: float) -> None:
        pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()
        if not pending and not select.select([self._socket], [], [], timeout)[0]:
            return
        try:
            data = self._socket.recv(_BATCH)
        except OSError as error:
            raise self._away(str(error)) from error
        if not data:
            raise self._away("it closed the connection")
        self._in += data
        at = 0
        while len(self._in) - at >= 2:
            kind, length = self._in[at], self._in[at + 1]
            if kind not in (_PUBACK, _PINGRESP):
                raise self._away(f"unexpected packet 0x{kind:02x}")
            if len(self._in) - at < 2 + length:
                break
            self.acknowledged += kind == _PUBACK
            at += 2 + length
        del self._in[:at]

    def _away(self, reason: str) -> Unavailable:
        done = f"; {self.acknowledged} of {self.sent} messages were acknowledged" if self._qos else ""
        return Unavailable(f"the MQTT broker at {self._where} went away: {reason}{done}")


def _introduce(connection: socket.socket, username: str | None, secret: str | None) -> None:
    """CONNECT, with a clean session under an id of the broker's choice, and its answer. Raises OSError."""
    flags, fields = 0x02, _text("")
    if username is not None:
        flags |= 0x80
        fields += _text(username)
        if secret is not None:
            flags |= 0x40
            fields += _text(secret)
    body = _text("MQTT") + bytes([4, flags]) + _KEEPALIVE.to_bytes(2) + fields
    connection.sendall(b"\x10" + _length(len(body)) + body)
    answer = b""
    while len(answer) < _CONNACK_SIZE:
        part = connection.recv(_CONNACK_SIZE - len(answer))
        if not part:
            raise ConnectionError("no CONNACK")
        answer += part
    if answer[3]:
        raise Refused(refusal(convert_connack_rc_to_reason_code(answer[3]), username))  # type: ignore[arg-type]  # an int


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) > _LAST_ID:
        raise DataError(f"over {_LAST_ID} bytes: {text[:40]}…")
    return len(data).to_bytes(2) + data


_topic = lru_cache(maxsize=65536)(_text)


@lru_cache(maxsize=4096)
def _length(length: int) -> bytes:
    """The variable-length integer of MQTT 3.1.1 §2.2.3."""
    out = bytearray()
    while True:
        length, low = divmod(length, 128)
        out.append(low | (0x80 if length else 0))
        if not length:
            return bytes(out)
