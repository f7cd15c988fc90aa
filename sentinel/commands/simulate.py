"""`sentinel simulate`: a simulated fleet, to a broker or into a recording."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Unpack

import numpy as np
import orjson

from sentinel.commands._broker import broker_settings
from sentinel.commands._publisher import Publisher
from sentinel.commands._terminal import plural, say
from sentinel.errors import DataError
from sentinel.settings import Login
from sentinel.simulate import PUMP, Fault, Faults, Fleet, write_recording

RECORDING_START = 1767225600.0  # 2026-01-01T00:00:00Z
_HEALTHY_TICKS, _TICKS_A_FAULT = 600, 1000
_SLICE = 0.01  # seconds between sends


def simulate(
    devices: int,
    rate: float,
    seconds: float,
    broker: str | None,
    out: Path | None,
    seed: int,
    faults: bool,
    **login: Unpack[Login],
) -> None:
    """Publish a fleet of pumps at `rate` readings a second each, or write it to the CSV file `out`.

    Blocks for `seconds` when publishing. Faults begin after 600 ticks or in the middle, whichever is first, one a
    device and 1000 ticks; each goes to standard output as a JSON line. Raises DataError, ConfigError, Unavailable.
    """
    if rate <= 0:
        raise DataError("--rate must be positive")
    start = RECORDING_START if out else time.time()
    fleet = Fleet(PUMP, devices, interval=1 / rate, seed=seed)
    first = start + min(_HEALTHY_TICKS / rate, seconds / 2)
    injector = Faults([fleet], first, _TICKS_A_FAULT / rate / devices, seed=seed) if faults else None
    if out:
        try:
            print_faults(write_recording(out, fleet, round(seconds * rate), start=start, faults=injector))
        except OSError as error:
            raise DataError(f"{out}: {error.strerror}") from error
        return
    with Publisher(broker_settings(broker or "", **login)) as publisher:
        say(f"{plural(devices, 'device')} at {rate:g} Hz to {PUMP.template}", stderr=True)
        publish_fleets(
            publisher,
            [fleet],
            seconds=seconds,
            start=start,
            inject=injector.begin if injector else None,
            tell=print_faults,
        )
        sent = plural(publisher.sent, "message")
        say(f"{sent} published, {publisher.acknowledged:,} acknowledged", stderr=True)


def print_faults(begun: Sequence[Fault]) -> None:
    """Print faults as JSON lines."""
    for fault in begun:
        print(orjson.dumps(asdict(fault)).decode(), flush=True)


def publish_fleets(
    publisher: Publisher,
    fleets: Sequence[Fleet],
    *,
    seconds: float | None,
    start: float,
    inject: Callable[[float], list[Fault]] | None = None,
    tell: Callable[[list[Fault]], None] = lambda _: None,
) -> None:
    """Publish fleets of one interval tick by tick, each device at its place within the tick, none before its time.

    Event times run from `start` on by the interval, also where the broker is too slow to keep up with them.
    Blocks for `seconds` (None: for ever), then until all is acknowledged. Raises Unavailable.
    """
    interval = fleets[0].interval
    begun_at = time.monotonic()
    number = 0
    while seconds is None or number * interval < seconds:
        now = start + number * interval
        if inject is not None and (begun := inject(now)):
            tell(begun)
        due = begun_at + number * interval
        messages = sorted(message for fleet in fleets for message in _messages(fleet, now))
        for part, together in groupby(messages, key=lambda message: int((message[0] - now) / _SLICE)):
            publisher.sleep_until(due + min((part + 1) * _SLICE, interval))
            publisher.publish((topic, payload) for _, topic, payload in together)
        number += 1
    publisher.sleep_until(begun_at + number * interval)
    publisher.drain()


def _messages(fleet: Fleet, now: float) -> Iterator[tuple[float, str, bytes]]:
    """(event time, topic, payload) of all devices that send."""
    tick = fleet.step(now)
    names = ("ts", *fleet.machine.channels)
    rows = np.round(np.column_stack([tick.time, tick.values]), 4)[tick.sends].tolist()
    topics = fleet.topics
    for index, row in zip(np.flatnonzero(tick.sends).tolist(), rows, strict=True):
        yield row[0], topics[index], orjson.dumps(dict(zip(names, row, strict=True)))
