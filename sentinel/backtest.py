"""The daemon's stream over recordings: the same pipeline, in time order, with the event time for a clock.

Axes: T rows of all recordings together, F channels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sentinel import trainer
from sentinel.adapters.tables import Recording
from sentinel.errors import DataError
from sentinel.model import calibrate, kernel
from sentinel.model.calibrate import WEEK
from sentinel.model.learn import MOST_TICKS, Learned, Series, Stretch, learn, next_learning
from sentinel.model.score import Detector
from sentinel.records import Alert, Bools, Channel, EventTime, Floats, Ints, ProfileSpec, Readings, Transition
from sentinel.stream.alerts import AlertBook
from sentinel.stream.maintenance import ends
from sentinel.stream.pipeline import Outcome, ProfileStream, Ticks

CHUNK = 2048  # rows absorbed at once; no outcome depends on it
DEFAULT_SHARE, DEFAULT_ROWS = 0.15, 750
OTHER_BUDGETS = {"1/month": 7 / (30.4375 * WEEK), "1/week": 1 / WEEK, "1/day": 7 / WEEK}
TERMS = ("highest", "together", "joint", "count", "unsure", "tail", "slope", "highest_rare", "together_rare")

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to learn from.

    Attributes:
        rows: first rows of each device; None: see `share`.
        share: first share of the rows of each device, at most `most`; ignored where `rows` is given.
        recordings: learn from these instead.
        declared: the user vouches that what is learned from is normal.
        seed: of all randomness.
        relearn: learn on whenever a tenth more ticks have come.
    """

    rows: int | None = None
    share: float = DEFAULT_SHARE
    most: int | None = DEFAULT_ROWS
    recordings: tuple[Recording, ...] = ()
    declared: bool = False
    seed: int = 0
    relearn: bool = True


@dataclass(frozen=True, slots=True)
class Event:
    """Rows of one device, one after the other, that are labelled anomalous and were not learned from.

    Attributes:
        first, last: rows, in input order.
        delay: seconds from its first row to its first flagged one; None: none was flagged.
    """

    device: str
    first: int
    last: int
    delay: float | None


