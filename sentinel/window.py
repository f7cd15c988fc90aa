"""What the reactor shows of itself to the page: every device once a second, and more of the few that are watched.

Axes: F channels.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from sentinel.adapters.page import Alerts, Course, Detail, Fleet, Key, Page, ProfileRows, Tick, Values
from sentinel.records import Alert, ChannelView, Transition
from sentinel.stream.pipeline import Look, Pipeline, ProfileStream
from sentinel.stream.recent import Recent

MOST_RECENT = 64 << 20  # bytes, for the newest ticks of all devices; each profile has its share
MOST_WATCHED = 64  # devices
MOST_TICKS = 240  # of each, and of an alert
MOST_BEGUN = 2 * MOST_WATCHED  # open alerts whose ticks are kept
MOST_HISTORY, MOST_KEPT = 1000, 200  # alerts; kept over a restart

Rows = npt.NDArray[Any]
"""Ticks as `Recent.of` has them."""


class Window:
    """Keeps what the page shows and the stream does not: ticks of watched devices and about alerts, and past alerts.

    A device is watched while somebody looks at it, or it has an open alert; those looked at come first. Of the others
    the newest KEPT ticks are there when they are first watched, so that an alert is seen from before it began.

    Holds: MOST_RECENT bytes; MOST_TICKS ticks of MOST_WATCHED devices and MOST_BEGUN open alerts; of MOST_HISTORY
    resolved alerts as many of one channel, 20 bytes each: 5 MB.
    """

    def __init__(self, pipeline: Pipeline, page: Page) -> None:
        self._profiles = pipeline.profiles
        self._page = page
        self._open: dict[Key, tuple[Alert, ...]] = {}
        self._history: OrderedDict[str, Alert] = OrderedDict()
        self._alerts: Alerts | None = Alerts()  # None: changed since it was told
        self._ticks: dict[Key, deque[Tick]] = {}
        self._begun: dict[str, list[Tick]] = {}  # open alerts, from before they began
        self._courses: dict[str, Course] = {}  # resolved alerts
        self._kept = {name: Recent(MOST_RECENT // len(self._profiles)) for name in self._profiles}
        for name, stream in self._profiles.items():
            stream.recent = self._kept[name]

    def export(self) -> list[Alert]:
        """The newest of what is over, for a snapshot."""
        over = [alert for alert in self._history.values() if alert.state == "resolved"]
        return over[-MOST_KEPT:]

    def restore(self, past: Sequence[Mapping[str, Any]]) -> None:
        """Undo `export`, of plain data, before anything else is taken; what another version wrote is left."""
        with suppress(TypeError, KeyError):
            for raw in past:
                views = tuple(ChannelView(**view) for view in raw["channels"])
                self._history[raw["id"]] = Alert(**{**raw, "channels": views})

    def restored(self) -> None:
        """The stream is as it was: its open alerts are news to the page."""
        self._open = {
            Key(stream.spec.name, device): stream.book.alerts(device)
            for stream in self._profiles.values()
            for device in stream.book.open
        }
        for key, alerts in self._open.items():
            for alert in alerts:
                self._begins(key, alert)
        self._alerts = None

    def took_alerts(self, transitions: Sequence[Transition]) -> None:
        """Alerts changed."""
        for transition in transitions:
            alert = transition.alert
            key = Key(alert.profile, alert.device)
            still = tuple(other for other in self._open.get(key, ()) if other.id != alert.id)
            if alert.state == "resolved":
                if (course := self._course(alert, transition.recent)) is not None:
                    self._courses[alert.id] = course
                self._begun.pop(alert.id, None)
            else:
                if len(still) == len(self._open.get(key, ())):
                    self._begins(key, alert, transition.recent)
                still = (*still, alert)
            if still:
                self._open[key] = still
            else:
                self._open.pop(key, None)
            self._history[alert.id] = alert
            self._history.move_to_end(alert.id)
            if len(self._history) > MOST_HISTORY:
                gone, _ = self._history.popitem(last=False)
                self._courses.pop(gone, None)
            self._alerts = None

    def took_looks(self, profile: str, looks: Sequence[Look]) -> None:
        """Watched devices ticked."""
        for look in looks:
            key = Key(profile, look.device)
            ticks = self._ticks.get(key)
            if ticks is not None:
                tick = Tick(look.time, look.score, look.values, look.low, look.high)
                ticks.append(tick)
                for alert in self._open.get(key, ()):
                    if len(begun := self._begun.get(alert.id, [])) < MOST_TICKS:
                        begun.append(tick)

    def show(self, rows: Sequence[ProfileRows], now: float) -> None:
        """Show every device, and choose anew who is watched."""
        self._page.show(Fleet(rows, now))
        self.tell()

    def tell(self) -> None:
        """Show alerts and who is looked at, as of now."""
        looked = self._page.looked()
        self._watch(looked)
        shelved = {
            Key(stream.spec.name, device): until
            for stream in self._profiles.values()
            for device, until in stream.book.shelved.items()
        }
        if self._alerts is None or self._alerts.shelved != shelved:
            self._alerts = Alerts(dict(self._open), tuple(self._history.values()), dict(self._courses), shelved)
        details = {key: self._detail(key) for key in looked if self._slot(key)}
        self._page.tell(self._alerts, details)

    def _watch(self, looked: Sequence[Key]) -> None:
        wanted = dict.fromkeys(key for key in looked if self._slot(key))
        for key in self._open:
            if len(wanted) >= MOST_WATCHED:
                break
            if self._slot(key):
                wanted[key] = None
        for key in self._ticks.keys() - wanted.keys():
            del self._ticks[key]
            self._profiles[key.profile].table.watched[self._slot(key)] = False
        for key in wanted:
            self._follow(key)

    def _follow(self, key: Key) -> None:
        """Watch a device, as from its newest ticks."""
        if key not in self._ticks:
            self._ticks[key] = deque(_ticks(self._rows(key)), maxlen=MOST_TICKS)
        self._profiles[key.profile].table.watched[self._slot(key)] = True

    def _rows(self, key: Key) -> Rows:
        """The newest ticks of a device, whether or not it is watched, as `Recent.of` has them."""
        return self._kept[key.profile].of(self._slot(key))

    def _begins(self, key: Key, alert: Alert, then: Rows | None = None) -> None:
        """An alert is open: from here on its device's ticks are kept, as far as there is room; `then`: as it began."""
        if not self._slot(key) or alert.id in self._begun:
            return
        if len(self._begun) < MOST_BEGUN:
            begun = self._begun[alert.id] = [] if then is None else _ticks(then)
            begun += _after(begun, _ticks(self._rows(key)))
        if len(self._ticks) < MOST_WATCHED:
            self._follow(key)

    def _course(self, alert: Alert, then: Rows | None = None) -> Course | None:
        """How an alert went: by what was kept of it, and its device's newest ticks, those of `then` if it ended then."""
        if not alert.channels:
            return None
        named, parts = alert.channels[0], ("values", "low", "high")
        at = self._profiles[alert.profile].channels.index(named.name)
        rows = self._rows(Key(alert.profile, alert.device)) if then is None else then
        if begun := self._begun.get(alert.id):
            ticks = [*begun, *_after(begun, _ticks(rows))][:MOST_TICKS]
            time = np.array([tick.time for tick in ticks])
            columns = [_column([getattr(tick, part) for tick in ticks], at) for part in parts]
        elif len(rows):  # many may end at once for which there was no room
            time, columns = rows["time"].copy(), [rows[part][:, at].copy() for part in parts]
        else:
            return None
        return Course(named.name, named.unit, alert.started, time, *columns)

    def _slot(self, key: Key) -> int:
        """0, nobody's slot: no such device."""
        stream = self._profiles.get(key.profile)
        return 0 if stream is None else stream.table.slot_of.get(key.device, 0)

    def _detail(self, key: Key) -> Detail:
        stream: ProfileStream = self._profiles[key.profile]
        units = {channel.name: channel.unit for channel in stream.spec.channels or ()}
        channels = [(name, units.get(name, "")) for name in stream.channels]
        last = np.array(stream.table.last[self._slot(key), : len(channels)])
        alerts = stream.book.alerts(key.device)
        courses = {alert.id: course for alert in alerts if (course := self._course(alert)) is not None}
        return Detail(channels, last, tuple(self._ticks[key]), alerts, courses, *stream.held_back(key.device))


def _ticks(rows: Rows) -> list[Tick]:
    columns = zip(*(rows[name] for name in ("time", "score", "values", "low", "high")), strict=True)
    return [Tick(float(time), float(score), *parts) for time, score, *parts in columns]


def _after(ticks: Sequence[Tick], newer: Sequence[Tick]) -> list[Tick]:
    """What of the newer ticks is not among the others."""
    return [tick for tick in newer if not ticks or tick.time > ticks[-1].time]


def _column(rows: Sequence[Values], at: int) -> npt.NDArray[np.float32]:
    """One channel of ticks; of those before the profile had learned it there is nothing."""
    return np.array([row[at] if at < len(row) else np.nan for row in rows], dtype=np.float32)
