"""report.html: one file that opens offline, with all that a backtest found, in words and plots.

Axes: T rows of a device, F channels.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sentinel import __version__
from sentinel.backtest import Event, Result
from sentinel.commands._page import packed, page, write
from sentinel.commands._terminal import device_time, plural
from sentinel.records import Alert
from sentinel.settings.values import parse_budget
from sentinel.stream.alerts import duration, quantity
from sentinel.stream.maintenance import DATED

MOST_DEVICES = 50  # with plots; those with the most alerts
MOST_NUMBERS = 6_000_000  # in all plots, 4 bytes each
MOST_LINES = 500  # of a table
FLAGGED, LABELLED, LEARNED = 1, 2, 4
SHORT = 1.0  # alerts that a budget allows in the time watched; fewer cannot be told from none
MOST_CHANNELS = 3  # named of an alert
WEEK = 604800.0


def write_report(path: Path, result: Result, summary: dict[str, Any]) -> None:
    """Write the report. Times are UTC.

    Raises:
        DataError: `path` cannot be written.
    """
    shown = _chosen(result)
    body = (
        *_head(result, summary),
        "<main>",
        *_devices(result),
        *_alerts(result, shown),
        *_other_budgets(result, summary),
        *_events(result, shown),
        *_plots(result, shown),
        "</main>",
        *_foot(summary),
    )
    title = f"Backtest: {_covered(result)}"
    write(path, page(title, body, _data(result, shown), "_report.js", ["_report.css"]))


# --- in words ---


def _head(result: Result, summary: dict[str, Any]) -> Iterator[str]:
    yield f"<header>\n<h1>Backtest</h1>\n<p class=lead>{escape(_sentence(result, summary))}</p>"
    yield f"<p class=dim>{escape(_covered(result))}</p>\n<ul class=words>"
    yield from (f"<li>{escape(said)}" for said in in_words(result, summary))
    yield "</ul>"
    channels = summary["channels"]
    cards = [
        (
            "rows",
            f"{summary['rows']:,}",
            f"{summary['rows_learned']:,} learned, {summary['rows_scored']:,} scored, {flagged(summary)} flagged"
            + (
                f"; learned from {elsewhere:,} of other recordings"
                if (elsewhere := summary.get("rows_learned_elsewhere"))
                else ""
            ),
            "",
        ),
        (
            "devices",
            f"{summary['devices']:,}",
            f"{plural(len(channels), 'channel')}: {_some(channels)}",
            "",
        ),
        _rate_card(summary),
    ]
    labels = summary.get("labels")
    if labels:
        cards += _label_cards(labels)
    yield "<dl class=cards>"
    for name, big, small, tone in cards:
        yield (
            f'<div class=card><dt>{escape(name)}</dt><dd class="big {tone}">{escape(big)}</dd>'
            f"<dd class=dim>{escape(small)}</dd></div>"
        )
    yield "</dl>\n</header>"


def _rate_card(summary: dict[str, Any]) -> tuple[str, str, str, str]:
    rate, budget, weeks = (
        summary[key] for key in ("alerts_per_device_week", "alert_budget_per_device_week", "device_weeks")
    )
    name, allowed = "alarms per device and week", f"budget {quantity(budget)}" if budget else "no budget: off"
    if rate is None:
        return name, "–", allowed, ""
    said = f"{allowed}; {counted(summary)}"
    if 0 < weeks * budget < SHORT:
        return name, "too short to tell", said, ""
    if not budget:
        return name, quantity(rate), said, ""
    starts = summary["labels"]["alerts_outside"] if "labels" in summary else summary["alerts"].get("prediction", 0)
    return name, quantity(rate), said, "good" if starts <= weeks * budget else "bad"


def _label_cards(labels: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    delay, missed = labels["median_delay_seconds"], labels["events"] - labels["events_found"]
    small = "none is labelled in the rows that were scored"
    if labels["events"]:
        small = f"recall {labels['events_found'] / labels['events']:.0%}, {missed} missed"
    if delay is not None:
        small += f"; median delay {duration(delay)}"
    tone = "" if not labels["events"] else "good" if not missed else "bad"
    yield "labelled events found", f"{labels['events_found']} of {labels['events']}", small, tone
    if labels["f1"] is not None:
        false, miss = labels["false_alarm_rate"], labels["missed_alarm_rate"]
        said = [
            f"{share:.1%} of {rows} rows {verb} ({short})"
            for share, rows, verb, short in (
                (false, "normal", "flagged", "FAR"),
                (miss, "labelled", "not flagged", "MAR"),
            )
            if share is not None
        ]
        yield "rows against labels, F1", f"{labels['f1']:.2f}", "; ".join(said), ""


def _sentence(result: Result, summary: dict[str, Any]) -> str:
    count = len(result.final)
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(summary["alerts"].items()))
    text = plural(count, "alert") + (f" ({kinds})" if count else "")
    busy = len({alert.device for alert in result.final})
    devices = summary["devices"]
    text += f" on {busy} of {devices} devices" if devices > 1 else f" on device {result.devices[0]}"
    if summary["device_weeks"]:
        text += f" in {device_time(summary['device_weeks'] * WEEK)} of watching"
    labels = summary.get("labels")
    if labels and labels["events"]:
        text += f"; {labels['events_found']} of {labels['events']} labelled events found"
        if labels["median_delay_seconds"] is not None:
            text += f", typically after {duration(labels['median_delay_seconds'])}"
    return text + "."


def in_words(result: Result, summary: dict[str, Any]) -> Iterator[str]:
    """What a plant engineer asks: how often it alarms, what it found and how fast, and where most came from."""
    weeks, budget, labels = summary["device_weeks"], summary["alert_budget_per_device_week"], summary.get("labels")
    starts = summary["alerts"].get("prediction", 0)
    if weeks:
        rate = f"{plural(starts, 'alarm')} from forecasts in {device_time(weeks * WEEK)}"
        if weeks >= SHORT:
            rate += f": a device alarms {_often(starts / weeks)}"
        allowed = (
            f"; the budget allows a healthy one {_often(budget)}"
            if budget
            else "; forecasts raise no alarms: budget off"
        )
        yield rate + allowed + "."
    if labels and labels["events"]:
        delays = sorted(event.delay for event in result.events() if event.delay is not None)
        found, events, outside = labels["events_found"], labels["events"], labels["alerts_outside"]
        said = f"{found} of {events} labelled episode{'s' * (events != 1)} detected"
        if delays:
            half, slowest = duration(labels["median_delay_seconds"]), duration(delays[-1])
            said += (
                f", after {half}" if len(delays) == 1 else f", half of them within {half}, the slowest after {slowest}"
            )
        yield f"{said}; {plural(outside, 'alarm')} outside of them."
    count = Counter(alert.device for alert in result.final if alert.fired is not None)
    if len(result.devices) > 1 and count:
        name, most = count.most_common(1)[0]
        quiet = len(result.devices) - len(count)
        said = f"{quiet:,} of {len(result.devices):,} devices never alarmed"
        yield said + (f"; most often, {most} times, did {name}." if most > 1 else ".")
    lasting = [_until(result, alert) - alert.started for alert in result.final if alert.fired is not None]
    if lasting:
        yield f"An alarm lasted {duration(float(np.median(lasting)))} in the median, {duration(max(lasting))} at most."


def _often(rate: float) -> str:
    """A rate a week as people say it."""
    if rate >= 14:
        return f"{quantity(rate / 7)} times a day"
    if rate >= 1:
        return f"{quantity(rate)} times a week" if rate > 1.05 else "once a week"
    return f"once in {quantity(1 / rate)} weeks" if rate else "never"


def _devices(result: Result) -> Iterator[str]:
    if len(result.devices) < 2:
        return
    fired = [alert for alert in result.final if alert.fired is not None]
    count, forecast = (Counter(a.device for a in fired if not kind or a.kind == kind) for kind in ("", "prediction"))
    watched = result.watched()
    rows, flags = (
        np.bincount(result.device[mask], minlength=len(result.devices))
        for mask in (~result.learned, result.anomaly & ~result.learned)
    )
    order = sorted(range(len(result.devices)), key=lambda at: (-count[result.devices[at]], -int(flags[at])))
    yield f"<h2>Devices</h2>{_left_out(len(order))}"
    yield '<div class=scroll tabindex=0 role=region aria-label="Devices"><table class=narrow><thead><tr><th>Device'
    yield "<th class=number>Watched<th class=number>Alarms<th class=number>From forecasts<th class=number>A week"
    yield "<th class=number>Rows flagged</tr></thead><tbody>"
    for at in order[:MOST_LINES]:
        name, weeks = result.devices[at], watched[at] / WEEK
        rate = quantity(forecast[name] / weeks) if weeks >= SHORT else "–"
        share = f"{flags[at] / rows[at]:.2%}" if rows[at] else "–"
        yield (
            f"<tr><td>{escape(name)}<td class=number>{duration(watched[at])}<td class=number>{count[name]:,}"
            f"<td class=number>{forecast[name]:,}<td class=number>{rate}<td class=number>{share}</tr>"
        )
    yield "</tbody></table></div>"


def _alerts(result: Result, shown: Sequence[int]) -> Iterator[str]:
    final = episodes(result)
    yield f"<h2>Alerts</h2>{_left_out(len(final))}"
    if not final:
        yield "<p class=dim>None.</p>"
        return
    yield '<div class=scroll tabindex=0 role=region aria-label="Alerts"><table class=alerts><thead><tr><th>Began'
    yield "<th>Told after<th>Lasted<th>Kind<th>Highest score<th>Channels<th>What</tr></thead><tbody>"
    for alert in final[:MOST_LINES]:
        end, score = _until(result, alert), _highest(result, alert)
        lasted = duration(end - alert.started) + ", still open at the end" if alert.ended is None else length(alert)
        when = _link(result, shown, alert.device, alert.started, end)
        fired = ""
        if alert.fired is not None and alert.fired > alert.started:
            fired = f"<div class=dim>{escape(moment(result, alert.fired))}</div>"
        bars = "".join(
            f'<div class=share><i style="width:{100 * share:.0f}%"></i><span>{escape(name)} {share:.0%}</span></div>'
            for name, share in shares(alert)
        )
        yield (
            f"<tr><td class=time>{when}<td class=time>{told_after(alert)}{fired}<td>{lasted}"
            f"<td>{escape(alert.kind)}<div class=dim>{escape(alert.severity)}</div>"
            f"<td class=number>{score}<td class=shares>{bars or '–'}"
            f"<td class=what>{escape(alert.message.removesuffix('; resolved'))}</tr>"
        )
    yield "</tbody></table></div>"


def _other_budgets(result: Result, summary: dict[str, Any]) -> Iterator[str]:
    table = would_have_fired(summary)
    if not table:
        return
    yield "<h2>What would have fired</h2><p class=dim>Alerts of kind prediction on these data, had the budget been another.</p>"
    yield "<div class=scroll><table class=narrow><thead><tr><th>Budget<th class=number>Alerts"
    yield "<th class=number>A device and week<th class=number>Allowed in this time</tr></thead><tbody>"
    for budget, count, allowed in table:
        mine = " (this run)" if abs(parse_budget(budget) / result.budget - 1 if result.budget else 1.0) < 1e-6 else ""
        rate = quantity(count / summary["device_weeks"]) if summary["device_weeks"] else "–"
        yield (
            f"<tr><td>{escape(budget)}{mine}<td class=number>{count:,}<td class=number>{rate}"
            f"<td class=number>{quantity(allowed)}</tr>"
        )
    yield "</tbody></table></div>"


def _events(result: Result, shown: Sequence[int]) -> Iterator[str]:
    events = result.events()
    if not events:
        return
    yield f"<h2>Labelled events</h2>{_left_out(len(events))}"
    yield '<div class=scroll tabindex=0 role=region aria-label="Labelled events"><table><thead><tr><th>Began'
    yield "<th class=number>Lasted<th>Device<th>Flagged<th>Alert</tr></thead><tbody>"
    for event in events[:MOST_LINES]:
        begin, end = float(result.time[event.first]), float(result.time[event.last])
        found = (
            "<b class=bad>missed</b>"
            if event.delay is None
            else f"<b class=good>found</b> after {duration(event.delay)}"
        )
        yield (
            f"<tr><td class=time>{_link(result, shown, event.device, begin, end)}<td class=number>{duration(end - begin)}"
            f"<td>{escape(event.device)}<td>{found}<td>{_told(result, event)}</tr>"
        )
    yield "</tbody></table></div>"


def _told(result: Result, event: Event) -> str:
    """When in an event an alert of its device fired."""
    begin, end = float(result.time[event.first]), float(result.time[event.last])
    during = [
        max(alert.fired - begin, 0.0)
        for alert in result.final
        if alert.device == event.device
        and alert.fired is not None
        and alert.fired <= end
        and _until(result, alert) >= begin
    ]
    return ("open already" if min(during) == 0 else f"after {duration(min(during))}") if during else "none"


def _plots(result: Result, shown: Sequence[int]) -> Iterator[str]:
    yield '<h2 id="plots-title">Values and score</h2>'
    if len(shown) < len(result.devices):
        yield f"<p class=dim>Plots of {len(shown)} of the {len(result.devices):,} devices: those with the most alerts.</p>"
    yield '<div class=bar role=toolbar aria-label="What the plots show"><label>Device <select id=device></select></label>'
    for name, text, title in (
        ("previous", "‹ alert", "Previous alert (p)"),
        ("next", "alert ›", "Next alert (n)"),
        ("left", "←", "Earlier (left arrow)"),
        ("right", "→", "Later (right arrow)"),
        ("in", "+", "Zoom in (+)"),
        ("out", "−", "Zoom out (-)"),
        ("reset", "All", "Show all of it (0)"),
    ):
        yield f'<button id={name} type=button title="{title}" aria-label="{title}">{text}</button>'
    yield '<span id=span class=span role=status></span></div>\n<div class=legend aria-hidden="true">'
    for name, colour in (("value", "value"), ("expected", "expected"), ("score", "score"), ("flagged", "flag")):
        yield f'<span class=line style="--c:var(--{colour})">{name}</span>'
    yield '<span style="--c:var(--band)">expected band (±3 σ)</span><span style="--c:var(--alert)">alert</span>'
    yield '<span class=told style="--c:var(--flag)">told</span>'
    yield '<span style="--c:var(--label-fill);--b:3px;--d:var(--label)">labelled</span>'
    yield '<span style="--c:var(--learned)">learned from</span></div>'
    yield "<p class=dim>Drag to zoom, shift and drag to pan, double-click for all of it; wheel zooms once a plot was"
    yield "clicked, or with Ctrl. Keys: arrows, + − 0, n and p for the next and previous alert. <span id=thinned></span></p>"
    yield '<div id=plots tabindex=0 role=group aria-label="Plots; arrow keys pan, plus and minus zoom, 0 shows all"></div>'
    yield "<noscript><p>The plots need JavaScript; all numbers are in scores.csv.</p></noscript>"


def _foot(summary: dict[str, Any]) -> Iterator[str]:
    yield "<footer>"
    for note in summary.get("notes", [])[:20]:
        yield f"{escape(note)}<br>"
    yield "A row is flagged where its score reaches 1, the threshold that the budget implies, or where it breaks a rule. "
    yield f"Times are UTC. Written by sentinel {escape(__version__)}.</footer>"


def _link(result: Result, shown: Sequence[int], device: str, begin: float, end: float) -> str:
    """A time that leads to its place in the plots, where the device has any."""
    at = result.devices.index(device) if device in result.devices else -1
    when = escape(moment(result, begin))
    if at not in shown:
        return when
    place = f'data-device="{shown.index(at)}" data-from="{begin!r}" data-to="{end!r}"'
    return f'<button type=button title="Show in the plots" {place}>{when}</button>'


def flagged(summary: dict[str, Any]) -> str:
    """Rows flagged, and their share of those that were not learned from."""
    judged = summary["rows"] - summary["rows_learned"]
    share = f" ({summary['rows_flagged'] / judged:.2%})" if judged else ""
    return f"{summary['rows_flagged']:,}{share}"


def counted(summary: dict[str, Any]) -> str:
    """How many alerts there were, and how many the budget allows in that time."""
    weeks, starts = summary["device_weeks"], summary["alerts"].get("prediction", 0)
    allowed = weeks * summary["alert_budget_per_device_week"]
    outside = (
        f", {summary['labels']['alerts_outside']:,} of them outside labelled events" if "labels" in summary else ""
    )
    return f"{starts:,} in {device_time(weeks * WEEK)}{outside}" + (f", {allowed:.2g} allowed" if allowed else "")


def episodes(result: Result) -> list[Alert]:
    """The alerts as they ended up, in order of their beginnings."""
    return sorted(result.final, key=lambda alert: alert.started)


def would_have_fired(summary: dict[str, Any]) -> list[tuple[str, int, float]]:
    """Budgets, the alerts that would have started with each, and those that it allows in that time."""
    seconds = summary["device_weeks"] * WEEK
    return [(text, n, parse_budget(text) * seconds) for text, n in summary.get("would_have_fired", {}).items()]


def told_after(alert: Alert) -> str:
    """Time from an episode's beginning to its alert."""
    if alert.fired is None:
        return "never fired"
    return duration(alert.fired - alert.started) if alert.fired > alert.started else "at once"