@dataclass(slots=True)
class Result:
    """A row each of the recordings, one after the other in input order.

    Attributes:
        channels: F names; expected, low, high are in their units, NaN where there is none.
        learned: rows that were learned from: no score, no anomaly.
        alert: id of the open alert, "" where there is none.
        terms: what each score is made of, (T, 9); None: there is none.
        elsewhere: rows of other recordings that were learned from.
        would_have_fired: alerts at other budgets, by budget.
        alerts: every transition, in order.
        final: last transition of each alert, in order of their starts.
    """

    channels: tuple[str, ...]
    device: npt.NDArray[np.int64]
    devices: list[str]
    time: Floats
    values: Floats
    label: npt.NDArray[np.int8] | None
    learned: Bools
    score: Floats
    p_value: Floats
    anomaly: Bools
    expected: Floats
    low: Floats
    high: Floats
    alert: list[str] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    interval: float = 1.0
    budget: float = 0.0
    terms: kernel.F4 | None = None
    elsewhere: int = 0
    would_have_fired: dict[str, int] = field(default_factory=dict)

    @property
    def final(self) -> list[Alert]:
        last: dict[str, Alert] = {}
        for alert in self.alerts:
            last[alert.id] = alert
        return list(last.values())

    def note(self, transition: Transition, row: int) -> None:
        """An alert changed, with that row."""
        alert = transition.alert
        self.alerts.append(alert)
        if transition.fires or alert.id not in self.starts:
            self.starts[alert.id] = row
        if alert.state == "resolved":
            self.ends[alert.id] = row

    def close(self, stream: ProfileStream, order: Ints, judged: Ints) -> None:
        """All rows are in: say which alert was open at each, and what other budgets would have given.

        Args:
            stream: as it is at the end.
            order: all rows, in the order in which they were taken.
            judged: all rows, those of a device in that order.
        """
        self.alert = self._alert_ids(order)
        if self.terms is not None:
            rows = judged[~self.learned[judged]]
            self.would_have_fired = {name: self._starts(stream, rows, budget) for name, budget in OTHER_BUDGETS.items()}

    def _starts(self, stream: ProfileStream, judged: Ints, budget: float) -> int:
        """Alerts of all devices at another budget."""
        assert self.terms is not None
        detector, slabs = stream.detector, stream.slabs
        assert detector is not None
        assert slabs is not None
        level = calibrate.declared_level(budget) if detector.declared else np.nan
        total = 0
        for at, rows in _by_device(self.device, judged):
            slot = stream.table.slot_of.get(self.devices[at])
            if slot is not None:
                dt = np.maximum(np.diff(self.time[rows], prepend=self.time[rows[0]]), 0.0)
                interval, rest = (float(slabs.view(field)[slot]) for field in ("interval", "refractory"))
                terms = np.ascontiguousarray(self.terms[rows].T)
                total += kernel.starts(
                    terms, dt, interval, budget, level, int(rest), stream.spec.quiet_ticks, detector.declared
                )
        return total

    def _alert_ids(self, order: Ints) -> list[str]:
        out = np.full(len(self.time), "", dtype=object)
        place = np.arange(len(order) + 1)
        place[order] = np.arange(len(order))
        rows_of = dict(_by_device(self.device, order))
        index = {name: at for at, name in enumerate(self.devices)}
        for alert in sorted(self.final, key=lambda a: (a.kind == "prediction", a.started)):
            rows = rows_of.get(index.get(alert.device, -1))
            if rows is None:
                continue
            last = place[self.ends[alert.id]] if alert.id in self.ends else len(order)
            first, after = np.searchsorted(place[rows], [place[self.starts[alert.id]], last])
            out[rows[first:after]] = alert.id
        return out.tolist()

    def watched(self) -> Floats:
        """Seconds that each device was watched, (devices,); what was learned from and long gaps left out."""
        out = np.zeros(len(self.devices))
        for at, rows in _by_device(self.device, np.flatnonzero(~self.learned)):
            out[at] = trainer.covered(self.time[rows], self.interval)
        return out

    def summary(self) -> dict[str, Any]:
        """What a plant engineer asks, as plain data."""
        judged = ~np.isnan(self.score)
        weeks = float(self.watched().sum()) / WEEK
        kinds: dict[str, int] = {}
        for alert in self.final:
            if alert.fired is not None:
                kinds[alert.kind] = kinds.get(alert.kind, 0) + 1
        starts = kinds.get("prediction", 0)
        out: dict[str, Any] = {
            "rows": len(self.time),
            "rows_learned": int(self.learned.sum()),
            "rows_learned_elsewhere": self.elsewhere,
            "rows_scored": int(judged.sum()),
            "rows_flagged": int((self.anomaly & ~self.learned).sum()),
            "devices": len(self.devices),
            "channels": list(self.channels),
            "device_weeks": weeks,
            "alerts": kinds,
            "alerts_per_device_week": starts / weeks if weeks else None,
            "alert_budget_per_device_week": self.budget * WEEK,
            "would_have_fired": self.would_have_fired,
        }
        if self.label is not None:
            out["labels"] = self._against_labels()
        return out

    def events(self) -> list[Event]:
        """The labelled events, by device, in input order."""
        out: list[Event] = []
        if self.label is None:
            return out
        truth = (self.label == 1) & ~self.learned
        for at, rows in _by_device(self.device, np.arange(len(self.device))):
            for first, last in _runs(truth[rows]):
                event = rows[first : last + 1]
                flagged = event[self.anomaly[event]]
                delay = float(self.time[flagged[0]] - self.time[event[0]]) if len(flagged) else None
                out.append(Event(self.devices[at], int(event[0]), int(event[-1]), delay))
        return out

    def _alerts_outside(self) -> int:
        """Prediction alerts with no labelled row while they were open, nor within a refractory before: the way back."""
        assert self.label is not None
        labelled = np.flatnonzero(self.label == 1)
        events = {self.devices[at]: self.time[rows] for at, rows in _by_device(self.device, labelled)}
        way_back = calibrate.REFRACTORY * self.interval
        outside = 0
        for alert in self.final:
            if alert.kind == "prediction" and alert.fired is not None:
                moments = events.get(alert.device, np.empty(0))
                ended = np.inf if alert.ended is None else alert.ended
                outside += not ((moments >= alert.started - way_back) & (moments <= ended)).any()
        return outside

    def _against_labels(self) -> dict[str, Any]:
        assert self.label is not None
        use = ~self.learned
        truth, flag = (self.label == 1) & use, self.anomaly & use
        hit = int((truth & flag).sum())
        false, missed = int((flag & ~truth).sum()), int((truth & ~flag).sum())
        events = self.events()
        delays = [event.delay for event in events if event.delay is not None]
        normal = int((~truth & use).sum())
        return {
            "alerts_outside": self._alerts_outside(),
            "rows_anomalous": int(truth.sum()),
            "f1": hit / (hit + (false + missed) / 2) if hit + false + missed else None,
            "false_alarm_rate": false / normal if normal else None,
            "missed_alarm_rate": missed / int(truth.sum()) if truth.any() else None,
            "events": len(events),
            "events_found": len(delays),
            "median_delay_seconds": float(np.median(delays)) if delays else None,
        }


