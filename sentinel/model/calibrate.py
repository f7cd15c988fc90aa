"""From errors to a surprise of known size, and from an alert budget to its threshold.

Axes: B rows, F channels, K heads.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sentinel.records import Floats

WEEK = 604800.0
MEMORY = 1500  # ticks of the short memory; 600 and 5000 cost 1.3 points of NAB each, measured
LEAST = 30  # ticks of calibration before a head is believed
FLOOR = 0.02  # in robust spreads: a deviation under 2 % of the normal range is nobody's anomaly
CEILING = 12.0  # of z, and of the threshold
RAISE, RAISE_REFERENCE, RAISE_LIMIT = 0.35, 1.0, 3.0  # g, b_ref, b_max of the controller
REFRACTORY = 75  # ticks between starts of prediction alerts; more than the longest window and horizon
PRIOR_LEVEL, PRIOR_SLOPE, PRIOR_TICKS = 1.7, 0.9, 2000.0  # tail of block maxima of 43 healthy channels
DECLARED_LEVEL = 8.0  # T0 where a clean recording was declared, at 1/week; measured, with SKAB among the data
SHIFT_RATE = 2 / 46  # EWMA of the shift statistic
SHIFT_LIMIT = 4.0  # times its maximum over clean ticks
SHIFT_RIDGE = 0.003
HELD_OUT_AT_LEAST = 1000  # ticks of a recording that allow a quarter to be held out


def level(budget: float, interval: float, *, declared: bool) -> float:
    """Surprise that one healthy channel exceeds once a budgeted interval.

    1.7 + 0.9 ln(max(N / 2000, 1)) with N = 1 / (budget x interval) ticks: the exponential tail of
    block maxima, fitted to healthy channels of five public data sets. Where a recording was
    declared clean, statistics are frozen and drift adds to the surprise: 8 at 1/week, moved by the
    same slope.

    Args:
        budget: alerts per second and device; 0 (off) is taken as 1/week, for the score.
        interval: usual seconds between ticks.
    """
    budget = budget or 1 / WEEK
    if declared:
        return max(PRIOR_LEVEL, DECLARED_LEVEL + PRIOR_SLOPE * math.log(1 / WEEK / budget))
    ticks = 1 / (budget * interval)
    return PRIOR_LEVEL + PRIOR_SLOPE * math.log(max(ticks / PRIOR_TICKS, 1.0))


def p_value(equivalent: Tensor) -> Tensor:
    """Tail probability a tick of a surprise given as its one-channel equivalent (B,).

    The inverse of `level`: at the threshold of a budget of N ticks it is 1 / N.
    """
    return (torch.exp(-(equivalent - PRIOR_LEVEL) / PRIOR_SLOPE) / PRIOR_TICKS).clamp(max=1.0)


def decay(raised: Tensor, dt: Tensor, budget: float) -> Tensor:
    """The controller's raise after `dt` seconds of the device's time, both (B,): db/dt = -g B min(b / b_ref, 1)."""
    return (raised - RAISE * budget * dt * (raised / RAISE_REFERENCE).clamp(max=1.0)).clamp(min=0.0)


def standardise(u: Tensor, calibration: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Windowed errors in terms of their own past.

    z = (u - mean) / (sd + 1e-3 |mean| + 0.02), clipped to 0..12.

    Args:
        u: windowed errors, (B, 4, K F).
        calibration: mean and variance in two memories, (B, 2, 2, 4, K F).

    Returns:
        z summed over streams and memories, (B, K F); the same before the clip at 12, for blame; u - mean,
        (B, 2, 4, K F).
    """
    mean, var = calibration.unbind(2)
    away = u.unsqueeze(1) - mean
    spread = var.sqrt().add_(mean.abs(), alpha=1e-3).add_(FLOOR)
    z = (away / spread).clamp_(min=0.0)
    raw = z.sum((1, 2))
    return z.clamp_(max=CEILING).sum((1, 2)), raw, away


