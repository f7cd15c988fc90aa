"""Alerts: episodes with a life. One policy: a minimum length, a quiet time, a refractory time, a controller.

    pending ──min_ticks──► firing ──► acknowledged / shelved ──quiet_ticks──► resolved

Absence of data never resolves an alert: quiet is counted in ticks that came. Maintenance, of a profile, and shelving, of a
device for a time, change what is told, never what is scored: what would fire meanwhile is shelved, and fires when both
are over if it is still wrong then.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sentinel.records import (
    Alert,
    AlertKind,
    AlertState,
    ChannelView,
    How,
    ProfileSpec,
    Severity,
    Transition,
)
from sentinel.stream.maintenance import DATED, UNDATED, ends, local

FLEET = "_fleet"
STORM_SHARE, STORM_LEAST, STORM_WITHIN = 0.5, 10, 60.0
CRITICAL_SCORE = 2.0
SECOND_NAMED = 0.2  # share from which the second channel is named too
_OF_NO_TICK = ("silence", "storm", "system")
_SEVERITY: dict[AlertKind, Severity] = {"stuck": "warning", "gap": "info", "storm": "critical", "system": "critical"}
_RANK: dict[AlertState, int] = {"firing": 0, "acknowledged": 1, "pending": 2, "shelved": 3, "resolved": 4}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one tick says of one kind of anomaly.

    Attributes:
        since: event time at which the disturbance began; None: with this tick.
        needed: score that makes an alert now: 1, or more where the budget's controller has raised it.
    """

    score: float | None
    p_value: float | None
    channels: tuple[ChannelView, ...]
    since: float | None = None
    needed: float = 1.0


@dataclass(slots=True)
class Episode:
    """An alert that is not resolved.

    Attributes:
        last: time of its last anomalous tick.
        fired: time at which it fired; None: not yet.
        told: whether it was told as firing; what began shelved was not.
        settled: it has lasted so long that its level is taken for normal from there on.
        needed: score that made an alert when it began.
    """

    id: str
    kind: AlertKind
    started: float
    updated: float
    last: float
    state: AlertState
    seq: int = 0
    ticks: int = 0
    quiet: int = 0
    score: float | None = None
    p_value: float | None = None
    channels: tuple[ChannelView, ...] = ()
    detail: str = ""
    fired: float | None = None
    told: bool = False
    settled: bool = False
    needed: float = 1.0


