"""Numbered readings of a small fleet with faults in it, the same each time."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import orjson

from sentinel import trainer
from sentinel.model.learn import Learned
from sentinel.records import Floats
from sentinel.stream.pipeline import ProfileStream
from tests import fleets

DEVICES = 24
CYCLE = 200  # ticks; faults come once in each
JUMP, OVER_RANGE, FAULTY = slice(100, 120), slice(160, 163), 6  # so many devices are: fewer than make a storm


class Course:
    """Readings 0, 1, 2 … `count`: number n is tick n // DEVICES of device n % DEVICES.

    Args:
        start, interval: event time of the first tick, and from tick to tick, in seconds.
        faulty: devices that have faults.
    """

    def __init__(self, count: int, *, start: float = fleets.START, interval: float = 1.0, faulty: int = FAULTY) -> None:
        self.count = count
        self.start = start
        self._interval = interval
        ticks = -(-count // DEVICES)
        self._values = np.stack([_values(ticks, device, device < faulty) for device in range(DEVICES)])

    def topic(self, number: int) -> str:
        """Where a reading is published."""
        return f"plant/d{number % DEVICES}/telemetry"

    def payload(self, number: int) -> bytes:
        """What is published."""
        device, tick = number % DEVICES, number // DEVICES
        pressure, flow, heat = self._values[device, tick].tolist()
        time = self.start + tick * self._interval
        return orjson.dumps({"ts": time, "pressure": pressure, "flow": flow, "heat": heat})

    def number(self, device: str, time: float) -> int:
        """Undo it: the number of the reading that a device had at a time."""
        return round((time - self.start) / self._interval) * DEVICES + int(device.removeprefix("d"))


def _values(ticks: int, device: int, faulty: bool) -> Floats:
    values = fleets.healthy(ticks, device, 7)
    if faulty:
        place = (np.arange(ticks) + 10 * device) % CYCLE
        values[(JUMP.start <= place) & (place < JUMP.stop), 1] += 60.0
        values[(OVER_RANGE.start <= place) & (place < OVER_RANGE.stop), 0] = 20.0
    return values


@cache
def detector() -> tuple[ProfileStream, Learned]:
    """A model of the fleet, learned from the past of four devices."""
    learned = fleets.learned()
    return fleets.running(fleets.spec(), learned), learned


def save_model(store: Path) -> None:
    """Leave the model in a store, as `sentinel train` does."""
    stream, learned = detector()
    trainer.save(store / "models", stream, learned.detector, 0)
