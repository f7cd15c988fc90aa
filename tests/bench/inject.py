"""Faults put into a recording of a healthy device.

Sizes are in robust spreads of the channel (IQR / 1.349). Every fault is the same for all corpora.

Axes: T ticks, F channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sentinel.records import Floats

LENGTH, SPIKE = 200, 2  # ticks


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault, of one channel unless it is a replay, and its length in ticks.

    Attributes:
        kind: shift: size added. spike: a short one. drift: rises to size in equal steps. noise: white noise added.
            stuck: the last value before. gain: deviations from the channel's median times size.
            decoupled: the channel as it was at another time. reversed: its values in reverse order.
            replayed: all channels as they were a whole number of days before.
        size: 0 where the kind has none.
    """

    kind: str
    size: float
    length: int = LENGTH

    @property
    def name(self) -> str:
        """Such as `shift-3`; part of a scenario's id."""
        return f"{self.kind}-{self.size:g}" if self.size else self.kind


FAULTS = (
    Fault("shift", 1.5),
    Fault("shift", 3),
    Fault("shift", 6),
    Fault("spike", 3, SPIKE),
    Fault("spike", 6, SPIKE),
    Fault("drift", 3),
    Fault("drift", 6),
    Fault("noise", 1),
    Fault("noise", 3),
    Fault("gain", 2),
    Fault("gain", 0.3),
    Fault("stuck", 0),
    Fault("decoupled", 0),
    Fault("reversed", 0),
    Fault("replayed", 0),
)


def spread(values: Floats) -> Floats:
    """Robust spread of each channel of (T, F): IQR / 1.349, or the standard deviation where that is 0; (F,)."""
    low, high = np.nanpercentile(values, (25, 75), axis=0)
    robust = (high - low) / 1.349
    out: Floats = np.where(robust > 0, robust, np.nanstd(values, axis=0))
    return out


def inject(
    values: Floats, channel: int, fault: Fault, onset: int, *, scale: float, day: int, random: np.random.Generator
) -> Floats:
    """A copy of values (T, F) with a fault in ticks onset .. onset + length.

    Args:
        scale: robust spread of the channel.
        day: ticks.   random: sign, noise and the other time.
    """
    out, end = values.copy(), onset + fault.length
    x = out[onset:end, channel]
    sign = random.choice((-1.0, 1.0))
    past = values[:onset, channel]
    match fault.kind:
        case "shift" | "spike":
            x += sign * fault.size * scale
        case "drift":
            x += sign * fault.size * scale * np.arange(1, fault.length + 1) / fault.length
        case "noise":
            x += fault.size * scale * random.standard_normal(fault.length)
        case "gain":
            middle = np.nanmedian(past)
            x[:] = middle + fault.size * (x - middle)
        case "stuck":
            x[:] = past[~np.isnan(past)][-1]
        case "decoupled":
            begin = int(random.integers(0, onset - fault.length))
            x[:] = values[begin : begin + fault.length, channel]
        case "reversed":
            x[:] = x[::-1].copy()
        case "replayed":
            back = day * -(-fault.length // day)
            out[onset:end] = values[onset - back : end - back]
        case _:
            raise ValueError(fault.kind)
    return out
