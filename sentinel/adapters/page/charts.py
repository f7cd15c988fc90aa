"""Lines and bands as paths of an SVG that is stretched to its place. Axes: T ticks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sentinel.records import Bools, Floats

WIDTH, HEIGHT = 600.0, 120.0
_MARGIN = 0.08  # of the range, above and below
_FAR = 4.0  # ranges of the values, or usual widths of the band, that the band may go beyond the values


@dataclass(frozen=True, slots=True)
class Chart:
    """Attributes:
    line, band, flags: values of `d`; flags mark where something was anomalous.
    level: height of the threshold, None: none.
    since: where something began, None: nothing did.
    low, high: what the lower and the upper edge stand for.
    """

    line: str
    band: str
    flags: str
    level: float | None
    since: float | None
    low: float
    high: float


def draw(
    time: Floats,
    values: Floats,
    low: Floats,
    high: Floats,
    flagged: Bools,
    level: float | None = None,
    since: float | None = None,
) -> Chart:
    """Draw T ticks, (T,) each; NaN: nothing there. Where the band is far wider than usual it runs out of sight.

    Args:
        level: a threshold that must be in sight.
        since: a time to be marked, where it is in sight.
    """
    shown = np.concatenate([values, [] if level is None else [0.0, 1.2 * level]])
    seen, edges = shown[np.isfinite(shown)], np.concatenate([low, high])
    edges = np.concatenate([seen, edges[np.isfinite(edges)]])
    if not np.isfinite(values).any():
        return Chart("", "", "", None, None, 0.0, 1.0)
    least, most = float(seen.min()), float(seen.max())
    width = (high - low)[np.isfinite(high - low)]
    usual = float(np.median(width)) if len(width) else 0.0
    reach = max(most - least, usual, 1e-9 * max(abs(most), abs(least)), 1e-12)
    least, most = max(float(edges.min()), least - _FAR * reach), min(float(edges.max()), most + _FAR * reach)
    room = _MARGIN * max(most - least, reach)
    least, most = (least if level is not None else least - room), most + room
    span = max(float(time[-1] - time[0]), 1e-9)
    x = (time - time[0]) / span * WIDTH if len(time) > 1 else np.array([WIDTH / 2])

    def y(part: Floats) -> Floats:
        return np.clip((most - part) / (most - least), -1.0, 2.0) * HEIGHT

    marks = [f"M{x[at]:.1f} {y(values)[at]:.1f}h0" for at in np.flatnonzero(flagged & np.isfinite(values)).tolist()]
    return Chart(
        line=_line(x, y(values)),
        band=_band(x, y(high), y(low)),
        flags="".join(marks),
        level=None if level is None else float(y(np.array([level]))[0]),
        since=None if since is None or not time[0] < since <= time[-1] else (since - float(time[0])) / span * WIDTH,
        low=least,
        high=most,
    )


def _line(x: Floats, y: Floats) -> str:
    return "".join(_run(x[part], y[part], "M") for part in _runs(np.isfinite(y)))


def _band(x: Floats, top: Floats, bottom: Floats) -> str:
    parts = _runs(np.isfinite(top) & np.isfinite(bottom))
    return "".join(f"{_run(x[part], top[part], 'M')}{_run(x[part][::-1], bottom[part][::-1], 'L')}Z" for part in parts)


def _run(x: Floats, y: Floats, first: str) -> str:
    points = [f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    dot = "h0" if len(points) == 1 else ""  # a round end makes it a point
    return f"{first}{'L'.join(points)}{dot}"


def _runs(there: Bools) -> list[slice]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]]).astype(np.int8)))
    return [slice(begin, end) for begin, end in edges.reshape(-1, 2).tolist()]
