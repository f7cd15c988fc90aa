"""What the network sees of a tick.

Axes: B rows, F channels, I inputs: 4 F + 1, 8 more with a calendar, and 2 F + 1 more with a daily profile.
"""

import numpy as np
import numpy.typing as npt

from sentinel.records import Floats

EWMA_RATE = 0.02  # of the slow mean, a tick
CALENDAR = 8
DAY = 86400.0
MOST_BINS = 288  # of the daily profile: five minutes each
PROFILED = 4  # channels up to which there is a daily profile: 2.3 points of NAB; nothing at 40 channels, measured


def width(channels: int, calendar: bool, bins: int) -> int:
    """Number of inputs for so many channels."""
    return 4 * channels + 1 + (CALENDAR if calendar else 0) + (2 * channels + 1 if bins else 0)


def bins(channels: int, calendar: bool, interval: float) -> int:
    """Bins of the daily profile where ticks come every `interval` seconds; 0: no profile."""
    return min(max(round(DAY / interval), 1), MOST_BINS) if calendar and channels <= PROFILED else 0


def calendar(time: Floats) -> npt.NDArray[np.float32]:
    """Sine and cosine of the time of day, harmonics 1 to 3, and of the week (UTC), (B, 8), from event times (B,)."""
    day = 2 * np.pi * np.mod(time / DAY, 1.0)
    week = 2 * np.pi * np.mod((time / DAY + 3.0) / 7.0, 1.0)  # the epoch was a Thursday
    angles = np.stack([day, 2 * day, 3 * day, week], axis=1)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def relative_interval(dt: Floats, usual: Floats) -> npt.NDArray[np.float32]:
    """Log of `dt` over the device's usual interval, both in seconds, clipped to ±3; (B,)."""
    return np.log(np.maximum(dt, 1e-6) / usual).clip(-3.0, 3.0).astype(np.float32)