def length(alert: Alert) -> str:
    """How long an episode that is over was."""
    lasted = (alert.ended if alert.ended is not None else alert.updated) - alert.started
    return duration(lasted) if lasted > 0 else "one reading"


def shares(alert: Alert) -> list[tuple[str, float]]:
    """Channels with the largest parts of the surprise; none for rules that are of no channel."""
    found = sorted(((view.name, view.share) for view in alert.channels), key=lambda pair: -pair[1])
    return [(name, share) for name, share in found[:MOST_CHANNELS] if share >= 0.01]


def _left_out(count: int) -> str:
    return f"<p class=dim>The first {MOST_LINES} of {count:,}.</p>" if count > MOST_LINES else ""


def _covered(result: Result) -> str:
    begin, end = float(result.time.min()), float(result.time.max())
    return f"{_some(result.devices)}: {moment(result, begin)} to {moment(result, end)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")


def _dated(result: Result) -> bool:
    return float(np.median(result.time)) > DATED


def moment(result: Result, time: float) -> str:
    """A time as people write it, UTC; of recordings without dates, the number."""
    if not _dated(result):
        return f"{time:.15g} s"
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{time:.15g} s"


# --- in plots ---


def _until(result: Result, alert: Alert) -> float:
    """Where an alert's shade ends: of one that is still open, with the data."""
    return alert.ended if alert.ended is not None else max(float(result.time.max()), alert.updated)