@dataclass(slots=True)
class AlertBook:
    """The open alerts of one profile.

    Attributes:
        open: by device, by kind.
        firing: episodes past `pending`, by kind, for metrics.
        started: starts so far, by kind.
        shelved: until when devices are shelved.
    """

    spec: ProfileSpec
    model: str | None = None
    open: dict[str, dict[AlertKind, Episode]] = field(default_factory=dict)
    started: dict[AlertKind, int] = field(default_factory=dict)
    recent: list[tuple[float, str]] = field(default_factory=list)
    shelved: dict[str, float] = field(default_factory=dict)

    def tick(
        self,
        device: str,
        time: float,
        now: float,
        evidence: dict[AlertKind, Callable[[], Evidence]],
        message: int,
        tells: Callable[[Episode], bool] = lambda _episode: True,
    ) -> tuple[list[Transition], list[AlertKind]]:
        """Take one tick of one device: what was anomalous in it, by kind.

        Args:
            tells: whether a tick without evidence says anything of an episode: absence of data is not quiet.

        Returns:
            Transitions in order; the kinds of alerts that had fired and ended with this tick.
        """
        out: list[Transition] = []
        ended: list[AlertKind] = []
        episodes = self.open.get(device, {})
        for kind, episode in list(episodes.items()):
            if kind in evidence:
                out += self._again(device, episode, time, now, evidence[kind], message)
            elif tells(episode):
                episode.quiet += 1
                if kind == "silence" or episode.quiet >= self.spec.quiet_ticks:
                    out += self._end(device, episode, time, message)
                    ended += [kind] if episode.fired is not None else []
        for kind, look in evidence.items():
            if kind not in episodes:
                out += self._begin(device, kind, time, time, now, look(), message)
        return out, ended

    def start(self, device: str, kind: AlertKind, time: float, now: float, detail: str = "") -> list[Transition]:
        """Open an alert that is not a tick's: silence, storm, system. It began at `time` and fires `now`."""
        if kind in self.open.get(device, {}):
            return []
        return self._begin(device, kind, time, now, now, Evidence(None, None, ()), -1, detail)

    def end(self, device: str, kind: AlertKind, time: float) -> list[Transition]:
        """Resolve an alert that is not a tick's."""
        episode = self.open.get(device, {}).get(kind)
        return [] if episode is None else self._end(device, episode, time, -1)

    def forget(self, device: str, time: float) -> list[Transition]:
        """The device is gone, and its alerts with it."""
        self.shelved.pop(device, None)
        return [t for episode in list(self.open.get(device, {}).values()) for t in self._end(device, episode, time, -1)]

    def acknowledge(self, device: str, now: float) -> list[Transition]:
        """A person has seen it."""
        return [
            self._move(device, episode, "acknowledged", -1)
            for episode in self.open.get(device, {}).values()
            if episode.state == "firing"
        ]

    def normal(self, device: str, now: float) -> list[Transition]:
        """A person says that what a device's prediction alert is about is normal: it ends at once."""
        episode = self.open.get(device, {}).get("prediction")
        return [] if episode is None else self._end(device, episode, episode.updated, -1, "accepted as normal")

    def settle(self, device: str, time: float, message: int) -> list[Transition]:
        """Ask once in an episode, which has lasted and whose level is learned from here on: a new normal?"""
        episode = self.open.get(device, {}).get("prediction")
        if episode is None or episode.settled:
            return []
        episode.settled, episode.updated = True, time
        return [self._move(device, episode, episode.state, message)]

    def shelve(self, device: str, now: float, seconds: float) -> list[Transition]:
        """Keep quiet about a device for a time, whatever is or will be wrong with it; 0 seconds: no longer."""
        if seconds <= 0:
            self.shelved.pop(device, None)
            return self._due(device, now)
        self.shelved[device] = now + seconds
        return [
            self._move(device, episode, "shelved", -1)
            for episode in self.open.get(device, {}).values()
            if episode.state in ("firing", "acknowledged")
        ]

    def due(self, now: float) -> list[Transition]:
        """Shelve what fires where maintenance has begun; take up what was shelved, is still wrong, and whose time is over."""
        self.shelved = {device: until for device, until in self.shelved.items() if until > now}
        return [moved for device in self.open for moved in self._due(device, now)]

    def is_due(self, now: float) -> bool:
        """Whether `due` or `storm` might change anything."""
        if len(self.recent) >= STORM_LEAST or FLEET in self.open or any(end <= now for end in self.shelved.values()):
            return True
        maintained = self._maintained(now)
        return any(
            episode.state == "firing" if maintained or device in self.shelved else _waits(episode)
            for device, episodes in self.open.items()
            for episode in episodes.values()
        )

    def storm(self, devices: int, now: float) -> list[Transition]:
        """Add a fleet alert when half of the devices, and at least ten, fired within a minute; take it back after."""
        self.recent = [(at, device) for at, device in self.recent if now - at <= STORM_WITHIN]
        firing = len({device for _, device in self.recent})
        need = max(STORM_LEAST, STORM_SHARE * devices)
        if firing >= need:
            detail = f"{firing} of {devices} fired within a minute"
            return self.start(FLEET, "storm", now, now, detail)
        still = sum(device != FLEET for device in self.open)
        return self.end(FLEET, "storm", now) if FLEET in self.open and still < need / 2 else []

    def firing(self) -> dict[AlertKind, int]:
        """Open alerts past pending, by kind."""
        out: dict[AlertKind, int] = {}
        for episodes in self.open.values():
            for episode in episodes.values():
                if episode.state in ("firing", "acknowledged"):
                    out[episode.kind] = out.get(episode.kind, 0) + 1
        return out

    def alerts(self, device: str) -> tuple[Alert, ...]:
        """The device's open alerts as they are now, the most urgent first."""
        episodes = self.open.get(device, {}).values()
        return tuple(self._alert(device, episode) for episode in sorted(episodes, key=_urgency))

    def retained(self, device: str) -> Alert | None:
        """What the device's retained topic must say: its most urgent open alert."""
        episodes = self.open.get(device)
        if not episodes:
            return None
        return self._alert(device, min(episodes.values(), key=_urgency))

    def export(self) -> dict[str, Any]:
        """The book for a snapshot, as plain data."""
        return {
            "open": {device: [asdict(e) for e in episodes.values()] for device, episodes in self.open.items()},
            "started": dict(self.started),
            "recent": self.recent,
            "shelved": self.shelved,
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Undo `export`, also that of a release which shelved alerts and not devices."""
        self.open, self.shelved = {}, dict(data.get("shelved", {}))
        for device, episodes in data["open"].items():
            for raw in episodes:
                views = tuple(ChannelView(**view) for view in raw.pop("channels"))
                until = raw.pop("shelved_until", 0.0)
                if until and raw["state"] == "shelved":
                    self.shelved[device] = max(until, self.shelved.get(device, until))
                    raw["state"] = "pending" if raw["fired"] is None else "shelved"
                self.open.setdefault(device, {})[raw["kind"]] = Episode(**raw, channels=views)
        self.started = dict(data["started"])
        self.recent = [(at, device) for at, device in data["recent"]]

    # --- transitions ---

    def _begin(
        self,
        device: str,
        kind: AlertKind,
        time: float,
        at: float,
        now: float,
        seen: Evidence,
        message: int,
        detail: str = "",
    ) -> list[Transition]:
        name = f"{self.spec.name}\0{device}\0{kind}\0{time!r}"
        episode = Episode(
            id=hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16],
            kind=kind,
            started=time if seen.since is None else min(seen.since, time),
            updated=at,
            last=at,
            state="pending",
            seq=-1,
            ticks=1,
            score=seen.score,
            p_value=seen.p_value,
            channels=seen.channels,
            detail=detail,
            needed=seen.needed,
        )
        self.open.setdefault(device, {})[kind] = episode
        if self.spec.min_ticks > 1 and kind in ("prediction", "range", "rate"):
            return [self._move(device, episode, "pending", message)]
        return [self._fire(device, episode, now, message)]

    def _fire(self, device: str, episode: Episode, now: float, message: int) -> Transition:
        self.started[episode.kind] = self.started.get(episode.kind, 0) + 1
        episode.fired = episode.updated
        if self._hushed(device, now):
            return self._move(device, episode, "shelved", message)
        return self._tell(device, episode, now, message)

    def _tell(self, device: str, episode: Episode, now: float, message: int) -> Transition:
        first, episode.told = not episode.told, True
        if first:
            episode.fired = episode.updated
        if first and device != FLEET:
            self.recent.append((now, device))
        return replace(self._move(device, episode, "firing", message), fires=first)

    def _due(self, device: str, now: float) -> list[Transition]:
        """See `due`, of one device."""
        return [m for episode in self.open.get(device, {}).values() for m in self._on_time(device, episode, now, -1)]

    def _on_time(self, device: str, episode: Episode, now: float, message: int) -> list[Transition]:
        """See `due`, of one episode."""
        if self._hushed(device, now):
            return [self._move(device, episode, "shelved", message)] if episode.state == "firing" else []
        return [self._tell(device, episode, now, message)] if _waits(episode) else []

    def _hushed(self, device: str, now: float) -> bool:
        """Whether what fires of a device is shelved."""
        return now < self.shelved.get(device, now) or self._maintained(now)

    def _maintained(self, now: float) -> bool:
        return ends(self.spec.maintenance, self.spec.timezone, now) is not None

    def _again(
        self, device: str, episode: Episode, time: float, now: float, look: Callable[[], Evidence], message: int
    ) -> list[Transition]:
        episode.quiet = 0
        episode.ticks += 1
        episode.updated = episode.last = time
        seen = look()
        if episode.kind == "range":
            episode.channels = _worst(episode.channels, seen.channels)
        elif episode.score is None or (seen.score or 0.0) > episode.score:
            episode.score, episode.p_value, episode.channels = seen.score, seen.p_value, seen.channels
        if episode.state == "pending" and episode.ticks >= self.spec.min_ticks:
            return [self._fire(device, episode, now, message)]
        return self._on_time(device, episode, now, message)

    def _end(
        self, device: str, episode: Episode, time: float, message: int, outcome: str = "resolved"
    ) -> list[Transition]:
        episodes = self.open[device]
        del episodes[episode.kind]
        if not episodes:
            del self.open[device]
        episode.updated = time
        if episode.kind in _OF_NO_TICK:
            episode.last = time
        return [self._move(device, episode, "resolved", message, outcome)]

    def _move(
        self, device: str, episode: Episode, state: AlertState, message: int, outcome: str = "resolved"
    ) -> Transition:
        episode.state = state
        episode.seq += 1
        return Transition(self._alert(device, episode, outcome), self.retained(device), message)

    def _alert(self, device: str, episode: Episode, outcome: str = "resolved") -> Alert:
        severity = _SEVERITY.get(episode.kind, "warning")
        if episode.kind == "prediction" and (episode.score or 0.0) >= CRITICAL_SCORE * episode.needed:
            severity = "critical"
        alert = Alert(
            id=episode.id,
            seq=episode.seq,
            state=episode.state,
            device=device,
            profile=self.spec.name,
            kind=episode.kind,
            severity=severity,
            started=episode.started,
            updated=episode.updated,
            ended=episode.last if episode.state == "resolved" else None,
            score=episode.score,
            p_value=episode.p_value,
            ticks=episode.ticks,
            channels=episode.channels,
            message="",
            model=self.model,
            fired=episode.fired if episode.told else None,
        )
        if episode.settled and outcome == "resolved":
            outcome = "it became the new normal"
        close = f"; {outcome}" if episode.state == "resolved" else "; a new normal?" if episode.settled else ""
        return replace(alert, message=words(alert, episode.detail, self.spec.timezone) + close)


def _urgency(episode: Episode) -> tuple[int, float, float]:
    return _RANK[episode.state], -(episode.score or 0.0), episode.started


def _waits(episode: Episode) -> bool:
    """Whether it is to be told when it is shelved no longer: its last tick was anomalous."""
    return episode.state == "shelved" and not episode.quiet


def words(alert: Alert, detail: str = "", timezone: str = "UTC") -> str:
    """An alert in a sentence, with the time as clocks show it in `timezone`.

    For example "pump-7: vibration 9.1 mm/s, expected 3.2 ± 0.6 since 14:02 UTC (told after 40 s); explains 83 % of
    the surprise". Where the value lies within its band, it says what else was unusual.
    """
    views: Sequence[ChannelView] = sorted(alert.channels, key=lambda view: -view.share)
    if alert.kind == "silence":
        text = f"{detail or 'nothing heard'}{_span(alert, timezone)}"
    elif not views:
        text = detail or {"gap": "readings were missing for longer than max_gap"}.get(alert.kind, alert.kind)
    elif alert.kind == "prediction":
        text = f"{_unusual(views[0])}{_span(alert, timezone)}{_shares(views)}"
    elif alert.kind == "range":
        worst = quantity(views[0].value, views[0].unit)
        value, added = ("", f", at worst {worst}") if alert.ticks > 1 else (f" {worst}", "")
        is_ = "was" if alert.state == "resolved" else "is"
        text = f"{views[0].name}{value} {is_} {_limits(views[0])}{_span(alert, timezone)}{added}"
    else:
        what = {"rate": "changes too fast", "stuck": "is stuck"}.get(alert.kind, "")
        text = f"{views[0].name} {quantity(views[0].value, views[0].unit)} {what}{_span(alert, timezone)}"
    return f"{subject(alert)}: {text}"


def subject(alert: Alert) -> str:
    """Whom an alert is about, in words."""
    if alert.kind == "storm":
        return f"all devices of {alert.profile}"
    return "Sentinel" if alert.kind == "system" else alert.device


_HOW: dict[How, str] = {
    "": "is unusual over its last readings",
    "above": "has run{by} above what was expected",
    "below": "has run{by} below what was expected",
    "drifted": "has drifted{by}",
    "noisy": "is noisier than usual",
    "unlike the others": "does not fit the other channels",
    "out of all history": "goes beyond all that it had shown",
}


def _unusual(view: ChannelView) -> str:
    value, low, high = view.value, view.low, view.high
    band = ""
    if view.expected is not None and low is not None and high is not None:
        half = (high - low) / 2
        middle = quantity(view.expected, half=half)
        even = max(abs(view.expected - low), abs(high - view.expected)) <= 1.1 * half
        around = (
            f"± {quantity(half, half=half)}" if even else f"({quantity(low, half=half)} to {quantity(high, half=half)})"
        )
        band = f"expected {middle} {around}"
        if value is not None and not low <= value <= high:
            more = f", {_HOW[view.how]}" if view.how in ("unlike the others", "out of all history") else ""
            return f"{view.name} {quantity(value, half=half)} {view.unit}".rstrip() + f", {band}{more}"
        now = f"{quantity(value, half=half)} {view.unit}".rstrip() if value is not None else "no value at that moment"
    elif value is not None and not view.how:
        return f"{view.name} {quantity(value, view.unit)} is unusual"
    else:
        now = quantity(value, view.unit) if value is not None else "no value at that moment"
    by = f" {quantity(abs(view.by), view.unit)}" if view.by is not None else ""
    if by and view.how == "drifted":
        by = f" {'up' if (view.by or 0.0) > 0 else 'down'} by{by}"
    over = f" over {view.readings} readings" if view.readings and view.how in ("above", "below") else ""
    return f"{view.name} {_HOW[view.how].format(by=by)}{over} ({now}{', ' if band else ''}{band})"


def _limits(view: ChannelView) -> str:
    if view.high is None:
        return f"under its limit {quantity(view.low, view.unit)}"
    if view.low is None:
        return f"over its limit {quantity(view.high, view.unit)}"
    return f"out of its range {quantity(view.low)} to {quantity(view.high, view.unit)}"


def _worst(before: Sequence[ChannelView], now: Sequence[ChannelView]) -> tuple[ChannelView, ...]:
    """Each channel that was out of its limits, at its worst; those that are now come first."""
    known = {view.name: view for view in before}
    worst = [max(known.pop(view.name, view), view, key=_beyond) for view in now]
    worst += known.values()
    return tuple(replace(view, share=1 / len(worst)) for view in worst)


def _beyond(view: ChannelView) -> float:
    """How far a value is out of its limits."""
    value = view.value or 0.0
    return max(
        value - (math.inf if view.high is None else view.high), (-math.inf if view.low is None else view.low) - value
    )


def _shares(views: Sequence[ChannelView]) -> str:
    if len(views) == 1 and views[0].share > 0.99:
        return ""
    second = f", {views[1].name} {views[1].share:.0%}" if len(views) > 1 and views[1].share >= SECOND_NAMED else ""
    return f"; explains {views[0].share:.0%} of the surprise{second}".replace("%", " %")


def _span(alert: Alert, timezone: str) -> str:
    """Since when, or for how long; and after what delay it was told."""
    over = alert.state == "resolved"
    end = alert.updated if alert.ended is None else alert.ended
    lasted, delay = end - alert.started, (alert.fired or alert.started) - alert.started
    told = f" (told after {duration(delay)})" if delay > 0 and alert.kind != "silence" else ""
    if lasted <= 0:
        return told
    if over or not DATED < alert.started <= alert.updated < UNDATED:
        return f" for {duration(lasted)}" + (told if lasted > delay else "")
    began, at = (local(time, timezone) for time in (alert.started, alert.updated))
    return f" since {began:{'%H:%M' if began.date() == at.date() else '%Y-%m-%d %H:%M'}} {began:%Z}{told}"


def quantity(value: float | None, unit: str = "", half: float = math.nan) -> str:
    """A number as a person writes it, with its unit.

    Args:
        half: of its band's width, of which it has two digits, so that a value outside is seen to be so; NaN: it has none.
    """
    if value is None or not math.isfinite(value):
        return "?"
    magnitude = abs(value)
    places = 1 - math.floor(math.log10(half)) if half > 0 and math.isfinite(half) else -1
    if 0 <= places <= 9 and magnitude < 1e9:
        digits = f"{value:.{places}f}"
        digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    else:
        digits = f"{value:.0f}" if 1000 <= magnitude < 1e7 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def duration(seconds: float) -> str:
    """A time span as a person says it."""
    for size, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s" if seconds >= 1 or seconds == 0 else f"{seconds:.2g} s"