def update_(calibration: Tensor, away: Tensor, n: Tensor, learns: Tensor) -> None:
    """Learn from a tick, in place: all history at 1/n, short memory at 1/1500.

    Flagged ticks teach too: to skip them costs 6 points of NAB, measured. Source of the recursion: Welford 1962, West 1979.

    Args:
        calibration: (B, 2, 2, 4, K F).
        away: `standardise`'s u - mean, (B, 2, 4, K F).
        n: ticks learned from so far, by head, (B, K).
        learns: which heads learn from this tick, (B, K), bool.
    """
    n += learns
    rate = learns / n.clamp(min=1.0)
    rates = torch.stack([rate, rate.clamp(min=1.0 / MEMORY) * learns], 1)  # (B, 2, K)
    n.clamp_(max=1e6)
    b, memories, streams, width = away.shape
    by_head = away.view(b, memories, streams, n.shape[1], -1)
    rates = rates.view(b, memories, 1, n.shape[1], 1)
    moved = (by_head * rates).view(away.shape)
    mean, var = calibration.unbind(2)
    mean += moved
    kept = (1.0 - rates).expand(b, memories, streams, n.shape[1], width // n.shape[1]).reshape(away.shape)
    var.addcmul_(moved, away).mul_(kept)


@dataclass(frozen=True, slots=True)
class ShiftReference:
    """What the shift statistic B knows of clean ticks, a row a declared device (row 0: the pooled one).

    Attributes:
        centre: v0 of values and of far errors, (G, 2, F).
        precision: inverse covariance with ridge, zero for channels that do not vary, (G, 2, F, F).
        most: largest distance over clean ticks, (G, 2).
        values_only: B is d_y alone. Errors of ticks that the network was fitted on are too small to be a measure, so
            where none were held out they take no part (SKAB, a network per file: F1 0.77 with them, 0.84 without).
    """

    centre: Tensor
    precision: Tensor
    most: Tensor
    values_only: bool

    def to(self, device: torch.device) -> "ShiftReference":
        """The same on another device."""
        return ShiftReference(self.centre.to(device), self.precision.to(device), self.most.to(device), self.values_only)

    def distance(self, shift: Tensor, group: Tensor, blunt: Tensor) -> tuple[Tensor, Tensor]:
        """B = sqrt(d_y d_e), each Mahalanobis distance in units of its clean maximum, (B,), and who is to blame.

        Source: Mahalanobis 1936; Hotelling's T-squared on exponentially weighted means, Lowry et al. 1992.

        Args:
            shift: slow means of values and far errors, (B, 2, F).
            group: row of the reference, (B,), int64.
            blunt: factor a channel's deviation counts with after the user's gates, (B, 2, F).

        Returns:
            B (B,); how far each channel is from what the others say, squared, (B, F): (P a)_f^2 / P_ff, by which the
            squared distance falls if channel f is left out. Where one channel alone moved, its part is the largest,
            since P_fk^2 <= P_ff P_kk.
        """
        away = (shift - self.centre[group]) * blunt
        precision = self.precision[group]
        pull = (precision @ away.unsqueeze(3)).squeeze(3)  # (B, 2, F)
        d = (away * pull).sum(2).clamp(min=0.0).sqrt() / self.most[group]
        parts = pull.square() / precision.diagonal(dim1=2, dim2=3).clamp(min=1e-9)
        if self.values_only:
            return d[:, 0], parts[:, 0]
        return (d[:, 0] * d[:, 1]).sqrt(), parts.sum(1)


def shift_reference(values: Floats, errors: Floats, varied: Floats) -> tuple[Floats, Floats, Floats]:
    """Centre (2, F), precision (2, F, F) and clean maximum (2,) from slow means over clean ticks, (T, F) each.

    precision = (C + 0.003 tr(C) / F I)^-1, in-sample maximum.
    """
    use = np.flatnonzero(varied > 0)
    f = values.shape[1]
    centre, precision, most = np.zeros((2, f)), np.zeros((2, f, f)), np.ones(2)
    for k, v in enumerate((values, errors)):
        centre[k] = v.mean(0)
        if not len(use) or len(v) < len(use) + LEAST:
            continue
        away = v[:, use] - centre[k, use]
        c = away.T @ away / len(v)
        ridge = SHIFT_RIDGE * np.trace(c) / len(use) + 1e-9
        precision[k][np.ix_(use, use)] = np.linalg.inv(c + ridge * np.eye(len(use)))
        most[k] = max(np.sqrt(np.max(np.einsum("ti,ij,tj->t", away, precision[k][np.ix_(use, use)], away))), 1e-3)
    return centre, precision, most
