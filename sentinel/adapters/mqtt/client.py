"""A connection to an MQTT broker: paho's protocol, driven by one thread, over sockets of our own."""

from __future__ import annotations

import random
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from sentinel.adapters.mqtt.causes import Refused, explain, forbidden, refusal
from sentinel.adapters.mqtt.outbox import Outbox, Publish
from sentinel.adapters.mqtt.wire import Next, Wire
from sentinel.records import Message

log = structlog.get_logger("sentinel.mqtt")

DIAL_TIMEOUT = 10.0
CONNACK_TIMEOUT = 10.0
BACKOFF_FIRST = 0.5
BACKOFF_LAST = 10.0
STABLE_AFTER = 10.0  # a connection that lasted so long resets the backoff
WINDOW = 20  # publishes at QoS 1 without the broker's word; mosquitto's and paho's default
FLUSH_BATCH = 10_000
MOST_MUTED = 4  # topics with a refused publish that are told
MUTED_FOR = 300.0  # seconds that one is told; over reconnects, for mosquitto 2.0 ends the connection after a refusal
PUBACK = struct.Struct("!HH")
PUBACK_SHORT = 0x4002


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """How to reach a broker, and as whom.

    Attributes:
        password, tls: asked anew for each connection, in a thread of its own, so that files can be replaced.
        qos: of the subscriptions.
        keepalive, session_expiry: seconds; the expiry is for version 5 alone.
        will_topic: empty: no last will. It is retained, at QoS 1.
        will_payload: asked anew for each connection.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    version: Literal["3.1.1", "5"] = "3.1.1"
    client_id: str = "sentinel"
    username: str | None = None
    password: Callable[[], str | None] | None = None
    tls: Callable[[], ssl.SSLContext] | None = None
    qos: Literal[0, 1] = 1
    keepalive: int = 60
    session_expiry: int = 7 * 86400
    will_topic: str = ""
    will_payload: Callable[[], bytes] = bytes


class MqttBroker:
    """A `Broker` that is real. One thread uses it; only `wake` is for others."""

    def __init__(self, options: MqttOptions) -> None:
        self.connected = False
        self.last_error = ""
        self.epoch = 0
        self.reconnects = 0
        self.stale_acks = 0
        self._options = options
        self._subscriptions: tuple[str, ...] = ()
        self._awaited: dict[int, str] = {}  # SUBSCRIBE packet id to topic filter
        self._forbidden: dict[str, str] = {}  # topic filters refused, with the reason
        self._ask_again = 0.0
        self._asked = 0
        # Topics whose last publish was refused, why, and until when it is told.
        self._muted: dict[str, tuple[str, float]] = {}
        self._outbox = Outbox()
        self._window = WINDOW
        self._unconfirmed: dict[int, Publish] = {}  # at QoS 1, by packet id
        self._given_up = 0
        self._held: list[Message] = []
        self._more = False
        self._dial: _Dial | None = None
        self._wire: Wire | None = None
        self._attempts = 0
        self._due = 0.0
        self._opened = 0.0
        self._running = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._client = self._make_client()

    @property
    def subscribed(self) -> bool:
        """Every subscription was granted on this connection."""
        return self.connected and not self._awaited and not self._forbidden

    @property
    def refused(self) -> list[str]:
        """See `Broker`."""
        now = time.monotonic()
        muted = [*self._muted.values()]  # a copy: other threads ask
        return [*self._forbidden.values(), *(reason for reason, until in muted if now < until)]

    @property
    def dropped(self) -> int:
        """Publishes given up."""
        return self._outbox.dropped + self._given_up

    @property
    def unconfirmed(self) -> list[Publish]:
        """See `Broker`."""
        return [*self._unconfirmed.values(), *self._outbox.waiting()]

    def start(self, subscriptions: Sequence[str]) -> None:
        """See `Broker`."""
        self._subscriptions = tuple(dict.fromkeys(subscriptions))
        self._running = True
        self._reach_out()

    def drain(self, timeout: float, max_messages: int, max_bytes: int) -> list[Message]:
        """See `Broker`."""
        messages, self._held = self._held[:max_messages], self._held[max_messages:]
        self._turn(0.0 if messages else timeout, messages, max_messages, max_bytes)
        return messages

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """See `Broker`."""
        self._outbox.put(Publish(topic, payload, qos, retain))

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """See `Broker`."""
        epoch = self.epoch if self.connected else -1
        pack = PUBACK.pack
        packets = [pack(PUBACK_SHORT, message.mid) for message in messages if message.qos and message.epoch == epoch]
        if packets and self._wire is not None:
            self._wire.queue(b"".join(packets))
        if len(packets) < len(messages):
            self.stale_acks += sum(1 for message in messages if message.qos and message.epoch != epoch)

    def wake(self) -> None:
        """See `Broker`."""
        with suppress(OSError):  # full: it wakes anyway; closed: nobody waits
            self._wake_write.send(b"\0")

    def flush(self, timeout: float) -> bool:
        """See `Broker`."""
        deadline = time.monotonic() + timeout
        while True:
            self._send()
            if self._is_idle():
                return True
            left = deadline - time.monotonic()
            if left <= 0 and timeout > 0:
                return False
            self._turn(max(left, 0.0), self._held, len(self._held) + FLUSH_BATCH, 1 << 24)
            if timeout <= 0:
                return self._is_idle()

    def close(self, timeout: float) -> None:
        """See `Broker`."""
        self._running = False
        if self._dial is not None:
            self._dial.abandon()
            self._dial = None
        if self._wire is not None:
            self._wire.linger = max(timeout, 0.001)
            self._client.disconnect()
            self._client.loop_write()
        self._given_up += len(self._outbox)
        self._outbox = Outbox()
        self._wake_read.close()
        self._wake_write.close()

    def _make_client(self) -> _Paho:
        options = self._options
        version5 = options.version == "5"
        client = _Paho(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            clean_session=None if version5 else False,
            protocol=MQTTProtocolVersion.MQTTv5 if version5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        properties = None
        if version5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's
            properties.SessionExpiryInterval = options.session_expiry
        client.max_inflight_messages_set(WINDOW)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_socket_register_write = _leave_writing_to_the_turn
        clean_start: Any = False if version5 else paho.MQTT_CLEAN_START_FIRST_ONLY
        client.connect_async(
            options.host, options.port, options.keepalive, clean_start=clean_start, properties=properties
        )
        return client

    def _turn(self, timeout: float, into: list[Message], limit: int, max_bytes: int) -> None:
        self._reach_out()
        self._send()
        stalled = self._more and limit <= len(into)
        self._wait(0.0 if self._more and not stalled else timeout, reading=not stalled)
        self._receive(into, limit, max_bytes)
        self._client.loop_misc()
        if self._forbidden and self.connected and not self._awaited and time.monotonic() >= self._ask_again:
            self._subscribe(tuple(self._forbidden))
        wire = self._wire
        if wire is not None and not self.connected and time.monotonic() > self._opened + CONNACK_TIMEOUT:
            wire.lost = TimeoutError(f"no CONNACK within {CONNACK_TIMEOUT:g} s")

    def _reach_out(self) -> None:
        """Dial if it is time, take over a dialed socket, or plan the next attempt."""
        if self._wire is not None or not self._running:
            return
        if self._dial is None:
            if time.monotonic() >= self._due:
                self._dial = _Dial(self._options, self.wake)
            return
        outcome = self._dial.outcome
        if outcome is None:
            return
        self._dial = None
        if isinstance(outcome, Exception):
            self._failed(self._explain(outcome))
            return
        self._opened = time.monotonic()
        plain, password = outcome
        self._client.username_pw_set(self._options.username, password)
        if self._options.will_topic:
            self._client.will_set(self._options.will_topic, self._options.will_payload(), qos=1, retain=True)
        self._wire = self._client.wire = Wire(plain, version5=self._options.version == "5")
        self._client.reconnect()

    def _failed(self, reason: str) -> None:
        """Plan the next attempt. A refusal is no reason to give up: passwords and certificates are renewed."""
        delay = _backoff(self._attempts)
        self._attempts += 1
        self._due = time.monotonic() + delay
        self.last_error = reason
        log.warning("not connected", reason=reason, retry_in=round(delay, 2), attempt=self._attempts)

    def _send(self) -> None:
        wire = self._wire
        if wire is None:
            return
        while self.connected and self._outbox and len(self._unconfirmed) < self._window:
            publish = self._outbox.pop()
            sent = self._client.publish(publish.topic, publish.payload, publish.qos, publish.retain)
            if publish.qos:
                self._unconfirmed[sent.mid] = publish
        if self._client.want_write():
            self._client.loop_write()
        wire.flush()

    def _is_idle(self) -> bool:
        if self._outbox or self._unconfirmed:
            return False
        wire = self._wire
        return wire is None or not self.connected or not (wire.unsent or self._client.want_write())

    def _wait(self, timeout: float, *, reading: bool) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if self._wire is not None:
            writing = self._wire.unsent or self._client.want_write()
            poll.register(self._wire, (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0))
            timeout = 0.0 if self._wire.lost else min(timeout, self._options.keepalive / 4, CONNACK_TIMEOUT)
        elif self._dial is None:
            timeout = min(timeout, max(self._due - time.monotonic(), 0.0))
        for descriptor, _ in poll.poll(timeout * 1000):
            if descriptor == self._wake_read.fileno():
                with suppress(BlockingIOError):
                    self._wake_read.recv(4096)

    def _receive(self, into: list[Message], limit: int, max_bytes: int) -> None:
        wire = self._wire
        self._more = False
        size = before = wire.unread if wire is not None else 0
        while wire is not None:
            asked = wire.take(into, limit)
            if asked is Next.FILL and size < max(max_bytes, 1):
                count = wire.fill()
                if count == 0:
                    break
                size += count
                continue
            if asked is not Next.HAND_ON:
                self._more = True
                break
            self._client.loop_read()
            wire = self._wire
        if size > before or self._more:
            self._client.heard()
        if wire is not None and wire.lost is not None:
            self._client.loop_read()

    def _on_connect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            assert self._wire is not None
            self._wire.lost = Refused(refusal(reason, self._options.username))
            return
        self.connected = True
        self.epoch += 1
        self.reconnects += self.epoch > 1
        self.last_error = ""
        self._forbidden, self._asked = {}, 0
        self._window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))
        if self._wire is not None:
            self._wire.epoch = self.epoch
        self._awaited = {}
        self._subscribe(self._subscriptions)
        log.info(
            "connected",
            broker=f"{self._options.host}:{self._options.port}",
            session_present=bool(flags.session_present),
            epoch=self.epoch,
        )

    def _subscribe(self, topics: Sequence[str]) -> None:
        for topic in topics:
            _, mid = self._client.subscribe(topic, self._options.qos)
            if mid is not None:
                self._awaited[mid] = topic

    def _on_subscribe(
        self, client: paho.Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Properties
    ) -> None:
        topic = self._awaited.pop(mid, "")
        for reason in reasons:
            if reason.is_failure:
                self._forbidden[topic] = forbidden("subscribe to", topic, reason, self._options.username)
                log.error("subscription refused; asked for again", reason=self._forbidden[topic])
                continue
            self._forbidden.pop(topic, None)
            if reason.value < self._options.qos:
                log.warning("subscription granted at a lower QoS", topic=topic, granted=reason.value)
        if self._forbidden and not self._awaited:
            self._ask_again = time.monotonic() + _backoff(self._asked)
            self._asked += 1

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties
    ) -> None:
        publish = self._unconfirmed.pop(mid, None)
        topic = publish.topic if publish is not None else ""
        if not reason.is_failure:
            self._muted.pop(topic, None)
            return
        self._given_up += 1
        now = time.monotonic()
        self._muted = {muted: told for muted, told in self._muted.items() if now < told[1]}
        if topic not in self._muted and len(self._muted) < MOST_MUTED:
            why = forbidden("publish to", topic, reason, self._options.username)
            self._muted[topic] = why, now + MUTED_FOR
            log.error("publish refused", reason=why)

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        wire, self._wire = self._wire, None
        accepted, self.connected = self.connected, False
        self._more = False
        self._awaited = {}
        if not self._running:
            return
        if time.monotonic() - self._opened > STABLE_AFTER:
            self._attempts = 0
        error = wire.lost if wire is not None else None
        if error is not None:
            self._failed(self._explain(error, accepted=accepted))
        elif flags.is_disconnect_packet_from_server:
            self._failed(refusal(reason, self._options.username))
        else:
            self._failed(str(reason))

    def _explain(self, error: Exception, *, accepted: bool = False) -> str:
        options = self._options
        return explain(error, options.host, options.port, tls=options.tls is not None, accepted=accepted)


def _backoff(attempts: int) -> float:
    """Seconds to wait: exponential with full jitter."""
    return random.uniform(0, min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** min(attempts, 16)))


class _Paho(paho.Client):
    """paho over a socket that is open already: dialing blocks, so it is done elsewhere."""

    wire: Wire | None = None

    def _create_socket(self) -> Any:
        return self.wire

    def loop_misc(self) -> Any:
        """As paho's, but the sign of life goes out at half of the keepalive: a turn may take its time."""
        if self.is_connected() and not self._ping_t and time.monotonic() - self._last_msg_out >= self._keepalive / 2:
            self._send_pingreq()
        return super().loop_misc()

    def heard(self) -> None:
        """Bytes came or wait to be read: the connection lives, even if a PINGRESP is still behind them.

        No PINGREQ counts as open then, so that the next one goes out when it is due: the broker wants one each keepalive.
        """
        self._last_bytes_received = time.monotonic()
        self._ping_t = 0.0


