"""Which channels a surprise came from, and what was unusual of each.

Axes: T recent ticks, F channels, K heads.
"""

from dataclasses import dataclass

import numpy as np

from sentinel.model.calibrate import ShiftReference
from sentinel.model.kernel import CEILING, FLOOR, LEAST, MAGNITUDES, QUANTUM, SETTLE, SHIFT_RATE, WINDOWS
from sentinel.model.score import Detector
from sentinel.model.slabs import RING, Slabs
from sentinel.records import Floats, How, Ints

RECENT = 30  # ticks that are asked
# Times the forecasts' own surprise from which the other channels' says more: simulated pumps that jump reach 1.2, channels
# that two factors drive and one leaves 1.3 to 8.
DOMINATES = 1.25
SIDED = 0.6  # mean error over mean magnitude from which errors lie on one side


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of one device's latest tick.

    Attributes:
        shares: of the surprise, (F,), sum 1.
        how: what was unusual of each channel, F of them.
        by: mean error behind that, in profile units, (F,).
        readings: that `by` is the mean of, (F,).
    """

    shares: Floats
    how: tuple[How, ...]
    by: Floats
    readings: Ints


def explain(detector: Detector, slabs: Slabs, slot: int, *, by_shift: bool = False) -> Explanation:
    """Blame the channels by how much of the recent errors a fault of each alone explains.

    A fault of channel f shows in its own forecasts, and through the cross head in all others' errors: a deviation of 1
    of channel f is one of 1 there, and of -C0_jf in channel j. So the energy that f explains is that of the errors'
    projection onto this column, each error over its usual size: a matched subspace (Scharf and Friedlander 1994).
    """
    f, horizons = len(detector.channels), detector.spec.horizons
    heads = slabs.layout.heads
    since, tick = int(slabs.view("since")[slot]), int(slabs.view("tick")[slot])
    span = min(since, RECENT)
    order = (tick - span + np.arange(span)) % RING
    errors = slabs.errors[slot, order].reshape(span, heads, f).astype(np.float64) / QUANTUM
    # The sd of a Gaussian from its mean |e|.
    usual = 1.25 * slabs.view("calibration")[slot, 0, 0, 0].reshape(heads, f) + FLOOR
    varied = slabs.view("varied")[slot] > 0
    varied = varied if varied.any() else np.ones(f, dtype=np.bool_)
    n, reach = slabs.view("n")[slot], np.array([*horizons, 1])[:heads]
    trusted = (n >= LEAST) & (since >= reach - 1 + SETTLE)
    z = errors / usual * trusted[:, None] * varied
    energy = (z * z).sum(0)
    if heads > len(horizons):
        network = int(slabs.view("network")[slot])
        others = detector.forecaster.weights["cross_y"][network].double().numpy() * (1.0 - np.eye(f))
        columns = (np.eye(f) - others) / usual[-1][:, None] * varied[:, None]
        energy[-1] = ((z[:, -1] @ columns) ** 2).sum(0) / np.maximum((columns * columns).sum(0), 1e-12) * varied
    blame = np.maximum(energy - span, 0.0).sum(0)
    total = float(blame.sum())
    shares = blame / total if total > 0 else varied / varied.sum()
    if by_shift and detector.shift is not None:
        return _shifted(detector, detector.shift, slabs, slot, shares if total > 0 else np.zeros(f))
    how, by, readings = _how(slabs, slot, errors, len(horizons), trusted)
    return Explanation(shares, how, by * slabs.view("s")[slot], readings)


def _shifted(detector: Detector, reference: ShiftReference, slabs: Slabs, slot: int, shares: Floats) -> Explanation:
    """Where the slow means moved: by how much their squared distance falls if a channel is left out, (P a)_f^2 / P_ff.

    Two channels that explain each other tie in this; what the errors say of each decides.
    """
    f, group = len(detector.channels), int(slabs.view("group")[slot])
    away = (slabs.view("shift")[slot] - slabs.view("centre")[slot]).astype(np.float64)
    parts = np.zeros(f)
    for k in range(1 if reference.values_only else 2):
        precision = reference.precision[group, k].astype(np.float64)
        parts += (precision @ away[k]) ** 2 / np.maximum(np.diag(precision), 1e-9)
    both = parts / max(float(parts.sum()), 1e-9) + shares
    how: tuple[How, ...] = tuple("drifted" for _ in range(f))
    by = away[0] * slabs.view("s")[slot]
    return Explanation(both / both.sum(), how, by, np.full(f, round(2 / SHIFT_RATE) - 1))


def _how(
    slabs: Slabs, slot: int, errors: Floats, horizons: int, trusted: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> tuple[tuple[How, ...], Floats, Ints]:
    """What was unusual of each channel, from the stream that surprised most."""
    f = errors.shape[2]
    mean, var = slabs.view("calibration")[slot, 0]
    size = np.array(WINDOWS)[:, None]
    u = np.abs(slabs.view("sums")[slot]) / (size * QUANTUM)
    z = ((u - mean) / (np.sqrt(var) + 1e-3 * mean + FLOOR)).reshape(len(WINDOWS), -1, f) * trusted[:, None]
    ahead, across = z[:, :horizons], z[:, horizons:]
    # A plain jump is told as one: that it does not fit the other channels either says no more.
    across[:] = np.where(across.max(0, initial=-np.inf) > DOMINATES * ahead.max((0, 1)), across, -np.inf)
    # Of several forecasts at their ceiling, the nearest one and the shortest magnitude tell most.
    np.minimum(ahead, CEILING, out=ahead)
    how: list[How] = []
    by, readings = np.zeros(f), np.zeros(f, dtype=np.int64)
    for j in range(f):
        window, head = np.unravel_index(int(np.argmax(z[:, :, j])), z.shape[:2])
        readings[j] = min(WINDOWS[window], len(errors))
        recent = errors[len(errors) - readings[j] :, head, j]
        by[j] = recent.mean() if len(recent) else 0.0
        sided = window >= MAGNITUDES or abs(by[j]) >= SIDED * np.abs(recent).mean()
        if z[window, head, j] <= 0:
            how.append("")
        elif head >= horizons:
            how.append("unlike the others")
        elif not sided:
            how.append("noisy")
        elif head > 0:
            how.append("drifted")
        else:
            how.append("above" if by[j] > 0 else "below")
    return tuple(how), by, readings
