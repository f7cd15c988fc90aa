"""What the network sees of a tick.

Axes: B rows, F channels, I inputs = 4 F + 1 (+ 8 with a calendar).
"""

import numpy as np
import torch
from torch import Tensor

from sentinel.records import Floats

EWMA_RATE = 0.02  # of the slow mean, a tick
CALENDAR = 8
DAY = 86400.0


def width(channels: int, calendar: bool) -> int:
    """Number of inputs for so many channels."""
    return 4 * channels + 1 + (CALENDAR if calendar else 0)


def calendar(time: Floats) -> Tensor:
    """Sine and cosine of the time of day, harmonics 1 to 3, and of the week (UTC), (B, 8), from event times (B,)."""
    day = 2 * np.pi * np.mod(time / DAY, 1.0)
    week = 2 * np.pi * np.mod((time / DAY + 3.0) / 7.0, 1.0)  # the epoch was a Thursday
    angles = np.stack([day, 2 * day, 3 * day, week], axis=1)
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))


def relative_interval(dt: Tensor, usual: float) -> Tensor:
    """Log of `dt` over the profile's usual interval, both in seconds, clipped to ±3; (B,)."""
    return torch.log(torch.clamp(dt, min=1e-6) / usual).clamp(-3.0, 3.0)


def step(
    y: Tensor, seen: Tensor, interval: Tensor, clock: Tensor | None, previous: Tensor, mean: Tensor, fresh: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of one tick, and what the next tick's need.

    Args:
        y: scaled values, (B, F), 0 where not seen.
        seen: which channels came, (B, F), bool.
        interval: `relative_interval`, (B,).
        clock: `calendar`, (B, 8), or None.
        previous, mean: each channel's last seen value and its slow mean, (B, F).
        fresh: rows whose state begins with this tick, (B,), bool.

    Returns:
        inputs (B, I), previous (B, F), mean (B, F).
    """
    begin = fresh.unsqueeze(1) & seen
    before = torch.where(begin, y, previous)
    mean = torch.where(begin, y, mean)
    now = torch.where(seen, y, before)
    mean = mean + EWMA_RATE * (now - mean)
    parts = [y, now - before, now - mean, seen.to(y.dtype), interval.unsqueeze(1)]
    if clock is not None:
        parts.append(clock)
    return torch.cat(parts, dim=1).clamp_(-6.0, 6.0), now, mean
