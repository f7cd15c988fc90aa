"""The heat map that `sentinel inspect` writes: gates and cells of one device's network over time.

Axes: T ticks, H hidden units.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from sentinel import __version__
from sentinel.commands._page import packed, page, write

NAMES = {
    "lstm": {
        "input": "input gate",
        "forget": "forget gate",
        "candidate": "cell candidate",
        "output": "output gate",
        "cell": "cell",
        "hidden": "hidden",
    },
    "gru": {
        "reset": "reset gate",
        "update": "update gate",
        "candidate": "candidate",
        "hidden": "hidden",
    },
}
MEANINGS = {
    "input": "how much of the candidate goes into the cell",
    "forget": "how much of the cell is kept from the tick before",
    "output": "how much of the cell is shown",
    "reset": "how much of the past the candidate sees",
    "update": "how much of the past is kept",
    "candidate": "what the tick would write",
    "cell": "what is remembered",
    "hidden": "what forecasts are made of",
}


def write_heatmap(path: Path, result: dict[str, Any], checked: str) -> None:
    """Write what `inspect` found as a page. Times are UTC.

    Raises:
        DataError: `path` cannot be written.
    """
    title = f"Inside {result['device']}"
    write(path, page(title, _body(result, checked), _data(result), "_heatmap.js", ["_report.css", "_heatmap.css"]))


def _body(result: dict[str, Any], checked: str) -> Iterator[str]:
    first, last = (_moment(result["time"][at]) for at in (0, -1))
    layers = len(result["layers"])
    yield f"<header>\n<h1>Inside {escape(result['device'])}</h1>"
    yield f"<p class=lead>{result['cell'].upper()} of profile {escape(result['profile'])}, "
    yield f"{layers} layer{'s' * (layers != 1)} of {result['layers'][0]['hidden'].shape[1]} units: "
    yield f"its last {result['ticks']:,} ticks, {first} to {last}.</p>"
    yield f"<p class=dim>{escape(checked[0].upper() + checked[1:])}. Model {escape(result['model'])}.</p>"
    for note in result["notes"]:
        yield f"<p class=dim>{escape(note[0].upper() + note[1:])}.</p>"
    yield "<dl class=cards>"
    for name, big, small in _cards(result):
        yield f"<div class=card><dt>{escape(name)}</dt><dd class=big>{big}</dd><dd class=dim>{escape(small)}</dd></div>"
    yield "</dl>\n</header>\n<main>"
    yield '<div class=bar role=toolbar aria-label="What is shown">'
    if layers > 1:
        yield "<label>Layer <select id=layer></select></label>"
    yield "<label>Units sorted by <select id=order>"
    for value, text in (("mean", "mean"), ("swing", "swing"), ("saturation", "saturation"), ("number", "number")):
        yield f"<option value={value}>{text} of the {'cell' if result['cell'] == 'lstm' else 'hidden state'}"
    yield "</select></label><span id=said class=span role=status></span></div>"
    yield "<p class=dim>A row is a unit, a column a tick, the newest at the right; rows are in one order in all maps."
    yield "Point at a cell for its numbers, or move there with the arrow keys.</p>"
    yield '<div id=maps class=maps tabindex=0 role=group aria-label="Heat maps; arrow keys move the cursor"></div>'
    yield "<noscript><p>The maps need JavaScript; --json has the numbers.</p></noscript>\n</main>"
    limits = result["limits"]
    yield f"<footer>A gate below {limits['closed']:g} is closed, one above {limits['open']:g} open: it no longer answers "
    yield "to what comes."
    if result["cell"] == "lstm":
        yield f"A cell beyond ±{limits['cell']:g} is saturated: its tanh is ±1 whatever comes."
    yield f"Times are UTC. Written by sentinel {escape(__version__)}.</footer>"


def _cards(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What is saturated, of all layers."""
    limits, names = result["limits"], NAMES[result["cell"]]
    for part in names:
        shares = [layer[part] for layer in result["saturation"]]

        def mean(key: str, shares: list[dict[str, float]] = shares) -> float:
            return float(np.mean([share[key] for share in shares]))

        if "saturated" in shares[0]:
            yield names[part], f"{mean('saturated'):.1%}", f"of the cells saturated, |c| > {limits['cell']:g}"
        elif "closed" in shares[0]:
            both = mean("closed") + mean("open")
            said = f"saturated: {mean('closed'):.1%} closed, < {limits['closed']:g}; {mean('open'):.1%} open, > {limits['open']:g}"
            yield names[part], f"{both:.1%}", said


def _data(result: dict[str, Any]) -> dict[str, Any]:
    """What the script reads; maps tick by tick."""
    names = NAMES[result["cell"]]
    return {
        "cell": result["cell"],
        "limits": result["limits"],
        "time": packed(np.array(result["time"]), "<f8"),
        "score": packed(np.array(result["score"], dtype=np.float64), "<f4"),
        "models": [at for at in range(1, result["ticks"]) if result["models"][at] != result["models"][at - 1]],
        "values": [
            {"name": name, "unit": result["units"].get(name, ""), "values": packed(np.array(values, np.float64), "<f4")}
            for name, values in result["values"].items()
        ],
        "maps": [{"part": part, "name": name, "means": MEANINGS[part]} for part, name in names.items()],
        "layers": [{part: packed(layer[part], "<f4") for part in names} for layer in result["layers"]],
    }


def _moment(time: float) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{time:.15g} s"
