"""What a declared recording says of its thresholds, and what clean slow means look like.

Axes: T ticks, F channels, G rows of the shift reference.
"""

import math
from dataclasses import dataclass

import numpy as np

from sentinel.model.kernel import F4, LEAST, PRIOR_LEVEL, PRIOR_SLOPE
from sentinel.records import Floats, Ints

WEEK = 604800.0
# Ticks between starts of prediction alerts. The least matters for devices that learned from under 150 ticks: with 31, NAB
# is 0.8 points lower.
REFRACTORY, LEAST_REFRACTORY = 75, 15
# T0 where a clean recording was declared, at 1/week. Simulated telemetry and plants: F1 0.31 and 0.50 with 5, 0.28 and 0.45
# with 6; rows flagged outside of events with 38 and 55 mixed channels: 4.1 and 7.3 %, 3.3 and 6.4 %.
DECLARED_LEVEL = 5.0
SHIFT_RIDGE = 0.003
HELD_OUT_AT_LEAST = 1000  # ticks of a recording that allow a quarter to be held out


def refractory(learned_on: Ints) -> Ints:
    """Ticks between starts of alerts: a tenth of those that were learned from first, 15 to 75."""
    return np.clip(learned_on // 10, LEAST_REFRACTORY, REFRACTORY)


def declared_level(budget: float) -> float:
    """Surprise of one channel that is the threshold where a recording was declared clean: 5 at 1/week.

    Statistics follow only slowly and drift adds to the surprise; other budgets move it by the slope of the live level.

    Args:
        budget: alerts per second and device; 0 (off) is taken as 1/week, for the score.
    """
    return max(PRIOR_LEVEL, DECLARED_LEVEL + PRIOR_SLOPE * math.log(1 / WEEK / (budget or 1 / WEEK)))


@dataclass(frozen=True, slots=True)
class ShiftReference:
    """What the shift statistic knows of clean ticks, a row a declared device (row 0: the pooled one).

    d = sqrt((v - v0)' P (v - v0)) for slow means v of values and of far errors, each in units of its clean maximum.
    Source: Mahalanobis 1936; Hotelling's T-squared on exponentially weighted means, Lowry et al. 1992.

    Attributes:
        centre: v0 of values and of far errors, (G, 2, F).
        precision: P, inverse covariance with ridge, zero for channels that do not vary, (G, 2, F, F).
        most: largest distance over clean ticks, (G, 2).
        values_only: the statistic is d of values alone, not the geometric mean of both. Errors of ticks that the
            network was fitted on are too small to be a measure, so where none were held out they take no part (SKAB,
            a network per file: F1 0.77 with them, 0.84 without).
    """

    centre: F4
    precision: F4
    most: F4
    values_only: bool


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
