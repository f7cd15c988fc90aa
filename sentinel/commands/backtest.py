"""`sentinel backtest`: the daemon's pipeline over recordings, or over the daemon's own journal."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch
from rich.console import Console

from sentinel import trainer
from sentinel.adapters.models import list_models
from sentinel.adapters.store import open_reader, open_snapshot
from sentinel.adapters.tables import ScoresWriter, read_tables
from sentinel.backtest import Backtest, Plan, Result, alert_json
from sentinel.commands import _report
from sentinel.commands._json import write_json
from sentinel.commands._profile import profile_spec
from sentinel.commands._progress import progress_bar
from sentinel.commands._terminal import say, show_facts, show_table, sparkline
from sentinel.errors import DataError
from sentinel.logs import printable
from sentinel.records import ProfileSpec
from sentinel.rerun import Rerun
from sentinel.settings import load_settings
from sentinel.stream.alerts import duration, quantity

MOST_EPISODES, MOST_NOTES, MOST_DEVICES = 10, 5, 5  # printed; the report has all
DAY = 86400.0

Times = npt.NDArray[np.bytes_] | list[str]
"""The rows' times as text."""


def backtest(
    *,
    data: list[Path],
    from_journal: bool = False,
    config: Path | None,
    profile: str | None,
    train_rows: int | None,
    train_fraction: float | None,
    train: list[Path],
    label_column: str | None,
    seed: int,
    out: Path | None,
    json_file: Path | None,
) -> int:
    """Score `data` as the daemon would, or the journal as it did; write scores.csv, alerts.jsonl, summary.json and
    report.html into `out`.
    """
    torch.set_num_threads(1)
    if from_journal:
        assert config is not None
        assert profile is not None
        rerun, result = _from_journal(config, profile)
        _done(result, result.summary() | {"notes": rerun.notes}, list(map(repr, result.time.tolist())), out, json_file)
        return 0
    spec, stored = ProfileSpec("default"), None
    planned = train_rows is not None or train_fraction is not None or bool(train)
    if config is not None and profile is not None:
        spec, stored = _from_config(config, profile, load=not planned)
    recordings = read_tables(data, label_column=label_column)
    if label_column is not None and all(recording.label is None for recording in recordings):
        has = ", ".join(recordings[0].channels)
        msg = f"{recordings[0].path}: no column {label_column!r} for --label-column; its channels are {has}"
        raise DataError(msg)
    plan = None
    if planned:
        plan = Plan(
            rows=train_rows,
            share=train_fraction if train_fraction is not None else 1.0,
            most=None,
            recordings=tuple(read_tables(train, label_column=label_column)) if train else (),
            declared=True,
            seed=seed,
        )
    elif stored is None:
        plan = Plan(seed=seed)
    with progress_bar() as tell:
        run = Backtest(spec, recordings, tell)
        result = run.run(plan, stored)
    summary = result.summary()
    summary["notes"] = [*_cautions(result), *run.apart, *(note for recording in recordings for note in recording.notes)]
    times = np.concatenate([recording.time_text for recording in recordings])
    _done(result, summary, times, out, json_file)
    return 0


def _done(result: Result, summary: dict[str, Any], times: Times, out: Path | None, json_file: Path | None) -> None:
    if out is not None:
        _write(out, result, summary, times)
    if json_file is not None:
        write_json(json_file, summary)
    _show(summary, result, out)


def _from_journal(config: Path, profile: str) -> tuple[Rerun, Result]:
    """What a daemon did; it may be running."""
    settings = load_settings(config)
    spec, store = profile_spec(settings, config, profile), settings.store.path
    running = None
    if (store / "snapshot.sqlite").exists():
        snapshot = open_snapshot(store)
        image = snapshot.load()
        snapshot.close()
        if image is not None:
            running = orjson.loads(image.meta)["profiles"].get(profile, {}).get("model")
    with open_reader(store) as journal, progress_bar() as tell:
        rerun = Rerun(spec, journal, store / "models", running, tell)
        return rerun, rerun.run()


def _from_config(config: Path, profile: str, *, load: bool) -> tuple[ProfileSpec, Any]:
    settings = load_settings(config)
    spec = profile_spec(settings, config, profile)
    if not load:
        return spec, None
    models = settings.store.path / "models"
    saved = list_models(models, profile)
    if not saved:
        msg = f"profile {profile} has no model in {models}; run `sentinel train`, or give --train, --train-rows or --train-fraction"
        raise DataError(msg)
    detector, manifest, tensors = trainer.load(models, profile, saved[0].version)
    return spec, (detector, trainer.shadow(spec, detector, manifest, tensors))


def _cautions(result: Result) -> list[str]:
    """What the user should know of what was learned from."""
    learned, rest = result.time[result.learned], result.time[~result.learned]
    if not len(learned) or not len(rest):
        return []
    lasted, follows = float(np.ptp(learned)), float(rest.max() - learned.min())
    if lasted >= DAY or follows < 2 * DAY:
        return []
    cycle = "what changes with the time of day, or more slowly, is new to it"
    remedy = "give at least one whole cycle with --train-rows, --train-fraction or --train"
    return [f"learned from {duration(lasted)} only: {cycle}; {remedy}"]


