"""What the page is shown, as of one moment; nobody modifies it afterwards. Axes: N devices, T ticks, F channels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sentinel.records import DEVICE_STATES, Alert, DeviceState, Floats, Ints

Values = npt.NDArray[np.float32 | np.float64]


class Key(NamedTuple):
    """One device of one profile."""

    profile: str
    device: str


@dataclass(frozen=True, slots=True)
class ProfileRows:
    """One profile and its N devices, a row each.

    Attributes:
        state: place in `DEVICE_STATES`, (N,).
        score: NaN: no score yet, (N,).
        last_seen: receive time of the last reading, (N,).
        status: of the profile, as `{prefix}/status` tells it.
    """

    name: str
    device: Sequence[str]
    state: npt.NDArray[np.int8]
    score: Floats
    last_seen: Floats
    status: Mapping[str, Any]


@dataclass(frozen=True)
class Fleet:
    """Every device of every profile. What is derived is made by the thread that asks first, not by the one that shows."""

    profiles: Sequence[ProfileRows] = ()
    now: float = 0.0

    @cached_property
    def device(self) -> tuple[str, ...]:
        return tuple(device for profile in self.profiles for device in profile.device)

    @cached_property
    def profile(self) -> tuple[str, ...]:
        return tuple(profile.name for profile in self.profiles for _ in profile.device)

    @cached_property
    def state(self) -> npt.NDArray[np.int8]:
        return np.concatenate([np.zeros(0, dtype=np.int8), *(profile.state for profile in self.profiles)])

    @cached_property
    def score(self) -> Floats:
        return np.concatenate([np.zeros(0), *(profile.score for profile in self.profiles)])

    @cached_property
    def last_seen(self) -> Floats:
        return np.concatenate([np.zeros(0), *(profile.last_seen for profile in self.profiles)])

    @cached_property
    def row_of(self) -> dict[Key, int]:
        return {Key(*pair): row for row, pair in enumerate(zip(self.profile, self.device, strict=True))}

    @cached_property
    def counts(self) -> dict[DeviceState, int]:
        counts = np.bincount(self.state, minlength=len(DEVICE_STATES))
        return dict(zip(DEVICE_STATES, counts.tolist(), strict=True))


@dataclass(frozen=True)
class Alerts:
    """Attributes:
    open: alerts that are not resolved, by device.
    history: the newest transition of each alert, the oldest first.
    courses: of resolved alerts, by id.
    shelved: until when devices are.
    """

    open: Mapping[Key, tuple[Alert, ...]] = field(default_factory=dict)
    history: Sequence[Alert] = ()
    courses: Mapping[str, Course] = field(default_factory=dict)
    shelved: Mapping[Key, float] = field(default_factory=dict)

    @cached_property
    def worst(self) -> dict[Key, Alert]:
        """The most urgent open alert of each device."""
        return {key: max(alerts, key=_urgency) for key, alerts in self.open.items()}


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick as people see it; NaN where there is nothing.

    Attributes:
        values, low, high: in the channels' units, (F,) each; the band of what was expected.
    """

    time: float
    score: float
    values: Values
    low: Values
    high: Values


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """How an alert went: its first T ticks and those before it, of the channel that it names first.

    Attributes:
        since: event time at which it began.
        time: (T,).
        values, low, high: in `unit`, (T,), NaN where there is nothing.
    """

    name: str
    unit: str
    since: float
    time: Floats
    values: npt.NDArray[np.float32]
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Detail:
    """One device that somebody looks at.

    Attributes:
        channels: name and unit of each of the F channels.
        last: last value of each channel, (F,), whether or not its tick is among `ticks`.
        ticks: the newest ticks.
        alerts: open, as they are now, the most urgent first.
        courses: of these, by id.
        raised: share by which its threshold for alerts is raised after past ones.
        rest: readings for which no prediction alert begins, after the last one has.
    """

    channels: Sequence[tuple[str, str]]
    last: Floats
    ticks: Sequence[Tick]
    alerts: Sequence[Alert]
    courses: Mapping[str, Course] = field(default_factory=dict)
    raised: float = 0.0
    rest: int = 0


