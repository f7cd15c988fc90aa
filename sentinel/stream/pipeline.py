"""The stream: messages in, outcomes out. A deterministic function of its inputs, in order.

    messages ──► decode ──► align ──► devices ──► rules · score ──► alerts
                    │ readings: what a journal keeps

Axes: B rows, F channels.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sentinel.model import kernel
from sentinel.model.carry import carry
from sentinel.model.explain import Explanation, explain
from sentinel.model.learn import PLACED_ON, Place, Series, anew
from sentinel.model.score import BAND, Detector, Scored, Scorer
from sentinel.model.slabs import Memory, Slabs
from sentinel.records import (
    DEVICE_STATES,
    FATE_CODE,
    FATES,
    AlertKind,
    Announcement,
    Birth,
    Bools,
    Channel,
    ChannelView,
    Command,
    Death,
    DeviceState,
    Fate,
    Floats,
    Heard,
    Ints,
    Message,
    ProfileSpec,
    Readings,
    Transition,
)
from sentinel.stream.alerts import FLEET, AlertBook, Episode, Evidence
from sentinel.stream.align import Aligner, Batch, mend_clocks, waves
from sentinel.stream.decode import Decoded, Decoder, Edges, measures
from sentinel.stream.devices import DeviceTable
from sentinel.stream.recent import Recent
from sentinel.stream.rules import RULES, Broken, Rules

SILENCE_LEAST = 300.0  # seconds; with `silence_after = "auto"` no device is silent sooner
SILENCE_INTERVALS = 10.0
STIRRED, MOST_BEFORE = 0.8, 64.0  # score from which an episode has begun, should an alert come of it in so many ticks
SCORED_BY = 50  # ticks; a device that had so many stays `scoring`
_USED = FATE_CODE[Fate.ACCEPTED]
_NOTHING: Floats = np.zeros((0, 0))
_FREE: dict[str, Any] = {  # settings that a running stream can change, but for what a channel's rules and gates are
    name: getattr(ProfileSpec(""), name)
    for name in (
        "alert_budget",
        "threshold",
        "silence_after",
        "offline_after",
        "max_gap",
        "stuck_after",
        "device_ttl",
        "min_ticks",
        "quiet_ticks",
        "timezone",
        "maintenance",
        "learn",
        "learn_after",
    )
}


@dataclass(frozen=True, slots=True)
class Ticks:
    """One wave of a profile: B ticks, what was scored, what was broken, and the values of the ticks before, (B, F)."""

    batch: Batch
    scored: Scored | None
    broken: Broken
    previous: Floats


@dataclass(frozen=True, slots=True)
class Look:
    """What people see of one tick of a watched device; of F channels, NaN where there is none.

    Attributes:
        time: event time.
        score: NaN: no score yet.
        values, low, high: in the channels' units, (F,) each; the band of what was expected.
    """

    device: str
    time: float
    score: float
    values: Floats
    low: Floats
    high: Floats


@dataclass(slots=True)
class Outcome:
    """What one turn of the stream did for one profile.

    Attributes:
        fates: readings by fate, each once in the turn that it came with; where ticks are aligned, an accepted one is in a
            tick of this turn or in the one that waits for its window, and no tick is refused later.
        ticks: the waves, in order.
        transitions: of alerts, in order.
        anomalies: anomalous ticks, by kind.
        gaps: devices whose state began anew after a gap.
        forgotten: devices that are gone.
        looks: ticks of devices that are watched, in order.
    """

    fates: dict[Fate, int] = field(default_factory=dict)
    ticks: list[Ticks] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    anomalies: dict[AlertKind, int] = field(default_factory=dict)
    gaps: int = 0
    heard: float = 0.0
    forgotten: list[str] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(len(ticks.batch) for ticks in self.ticks)

    def add(self, later: "Outcome") -> None:
        """Take in what the same turn did after it."""
        for fate, count in later.fates.items():
            self.fates[fate] = self.fates.get(fate, 0) + count
        for kind, count in later.anomalies.items():
            self.anomalies[kind] = self.anomalies.get(kind, 0) + count
        self.ticks += later.ticks
        self.transitions += later.transitions
        self.gaps += later.gaps
        self.heard += later.heard
        self.forgotten += later.forgotten
        self.looks += later.looks


class ProfileStream:
    """All devices of one profile: table, aligner, rules, detector, alerts.

    Blocks: never.   Raises: nothing a message can cause.
    """

    def __init__(self, spec: ProfileSpec) -> None:
        self.spec = spec
        self.device = spec.device
        if spec.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.channels: list[str] = [channel.name for channel in spec.channels or ()]
        self.table = DeviceTable(len(self.channels), spec.max_devices)
        self.rules = Rules(spec)
        self.book = AlertBook(spec)
        self.aligner = Aligner(spec.align_window, spec.by_arrival) if spec.align_window > 0 else None
        self.edges = Edges(spec.max_devices)
        self.detector: Detector | None = None
        self.scorer: Scorer | None = None
        self.slabs: Slabs | None = None
        self.listening_since = 0.0  # receive time since which nothing that is published is missed; inf: not listening
        self.keep_ticks = False  # whether outcomes hold their ticks; a daemon has no use for them
        self.recent: Recent | None = None  # what people may want to see; a daemon's alone
        self._given: Mapping[str, Channel] = {channel.name: channel for channel in spec.channels or ()}
        self._columns: Ints = np.zeros(0, dtype=np.int64)
        self._band: kernel.Band | None = None  # what the detector expects, in the channels' units
        self._learned: dict[str, int] = {}  # devices that the model was learned from, and their row in `_memory`
        self._memory: Memory | None = None

    # --- inputs ---

    def absorb(self, readings: Readings, now: float) -> tuple[Outcome, Ints]:
        """Take readings; returns the outcome and each reading's fate as a code, (B,)."""
        out = Outcome()
        self._know(readings.channels)
        table = self.table
        slots, new = table.slots(readings.device)
        self._begin(new)
        codes = np.full(len(readings), _USED, dtype=np.int64)
        batch = Batch(slots, readings.time, self._aligned(readings), readings.message)
        rows = np.arange(len(readings))
        if (slots < 0).any():
            codes[slots < 0] = FATE_CODE[Fate.OVERFULL]
            rows = np.flatnonzero(slots >= 0)
            batch = batch.rows(rows)
        if len(batch):
            table.heard_from(batch.slots, now)
            self._heard_again(batch.slots, now, out)
            if self.aligner is None:
                self._take(batch, now, out, codes, rows)
            else:
                done, fates = self.aligner.push(batch, table, now)
                codes[rows] = [FATE_CODE[fate] for fate in fates]
                self._take(done, now, out, None, None)
        for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
            fate = FATES[int(code)]
            out.fates[fate] = out.fates.get(fate, 0) + int(count)
        return out, codes

    def timer(self, now: float) -> Outcome:
        """Close alignment windows, notice silence, end shelving: what needs no reading to happen."""
        out = Outcome()
        if self.aligner is not None:
            self._take(self.aligner.due(now, self.table.channels), now, out, None, None)
        out.transitions += self.book.due(now)
        out.transitions += self.book.storm(len(self.table), now)
        for slot in np.flatnonzero(self._newly_silent(now)).tolist():
            self.table.silent[slot] = self.table.open[slot] = self.table.dirty[slot] = True
            since, detail = float(self.table.last_seen[slot]), "offline" if self.table.offline[slot] else ""
            out.transitions += self.book.start(self.table.ids[slot], "silence", since, now, detail)
            out.anomalies["silence"] = out.anomalies.get("silence", 0) + 1
        for slot in np.flatnonzero(self.table.used & (now - self.table.last_seen > self.spec.device_ttl)).tolist():
            out.forgotten.append(self.table.ids[slot])
            out.transitions += self._forget(slot, now)
        return out

    def timer_due(self, now: float) -> bool:
        """Whether `timer` would change anything."""
        table = self.table
        waits = self.aligner.next_due(now) if self.aligner is not None else None
        return (
            (waits is not None and waits <= now)
            or self.book.is_due(now)
            or bool(self._newly_silent(now).any())
            or bool((table.used & (now - table.last_seen > self.spec.device_ttl)).any())
        )

    def knows(self, device: str) -> bool:
        """Whether there is such a device, or it stands for all of them, to be commanded."""
        return device == FLEET or device in self.table.slot_of

    def command(self, command: Command, now: float) -> Outcome:
        """Do what an operator said."""
        out = Outcome()
        if not self.knows(command.device):
            return out
        slot = self.table.slot_of.get(command.device)
        if command.verb == "acknowledge":
            out.transitions += self.book.acknowledge(command.device, now)
        elif command.verb == "shelve":
            out.transitions += self.book.shelve(command.device, now, command.seconds)
        elif command.verb == "normal":
            ended = "prediction" in self.book.open.get(command.device, {})
            out.transitions += self.book.normal(command.device, now)
            if slot is not None:
                self.table.open[slot] = command.device in self.book.open
                if ended and self.scorer is not None and self.slabs is not None:
                    self.scorer.accept(self.slabs, slot)
                    self.scorer.raise_threshold(self.slabs, slot)
                    self.table.dirty[slot] = True
        elif command.verb == "forget" and slot is not None:
            out.forgotten.append(command.device)
            out.transitions += self._forget(slot, now)
        return out

    def announce(self, device: str, now: float = -math.inf) -> bool:
        """Know a device without a reading of it; `now`: when it was heard of. False: nothing changed."""
        _, new = self.table.slots([device])
        self._begin(new)
        for slot in new:
            self.table.last_seen[slot] = now
        return bool(new)

    def presence(self, entry: Birth | Death, now: float) -> Outcome:
        """Know that a device is there, or which are not: one that is offline has no gap, and is silent if it stays so."""
        out, table = Outcome(), self.table
        if isinstance(entry, Birth):
            if entry.device in table.slot_of or measures(entry):
                self.announce(entry.device, now)
            if (slot := table.slot_of.get(entry.device)) is not None:
                table.last_seen[slot], table.dirty[slot] = now, True
                self._heard_again(np.array([slot]), now, out)
            return out
        known = np.array([table.slot_of[device] for device in entry.devices if device in table.slot_of], dtype=np.int64)
        slots = known[~table.offline[known]]
        self._heard_again(slots, now, out)
        table.last_seen[slots] = now
        table.offline[slots] = table.paused[slots] = table.dirty[slots] = True
        return out

    def adopt(self, detector: Detector, devices: Sequence[str] = (), memory: Memory | None = None) -> None:
        """Run `detector` from here on; the devices named take the memory given, now or when they first appear.

        Others begin as new devices of the profile.
        """
        self._know(detector.channels)
        before = (self.detector, self.slabs)
        self.detector = detector
        self.scorer = self._scorer(detector)
        self.slabs = Slabs(self.scorer.layout, self.scorer.device, self.table.capacity)
        self._columns = np.array([self.channels.index(name) for name in detector.channels], dtype=np.int64)
        self._band = kernel.Band.of(detector.scale, detector.forecaster.sigma[:, 0].numpy(), self._columns)
        self.scorer.begin(self.slabs, np.arange(self.table.capacity))
        self._learned = {device: at for at, device in enumerate(devices)}
        self._memory = memory
        self._recall(list(self.table))
        if before[0] is not None and before[1] is not None:
            carry(before[0], before[1], detector, self.slabs)
        self.rules.learned(self.channels, detector.channels, detector.longest_run)
        self.book.model = detector.version
        self.table.dirty |= self.table.used

    def _scorer(self, detector: Detector) -> Scorer:
        return Scorer(detector, self._given, self.spec.alert_budget, self.spec.threshold, self.device)

    def placed(self) -> dict[str, Place]:
        """Where the model places those devices whose place is fixed."""
        if self.slabs is None:
            return {}
        m, s, placed = (self.slabs.view(name) for name in ("m", "s", "placed"))
        return {self.table.ids[slot]: (m[slot], s[slot]) for slot in self.table if placed[slot] >= PLACED_ON}

    def takes(self, spec: ProfileSpec) -> bool:
        """Whether `respec` can: same topics, decoding, columns, model."""
        old, new = (
            replace(
                each,
                **_FREE,
                channels=each.channels and tuple(Channel(given.name, given.path) for given in each.channels),
            )
            for each in (self.spec, spec)
        )
        return old == new

    def respec(self, spec: ProfileSpec) -> None:
        """Take changed settings that need no new table, aligner or model: budget, gates, rules, alert policy."""
        self.spec = self.book.spec = spec
        self._given = {channel.name: channel for channel in spec.channels or ()}
        self.rules = Rules(spec)
        if self.detector is not None:
            self.scorer = self._scorer(self.detector)
            self.rules.learned(self.channels, self.detector.channels, self.detector.longest_run)

    # --- a snapshot of it ---

    def export(self) -> dict[str, Any]:
        """All but the devices' rows and the detector itself, as plain data."""
        return {
            "channels": self.channels,
            "model": self.detector.version if self.detector is not None else None,
            "pending": [(self.table.ids[slot], *rest) for slot, *rest in self.aligner.export()] if self.aligner else [],
            "alerts": self.book.export(),
            "awaited": [device for device in self._learned if device not in self.table.slot_of],
            "offline": [self.table.ids[slot] for slot in np.flatnonzero(self.table.offline)],
            "paused": [self.table.ids[slot] for slot in np.flatnonzero(self.table.paused)],
            "edges": self.edges.export(),
        }

    def rows(self, slots: Ints) -> list[bytes]:
        """Rows of some devices: their slot in the table, then their memory."""
        packed = self.table.pack(slots)
        if self.slabs is None or not packed:
            return packed
        parts = [part.reshape(len(slots), -1) for part in self.slabs.take(slots)]
        memory = np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)
        return [row + more.tobytes() for row, more in zip(packed, memory, strict=True)]

    def restore(self, data: Mapping[str, Any], detector: Detector | None, rows: Iterable[tuple[str, bytes]]) -> None:
        """Become what `export` and `rows` saw. Only for a stream that has no devices yet.

        Where `detector` is the one that the stream runs already, the devices that it was learned from stay known, but
        for those that were forgotten since.

        Raises:
            ValueError: the rows are not of this detector and these channels.
        """
        stored = list(data["channels"])
        self._know(stored)
        by_width: dict[int, list[tuple[int, npt.NDArray[np.uint8]]]] = {}
        for device, row in rows:
            by_width.setdefault(len(row), []).append((self.table.add(device), np.frombuffer(row, dtype=np.uint8)))
        self._begin(list(self.table))
        if detector is not None and detector is not self.detector:
            self.adopt(detector)
        columns = np.array([self.channels.index(name) for name in stored], dtype=np.int64)
        width = self.table.width(len(stored))
        for size, group in by_width.items():
            # Rows written before the profile had a model, or a channel, are shorter: what they lack begins anew.
            slots, block = np.array([slot for slot, _ in group]), np.stack([raw for _, raw in group])
            if size >= width:
                self.table.unpack(slots, block[:, :width], columns)
            if size > width and self.slabs is not None:
                self._restore_memory(slots, block[:, width:])
        if self.aligner is not None:
            self.aligner.restore([(self.table.slot_of[device], *rest) for device, *rest in data["pending"]])
        self.book.restore(dict(data["alerts"]))
        for flags, devices in ((self.table.offline, "offline"), (self.table.paused, "paused")):
            flags[[self.table.slot_of[device] for device in data.get(devices, ()) if device in self.table.slot_of]] = (
                True
            )
        self.edges.restore(data.get("edges", {}))
        awaited = set(data.get("awaited", self._learned))
        self._learned = {d: at for d, at in self._learned.items() if d in self.table.slot_of or d in awaited}
        # Rows of another width than what is restored are all written anew.
        self.table.dirty[:] = self.table.used if stored != self.channels or len(by_width) > 1 else False

    def _restore_memory(self, slots: Ints, block: npt.NDArray[np.uint8]) -> None:
        assert self.slabs is not None
        parts, at = [], 0
        for part in self.slabs.take(np.zeros(1, dtype=np.int64)):
            raw = np.ascontiguousarray(block[:, at : at + part.nbytes])
            parts.append(raw.view(part.dtype).reshape(len(slots), *part.shape[1:]))
            at += part.nbytes
        if at != block.shape[1]:
            msg = f"rows of {block.shape[1]} bytes, expected {at}"
            raise ValueError(msg)
        self.slabs.put(slots, tuple(parts))

    # --- what can be asked ---

    def states(self) -> dict[DeviceState, int]:
        """Devices by state; each known device is in exactly one."""
        counts = np.bincount(self.state_codes()[self.table.used], minlength=len(DEVICE_STATES))
        return dict(zip(DEVICE_STATES, counts.tolist(), strict=True))

    def state_codes(self) -> npt.NDArray[np.int8]:
        """State of each slot, (N,), as its place in `DEVICE_STATES`."""
        learning, calibrating, scoring, silent, offline = range(len(DEVICE_STATES))
        codes = np.full(self.table.capacity, learning, dtype=np.int8)
        if self.scorer is not None and self.slabs is not None:
            codes[:] = np.where(self._ready(), scoring, calibrating)
        codes[self.table.silent] = silent
        codes[self.table.offline] = offline
        return codes

    def _ready(self) -> Bools:
        """Which slots score: once calibrated and settled, also while a gap has begun a state anew."""
        assert self.scorer is not None and self.slabs is not None  # noqa: PT018 - for the type checker
        enough, settled = self.scorer.ready(self.slabs)
        return enough & (settled | (self.table.ticks >= SCORED_BY))

    def device_state(self, slot: int) -> DeviceState:
        """State of one device."""
        return DEVICE_STATES[int(self.state_codes()[slot])]

    def held_back(self, device: str) -> tuple[float, int]:
        """Share by which a device's threshold for alerts is raised, and ticks for which no prediction alert begins."""
        if self.slabs is None:
            return 0.0, 0
        slot = self.table.slot_of[device]
        return float(self.slabs.view("raised")[slot]), self._rest(slot)

    def scores(self) -> Floats:
        """Last score of each slot, (N,), NaN where there is none."""
        return self.table.score

    # --- inside ---

    def _aligned(self, readings: Readings) -> Floats:
        """Values with a column for each of the stream's channels, by name, (B, F)."""
        width = len(readings.channels)
        if readings.channels == tuple(self.channels[:width]):
            if width == self.table.channels:
                return readings.values
            columns = list(range(width))
        else:
            columns = [self.channels.index(name) for name in readings.channels]
        values = np.full((len(readings), self.table.channels), np.nan)
        values[:, columns] = readings.values
        return values

    def _know(self, channels: Sequence[str]) -> None:
        if len(channels) > len(self.channels) or any(name not in self.channels for name in channels):
            self.channels += [name for name in channels if name not in self.channels]
        if len(self.channels) > self.table.channels:
            self.table.widen(len(self.channels))

    def _begin(self, new: Sequence[int]) -> None:
        if not new:
            return
        if self.slabs is not None and self.scorer is not None:
            if self.table.capacity > len(self.slabs):
                self.slabs.resize(self.table.capacity)
            self.scorer.begin(self.slabs, np.array(new))
            self._recall(new)

    def _recall(self, slots: Sequence[int]) -> None:
        """Give devices that the model was learned from their memory."""
        known = [(slot, self._learned[self.table.ids[slot]]) for slot in slots if self.table.ids[slot] in self._learned]
        if not known or self._memory is None or self.slabs is None:
            return
        take = [at for _, at in known]
        self.slabs.put(np.array([slot for slot, _ in known]), tuple(part[take] for part in self._memory))

    def _forget(self, slot: int, now: float) -> list[Transition]:
        out = self.book.forget(self.table.ids[slot], now)
        self._learned.pop(self.table.ids[slot], None)
        self.edges.forget(self.table.ids[slot])
        if self.aligner is not None:
            self.aligner.drop(slot)
        if self.recent is not None:
            self.recent.forget(slot)
        self.table.forget(slot)
        return out

    def _newly_silent(self, now: float) -> Bools:
        table, spec = self.table, self.spec
        after: float | Floats = spec.silence_after or math.inf
        if spec.silence_after is None:
            after = np.maximum(SILENCE_LEAST, SILENCE_INTERVALS * table.heard)
        after = np.where(table.offline, spec.offline_after or math.inf, after)
        heard = table.used & ~table.silent & np.isfinite(table.last_seen)
        # Where the clock was set back, what was heard before it lies ahead of now.
        since = np.where(table.last_seen > now, -np.inf, table.last_seen)
        out: Bools = heard & (now - np.maximum(since, self.listening_since) > after)
        return out

    def _heard_again(self, slots: Ints, now: float, out: Outcome) -> None:
        back = np.unique(slots[self.table.silent[slots] | self.table.offline[slots]])
        for slot in back.tolist():
            self.table.silent[slot] = self.table.offline[slot] = False
            out.transitions += self.book.end(self.table.ids[slot], "silence", now)
            self.table.open[slot] = self.table.ids[slot] in self.book.open

    def _take(self, batch: Batch, now: float, out: Outcome, codes: Ints | None, rows: Ints | None) -> None:
        for index in waves(batch.slots) if len(batch) else ():
            part = batch.rows(index)
            verdict = self._order(part)
            if codes is not None and rows is not None:
                codes[rows[index]] = verdict
            fresh = part.rows(np.flatnonzero(verdict == _USED))
            if len(fresh):
                self._wave(fresh, now, out)

    def _order(self, batch: Batch) -> Ints:
        """Fate of each row as a code: in order, a duplicate, or late."""
        table, slots = self.table, batch.slots
        last = table.last_time[slots]
        if self.spec.by_arrival:
            # The order of arrival is the order of time, also where several came at once or our clock stepped back.
            np.maximum(batch.time, last, out=batch.time)
            return np.full(len(batch), _USED)
        late = batch.time < last
        if self.aligner is None:  # else it has done so
            if late.any():
                late &= ~mend_clocks(slots, last - batch.time, table)
            table.late[slots] = np.where(late, table.late[slots], 0)
        codes = np.where(late, FATE_CODE[Fate.LATE], _USED)
        tied = np.flatnonzero(batch.time == last)
        if len(tied):
            given, kept = batch.values[tied], table.last[slots[tied]]
            same = ((given == kept) | np.isnan(given)).all(axis=1)
            codes[tied[same]] = FATE_CODE[Fate.DUPLICATE]
        return codes

    def _wave(self, batch: Batch, now: float, out: Outcome) -> None:
        table, slots = self.table, batch.slots
        last = table.last_time[slots]
        first = np.isinf(last)
        dt = np.where(first, 0.0, batch.time - np.where(first, batch.time, last))
        broken = self.rules.judge(batch, np.where(first | table.paused[slots], np.nan, dt), table, self.channels)
        table.paused[slots] = table.offline[slots]  # what waited for its window may come after the death
        scored = self._observe(batch, dt, first, out)
        told = len(out.transitions)
        self._judge(batch, scored, broken, now, out)
        if (watched := np.flatnonzero(table.watched[slots])).size:
            out.looks += self._looks(batch.rows(watched), scored.rows(watched) if scored is not None else None)
        if self.recent is not None:
            self.recent.take(slots, batch.time, batch.values, table.last, scored, self._band)
            for at, moved in enumerate(out.transitions[told:], told):
                if moved.alert.seq == 0 or moved.alert.state == "resolved":
                    slot = table.slot_of[moved.alert.device]
                    out.transitions[at] = replace(moved, recent=self.recent.of(slot))
        previous = table.last[slots] if self.keep_ticks else _NOTHING
        table.advance(slots, batch.time, batch.values, dt)
        if scored is not None:
            table.score[slots] = scored.score
        out.ticks.append(Ticks(batch, scored if self.keep_ticks else None, broken, previous))

    def _observe(self, batch: Batch, dt: Floats, first: Bools, out: Outcome) -> Scored | None:
        if self.scorer is None or self.slabs is None or self.detector is None:
            return None
        previous = self.table.last[batch.slots]
        columns = self._columns
        x = self.detector.scale.scaled(batch.values[:, columns], previous[:, columns])
        usual = np.maximum(self.detector.interval, self.table.interval[batch.slots])
        reset = anew(dt, usual, self.spec.max_gap) | first
        out.gaps += int((reset & ~first).sum())
        out.heard += float(dt[~reset].sum())
        return self.scorer.observe(self.slabs, batch.slots, x, dt, batch.time, reset)

    def _judge(self, batch: Batch, scored: Scored | None, broken: Broken, now: float, out: Outcome) -> None:
        table, slots, book = self.table, batch.slots, self.book
        if scored is not None:
            flagged = scored.score >= 1.0
            begun = table.onset[slots]
            begun = np.where(np.isnan(begun), batch.time, begun)
            recent = batch.time - begun <= MOST_BEFORE * np.maximum(table.interval[slots], 1e-3)
            table.onset[slots] = np.where((scored.score >= STIRRED) & recent, begun, np.nan)
            if flagged.any():
                out.anomalies["prediction"] = out.anomalies.get("prediction", 0) + int(flagged.sum())
        else:
            flagged = np.zeros(len(batch), dtype=np.bool_)
        for at, rule in enumerate(RULES):
            if hits := int(broken.any[:, at].sum()):
                out.anomalies[rule] = out.anomalies.get(rule, 0) + hits
        for row in np.flatnonzero(flagged | broken.any.any(axis=1) | table.open[slots]).tolist():
            slot = int(slots[row])
            device = table.ids[slot]
            evidence: dict[AlertKind, Any] = {
                rule: lambda row=row, rule=rule: self._rule_evidence(batch, broken, row, rule)
                for at, rule in enumerate(RULES)
                if broken.any[row, at]
            }
            episode = book.open.get(device, {}).get("prediction")
            if scored is not None and self.spec.alert_budget > 0 and self._alarms(scored, row, episode):
                if episode is None and not self._rest(slot):
                    evidence["prediction"] = lambda row=row: self._evidence(batch, scored, row)
                elif episode is not None:
                    worse = episode.score is None or float(scored.score[row]) > episode.score
                    look = self._evidence if worse else _no_more
                    evidence["prediction"] = lambda row=row, look=look: look(batch, scored, row)
            before = book.started.get("prediction", 0)
            scoreless = scored is None or bool(np.isnan(scored.score[row]))
            seen = {self.channels[column] for column in np.flatnonzero(~np.isnan(batch.values[row])).tolist()}

            def tells(episode: Episode, scoreless: bool = scoreless, seen: set[str] = seen) -> bool:
                return _tells(episode, scoreless, seen)

            moved, ended = book.tick(device, float(batch.time[row]), now, evidence, int(batch.message[row]), tells)
            out.transitions += moved
            if book.started.get("prediction", 0) > before:
                table.last_start[slot] = table.ticks[slot]
                if scored is not None and self.scorer is not None and self.slabs is not None:
                    self.scorer.alert_begins(self.slabs, slot, scored, row)
            if "prediction" in ended and self.scorer is not None and self.slabs is not None:
                self.scorer.raise_threshold(self.slabs, slot)
                table.onset[slot] = np.nan
            if scored is not None and scored.settled[row]:
                out.transitions += book.settle(device, float(batch.time[row]), int(batch.message[row]))
            table.open[slot] = device in book.open

    def _alarms(self, scored: Scored, row: int, open_: Episode | None) -> bool:
        """Whether a tick makes an alert or keeps it open. One on a declared recording holds as long as the flag does."""
        assert self.detector is not None
        of = scored.score if open_ is not None and self.detector.declared else scored.alarm
        return bool(of[row] >= 1.0)

    def _rest(self, slot: int) -> int:
        """Ticks for which no prediction alert begins yet: what is left of the refractory time since the last one did."""
        assert self.slabs is not None
        since = int(self.table.ticks[slot] - self.table.last_start[slot])
        return max(int(self.slabs.view("refractory")[slot]) + 1 - since, 0)

    # --- words for people ---

    def expectation(self, scored: Scored, previous: Floats) -> tuple[Floats, Floats, Floats]:
        """Expected value and its band, in the channels' units, (B, F of the detector) each; NaN where there is none.

        Args:
            previous: the devices' values one tick before, (B, F of the detector): a counter goes on from there.
        """
        assert self.detector is not None
        scale, sigma = self.detector.scale, self.detector.forecaster.sigma[:, 0].double().numpy()[scored.network]
        mu, m, s = (part.astype(np.float64) for part in (scored.forecast, scored.location, scored.spread))
        middle, low, high = (
            (np.sinh(np.clip(mu + k * sigma, -14, 14)) * s + m) * scale.spread + scale.location
            for k in (0, -BAND, BAND)
        )
        if scale.counter.any():
            from_there = np.where(scale.counter, previous, 0.0)
            middle, low, high = middle + from_there, low + from_there, high + from_there
        return middle, low, high

    def _looks(self, batch: Batch, scored: Scored | None) -> list[Look]:
        low, high = np.full_like(batch.values, np.nan), np.full_like(batch.values, np.nan)
        score = np.full(len(batch), np.nan)
        if scored is not None:
            score = scored.score.astype(np.float64)
            previous = self.table.last[batch.slots][:, self._columns]
            _, low[:, self._columns], high[:, self._columns] = self.expectation(scored, previous)
        return [
            Look(self.table.ids[slot], float(batch.time[at]), float(score[at]), batch.values[at], low[at], high[at])
            for at, slot in enumerate(batch.slots.tolist())
        ]

    def _views(self, values: Floats, why: Explanation, expected: Sequence[Floats]) -> tuple[ChannelView, ...]:
        assert self.detector is not None
        out, by = [], why.by * self.detector.scale.spread
        for at, column in enumerate(self._columns.tolist()):
            name = self.channels[column]
            unit = self._given[name].unit if name in self._given else ""
            middle, low, high = (_number(part[at]) for part in expected)
            out.append(
                ChannelView(
                    name,
                    unit,
                    _number(values[column]),
                    middle,
                    low,
                    high,
                    float(why.shares[at]),
                    how=why.how[at],
                    by=float(by[at]),
                    readings=int(why.readings[at]),
                )
            )
        return tuple(sorted(out, key=lambda view: -view.share))

    def _evidence(self, batch: Batch, scored: Scored, row: int) -> Evidence:
        assert self.detector is not None
        assert self.slabs is not None
        one = scored.row(row)
        slot = int(batch.slots[row])
        by_shift = float(one.joint[0]) >= 0.99 * float(one.score[0]) ** 3
        why = explain(self.detector, self.slabs, slot, by_shift=by_shift)
        previous = self.table.last[batch.slots[row : row + 1]][:, self._columns]
        expected = [part[0] for part in self.expectation(one, previous)]
        views = self._views(batch.values[row], why, expected)
        since = float(self.table.onset[batch.slots[row]])
        score, alarm, p = (float(part[0]) for part in (one.score, one.alarm, one.p_value))
        return Evidence(score, p, views, None if math.isnan(since) else since, score / alarm)

    def _rule_evidence(self, batch: Batch, broken: Broken, row: int, rule: AlertKind) -> Evidence:
        hit = broken.by_channel.get(rule)
        columns = np.flatnonzero(hit[row]).tolist() if hit is not None else []
        views = []
        for column in columns:
            given = self._given.get(self.channels[column], Channel(self.channels[column]))
            low, high = (given.min, given.max) if rule == "range" else (None, None)
            value = _number(batch.values[row, column])
            views.append(ChannelView(given.name, given.unit, value, None, low, high, 1 / len(columns)))
        since = None
        if rule == "stuck" and columns:
            slot = int(batch.slots[row])
            ticks = float(self.table.run[slot, columns].max())
            since = float(batch.time[row] - ticks * self.table.interval[slot])
        return Evidence(None, None, tuple(views), since)