def _write(out: Path, result: Result, summary: dict[str, Any], times: Times) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with ScoresWriter(out / "scores.csv", result.channels) as scores:
            scores.write(
                time=times,
                device=[result.devices[at] for at in result.device.tolist()],
                score=result.score,
                p_value=result.p_value,
                anomaly=result.anomaly,
                alert_id=result.alert,
                value=result.values,
                expected=result.expected,
                low=result.low,
                high=result.high,
            )
        lines = [orjson.dumps(alert_json(alert)) for alert in result.alerts]
        (out / "alerts.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        (out / "summary.json").write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2))
    except OSError as error:
        msg = f"{out} cannot be written ({error.strerror}); check the folder"
        raise DataError(msg) from error
    _report.write_report(out / "report.html", result, summary)


def _learned_from(summary: dict[str, Any]) -> str:
    elsewhere = summary["rows_learned_elsewhere"]
    return f"{elsewhere:,} of other recordings" if elsewhere else f"{summary['rows_learned']:,}"


def _show(summary: dict[str, Any], result: Result, out: Path | None) -> None:
    facts = [
        ("rows", f"{summary['rows']:,}; learned from {_learned_from(summary)}, scored {summary['rows_scored']:,}"),
        ("devices, channels", f"{summary['devices']:,}, {len(summary['channels'])}"),
        ("flagged rows", _report.flagged(summary)),
        ("alerts", ", ".join(f"{count:,} {kind}" for kind, count in summary["alerts"].items()) or "none"),
        *_budget_facts(summary),
        *_label_facts(summary.get("labels")),
    ]
    show_facts(facts)
    say(*(f"note: {note}" for note in summary.get("notes", [])[:MOST_NOTES]))
    _show_scores(result)
    _show_episodes(result)
    if out is not None:
        say(f"written: {out}/scores.csv, alerts.jsonl, summary.json, report.html")


def _budget_facts(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rate, budget = summary["alerts_per_device_week"], summary["alert_budget_per_device_week"]
    if rate is not None:
        told = "too short to tell" if 0 < summary["device_weeks"] * budget < _report.SHORT else f"{rate:.2f}"
        said = f"budget {budget:.2f}" if budget else "no budget: off"
        yield "alarms per device-week", f"{told}, {said}: {_report.counted(summary)}"
    for text, count, allowed in _report.would_have_fired(summary):
        yield f"  at {text}", f"{count} would have fired, {quantity(allowed)} allowed"


def _label_facts(labels: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if not labels:
        return
    found, events = labels["events_found"], labels["events"]
    recall = f" (recall {found / events:.0%})" if events else ""
    delay = labels["median_delay_seconds"]
    after = f", median delay {duration(delay)}" if delay is not None else ""
    yield "labelled events", f"{found} of {events} found{recall}{after}"
    if labels["f1"] is not None:
        false, missed = labels["false_alarm_rate"] or 0.0, labels["missed_alarm_rate"] or 0.0
        yield "rows against labels", f"F1 {labels['f1']:.3f}, FAR {false:.1%}, MAR {missed:.1%}"


def _show_scores(result: Result) -> None:
    """The course of the score of the devices with the most flagged rows; on a terminal alone."""
    if not Console().is_terminal:
        return
    flags = np.bincount(result.device[result.anomaly], minlength=len(result.devices))
    rows = []
    for at in np.argsort(-flags, kind="stable")[:MOST_DEVICES].tolist():
        own = np.flatnonzero((result.device == at) & ~np.isnan(result.score))
        if len(own):
            score = result.score[own[np.argsort(result.time[own], kind="stable")]]
            rows.append(
                [result.devices[at], sparkline(score, 60, highest=True), f"{score.max():.2f}", f"{flags[at]:,}"]
            )
    if rows:
        show_table(["device", "score over time", "highest", "flagged"], rows, right=("highest", "flagged"))


def _show_episodes(result: Result) -> None:
    final = _report.episodes(result)
    if not final:
        return
    rows = [["began", "told after", "lasted", "kind", "channels"]]
    for alert in final[:MOST_EPISODES]:
        lasted = "open at the end" if alert.ended is None else _report.length(alert)
        channels = ", ".join(f"{name} {share:.0%}" for name, share in _report.shares(alert))
        row = [_report.moment(result, alert.started), _report.told_after(alert), lasted, alert.kind, channels]
        rows.append([printable(text) for text in row])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    say(f"  {lines[0]}")
    for line, alert in zip(lines[1:], final[:MOST_EPISODES], strict=True):
        say(f"  {line}", f"    {alert.message}")
    if len(final) > MOST_EPISODES:
        say(f"  … and {len(final) - MOST_EPISODES} more")
