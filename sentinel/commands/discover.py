"""`sentinel discover`: watch a broker's traffic and write the configuration that fits it."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sentinel.adapters.mqtt.causes import explain, forbidden, refusal
from sentinel.commands._broker import broker_settings
from sentinel.commands._proposal import TO_WRITE, propose
from sentinel.commands._terminal import plural, say
from sentinel.errors import ConfigError, DataError, Unavailable
from sentinel.records import Message
from sentinel.settings import Login, MqttSettings, parse_topic, topic_filter

_SAMPLES = 20  # messages kept a topic, the newest
_TOPICS = 50_000
_ANSWER_WITHIN = 10.0  # seconds that a broker may take to let us in
_SAY_EVERY = 15.0  # seconds, where there is no terminal to draw on


class Watcher:
    """Collects samples of what a broker carries on a topic, in a thread of its own.

    Attributes:
        samples: by topic.
        messages: that came.
        away: why the broker lets nothing be watched; empty: it does.
    """

    def __init__(self, broker: MqttSettings, topic: str) -> None:
        self._broker, self._topic = broker, topic
        self._answered = threading.Event()
        self.samples: dict[str, list[Message]] = defaultdict(list)
        self.messages = 0
        self.away = "no connection yet"

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the time of a `with`, which begins once the broker has let us in. Raises Unavailable, ConfigError."""
        broker = self._broker
        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.connect_timeout = _ANSWER_WITHIN
        if broker.username is not None:
            client.username_pw_set(broker.username, broker.password())
        if broker.tls is not None:
            client.tls_set_context(broker.tls.context())
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe, client.on_message = self._on_subscribe, self._on_message
        try:
            client.connect(broker.host, broker.port)
        except OSError as error:
            raise Unavailable(self._explain(error)) from error
        client.loop_start()
        try:
            if not self._answered.wait(_ANSWER_WITHIN):
                raise Unavailable(self._explain(TimeoutError("it does not answer as a broker")))
            if self.away:
                raise Unavailable(self.away)
            yield
        finally:
            client.disconnect()
            client.loop_stop()

    def _explain(self, error: OSError) -> str:
        return explain(error, self._broker.host, self._broker.port, tls=self._broker.tls is not None)

    def _on_connect(self, client: mqtt.Client, _data: object, _flags: object, code: ReasonCode, _more: object) -> None:
        if code.is_failure:
            self.away = refusal(code, self._broker.username)
            self._answered.set()
        else:
            client.subscribe(self._topic, qos=0)

    def _on_subscribe(
        self, _client: mqtt.Client, _data: object, _id: int, codes: Sequence[ReasonCode], _more: object
    ) -> None:
        refused = [forbidden("subscribe to", self._topic, c, self._broker.username) for c in codes if c.is_failure]
        self.away = "; ".join(refused)
        self._answered.set()

    def _on_disconnect(self, _client: mqtt.Client, _data: object, _flags: object, code: ReasonCode, _: object) -> None:
        if not self._answered.is_set():
            self.away = self._explain(ConnectionError("no CONNACK"))
            self._answered.set()
        elif code.is_failure and not self.away:
            self.away = f"the broker went away: {code}"

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        self.messages += 1
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        if topic in self.samples or len(self.samples) < _TOPICS:
            kept = self.samples[topic]
            kept.append(Message(topic, bytes(message.payload), message.qos, message.retain, time.time()))
            del kept[:-_SAMPLES]

    @property
    def seen(self) -> str:
        """What came so far, in words."""
        return f"{plural(self.messages, 'message')} on {plural(len(self.samples), 'topic')}"


def discover(broker: str, seconds: float, out: Path | None, topic: str = "#", **login: Unpack[Login]) -> None:
    """Watch `topic` for `seconds` (or until interrupted) and write the proposed configuration to `out` or stdout.

    Raises Unavailable when the broker is, ConfigError when its address is wrong, and DataError when nothing could
    be read or `out` not be written.
    """
    settings = broker_settings(broker, **login)
    try:
        topic = topic_filter(parse_topic(topic))
    except ValueError as error:
        raise ConfigError([f"--topic {error}"]) from None
    if out is not None and out.exists():
        raise DataError(f"{out} exists and is left as it is; give another --out, or move it away")
    watcher = Watcher(settings, topic)
    with watcher.watching():
        where = f"{'mqtt' if settings.tls is None else 'mqtts'}://{settings.host}:{settings.port}"
        say(f"watching {where} for {seconds:g} s; Ctrl-C ends it early with what was seen", stderr=True)
        _wait(watcher, seconds)
    if watcher.away and not watcher.samples:
        raise Unavailable(watcher.away)
    config = propose([message for kept in watcher.samples.values() for message in kept], settings)
    if out is None:
        print(config, end="")
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(config)
    except OSError as error:
        raise DataError(f"{out}: {error.strerror}") from error
    first = ""
    if settings.password() is not None and settings.password_file is None:
        first = f"write the password into {out.parent / TO_WRITE}, mode 0600, then "
    say(f"wrote {out}; next: {first}sentinel run --config {out}", stderr=True)


def _wait(watcher: Watcher, seconds: float) -> None:
    """Let time pass, and say what has come: in a bar on a terminal, in a line now and then elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    began = time.monotonic()
    told = 0.0
    try:
        with Progress(*columns, console=console, disable=not console.is_interactive, transient=True) as progress:
            bar = progress.add_task("", total=seconds)
            while (passed := time.monotonic() - began) < seconds:
                progress.update(bar, completed=passed, description=watcher.seen)
                if not console.is_interactive and passed - told >= _SAY_EVERY:
                    told = passed
                    say(f"{passed:.0f} s: {watcher.seen}", stderr=True)
                time.sleep(min(0.2, seconds - passed))
    except KeyboardInterrupt:
        say(f"interrupted: going by what was seen so far: {watcher.seen}", stderr=True)
