"""Words on a terminal: names that come from outside stay text, whatever they hold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"


def plain(text: str) -> str:
    """One line of text that no device's or channel's name can break out of: controls and the like are escaped."""
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text)


def cell(text: str) -> Text:
    """The same for rich, which would take brackets for markup."""
    return Text(plain(text))


def say(*lines: str, stderr: bool = False) -> None:
    """Print lines as they are, controls escaped, without markup, highlighting or wrapping."""
    console = Console(stderr=stderr)
    for line in lines:
        console.print(plain(line), highlight=False, markup=False, soft_wrap=True)


def sparkline(values: Sequence[float] | npt.NDArray[Any], width: int = 40) -> str:
    """The course of some numbers in at most `width` marks, each the mean of its part; a space where there is none."""
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).any():
        return ""
    parts = np.array_split(numbers, min(width, len(numbers)))
    means = np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts])
    low, high = np.nanmin(means), np.nanmax(means)
    steps = (means - low) / (high - low) * (len(BARS) - 1) if high > low else np.zeros(len(means))
    return "".join(" " if np.isnan(mean) else BARS[round(step)] for mean, step in zip(means, steps, strict=True))
