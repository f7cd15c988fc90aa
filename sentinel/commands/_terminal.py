"""Words on a terminal: names that come from outside stay text, whatever they hold."""

import itertools
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sentinel.logs import printable
from sentinel.records import Floats

_WEEK = 604800.0
BARS = "▁▂▃▄▅▆▇█"


def cell(text: str) -> Text:
    """The same for rich, which would take brackets for markup."""
    return Text(printable(text))


def say(*lines: str, stderr: bool = False) -> None:
    """Print lines as they are, controls escaped, without markup, highlighting or wrapping."""
    console = Console(stderr=stderr)
    for line in lines:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def plural(number: int, noun: str) -> str:
    """So many of them: "1 topic", "2 topics"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def device_time(seconds: float) -> str:
    """Time that devices were watched, summed over them: "45 device-minutes"."""
    if seconds >= _WEEK:
        return f"{seconds / _WEEK:.1f} device-weeks"
    for size, unit in ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} device-{unit}s"
    return f"{seconds:.0f} device-seconds"


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    right: Collection[str] = (),
    styles: Iterable[str] | None = None,
) -> None:
    """Print a table on a terminal; elsewhere columns apart by tabs, the title after a "# ".

    Args:
        right: columns to set right.
        styles: of each row, on a terminal.
    """
    console = Console()
    if not console.is_terminal:
        lines = ["\t".join(map(printable, row)) for row in [columns, *rows]]
        print("\n".join([f"# {printable(title)}"] * bool(title) + lines))
        return
    table = Table(title=cell(title) if title else None, title_justify="left", box=None)
    for name in columns:
        table.add_column(cell(name), justify="right" if name in right else "left")
    for row, style in zip(rows, styles or itertools.repeat(""), strict=False):
        table.add_row(*map(cell, row), style=style)
    console.print(table)


def show_facts(facts: Iterable[tuple[str, str]], indent: str = "") -> None:
    """Print names and what they are, a line each; only a terminal wraps them."""
    pairs = [(printable(name), printable(text)) for name, text in facts]
    width = max((len(name) for name, _ in pairs), default=0)
    console = Console()
    if not console.is_terminal:
        print("\n".join(f"{indent}{name:<{width}}  {text}" for name, text in pairs))
        return
    table = Table(show_header=False, box=None, padding=(0, 1, 0, len(indent)))
    table.add_column(style="bold", no_wrap=True)
    for name, text in pairs:
        table.add_row(Text(name), Text(text))
    console.print(table)


def sparkline(values: Sequence[float] | Floats, width: int = 40, *, highest: bool = False) -> str:
    """The course of some numbers in at most `width` marks; a space where there is none.

    Args:
        highest: a mark is the highest of its part, not the mean.
    """
    numbers = np.asarray(values, dtype=np.float64)
    parts = [part[np.isfinite(part)] for part in np.array_split(numbers, min(width, max(len(numbers), 1)))]
    if not any(map(len, parts)):
        return ""
    marks = np.array([(part.max() if highest else part.mean()) if len(part) else np.nan for part in parts])
    low, high = np.nanmin(marks), np.nanmax(marks)
    steps = (marks - low) / (high - low) * (len(BARS) - 1) if high > low else np.zeros(len(marks))
    return "".join(" " if np.isnan(mark) else BARS[round(step)] for mark, step in zip(marks, steps, strict=True))