def _highest(result: Result, alert: Alert) -> str:
    """Highest score, in digits; what the last transition of an open alert says may be of long ago."""
    if alert.score is None:
        return "–"
    during = result.device == result.devices.index(alert.device)
    during &= (result.time >= alert.started) & (result.time <= _until(result, alert))
    return f"{np.fmax.reduce(result.score[during], initial=alert.score):.2f}"


def _chosen(result: Result) -> list[int]:
    """Devices to plot: most alerts first, then most flagged rows, then in input order."""
    alerts = Counter(alert.device for alert in result.final)
    flagged = np.bincount(result.device[result.anomaly], minlength=len(result.devices))
    order = sorted(range(len(result.devices)), key=lambda at: (-alerts[result.devices[at]], -int(flagged[at])))
    rows, numbers = np.bincount(result.device, minlength=len(result.devices)), 0
    out: list[int] = []
    for at in order[:MOST_DEVICES]:
        numbers += int(rows[at]) * _numbers(result)
        if out and numbers > MOST_NUMBERS:
            break
        out.append(at)
    return out


def _numbers(result: Result) -> int:
    """Numbers that a row takes: its time (two), score, and four a channel."""
    return 3 + 4 * len(result.channels)


def _data(result: Result, shown: Sequence[int]) -> dict[str, Any]:
    """What the script reads."""
    units = {view.name: view.unit for alert in result.final for view in alert.channels}
    return {
        "dated": _dated(result),
        "interval": result.interval,
        "channels": [{"name": name, "unit": units.get(name, "")} for name in result.channels],
        "devices": [_device(result, at) for at in shown],
    }