def _runs(flags: Bools) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    yield from ((int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True))


def _learnings(first: int, end: int) -> Ints:
    """Ticks at which a network learns, from those that it learned from `first` on, before `end`."""
    out = [first]
    while next_learning(out[-1]) < end:
        out.append(next_learning(out[-1]))
    return np.array(out)


def _by_device(device: Ints, rows: Ints) -> Iterator[tuple[int, Ints]]:
    """Each device that has any of the rows, and those, in the order given."""
    mine = rows[np.argsort(device[rows], kind="stable")]
    for part in np.split(mine, np.flatnonzero(np.diff(device[mine])) + 1):
        if len(part):
            yield int(device[part[0]]), part


@dataclass(frozen=True, slots=True)
class Judged:
    """What the stream said of one wave of B ticks; NaN where there was no score.

    Attributes:
        score, p_value, anomaly: (B,).
        terms: what each score is made of, (B, 9).
        band: expected value, low, high, (B, F of the channels asked for) each.
    """

    score: Floats
    p_value: Floats
    anomaly: Bools
    terms: kernel.F4
    band: tuple[Floats, Floats, Floats]

    @staticmethod
    def of(stream: ProfileStream, ticks: Ticks, channels: Sequence[str]) -> "Judged":
        """Just after the stream took them."""
        broken = np.asarray(ticks.broken.any.any(axis=1), dtype=np.bool_)
        count = len(ticks.batch)
        low, middle, high = (np.full((count, len(channels)), np.nan) for _ in range(3))
        if ticks.scored is None or stream.detector is None:
            none = np.full(count, np.nan)
            return Judged(none, none, broken, np.full((count, len(TERMS)), np.nan, np.float32), (middle, low, high))
        known = stream.detector.channels
        ours = [at for at, name in enumerate(known) if name in channels]
        there = [channels.index(known[at]) for at in ours]
        given = [stream.channels.index(name) for name in known]
        band = stream.expectation(ticks.scored, ticks.previous[:, given])
        for part, found in zip((middle, low, high), band, strict=True):
            part[:, there] = found[:, ours]
        score = ticks.scored.score.astype(np.float64)
        terms = np.column_stack([getattr(ticks.scored, term) for term in TERMS])
        return Judged(
            score, ticks.scored.p_value.astype(np.float64), broken | (score >= 1.0), terms, (middle, low, high)
        )


