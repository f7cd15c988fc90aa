"""A Sparkplug edge node for tests: what it would publish, by its own count of messages."""

from collections.abc import Mapping
from typing import Any

from sentinel.stream.decode.sparkplug import _messages

INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FLOAT, DOUBLE, BOOLEAN, STRING, DATETIME = range(1, 14)
_PAYLOAD, _METRIC, _, _ = _messages()
FIELDS = {
    **dict.fromkeys((INT8, INT16, INT32, UINT8, UINT16, UINT32), "int_value"),
    **dict.fromkeys((INT64, UINT64, DATETIME), "long_value"),
    FLOAT: "float_value",
    DOUBLE: "double_value",
    BOOLEAN: "boolean_value",
    STRING: "string_value",
}


def metric(name: str = "", kind: int = 0, value: Any = None, *, field: str = "", **more: Any) -> bytes:
    """One encoded metric; `kind` is also said, unless `field` names where the value goes."""
    given: dict[str, Any] = {"name": name.encode()} if name else {}
    if value is None and not field:
        given["is_null"] = True
    elif value is not None:
        given[field or FIELDS[kind]] = value
    if kind:
        given["datatype"] = kind
    encoded: bytes = _METRIC(**given, **more).SerializeToString()
    return encoded


def payload(time: float, seq: int | None, *metrics: bytes) -> bytes:
    """An encoded payload; `time` in s."""
    body = _PAYLOAD(timestamp=int(time * 1e3), metrics=metrics)
    if seq is not None:
        body.seq = seq
    encoded: bytes = body.SerializeToString()
    return encoded


def parse(body: bytes) -> object:
    """By the library alone."""
    return _PAYLOAD.FromString(body)


class EdgeNode:
    """One node with devices. Each method gives topic and payload of the next message.

    Attributes:
        session: bdSeq of the last birth.
        aliases: by device and metric, of the last births.
    """

    def __init__(self, group: str = "plant", name: str = "e1", session: int = 0) -> None:
        self.group, self.name, self.session, self.seq = group, name, session, -1
        self.aliases: dict[tuple[str, str], int] = {}
        self._count = 100 * session

    def topic(self, verb: str, device: str = "") -> str:
        return "/".join(["spBv1.0", self.group, verb, self.name, *([device] if device else [])])

    def birth(self, time: float, values: Mapping[str, tuple[int, Any]], device: str = "") -> tuple[str, bytes]:
        """Of the node, or of a device; `values`: type and value by name."""
        control = []
        if not device:
            self.seq, control = (
                -1,
                [metric("bdSeq", UINT64, self.session), metric("Node Control/Rebirth", BOOLEAN, False)],
            )
        metrics = []
        for name, (kind, value) in values.items():
            self._count += 1
            self.aliases[device, name] = self._count
            metrics.append(metric(name, kind, value, alias=self._count))
        return self.topic("DBIRTH" if device else "NBIRTH", device), payload(time, self._next(), *control, *metrics)

    def data(self, time: float, values: Mapping[str, tuple[int, Any]], device: str = "") -> tuple[str, bytes]:
        """By alias, without types."""
        metrics = [
            metric(field=FIELDS[kind], value=value, alias=self.aliases[device, name])
            for name, (kind, value) in values.items()
        ]
        return self.topic("DDATA" if device else "NDATA", device), payload(time, self._next(), *metrics)

    def death(self, time: float, device: str = "") -> tuple[str, bytes]:
        if device:
            return self.topic("DDEATH", device), payload(time, self._next())
        return self.topic("NDEATH"), payload(time, None, metric("bdSeq", UINT64, self.session))

    def reborn(self) -> None:
        """It has started again, and counts its aliases elsewhere."""
        self.session += 1
        self._count += 50

    def _next(self) -> int:
        self.seq = (self.seq + 1) % 256
        return self.seq
