"""What devices keep when their profile gets a new detector.

Axes: N slots, F channels, K heads, D bins of a day.
"""

import numpy as np

from sentinel.model.kernel import LEAST
from sentinel.model.score import Detector
from sentinel.model.slabs import Slabs


def carry(old: Detector, before: Slabs, new: Detector, after: Slabs) -> None:
    """Keep each device's raised threshold and, where it was calibrated on the same channels, its statistics.

    They come from errors of ticks that no network knew; the new one's errors on what it learned from are too small to
    be a measure. They are brought to the new scale: an error e of spread s is e s / s' of spread s'.
    """
    count = min(len(before), len(after))
    after.view("raised")[:count] = before.view("raised")[:count]
    same = (old.channels, before.layout.heads) == (new.channels, after.layout.heads)
    if not same or new.declared or bool((old.scale.counter != new.scale.counter).any()):
        return
    rows = np.flatnonzero(before.view("n")[:count].max(1) >= LEAST)
    rows = rows[rows > 0]
    m, s = _placed(old, before, rows)
    m1, s1 = _placed(new, after, rows)
    ratio, heads = s / s1, before.layout.heads
    wide = np.tile(ratio, (1, heads))[:, None, None]  # (N, 1, 1, K F)
    calibration = before.view("calibration")[rows].copy()
    calibration[:, :, 0] *= wide
    calibration[:, :, 1] *= wide**2
    after.view("calibration")[rows] = calibration
    pending = before.view("pending")[rows].copy()
    pending[:, 0] *= wide[:, 0]
    pending[:, 1] *= wide[:, 0] ** 2
    after.view("pending")[rows] = pending
    for name in ("n", "waiting", "tail", "accepted", "peak", "alarmed", "refractory"):
        after.view(name)[rows] = before.view(name)[rows]
    after.view("varied")[rows] = np.maximum(after.view("varied")[rows], before.view("varied")[rows])
    for name in ("lo", "hi"):
        after.view(name)[rows] = (before.view(name)[rows] * s + m - m1) / s1
    if before.layout.bins and before.layout.bins == after.layout.bins:
        y = np.sinh(before.daily[rows].astype(np.float64)) * s[:, None, None] + m[:, None, None] - m1[:, None, None]
        after.daily[rows] = np.arcsinh(y / s1[:, None, None]).clip(-8.0, 8.0)
        after.visits[rows] = before.visits[rows]


def _placed(
    detector: Detector, slabs: Slabs, rows: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """Location and spread of devices in the channels' units, (N, F) each."""
    scale = detector.scale
    return slabs.view("m")[rows] * scale.spread + scale.location, slabs.view("s")[rows] * scale.spread