def _tells(episode: Episode, scoreless: bool, seen: set[str]) -> bool:
    """Whether a quiet tick says that an alert's cause is over: its channel came, and a prediction had a score."""
    if episode.kind == "prediction" and scoreless:
        return False
    return not episode.channels or episode.channels[0].name in seen


def _no_more(_batch: Batch, scored: Scored, row: int) -> Evidence:
    """A tick that is no worse than the worst of its alert: nobody needs to know why."""
    return Evidence(float(scored.score[row]), None, ())


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


@dataclass(slots=True)
class Turn:
    """What one turn did.

    Attributes:
        messages: of each profile, by what became of them.
        outcomes: by profile.
        entries: what was new in it, for the journal.
    """

    messages: dict[str, dict[Fate, int]]
    outcomes: dict[str, Outcome]
    entries: list[Announcement | Readings | Birth | Death | Heard]
    decoded: Decoded

    @property
    def fates(self) -> Counter[Fate]:
        """Of the messages of all profiles."""
        return sum(map(Counter, self.messages.values()), Counter())


class Pipeline:
    """The whole stream: every profile behind one decoder."""

    def __init__(self, specs: Sequence[ProfileSpec], own_prefix: str = "sentinel") -> None:
        self.profiles = {spec.name: ProfileStream(spec) for spec in specs}
        edges = {name: stream.edges for name, stream in self.profiles.items()}
        self.decoder = Decoder([(p.spec, p.channels) for p in self.profiles.values()], own_prefix, edges)

    def push(self, messages: Sequence[Message], now: float) -> Turn:
        """Take one turn's messages: decode them and absorb what they held."""
        decoded = self.decoder.decode(messages)
        outcomes: dict[str, Outcome] = {}
        best = np.full(len(messages), len(FATES), dtype=np.int64)
        worst = np.full(len(messages), -1, dtype=np.int64)
        place = {name: at for at, name in enumerate(self.profiles)}
        owner = np.zeros(len(messages), dtype=np.int64)
        entries: list[Announcement | Readings | Birth | Death | Heard] = [
            Announcement(profile, device)
            for profile, device in decoded.announced
            if self.profiles[profile].announce(device, now)
        ]
        for entry in decoded.inputs:
            if isinstance(entry, Readings):
                outcome, codes = self.absorb(entry, now)
                np.minimum.at(best, entry.message, codes)
                np.maximum.at(worst, entry.message, codes)
                owner[entry.message] = place[entry.profile]
            elif isinstance(entry, Heard):
                continue
            else:
                outcome = self.profiles[entry.profile].presence(entry, now)
            if (before := outcomes.setdefault(entry.profile, outcome)) is not outcome:
                before.add(outcome)
        final = np.where(best == _USED, _USED, worst)
        for at, name in decoded.owners.items():
            fate = decoded.fates[at]
            owner[at] = place[name]
            if fate is not None and final[at] != _USED:
                final[at] = FATE_CODE[fate]
        shape = len(place), len(FATES)
        counts = np.bincount((owner * shape[1] + final)[final >= 0], minlength=shape[0] * shape[1]).reshape(shape)
        names, taken = list(place), dict[str, dict[Fate, int]]()
        for at, code in np.argwhere(counts).tolist():
            taken.setdefault(names[at], {})[FATES[code]] = int(counts[at, code])
        return Turn(taken, outcomes, [*entries, *decoded.inputs], decoded)

    def absorb(self, readings: Readings, now: float) -> tuple[Outcome, Ints]:
        """Take readings as they were decoded, now or when a journal was written."""
        return self.profiles[readings.profile].absorb(readings, now)


def series_of(batches: Sequence[Batch], ids: Sequence[str], channels: int) -> list[Series]:
    """Ticks in order of arrival as one series a device; channels that were not known yet are NaN."""
    if not batches:
        return []
    slots = np.concatenate([batch.slots for batch in batches])
    time = np.concatenate([batch.time for batch in batches])
    values = np.full((len(slots), channels), np.nan)
    at = 0
    for batch in batches:
        values[at : at + len(batch), : batch.values.shape[1]] = batch.values
        at += len(batch)
    order = np.argsort(slots, kind="stable")
    cuts = np.flatnonzero(np.diff(slots[order])) + 1
    return [Series(ids[int(slots[rows[0]])], time[rows], values[rows]) for rows in np.split(order, cuts)]