class Backtest:
    """One run over recordings.

    Args:
        spec: of the profile; each row is a tick, whatever its `align_window`.

    Attributes:
        apart: `trainer.told_apart` of what was learned from.

    Raises:
        DataError: a channel of the profile is missing, or there is too little to learn from.
    """

    def __init__(
        self, spec: ProfileSpec, recordings: Sequence[Recording], progress: Progress = lambda _what, _share: None
    ) -> None:
        recorded = spec.time or EventTime(("time",))  # a recording has event times, whatever the payloads have
        self.spec = replace(spec, align_window=0.0, max_channels=1024, max_devices=1 << 30, time=recorded)
        self._progress = progress
        if spec.channels is None:
            names = dict.fromkeys(name for recording in recordings for name in recording.channels)
            self.channels = tuple(names)
        else:
            self.channels = tuple(channel.name for channel in spec.channels)
        if not self.channels:
            msg = f"{recordings[0].path}: no numeric column to take for a channel"
            raise DataError(msg)
        self.devices: list[str] = list(dict.fromkeys(name for recording in recordings for name in recording.devices))
        self.apart: list[str] = []
        self._left_out: list[Stretch] = []
        self._recordings = recordings
        parts = [self._columns(recording) for recording in recordings]
        index = {name: at for at, name in enumerate(self.devices)}
        self.values = np.concatenate(parts)
        self.time = np.concatenate([recording.time for recording in recordings])
        self.device: Ints = np.concatenate(
            [np.array([index[name] for name in r.devices], dtype=np.int64)[r.device] for r in recordings]
        )
        self.label = None
        if any(recording.label is not None for recording in recordings):
            self.label = np.concatenate(
                [r.label if r.label is not None else np.zeros(len(r), dtype=np.int8) for r in recordings]
            )
        self.stream = ProfileStream(self.spec)
        self.stream.keep_ticks = True
        self._history: list[Ints] = []  # rows that were taken, in order
        self._elsewhere = 0  # rows of other recordings that were learned from

    def _columns(self, recording: Recording) -> Floats:
        given = {channel.name: channel for channel in self.spec.channels or ()}
        out = np.full((len(recording), len(self.channels)), np.nan)
        found = 0
        for at, name in enumerate(self.channels):
            path = ".".join(given[name].path) if name in given else name
            column = name if name in recording.channels else path
            if column in recording.channels:
                out[:, at] = recording.values[:, recording.channels.index(column)]
                found += 1
        if not found:
            has = ", ".join(recording.channels)
            msg = f"{recording.path}: none of the channels {', '.join(self.channels)} is there; it has {has}"
            raise DataError(msg)
        return out

    def run(self, plan: Plan | None = None, model: tuple[Detector, Any] | None = None) -> Result:
        """Learn as planned, or take a stored `model` (detector, its shadow stream), then score all rows."""
        rows = self._in_order()
        learned = np.zeros(len(rows), dtype=np.bool_)
        if model is not None:
            trainer.take_over(self.stream, model[1])
            plan = None
        elif plan is None:
            plan = Plan()
        if plan is not None and plan.recordings:
            self._learn_from(plan)
        elif plan is not None:
            learned = self._first_rows(plan, rows)
            self._absorb(rows[learned[rows]], None)
            self._adopt(plan)
        result = Result(
            channels=self.channels,
            device=self.device,
            devices=self.devices,
            time=self.time,
            values=self.values,
            label=self.label,
            learned=learned,
            score=np.full(len(rows), np.nan),
            p_value=np.full(len(rows), np.nan),
            anomaly=np.zeros(len(rows), dtype=np.bool_),
            expected=np.full(self.values.shape, np.nan),
            low=np.full(self.values.shape, np.nan),
            high=np.full(self.values.shape, np.nan),
            interval=self.stream.detector.interval if self.stream.detector is not None else 1.0,
            budget=self.spec.alert_budget,
            elsewhere=self._elsewhere,
        )
        relearn = (
            plan if plan is not None and plan.relearn and not plan.declared and self.spec.learn == "online" else None
        )
        self._absorb(rows[~learned[rows]], result, relearn)
        result.alerts.sort(key=lambda alert: alert.updated)
        result.close(self.stream, self._order(rows), rows)
        return result

    def _in_order(self) -> Ints:
        """All rows, each recording's together; those of one device in the order in which its recordings began."""
        parts = list(self.by_recording())
        if sum(len(recording.devices) for recording in self._recordings) > len(self.devices):
            parts.sort(key=lambda part: float(self.time[part].min(initial=np.inf)))
        return np.concatenate(parts)

    def _first_rows(self, plan: Plan, rows: Ints) -> Bools:
        out = np.zeros(len(self.time), dtype=np.bool_)
        for _, mine in _by_device(self.device, rows):
            count = plan.rows if plan.rows is not None else int(plan.share * len(mine))
            if plan.rows is None and plan.most is not None:
                # A short recording gives more than its share, so that there is something to learn from.
                count = max(min(count, plan.most), min(trainer.LEAST_TICKS, len(mine) // 2))
            out[mine[:count]] = True
        return out

    def _order(self, rows: Ints) -> Ints:
        """Rows in time order across devices, in the order given within one: one out of order is late, as it would be."""
        keys = np.empty(len(self.time))
        for _, mine in _by_device(self.device, rows):
            keys[mine] = np.maximum.accumulate(self.time[mine])
        ordered: Ints = rows[np.argsort(keys[rows], kind="stable")]
        return ordered

    def _readings(self, rows: Ints) -> Readings:
        names = [self.devices[at] for at in self.device[rows].tolist()]
        return Readings(self.spec.name, self.channels, names, self.time[rows], self.values[rows], rows)

    def _absorb(self, rows: Ints, result: Result | None, relearn: Plan | None = None) -> None:
        rows = rows[~np.isnan(self.values[rows]).all(axis=1)]
        done = 0
        for segment in self._segments(rows) if relearn is not None else [rows]:
            if done and relearn is not None:
                self._adopt(relearn)
            for part in self._by_calendar(self._abreast(segment)):
                done += len(part)
                outcome, _ = self.stream.absorb(self._readings(part), float(self.time[part].max()))
                self._history += [ticks.batch.message for ticks in outcome.ticks] if result is None or relearn else []
                if result is not None:
                    self._progress("scoring", done / len(rows))
                    self._note(result, outcome)

    def _by_calendar(self, parts: Iterable[Ints]) -> Iterator[Ints]:
        """Cut where maintenance begins or ends: the time of a part is that of each of its rows, as for its alerts."""
        for part in parts:
            if not self.spec.maintenance:
                yield part
                continue
            over = [ends(self.spec.maintenance, self.spec.timezone, time) or 0.0 for time in self.time[part].tolist()]
            yield from np.split(part, np.flatnonzero(np.diff(over)) + 1)

    def _segments(self, rows: Ints) -> Iterator[Ints]:
        """Rows to absorb before each new learning: until there are `GROWTH` times as many ticks as at the last.

        Of each device, where it has a network of its own; else of all.
        """
        ticks = np.bincount(self.device, minlength=len(self.devices)) - np.bincount(
            self.device[rows], minlength=len(self.devices)
        )
        if self.spec.model.weights == "shared":
            ordered, total = self._order(rows), max(int(ticks.sum()), self._elsewhere)
            yield from np.split(ordered, _learnings(total, total + len(ordered))[1:] - total)
            return
        rank = self._rank(rows)
        begun = np.maximum(ticks[self.device[rows]], trainer.LEAST_TICKS)
        rounds = np.zeros(len(rows), dtype=np.int64)
        for _, mine in _by_device(self.device[rows], np.arange(len(rows))):
            first = int(begun[mine[0]])
            rounds[mine] = np.searchsorted(_learnings(first, first + len(mine)), rank[mine] + first, side="right") - 1
        for at in range(int(rounds.max(initial=-1)) + 1):
            yield rows[rounds == at]

    def _rank(self, rows: Ints) -> Ints:
        """How many rows of the same device come before each, in the order of `_order`."""
        device = self.device[rows]
        order = np.argsort(device, kind="stable")
        first = np.searchsorted(device[order], device)
        out = np.empty(len(rows), dtype=np.int64)
        out[order] = np.arange(len(rows))
        return out - first

    def _abreast(self, rows: Ints) -> list[Ints]:
        """Chunks in which all devices go on side by side: no score depends on how devices interleave."""
        ordered = rows[np.argsort(self._rank(rows), kind="stable")]
        return np.split(ordered, np.arange(CHUNK, len(ordered), CHUNK))

    def _note(self, result: Result, outcome: Outcome) -> None:
        for ticks in outcome.ticks:
            rows, judged = ticks.batch.message, Judged.of(self.stream, ticks, self.channels)
            result.anomaly[rows] = judged.anomaly
            if ticks.scored is None:
                continue
            if result.terms is None:
                result.terms = np.full((len(self.time), len(TERMS)), np.nan, dtype=np.float32)
            result.terms[rows] = judged.terms
            result.score[rows], result.p_value[rows] = judged.score, judged.p_value
            result.expected[rows], result.low[rows], result.high[rows] = judged.band
        for transition in outcome.transitions:
            result.note(transition, transition.message)

    # --- learning ---

    def _series(self) -> list[Series]:
        """What was taken, the newest of each device."""
        if not self._history:
            return []
        known = [self.channels.index(name) for name in self.stream.channels]
        taken = [rows[-MOST_TICKS:] for _, rows in _by_device(self.device, np.concatenate(self._history))]
        self._history = taken
        names = [self.devices[self.device[rows[0]]] for rows in taken]
        return [
            Series(name, self.time[rows], self.values[rows][:, known]) for name, rows in zip(names, taken, strict=True)
        ]

    def covered(self) -> float:
        """Device-seconds that all rows cover, once something was learned; long gaps left out."""
        assert self.stream.detector is not None
        parts = _by_device(self.device, np.arange(len(self.device)))
        return sum(trainer.covered(self.time[rows], self.stream.detector.interval) for _, rows in parts)

    def learn_all(self, plan: Plan) -> Learned:
        """Learn from all rows; the stream then runs what was learned."""
        for rows in self.by_recording():
            # Each recording begins anew: its times need not follow those of the one before.
            self.stream.table.last_time[:] = -np.inf
            self._absorb(rows, None)
        return self._learn(self._series(), plan)

    def _learn(self, series: list[Series], plan: Plan) -> Learned:
        series = [s for s in series if len(s) >= 2]
        if not series or max(len(s) for s in series) < trainer.LEAST_TICKS:
            most = max((len(s) for s in series), default=0)
            msg = f"{most} rows to learn from, at least {trainer.LEAST_TICKS} are needed: give more, or --train FILE"
            raise DataError(msg)
        given = {channel.name: channel for channel in self.spec.channels or ()}
        current = self.stream.detector
        learned = learn(
            series,
            [given.get(name, Channel(name)) for name in self.stream.channels],
            self.spec.model,
            seed=plan.seed,
            declared=plan.declared,
            start=current,
            placed=self.stream.placed(),
            left_out=self._left_out,
            progress=self._progress,
        )
        if not plan.declared:
            self._left_out += [one.stretch for one in learned.apart]
        self.apart += trainer.told_apart(learned, self.spec)
        if learned.better:
            trainer.adopt(self.stream, learned)
        return learned

    def _adopt(self, plan: Plan) -> None:
        first = self.stream.detector is None
        self._learn(self._series(), plan)
        if first:
            # What the rules said of rows that were learned from is nobody's alert.
            self.stream.book = AlertBook(self.spec, self.stream.book.model)
            self.stream.table.open[:] = False
            self.stream.table.last_start[:] = -(1 << 40)

    def _learn_from(self, plan: Plan) -> None:
        """Learn from recordings of their own. One device here and in each of them: they are that device's past."""
        self._elsewhere = sum(map(len, plan.recordings))
        other = Backtest(self.spec, plan.recordings, self._progress)
        own = len(self.devices) == 1 and all(len(recording.devices) == 1 for recording in plan.recordings)
        if own:
            other.devices, other.device = list(self.devices), np.zeros_like(other.device)
        other.learn_all(plan)
        self.apart += other.apart
        follows = own and float(self.time.min()) > float(other.time.max())
        if follows:
            self.stream = other.stream
            self.stream.book = AlertBook(self.spec, self.stream.book.model)
            self.stream.table.open[:] = False
        else:
            for name in self.devices:
                self.stream.announce(name)
            trainer.take_over(self.stream, other.stream)

    def by_recording(self) -> Iterator[Ints]:
        """Rows of each recording, in order."""
        at = 0
        for recording in self._recordings:
            yield np.arange(at, at + len(recording))
            at += len(recording)


def alert_json(alert: Alert) -> dict[str, Any]:
    """An alert as published."""
    return asdict(alert)
