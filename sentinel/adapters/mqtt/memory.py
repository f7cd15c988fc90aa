"""The in-memory twin of `client.MqttBroker`: the connection and the broker behind it in one object."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from sentinel.adapters.mqtt.outbox import Outbox, Publish
from sentinel.records import Message


class Delivery(NamedTuple):
    """What a subscriber got."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


class Subscriber:
    """An ordinary client of the same broker; `got` fills as publishes come."""

    def __init__(self, topic_filter: str) -> None:
        self.topic_filter = topic_filter
        self.got: list[Delivery] = []


class MemoryBroker:
    """A `Broker` without a socket, with one session that outlives its connections.

    The outside world calls `publish_from_outside`, `subscribe_from_outside`, `disconnect`, `stop` and `resume`,
    from any thread.

    Attributes:
        published: every publish of ours that reached the broker, in order.
        retained: the broker's retained messages.
    """

    def __init__(self, *, qos: int = 1, up: bool = True, will_topic: str = "", will_payload: bytes = b"") -> None:
        self.connected = False
        self.refused: list[str] = []
        self.last_error = ""
        self.epoch = 0
        self.reconnects = 0
        self.stale_acks = 0
        self.published: list[Publish] = []
        self.retained: dict[str, Publish] = {}
        self._qos = qos
        self._up = up
        self._will = Publish(will_topic, will_payload, 1, True)
        self._filters: tuple[str, ...] = ()
        self._running = False
        self._session: dict[int, Delivery] = {}  # at QoS 1, until acknowledged, by order of arrival
        self._incoming: deque[tuple[int, Delivery]] = deque()  # on this connection, not yet drained
        self._drained: dict[int, int] = {}  # packet id to place in the session, on this connection
        self._count = 0
        self._subscribers: list[Subscriber] = []
        self._outbox = Outbox()
        self._given_up = 0
        self._woken = False
        self._changed = threading.Condition(threading.RLock())

    @property
    def subscribed(self) -> bool:
        """See `Broker`."""
        return self.connected

    @property
    def dropped(self) -> int:
        """See `Broker`."""
        return self._outbox.dropped + self._given_up

    @property
    def unconfirmed(self) -> list[Publish]:
        """See `Broker`."""
        return self._outbox.waiting()

    def start(self, subscriptions: Sequence[str]) -> None:
        """See `Broker`."""
        self._filters = tuple(subscriptions)
        self._running = True

    def drain(self, timeout: float, max_messages: int, max_bytes: int) -> list[Message]:
        """See `Broker`."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._turn()
            while not (max_messages > 0 and self._incoming and self.connected) and not self._woken:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
                self._turn()
            self._woken = False
            received, arrived = time.time(), time.perf_counter()
            messages: list[Message] = []
            size = 0
            while self._incoming and len(messages) < max_messages and size < max_bytes:
                place, (topic, payload, qos, retain) = self._incoming.popleft()
                mid = 0
                if qos:
                    mid = place % 65535 + 1
                    self._drained[mid] = place
                messages.append(Message(topic, payload, qos, retain, received, arrived, mid, self.epoch))
                size += len(payload)
            return messages

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """See `Broker`."""
        self._outbox.put(Publish(topic, payload, qos, retain))

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """See `Broker`."""
        with self._changed:
            for message in messages:
                if not message.qos:
                    continue
                if message.epoch == self.epoch and self.connected:
                    self._session.pop(self._drained.pop(message.mid, 0), None)
                else:
                    self.stale_acks += 1

    def wake(self) -> None:
        """See `Broker`."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """See `Broker`."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._turn()
            while self._outbox:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
                self._turn()
            return True

    def close(self, timeout: float) -> None:
        """See `Broker`."""
        with self._changed:
            self._running = self.connected = False
            self._given_up += len(self._outbox)
            self._outbox = Outbox()

    def publish_from_outside(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        """Another client publishes."""
        with self._changed:
            self._route(Publish(topic, payload, qos, retain))

    def subscribe_from_outside(self, topic_filter: str) -> Subscriber:
        """Another client subscribes; it gets what is retained at once."""
        with self._changed:
            subscriber = Subscriber(topic_filter)
            self._subscribers.append(subscriber)
            subscriber.got.extend(
                Delivery(*kept) for topic, kept in self.retained.items() if matches(topic_filter, topic)
            )
            return subscriber

    def disconnect(self) -> None:
        """Cut the connection; the next `drain` or `flush` connects again."""
        with self._changed:
            if self.connected:
                self.connected = False
                self.last_error = "closed by the broker"
                self._incoming.clear()
                if self._will.topic:
                    self._route(self._will)
            self._changed.notify_all()

    def stop(self) -> None:
        """The broker goes down; it keeps the session and what is retained."""
        with self._changed:
            self._up = False
            self.disconnect()

    def resume(self) -> None:
        """The broker is up again."""
        with self._changed:
            self._up = True
            self._changed.notify_all()

    def _turn(self) -> None:
        if self._running and not self.connected:
            if self._up:
                self._connect()
            else:
                self.last_error = "ConnectionRefusedError: the broker is down"
        while self.connected and self._outbox:
            publish = self._outbox.pop()
            self.published.append(publish)
            self._route(publish)

    def _connect(self) -> None:
        self.connected = True
        self.last_error = ""
        self.reconnects += self.epoch > 0
        self.epoch += 1
        self._drained.clear()
        self._incoming = deque(self._session.items())
        for topic, kept in list(self.retained.items()):
            self._enqueue(topic, kept.payload, kept.qos, retain=True)

    def _route(self, publish: Publish) -> None:
        topic, payload, qos, retain = publish
        if retain and payload:
            self.retained[topic] = publish
        elif retain:
            self.retained.pop(topic, None)
        for subscriber in self._subscribers:
            if matches(subscriber.topic_filter, topic):
                subscriber.got.append(Delivery(topic, payload, qos, False))
        self._enqueue(topic, payload, qos, retain=False)

    def _enqueue(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        if not self.epoch or not any(matches(one, topic) for one in self._filters):
            return
        delivery = Delivery(topic, payload, min(qos, self._qos), retain)
        self._count += 1
        if delivery.qos:
            self._session[self._count] = delivery
        if self.connected:
            self._incoming.append((self._count, delivery))
        self._changed.notify_all()


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic filter matches a topic (MQTT 3.1.1, 4.7)."""
    if topic.startswith("$") != topic_filter.startswith("$"):
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for place, want in enumerate(wanted):
        if want == "#":
            return True
        if place >= len(levels) or want not in ("+", levels[place]):
            return False
    return len(wanted) == len(levels)