def _device(result: Result, at: int) -> dict[str, Any]:
    """One device's rows in time order, thinned where they are too many."""
    rows = np.flatnonzero(result.device == at)
    rows = rows[np.argsort(result.time[rows], kind="stable")]
    flags = (FLAGGED * result.anomaly[rows] + LEARNED * result.learned[rows]).astype(np.uint8)
    if result.label is not None:
        flags |= (LABELLED * (result.label[rows] == 1)).astype(np.uint8)
    every = -(-2 * len(rows) * _numbers(result) // MOST_NUMBERS) if len(rows) * _numbers(result) > MOST_NUMBERS else 1
    name = result.devices[at]
    # A forecast that float32 cannot hold is none.
    drawn = [
        np.where(np.abs(part[rows]) < 1e38, part[rows], np.nan) for part in (result.expected, result.low, result.high)
    ]
    least, most = np.fmin, np.fmax
    values = _thin(result.values[rows], every, least, most)
    expected = _thin(drawn[0], every, least, most)
    low, high = _thin(drawn[1], every, least, least), _thin(drawn[2], every, most, most)
    return {
        "id": name,
        "every": every,
        "time": packed(_thin(result.time[rows], every, least, most), "<f8"),
        "score": packed(_thin(result.score[rows], every, most, most), "<f4"),
        "flags": packed(_thin(flags, every, np.bitwise_or, np.bitwise_or), "u1"),
        "series": [
            [packed(part[:, channel], "<f4") for part in (values, expected, low, high)]
            for channel in range(len(result.channels))
        ],
        "alerts": [
            {"from": alert.started, "to": _until(result, alert), "fired": alert.fired, "kind": alert.kind}
            for alert in result.final
            if alert.device == name
        ],
    }


def _thin(column: npt.NDArray[Any], every: int, first: np.ufunc, second: np.ufunc) -> npt.NDArray[Any]:
    """For each `every` rows two: what `first` and `second` make of them. NaN counts only where there is nothing else."""
    if every == 1:
        return column
    begins = np.arange(0, len(column), every)
    pair = np.stack([reduce.reduceat(column, begins, axis=0) for reduce in (first, second)], axis=1)
    out: npt.NDArray[Any] = pair.reshape(-1, *column.shape[1:])
    return out