Which = Literal["all", "alerts", "learning", "silent"]
Sort = Literal["urgency", "device", "profile", "state", "score", "seen"]
PAGE = 50  # devices
MOST_QUERY = 200  # characters
_DIGITS = re.compile(r"(\d+)")
_SHELVED = 0.5  # a device that nothing is wrong with
_URGENCY = {"shelved": 1, "pending": 2, "acknowledged": 3, "firing": 4}


@dataclass(frozen=True, slots=True)
class Row:
    """One device of the overview.

    Attributes:
        alert: the most urgent that is open.
        shelved: until when the device is; None: it is not.
    """

    key: Key
    state: DeviceState
    score: float
    last_seen: float
    alert: Alert | None
    shelved: float | None


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody wants to see of the fleet.

    Attributes:
        q: what device ids contain, upper or lower case.
        page: from 1.
    """

    q: str = ""
    which: Which = "all"
    sort: Sort = "urgency"
    down: bool = True
    page: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """A page of rows.

    Attributes:
        total: rows on all pages.
        page, pages: from 1.
    """

    rows: Sequence[Row]
    total: int
    page: int
    pages: int


def ask(fleet: Fleet, alerts: Alerts, question: Question) -> Answer:
    """Choose, sort and cut; costs one pass over the devices."""
    n = len(fleet.device)
    urgency = np.zeros(n)
    urgency[[fleet.row_of[key] for key in alerts.shelved if key in fleet.row_of]] = _SHELVED
    for key, alert in alerts.worst.items():
        if (row := fleet.row_of.get(key)) is not None:
            urgency[row] = _urgency(alert)
    chosen = np.ones(n, dtype=np.bool_)
    if question.which == "alerts":
        chosen = urgency > 0
    elif question.which == "learning":
        chosen = fleet.state <= DEVICE_STATES.index("calibrating")
    elif question.which == "silent":
        chosen = fleet.state >= DEVICE_STATES.index("silent")  # offline, too
    rows = np.flatnonzero(chosen)
    if wanted := question.q.casefold():
        rows = np.array([row for row in rows.tolist() if wanted in fleet.device[row].casefold()], dtype=np.int64)
    rows = _sorted(fleet, urgency, rows, question)
    pages = max(-(-len(rows) // PAGE), 1)
    page = min(max(question.page, 1), pages)
    shown = rows[(page - 1) * PAGE : page * PAGE].tolist()
    return Answer([row_of(fleet, alerts, row) for row in shown], len(rows), page, pages)


def row_of(fleet: Fleet, alerts: Alerts, row: int) -> Row:
    """One device of the fleet."""
    key = Key(fleet.profile[row], fleet.device[row])
    state = DEVICE_STATES[fleet.state[row]]
    score, seen = float(fleet.score[row]), float(fleet.last_seen[row])
    return Row(key, state, score, seen, alerts.worst.get(key), alerts.shelved.get(key))


def _urgency(alert: Alert) -> float:
    """By state, then by score; over 0."""
    return _URGENCY.get(alert.state, 0) + min(alert.score or 0.0, 1e6) / 2e6


def _sorted(fleet: Fleet, urgency: Floats, rows: Ints, question: Question) -> Ints:
    """Rows in the order asked for; those that are alike by name, and what has no number comes last."""
    rank = _ranks(fleet.device)
    rows = rows[np.argsort(rank[rows])]
    score = np.nan_to_num(fleet.score[rows], nan=-np.inf if question.down else np.inf)
    seen = np.where(np.isfinite(fleet.last_seen[rows]), fleet.last_seen[rows], -np.inf if question.down else np.inf)
    columns: dict[Sort, npt.NDArray[Any]] = {
        "urgency": urgency[rows],
        "device": rank[rows],
        "profile": _ranks(fleet.profile)[rows],
        "state": fleet.state[rows],
        "score": score,
        "seen": seen,
    }
    column = columns[question.sort].astype(np.float64)
    return rows[np.argsort(-column if question.down else column, kind="stable")]


@lru_cache(maxsize=2)
def _ranks(names: tuple[str, ...]) -> Ints:
    """Place of each name in their natural order, that of pump-9 before that of pump-10; alike names share theirs."""

    def natural(name: str) -> tuple[int | str, ...]:
        return tuple(int(part) if at % 2 else part for at, part in enumerate(_DIGITS.split(name.casefold())))

    place = {name: at for at, name in enumerate(sorted(set(names), key=natural))}
    return np.fromiter((place[name] for name in names), dtype=np.int64, count=len(names))
