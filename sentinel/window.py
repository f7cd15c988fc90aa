"""What the reactor shows of itself to the page: every device once a second, and more of the few that are watched."""

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from sentinel.adapters.page import Alerts, Detail, Fleet, Key, Page, ProfileRows, Tick
from sentinel.records import Alert, ChannelView, Transition
from sentinel.stream.pipeline import Look, Pipeline, ProfileStream

MOST_WATCHED = 64  # devices
MOST_TICKS = 240  # of each
MOST_HISTORY, MOST_KEPT = 1000, 200  # alerts; kept over a restart


class Window:
    """Keeps what the page shows and the stream does not: the newest ticks of watched devices, and past alerts.

    A device is watched while somebody looks at it, or it has an open alert; those looked at come first.
    """

    def __init__(self, pipeline: Pipeline, page: Page) -> None:
        self._profiles = pipeline.profiles
        self._page = page
        self._open: dict[Key, tuple[Alert, ...]] = {}
        self._history: OrderedDict[str, Alert] = OrderedDict()
        self._alerts: Alerts | None = Alerts()  # None: changed since it was told
        self._ticks: dict[Key, deque[Tick]] = {}

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
        self._alerts = None

    def took_alerts(self, transitions: Sequence[Transition]) -> None:
        """Alerts changed."""
        for transition in transitions:
            alert = transition.alert
            key = Key(alert.profile, alert.device)
            still = tuple(other for other in self._open.get(key, ()) if other.id != alert.id)
            if alert.state != "resolved":
                still = (*still, alert)
            if still:
                self._open[key] = still
            else:
                self._open.pop(key, None)
            self._history[alert.id] = alert
            self._history.move_to_end(alert.id)
            if len(self._history) > MOST_HISTORY:
                self._history.popitem(last=False)
            self._alerts = None

    def took_looks(self, profile: str, looks: Sequence[Look]) -> None:
        """Watched devices ticked."""
        for look in looks:
            ticks = self._ticks.get(Key(profile, look.device))
            if ticks is not None:
                ticks.append(Tick(look.time, look.score, look.values, look.low, look.high))

    def show(self, rows: Sequence[ProfileRows], now: float) -> None:
        """Show every device, and choose anew who is watched."""
        self._page.show(Fleet(rows, now))
        self.tell()

    def tell(self) -> None:
        """Show alerts and who is looked at, as of now."""
        looked = self._page.looked()
        self._watch(looked)
        if self._alerts is None:
            self._alerts = Alerts(dict(self._open), tuple(self._history.values()))
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
        for key in wanted.keys() - self._ticks.keys():
            self._ticks[key] = deque(maxlen=MOST_TICKS)
        for key in wanted:
            self._profiles[key.profile].table.watched[self._slot(key)] = True

    def _slot(self, key: Key) -> int:
        """0, nobody's slot: no such device."""
        stream = self._profiles.get(key.profile)
        return 0 if stream is None else stream.table.slot_of.get(key.device, 0)

    def _detail(self, key: Key) -> Detail:
        stream: ProfileStream = self._profiles[key.profile]
        units = {channel.name: channel.unit for channel in stream.spec.channels or ()}
        channels = [(name, units.get(name, "")) for name in stream.channels]
        last = np.array(stream.table.last[self._slot(key), : len(channels)])
        return Detail(channels, last, tuple(self._ticks[key]), stream.book.alerts(key.device))
