"""`sentinel replay`: publish recordings to a broker, as they came, faster, or at a steady rate."""

from __future__ import annotations

import heapq
import math
import re
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Unpack

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sentinel.adapters.tables import Recording, read_table, read_tables
from sentinel.commands._broker import broker_settings
from sentinel.commands._publisher import Publisher
from sentinel.commands._terminal import plural, say
from sentinel.errors import DataError
from sentinel.settings import Login, wildcards

TIME_FIELD = "time"  # of the payload: s since the epoch
_BATCH = 500  # messages to a send at most
_SLICE = 0.01  # seconds; what is due within one goes out together
_WILDCARD = re.compile(r"\{(\w+)\}")


class Publication(NamedTuple):
    """One message of a replay. `time`: the event time of its reading."""

    time: float
    topic: str
    payload: bytes


def publications(recording: Recording, template: str) -> Iterator[Publication]:
    """The messages of a recording, in its order: one a row, or with `{channel}` in the topic one a value.

    A payload holds the event time under "time", as a number, and what is finite of the row under the channels'
    names, or as "value". The label is not published; a row without values is left out. The topic's wildcards but
    `{channel}` take the levels of the device id. Raises DataError when they do not fit each other.
    """
    by_channel = "channel" in wildcards(template)
    if not by_channel and TIME_FIELD in recording.channels:
        raise DataError(f'{recording.path}: a channel is named "{TIME_FIELD}", as the payload\'s event time')
    topics = [_topic(template, device, recording) for device in recording.devices]
    rows = zip(recording.device.tolist(), recording.time.tolist(), recording.values.tolist(), strict=True)
    for device, at, values in rows:
        found = {name: v for name, v in zip(recording.channels, values, strict=True) if math.isfinite(v)}
        if by_channel:
            for name, value in found.items():
                topic = topics[device].replace("{channel}", _level(name))
                yield Publication(at, topic, orjson.dumps({TIME_FIELD: at, "value": value}))
        elif found:
            yield Publication(at, topics[device], orjson.dumps({TIME_FIELD: at, **found}))


def _topic(template: str, device: str, recording: Recording) -> str:
    """The device's topic, with `{channel}` left in it."""
    names = [name for name in wildcards(template) if name != "channel"]
    if not names:
        if len(recording.devices) > 1:
            raise DataError(f"--topic {template}: {recording.path} holds several devices: name {{device}} in it")
        return template
    levels = device.split("/", len(names) - 1)
    if len(levels) < len(names):
        wanted = "/".join(f"{{{name}}}" for name in names)
        raise DataError(f"--topic {template}: the device {device!r} of {recording.path} is not of the form {wanted}")
    of_name = dict(zip(names, levels, strict=True))
    return _WILDCARD.sub(lambda match: _encode(of_name[match[1]]) if match[1] in of_name else match[0], template)


def _encode(text: str) -> str:
    """Percent-encode what a topic to publish on must not hold."""
    return re.sub(r"[+#%\0]", lambda match: f"%{ord(match[0]):02X}", text)


def _level(text: str) -> str:
    return _encode(text).replace("/", "%2F")


def _due(
    messages: Iterator[Publication], speed: float | None, rate: float | None
) -> Iterator[tuple[float, Publication]]:
    """(seconds after the start at which to send, message), never decreasing; 0 throughout without a limit."""
    start: float | None = None
    due = 0.0
    for number, message in enumerate(messages):
        if rate:
            due = number / rate
        elif speed and math.isfinite(speed):
            start = message.time if start is None else start
            due = max(due, (message.time - start) / speed)
        yield due, message


def replay(
    data: Sequence[Path],
    broker: str,
    topic: str,
    speed: float | None,
    rate: float | None,
    qos: int,
    label_column: str | None,
    device: str | None,
    **login: Unpack[Login],
) -> None:
    """Publish recordings, several merged by time, and wait until all is acknowledged.

    `speed` is times as fast as recorded, `rate` messages a second; without either the speed is 1, and 0 is as fast
    as the broker takes it. `device` names the device of a file that names none.
    Raises DataError, ConfigError, and Unavailable when the broker is, or goes, away.
    """
    console = Console(stderr=True)
    if device is None:
        recordings = read_tables(data, label_column=label_column)
    else:
        recordings = [read_table(path, label_column=label_column, name=device) for path in data]
    if speed is None and rate is None:
        speed = 1.0
    total = sum(map(len, recordings))
    merged = heapq.merge(
        *(publications(recording, topic) for recording in recordings), key=lambda message: message.time
    )
    columns = (TextColumn("publishing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Publisher(broker_settings(broker, **login), qos=qos) as publisher,
        Progress(*columns, console=console, transient=True) as bars,
    ):
        by_channel = "channel" in wildcards(topic)
        bar = bars.add_task("", total=None if by_channel else total)
        began = time.monotonic()
        waiting = _due(merged, speed, rate)
        first = next(waiting, None)
        while first is not None:
            publisher.sleep_until(began + first[0])
            batch, limit = [first], time.monotonic() - began + _SLICE
            for item in islice(waiting, _BATCH):
                if item[0] > limit:
                    first = item
                    break
                batch.append(item)
            else:
                first = next(waiting, None)
            publisher.publish((message.topic, message.payload) for _, message in batch)
            bars.update(bar, completed=publisher.sent)
        publisher.drain()
        seconds = time.monotonic() - began
    devices = len({name for recording in recordings for name in recording.devices})
    said = f"{plural(total, 'reading')} of {plural(devices, 'device')}: {plural(publisher.sent, 'message')} published"
    say(f"{said} in {seconds:.1f} s" + f", {publisher.acknowledged:,} acknowledged" * qos, stderr=True)
