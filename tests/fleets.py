"""Small made-up fleets for tests, and a detector learned from one."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sentinel import trainer
from sentinel.model import learn as learning
from sentinel.model.learn import Learned, Series, learn
from sentinel.records import Channel, EventTime, Floats, ModelSpec, ProfileSpec, Readings
from sentinel.stream.pipeline import ProfileStream

if TYPE_CHECKING:
    from sentinel.service import Service

CHANNELS = ("pressure", "flow", "heat")
START = 1.7e9


def healthy(ticks: int, device: int = 0, seed: int = 0) -> Floats:
    """Coupled channels of one device, (T, 3)."""
    rng = np.random.default_rng((seed, device))
    load = np.sin(2 * np.pi * np.arange(ticks) / 50 + device) + 0.1 * rng.normal(size=ticks)
    noise = rng.normal(size=(ticks, 3))
    return np.stack([5 + load, 20 + 3 * load, 60 - 2 * load], axis=1) + noise * [0.05, 0.2, 0.2]


def spec(**options: object) -> ProfileSpec:
    """A profile of that fleet."""
    channels = tuple(Channel(name, (name,), unit) for name, unit in zip(CHANNELS, ("bar", "m3/h", "°C"), strict=True))
    given: dict[str, object] = {
        "name": "pump",
        "topic": "plant/{device}/telemetry",
        "channels": channels,
        "time": EventTime(("ts",)),
        "model": ModelSpec(hidden=8, horizons=(1, 8)),
        **options,
    }
    return ProfileSpec(**given)  # type: ignore[arg-type]


@cache
def learned(
    devices: int = 4, ticks: int = 400, declared: bool = False, cell: str = "lstm", weights: str = "shared"
) -> Learned:
    """Learned quickly from a few devices; good enough for properties, not for detection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "STEPS", 60)
        patch.setattr(learning, "STAGE_STEPS", 10)
        series = [
            Series(f"d{i}", START - ticks + np.arange(ticks, dtype=np.float64), healthy(ticks, i))
            for i in range(devices)
        ]
        model = ModelSpec(cell=cell, hidden=8, horizons=(1, 8), weights=weights)  # type: ignore[arg-type]
        return learn(series, [Channel(name) for name in CHANNELS], model, seed=1, declared=declared)


def readings(devices: list[str], time: Floats, values: Floats, profile: str = "pump") -> Readings:
    """One reading each."""
    return Readings(profile, CHANNELS, devices, time, values, np.arange(len(devices)))


def payload(at: int, values: Floats) -> dict[str, float]:
    """What a device publishes `at` seconds after START, of values (3,)."""
    return {"ts": START + at} | dict(zip(CHANNELS, values.tolist(), strict=True))


def running(profile: ProfileSpec, model: Learned) -> ProfileStream:
    """A stream that runs a model, with the devices that it was learned from."""
    stream = ProfileStream(profile)
    for name in model.devices:
        stream.announce(name)
    trainer.adopt(stream, model)
    return stream


def settle(service: Service) -> None:
    """Turn over until nothing comes; the first turn of a connection only connects."""
    empty = 0
    while empty < 2:
        empty = 0 if service.turn(0.0) else empty + 1
