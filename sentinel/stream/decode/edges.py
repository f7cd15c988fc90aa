"""Sparkplug's sessions: what the births of a profile's edge nodes said, and where each node's sequence is.

    NBIRTH seq 0 ──► DBIRTH 1 ──► NDATA, DDATA 2 … 255, 0 … ──► NDEATH        (births name aliases and data types)

All of it is an input of the stream: births, deaths and the numbers that a turn came to are entries of the journal, and
`take` makes of them again what `read` made of the messages.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sentinel.records import Birth, Death, Fate, Heard, Message
from sentinel.stream.decode.payload import Malformed, Record
from sentinel.stream.decode.sparkplug import (
    MOST_SEQUENCE,
    NUMBERS,
    SESSION,
    Payload,
    Place,
    fits,
    is_control,
    number,
    read_payload,
)

MOST_MEANINGS = 1 << 21  # names and aliases that are known at once
LONGEST_NAME = 1024  # characters of a metric's name
_Meanings = dict[int | str, tuple[str, int]]  # by alias and by name: name and data type


@dataclass(slots=True)
class Said:
    """What one message said.

    Attributes:
        entry: the birth or death that it is.
        records: readings, in the order of their times.
        unborn: metrics of which no birth says what they mean.
        others: values of types that are no numbers.
        bad: numbers that are not finite, or not of their type.
        gap: whether messages before it are missing.
    """

    entry: Birth | Death | None = None
    records: list[Record] = field(default_factory=list)
    unborn: int = 0
    others: int = 0
    bad: int = 0
    gap: bool = False


@dataclass(slots=True)
class _Node:
    """`devices`: what was heard of, the node itself included; without meanings where no birth said any."""

    session: int | None = None
    seq: int | None = None
    devices: dict[str, _Meanings] = field(default_factory=dict)


class Edges:
    """The edge nodes of one profile.

    Holds: at most `most` devices and nodes, and `MOST_MEANINGS`.   Blocks: never.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._nodes: dict[str, _Node] = {}
        self._devices = self._meanings = 0
        self._numbers: dict[str, int | None] = {}  # of the next `Heard`

    @property
    def full(self) -> bool:
        """Whether there is room for no more devices and nodes."""
        return self._devices >= self._most

    def read(self, profile: str, place: Place, message: Message) -> Said:
        """Understand a message, and take what it changes.

        Raises:
            Malformed: no payload, more than there is room for, or a death that is not of the node's last birth.
        """
        payload, said = read_payload(message), Said()
        if message.retain and place.verb[1:] == "DEATH" and self._known(place) is not None:
            raise Malformed(Fate.LATE, "a retained death, of any time")
        if place.verb == "NDEATH":
            said.entry = self._death(profile, place.node, payload)
            self.take(said.entry)
            return said
        known = self._known(place)
        self._check_room(place, payload, known)
        if place.verb == "DDEATH":
            said.entry = Death(profile, place.node, (place.device,))
        elif place.verb in ("NBIRTH", "DBIRTH") and not (message.retain and known):
            said.entry = _birth(profile, place, payload)
        if not message.retain:  # which is of any time: it tells only what nothing else has told
            said.gap = self._misses(place, payload.seq, message.qos)
        if said.entry is not None:
            self.take(said.entry)
        self._note(place.node if place.verb == "DDEATH" else place.device, place.node)
        if place.verb != "DDEATH":
            self._read_values(said, place, payload)
        return said

    def heard(self, profile: str) -> Heard | None:
        """Where the sequences have come to since this was last asked; None: nothing was heard."""
        numbers, self._numbers = self._numbers, {}
        return Heard(profile, numbers) if numbers else None

    def take(self, entry: Birth | Death | Heard) -> None:
        """Change as the messages did that an entry stands for."""
        match entry:
            case Birth():
                if entry.device == entry.node:
                    node = self._nodes.setdefault(entry.node, _Node())
                    node.session = entry.session
                    for device in node.devices:
                        self._mean(entry.node, device, {})
                meanings: _Meanings = {name: (name, kind) for name, _, kind in entry.metrics}
                meanings |= {alias: (name, kind) for name, alias, kind in entry.metrics if alias is not None}
                self._mean(entry.node, entry.device, meanings)
            case Death():
                for device in entry.devices:
                    self._numbers.pop(device, None)
                    self._drop(entry.node, device)
                if entry.node in entry.devices:
                    self._nodes.pop(entry.node, None)
            case Heard():
                for name, seq in entry.numbers.items():
                    of = _node_of(name)
                    if name not in self._nodes.setdefault(of, _Node()).devices:
                        self._mean(of, name, {})
                    self._nodes[of].seq = seq

    def forget(self, name: str) -> None:
        """A device is gone; so is its node with the last one."""
        of = _node_of(name)
        if self._drop(of, name) and not self._nodes[of].devices:
            del self._nodes[of]

    def export(self) -> dict[str, Any]:
        """For a snapshot, as plain data."""
        return {
            name: [
                node.session,
                node.seq,
                {device: list(known.items()) for device, known in node.devices.items()},
            ]
            for name, node in self._nodes.items()
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Undo `export`. Only where nothing was heard yet."""
        for name, (session, seq, devices) in data.items():
            self._nodes[name] = _Node(session, seq)
            for device, known in devices.items():
                self._mean(name, device, {key: (metric, kind) for key, (metric, kind) in known})

    # --- inside ---

    def _known(self, place: Place) -> _Meanings | None:
        node = self._nodes.get(place.node)
        return None if node is None else node.devices.get(place.device)

    def _check_room(self, place: Place, payload: Payload, known: _Meanings | None) -> None:
        if known is None and self.full:
            raise Malformed(Fate.OVERFULL, f"more devices and nodes than max_devices = {self._most}")
        more = 2 * len(payload.metrics) - len(known or ())
        if place.verb[1:] == "BIRTH" and self._meanings + more > MOST_MEANINGS:
            raise Malformed(Fate.OVERFULL, "births name more metrics than are kept")

    def _mean(self, node: str, device: str, meanings: _Meanings) -> None:
        """From here on, a device's metrics mean this."""
        devices = self._nodes.setdefault(node, _Node()).devices
        before = devices.get(device)
        devices[device] = meanings
        self._devices += before is None
        self._meanings += len(meanings) - len(before or ())

    def _drop(self, node: str, device: str) -> bool:
        """Know a device no longer. False: it was not known."""
        gone = self._nodes.get(node, _Node()).devices.pop(device, None)
        if gone is None:
            return False
        self._devices -= 1
        self._meanings -= len(gone)
        return True

    def _death(self, profile: str, name: str, payload: Payload) -> Death:
        node, session = self._nodes.get(name, _Node()), _session(payload)
        if node.session is not None and session is not None and session != node.session:
            raise Malformed(Fate.LATE, f"a death of birth {session}; the node's last was {node.session}")
        return Death(profile, name, tuple(dict.fromkeys((name, *node.devices))))

    def _misses(self, place: Place, seq: int | None, qos: int) -> bool:
        """Whether messages before this one are missing."""
        node = self._nodes.setdefault(place.node, _Node())
        last = node.seq
        if seq is None:
            return False
        ahead = (seq - last) % MOST_SEQUENCE if last is not None and place.verb != "NBIRTH" else 1
        # A connection begins with what was not acknowledged on the one before: up to half a round behind.
        if ahead == 0 or (qos and ahead > MOST_SEQUENCE // 2):
            return False
        node.seq = seq
        return ahead != 1

    def _note(self, name: str, of: str) -> None:
        """Tell the next `Heard` where a node's sequence is, by the name of one that nothing else tells of."""
        node = self._nodes.setdefault(of, _Node())
        if name in node.devices:
            name = of
        if name not in node.devices:
            self._mean(of, name, {})
        self._numbers.pop(name, None)  # the newest is the last
        self._numbers[name] = node.seq

    def _read_values(self, said: Said, place: Place, payload: Payload) -> None:
        """Readings by their times. A birth says how things are when it is sent, whenever each of them came to be so."""
        known = self._known(place) or {}
        born = place.verb[1:] == "BIRTH"
        at = payload.time or max((metric.time or 0.0 for metric in payload.metrics), default=0.0) or None
        found: dict[float | None, dict[str, Any]] = {}
        for metric in payload.metrics:
            name, kind = metric.name, metric.kind
            meaning = known.get(name) if metric.alias is None else known.get(metric.alias) or known.get(name)
            if meaning is not None:
                name, kind = meaning[0], kind or meaning[1]
            if is_control(name):
                continue
            if not name or not fits(metric, kind, sure=meaning is not None):
                said.unborn += 1
            elif metric.field:
                value = number(metric, kind)
                if value is None:
                    said.others += 1
                elif math.isfinite(value):
                    found.setdefault(at if born else metric.time or payload.time, {})[name] = value
                else:
                    said.bad += 1
        said.records = [Record(found[time], {}, time) for time in sorted(found, key=lambda time: time or math.inf)]


def _node_of(device: str) -> str:
    return "/".join(device.split("/")[:2])


def measures(birth: Birth) -> bool:
    """Whether any of its metrics can be a channel."""
    return any(kind in NUMBERS and not is_control(name) for name, _, kind in birth.metrics)


def _birth(profile: str, place: Place, payload: Payload) -> Birth:
    aliases = [metric.alias for metric in payload.metrics if metric.alias is not None]
    if len(set(aliases)) < len(aliases):
        raise Malformed(Fate.BAD_SHAPE, "a birth with an alias twice")
    if not all(0 < len(metric.name) <= LONGEST_NAME for metric in payload.metrics):
        raise Malformed(Fate.BAD_SHAPE, f"a birth with a metric without a name, or one over {LONGEST_NAME} characters")
    metrics = tuple((metric.name, metric.alias, metric.kind) for metric in payload.metrics)
    return Birth(profile, place.node, place.device, metrics, _session(payload) if place.verb == "NBIRTH" else None)


def _session(payload: Payload) -> int | None:
    """The birth that a node's birth or death names; None: none."""
    values = (metric.value for metric in payload.metrics if metric.name == SESSION)
    return next((value for value in values if type(value) is int), None)
