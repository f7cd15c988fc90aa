"""Alerts: episodes with a life. One policy: a minimum length, a quiet time, a refractory time, a controller.

    pending ──min_ticks──► firing ──► acknowledged / shelved ──quiet_ticks──► resolved

Absence of data never resolves an alert: quiet is counted in ticks that came.
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
    ProfileSpec,
    Severity,
    Transition,
)

FLEET = "_fleet"
STORM_SHARE, STORM_LEAST, STORM_WITHIN = 0.5, 10, 60.0
CRITICAL_SCORE = 2.0
_SEVERITY: dict[AlertKind, Severity] = {"stuck": "warning", "gap": "info", "storm": "critical", "system": "critical"}
_RANK: dict[AlertState, int] = {"firing": 0, "acknowledged": 1, "pending": 2, "shelved": 3, "resolved": 4}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one tick says of one kind of anomaly."""

    score: float | None
    p_value: float | None
    channels: tuple[ChannelView, ...]


@dataclass(slots=True)
class Episode:
    """An alert that is not resolved."""

    id: str
    kind: AlertKind
    started: float
    updated: float
    state: AlertState
    seq: int = 0
    ticks: int = 0
    quiet: int = 0
    score: float | None = None
    p_value: float | None = None
    channels: tuple[ChannelView, ...] = ()
    shelved_until: float = 0.0
    detail: str = ""
    fired: bool = False