def _leave_writing_to_the_turn(client: paho.Client, userdata: Any, sock: Any) -> None:
    """Set as paho's `on_socket_register_write`; without one, paho sends each packet by itself."""


class _Dial:
    """One attempt to open a socket. DNS, TCP and TLS block, so it has a short-lived thread.

    Attributes:
        outcome: the socket and the password for it, or what went wrong; None: not yet.
    """

    def __init__(self, options: MqttOptions, done: Callable[[], None]) -> None:
        self.outcome: tuple[socket.socket, str | None] | Exception | None = None
        self._options = options
        self._done = done
        self._abandoned = False
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="sentinel-dial", daemon=True).start()

    def abandon(self) -> None:
        """Nobody wants the socket any more."""
        with self._lock:
            self._abandoned = True
            if isinstance(self.outcome, tuple):
                self.outcome[0].close()

    def _run(self) -> None:
        outcome: tuple[socket.socket, str | None] | Exception
        try:
            password = self._options.password and self._options.password()
            outcome = _open_socket(self._options), password
        except Exception as error:  # handed to the reactor, which logs it and tries again
            outcome = error
        with self._lock:
            if self._abandoned and isinstance(outcome, tuple):
                outcome[0].close()
            self.outcome = outcome
        self._done()


def _open_socket(options: MqttOptions) -> socket.socket:
    context = options.tls and options.tls()
    plain = socket.create_connection((options.host, options.port), timeout=DIAL_TIMEOUT)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain if context is None else context.wrap_socket(plain, server_hostname=options.host)
    except BaseException:
        plain.close()
        raise
