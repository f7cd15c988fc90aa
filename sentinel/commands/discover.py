"""`sentinel discover`: watch a broker's traffic and write the configuration that fits it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sentinel.commands._proposal import propose
from sentinel.commands._publisher import broker_settings
from sentinel.errors import DataError, Unavailable
from sentinel.records import Message
from sentinel.settings import MqttSettings

_SAMPLES = 20  # messages kept a topic, the newest
_TOPICS = 50_000


class Watcher:
    """Collects samples of what a broker carries on a topic, in a thread of its own.

    Attributes:
        samples: by topic.
        refused: why the broker lets nothing be watched; empty: it does.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self.samples: dict[str, list[Message]] = defaultdict(list)
        self.refused = ""

    @contextmanager
    def watching(self, broker: MqttSettings) -> Iterator[None]:
        """Watch for the time of a `with`. Raises Unavailable, ConfigError."""
        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        if broker.username is not None:
            client.username_pw_set(broker.username, broker.password())
        if broker.tls is not None:
            client.tls_set_context(broker.tls.context())
        client.on_connect, client.on_message = self._on_connect, self._on_message
        try:
            client.connect(broker.host, broker.port)
        except OSError as error:
            raise Unavailable(f"no MQTT broker at {broker.host}:{broker.port}: {error}") from error
        client.loop_start()
        try:
            yield
        finally:
            client.disconnect()
            client.loop_stop()

    def _on_connect(self, client: mqtt.Client, _data: object, _flags: object, code: Any, _properties: object) -> None:
        if code.is_failure:
            self.refused = str(code)
        else:
            client.subscribe(self._topic, qos=0)

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        if topic in self.samples or len(self.samples) < _TOPICS:
            kept = self.samples[topic]
            kept.append(Message(topic, bytes(message.payload), message.qos, message.retain, time.time()))
            del kept[:-_SAMPLES]


def discover(broker: str, seconds: float, out: Path | None, topic: str = "#") -> None:
    """Watch `topic` for `seconds` (or until interrupted) and write the proposed configuration to `out` or stdout.

    Raises Unavailable when the broker is, ConfigError when its address is wrong, and DataError when nothing could
    be read or `out` not be written.
    """
    settings = broker_settings(broker)
    watcher = Watcher(topic)
    console = Console(stderr=True)
    columns = (TextColumn("watching {task.description}"), BarColumn(), TimeRemainingColumn())
    with watcher.watching(settings), Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(settings.host, total=seconds)
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0 and not watcher.refused:
                where = f"{settings.host}:{settings.port}, {len(watcher.samples)} topics"
                progress.update(bar, completed=seconds - left, description=where)
                time.sleep(min(0.2, left))
        except KeyboardInterrupt:
            console.print("interrupted: going by what was seen so far")
    if watcher.refused:
        raise Unavailable(f"the MQTT broker at {settings.host}:{settings.port} refuses: {watcher.refused}")
    config = propose([message for kept in watcher.samples.values() for message in kept], settings)
    if out is None:
        print(config, end="")
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(config)
    except FileExistsError:
        raise DataError(f"{out} exists and is left as it is; give another --out, or move it away") from None
    except OSError as error:
        raise DataError(f"{out}: {error.strerror}") from error
    console.print(f"wrote {out}; next: sentinel run --config {out}", highlight=False, markup=False, soft_wrap=True)