@dataclass(slots=True)
class AlertBook:
    """The open alerts of one profile.

    Attributes:
        open: by device, by kind.
        firing: episodes past `pending`, by kind, for metrics.
        started: starts so far, by kind.
    """

    spec: ProfileSpec
    model: str | None = None
    open: dict[str, dict[AlertKind, Episode]] = field(default_factory=dict)
    started: dict[AlertKind, int] = field(default_factory=dict)
    recent: list[tuple[float, str]] = field(default_factory=list)

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
                    ended += [kind] if episode.fired else []
        for kind, look in evidence.items():
            if kind not in episodes:
                out += self._begin(device, kind, time, now, look(), message)
        return out, ended

    def start(self, device: str, kind: AlertKind, time: float, now: float, detail: str = "") -> list[Transition]:
        """Open an alert that is not a tick's: silence, storm, system."""
        if kind in self.open.get(device, {}):
            return []
        return self._begin(device, kind, time, now, Evidence(None, None, ()), -1, detail)

    def end(self, device: str, kind: AlertKind, time: float) -> list[Transition]:
        """Resolve an alert that is not a tick's."""
        episode = self.open.get(device, {}).get(kind)
        return [] if episode is None else self._end(device, episode, time, -1)

    def forget(self, device: str, time: float) -> list[Transition]:
        """The device is gone, and its alerts with it."""
        return [t for episode in list(self.open.get(device, {}).values()) for t in self._end(device, episode, time, -1)]

    def acknowledge(self, device: str, now: float) -> list[Transition]:
        """A person has seen it."""
        return [
            self._move(device, episode, "acknowledged", -1)
            for episode in self.open.get(device, {}).values()
            if episode.state == "firing"
        ]

    def shelve(self, device: str, now: float, seconds: float) -> list[Transition]:
        """Keep quiet about a device's open alerts for a time."""
        out = []
        for episode in self.open.get(device, {}).values():
            episode.shelved_until = now + seconds
            if episode.state in ("firing", "acknowledged", "pending"):
                out.append(self._move(device, episode, "shelved", -1))
        return out

    def due(self, now: float) -> list[Transition]:
        """Storms, and shelved alerts whose time is over."""
        out = []
        for device, episodes in self.open.items():
            for episode in episodes.values():
                if episode.state == "shelved" and now >= episode.shelved_until:
                    out.append(self._move(device, episode, "firing", -1))
        return out

    def storm(self, devices: int, now: float) -> list[Transition]:
        """Add a fleet alert when half of the devices, and at least ten, fired within a minute; take it back after."""
        self.recent = [(at, device) for at, device in self.recent if now - at <= STORM_WITHIN]
        firing = len({device for _, device in self.recent})
        need = max(STORM_LEAST, STORM_SHARE * devices)
        if firing >= need:
            detail = f"{firing} of {devices} devices fired within a minute"
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

    def retained(self, device: str) -> Alert | None:
        """What the device's retained topic must say: its most urgent open alert."""
        episodes = self.open.get(device)
        if not episodes:
            return None
        first = min(episodes.values(), key=lambda e: (_RANK[e.state], -(e.score or 0.0), e.started))
        return self._alert(device, first, None)

    def export(self) -> dict[str, Any]:
        """The book for a snapshot, as plain data."""
        return {
            "open": {device: [asdict(e) for e in episodes.values()] for device, episodes in self.open.items()},
            "started": dict(self.started),
            "recent": self.recent,
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Undo `export`."""
        self.open = {}
        for device, episodes in data["open"].items():
            for raw in episodes:
                views = tuple(ChannelView(**view) for view in raw.pop("channels"))
                self.open.setdefault(device, {})[raw["kind"]] = Episode(**raw, channels=views)
        self.started = dict(data["started"])
        self.recent = [(at, device) for at, device in data["recent"]]

    # --- transitions ---

    def _begin(
        self, device: str, kind: AlertKind, time: float, now: float, seen: Evidence, message: int, detail: str = ""
    ) -> list[Transition]:
        name = f"{self.spec.name}\0{device}\0{kind}\0{time!r}"
        episode = Episode(
            id=hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16],
            kind=kind,
            started=time,
            updated=time,
            state="pending",
            seq=-1,
            ticks=1,
            score=seen.score,
            p_value=seen.p_value,
            channels=seen.channels,
            detail=detail,
        )
        self.open.setdefault(device, {})[kind] = episode
        if self.spec.min_ticks > 1 and kind in ("prediction", "range", "rate"):
            return [self._move(device, episode, "pending", message)]
        return [self._fire(device, episode, now, message)]

    def _fire(self, device: str, episode: Episode, now: float, message: int) -> Transition:
        self.started[episode.kind] = self.started.get(episode.kind, 0) + 1
        episode.fired = True
        if device != FLEET:
            self.recent.append((now, device))
        return self._move(device, episode, "firing", message)

    def _again(
        self, device: str, episode: Episode, time: float, now: float, look: Callable[[], Evidence], message: int
    ) -> list[Transition]:
        episode.quiet = 0
        episode.ticks += 1
        episode.updated = time
        seen = look()
        if episode.score is None or (seen.score or 0.0) > episode.score:
            episode.score, episode.p_value, episode.channels = seen.score, seen.p_value, seen.channels
        if episode.state == "pending" and episode.ticks >= self.spec.min_ticks:
            return [self._fire(device, episode, now, message)]
        return []

    def _end(self, device: str, episode: Episode, time: float, message: int) -> list[Transition]:
        episodes = self.open[device]
        del episodes[episode.kind]
        if not episodes:
            del self.open[device]
        episode.updated = time
        return [self._move(device, episode, "resolved", message)]

    def _move(self, device: str, episode: Episode, state: AlertState, message: int) -> Transition:
        episode.state = state
        episode.seq += 1
        ended = episode.updated if state == "resolved" else None
        return Transition(self._alert(device, episode, ended), self.retained(device), message)

    def _alert(self, device: str, episode: Episode, ended: float | None) -> Alert:
        severity = _SEVERITY.get(episode.kind, "warning")
        if episode.kind == "prediction" and (episode.score or 0.0) >= CRITICAL_SCORE:
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
            ended=ended,
            score=episode.score,
            p_value=episode.p_value,
            ticks=episode.ticks,
            channels=episode.channels,
            message="",
            model=self.model,
        )
        return replace(alert, message=words(alert, episode.detail))


def words(alert: Alert, detail: str = "") -> str:
    """An alert in a sentence.

    For example "pump-7: vibration 9.1 mm/s, expected 3.2 ± 0.6 for 4 min; explains 83 % of the surprise".
    """
    lasted = alert.updated - alert.started
    span = f" for {duration(lasted)}" if lasted > 0 else ""
    views: Sequence[ChannelView] = sorted(alert.channels, key=lambda view: -view.share)
    first = views[0] if views else None
    if alert.kind == "silence":
        text = f"nothing heard since {duration(lasted)} ago" if lasted > 0 else "nothing heard any more"
    elif first is None:
        text = detail or {"gap": "readings were missing for longer than max_gap"}.get(alert.kind, alert.kind)
    elif alert.kind == "prediction":
        text = f"{first.name} {quantity(first.value, first.unit)}"
        if first.expected is not None and first.low is not None and first.high is not None:
            text += f", expected {quantity(first.expected)} ± {quantity((first.high - first.low) / 2)}"
        text += f"{span}; explains {first.share:.0%} of the surprise".replace("%", " %")
    else:
        what = {"range": "is out of its range", "rate": "changes too fast", "stuck": "is stuck"}.get(alert.kind, "")
        bounds = ""
        if alert.kind == "range":
            bounds = f" {quantity(first.low)} to {quantity(first.high)}"
        text = f"{first.name} {quantity(first.value, first.unit)} {what}{bounds}{span}"
    return f"{alert.device}: {text}" + ("; resolved" if alert.state == "resolved" else "")


def quantity(value: float | None, unit: str = "") -> str:
    """A number as a person writes it, with its unit."""
    if value is None or not math.isfinite(value):
        return "?"
    magnitude = abs(value)
    digits = f"{value:.0f}" if 1000 <= magnitude < 1e7 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def duration(seconds: float) -> str:
    """A time span as a person says it."""
    for size, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
