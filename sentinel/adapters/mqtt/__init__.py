"""The broker as the service sees it. `client.MqttBroker` is a real one, `memory.MemoryBroker` its twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sentinel.adapters.mqtt.outbox import Publish
from sentinel.records import Message


class Broker(Protocol):
    """A connection to a broker, driven by one thread: the one that calls `drain`.

    Attributes:
        connected: the broker accepted the connection and has not gone since.
        subscribed: and it granted every subscription on this connection.
        refused: subscriptions that it refuses on this connection, which are asked for again, and publishes that it
            refused in the last five minutes, unless it took the topic's next one; each with reason and remedy.
        last_error: why there is no connection, with the remedy; empty while there is one.
        epoch: which connection this is: 0 before the first, then counted up.
        reconnects: connections after the first.
        dropped: publishes given up: the oldest of too many, refused by the broker, or left at `close`.
        stale_acks: acknowledgements let go, since their connection was gone.
        unconfirmed: publishes at QoS 1 that the broker has not confirmed, and those that wait, in order.
    """

    @property
    def connected(self) -> bool: ...
    @property
    def subscribed(self) -> bool: ...
    @property
    def refused(self) -> list[str]: ...
    @property
    def last_error(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def reconnects(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def stale_acks(self) -> int: ...
    @property
    def unconfirmed(self) -> list[Publish]: ...

    def start(self, subscriptions: Sequence[str]) -> None:
        """Begin to connect, and to subscribe to these topic filters on each connection. Never blocks.

        Raises nothing if the broker is away or refuses: it is tried again for as long as `drain` is called.
        """

    def drain(self, timeout: float, max_messages: int, max_bytes: int) -> list[Message]:
        """Turn the connection over once: write, wait, read, keep alive, reconnect.

        Blocks: at most `timeout` seconds, until something came or `wake` was called; may return with
        nothing earlier. Returns at most `max_messages`, and stops reading once `max_bytes` were read
        (give or take one read of 64 KiB); the rest waits for the next call. With `max_messages` 0 it
        writes, keeps alive and reconnects, and leaves messages to the broker.
        """

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Queue a publish; the next `drain` or `flush` sends it. Never blocks.

        Kept over reconnects. While it waits, a retained one is replaced by the next for its topic.
        Dropped and counted: the oldest that is not retained, beyond 10 000 that wait.
        """

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Queue the acknowledgements of those at QoS 1; the next `drain` or `flush` sends them. Never blocks.

        Those that came on an earlier connection are let go and counted: the broker sends them again.
        """

    def wake(self) -> None:
        """End the wait of a running or the next `drain`. From any thread, and from a signal handler."""

    def flush(self, timeout: float) -> bool:
        """Send all that is queued, and wait for the broker's word on publishes at QoS 1.

        Blocks: at most `timeout` seconds. What comes in meanwhile is kept for the next `drain`.

        Returns: whether everything is out.
        """

    def close(self, timeout: float) -> None:
        """Disconnect cleanly: the session and its subscriptions stay, the last will is not sent.

        Blocks: at most `timeout` seconds. Publishes that still wait are dropped and counted; `flush` first.
        """
