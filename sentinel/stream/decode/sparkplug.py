"""Sparkplug B (Eclipse Sparkplug 3.0): topics, and payloads in Protocol Buffers.

The messages are declared as far as channels need them. A metric is declared as bytes and parsed by itself, and so are
the values that are no numbers: what a hostile payload nests or repeats is never built.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

from sentinel.records import Fate, Message
from sentinel.stream.decode.payload import Malformed, sized

NAMESPACE = "spBv1.0"
MAX_METRICS = 1 << 14  # in one message
SESSION = "bdSeq"  # metric of a node's birth and death that says which birth it is
MOST_SEQUENCE = 256
_VERBS = frozenset({"NBIRTH", "NDATA", "NDEATH", "DBIRTH", "DDATA", "DDEATH"})
_CONTROL = ("Node Control/", "Device Control/")
_REBIRTH, _BOOLEAN = b"Node Control/Rebirth", 11
_SIGNED: Mapping[int, int] = MappingProxyType({1: 8, 2: 16, 3: 32, 4: 64})  # data type: bits
_UNSIGNED: Mapping[int, int] = MappingProxyType({5: 8, 6: 16, 7: 32, 8: 64})
_REAL = frozenset({9, 10})
NUMBERS = frozenset({*_SIGNED, *_UNSIGNED, *_REAL})  # data types
_INTEGERS: Mapping[str, int] = MappingProxyType({"int_value": 32, "long_value": 64})
_REALS = frozenset({"float_value", "double_value"})
# Name, number and type of the fields, of proto2; types as in descriptor.proto. All but `metrics` come once.
_DOUBLE, _FLOAT, _UINT64, _BOOL, _BYTES, _UINT32 = 1, 2, 4, 8, 12, 13
_FIELDS = {
    "Payload": {"timestamp": (1, _UINT64), "metrics": (2, _BYTES), "seq": (3, _UINT64)},
    "Metric": {
        "name": (1, _BYTES),
        "alias": (2, _UINT64),
        "timestamp": (3, _UINT64),
        "datatype": (4, _UINT32),
        "is_null": (7, _BOOL),
        "properties": (9, _BYTES),
        "int_value": (10, _UINT32),
        "long_value": (11, _UINT64),
        "float_value": (12, _FLOAT),
        "double_value": (13, _DOUBLE),
        "boolean_value": (14, _BOOL),
        "string_value": (15, _BYTES),
        "bytes_value": (16, _BYTES),
        "dataset_value": (17, _BYTES),
        "template_value": (18, _BYTES),
        "extension_value": (19, _BYTES),
    },
    "PropertySet": {"keys": (1, _BYTES), "values": (2, _BYTES)},
    "PropertyValue": {"string_value": (8, _BYTES)},
}
_REPEATED = {("Payload", "metrics"), ("PropertySet", "keys"), ("PropertySet", "values")}


class Place(NamedTuple):
    """Whom a topic is about.

    Attributes:
        verb: NBIRTH, NDATA, NDEATH, DBIRTH, DDATA or DDEATH.
        node: "group/edge".
        device: the node itself, or "group/edge/device".
    """

    verb: str
    node: str
    device: str


class Metric(NamedTuple):
    """One metric as it came.

    Attributes:
        name: "": by alias alone.
        kind: data type; 0: unsaid.
        time: event time, s; None: unsaid.
        field: that carries the value; "": it is null.
        properties: the encoded set of them.
    """

    name: str
    alias: int | None
    kind: int
    time: float | None
    field: str
    value: Any
    properties: bytes


class Payload(NamedTuple):
    """What a message carries. `time` in s, None: unsaid; `seq` 0 to 255, None: none that could be checked."""

    time: float | None
    seq: int | None
    metrics: list[Metric]


def parse_topic(topic: str) -> Place | None:
    """The place of a topic; None: a command or a host's state, which are no input.

    Raises ValueError: it is not of the namespace's form.
    """
    levels = topic.split("/")
    if levels[0] == NAMESPACE and len(levels) > 1 and (levels[1] == "STATE" or levels[2:3] in (["NCMD"], ["DCMD"])):
        return None
    if levels[0] != NAMESPACE or len(levels) not in (4, 5) or levels[2] not in _VERBS or not all(levels):
        raise ValueError("not spBv1.0/GROUP/TYPE/EDGE or spBv1.0/GROUP/TYPE/EDGE/DEVICE")
    _, group, verb, edge, *device = levels
    if (verb[0] == "D") != bool(device):
        raise ValueError(f"{verb} is of a {'device' if verb[0] == 'D' else 'node'}, the topic is not")
    node = f"{group}/{edge}"
    return Place(verb, node, f"{node}/{device[0]}" if device else node)


def read_payload(message: Message) -> Payload:
    """Raises Malformed: too large, too many metrics, no Protocol Buffers, or a name that is not UTF-8."""
    payload_of, metric_of, _, _ = _messages()
    payload = _parsed(payload_of.FromString, sized(message.payload))
    encoded = payload.metrics
    if len(encoded) > MAX_METRICS:
        raise Malformed(Fate.TOO_LARGE, f"{len(encoded)} metrics in one message, over {MAX_METRICS}")
    metrics = _parsed(lambda each: [_metric(metric_of.FromString(raw)) for raw in each], encoded)
    seq = payload.seq if payload.HasField("seq") and payload.seq < MOST_SEQUENCE else None
    return Payload(payload.timestamp / 1e3 or None, seq, metrics)


def is_control(name: str) -> bool:
    """Whether a metric is of the protocol and measures nothing."""
    return name == SESSION or name.startswith(_CONTROL)


def fits(metric: Metric, kind: int, *, sure: bool) -> bool:
    """Whether a value can be of that data type. It cannot where an alias has come to mean something else.

    Args:
        sure: whether a birth told of the metric. Without one, and without a type, an integer may be signed or not.
    """
    if kind in NUMBERS:
        return not metric.field or metric.field in (_REALS if kind in _REAL else _INTEGERS)
    return metric.field not in (_REALS if kind else () if sure else _INTEGERS)


def number(metric: Metric, kind: int) -> float | None:
    """A value as that data type says; NaN: it is out of the type's range; None: it is no number.

    Signed integers are two's complement, in as many bits as the type has or as the field has: both are sent.
    """
    value = metric.value
    if metric.field in _REALS:
        return float(value)
    if metric.field not in _INTEGERS or (kind and kind not in NUMBERS):
        return None
    field = _INTEGERS[metric.field]
    bits = _SIGNED.get(kind)
    if bits is None:
        return int(value) if value < 1 << _UNSIGNED.get(kind, field - 1) else math.nan
    if value >= (1 << field) - (1 << (bits - 1)):
        return int(value) - (1 << field)
    if value >= 1 << bits:
        return math.nan
    return int(value) - (1 << bits) if value >= 1 << (bits - 1) else int(value)


def unit(metric: Metric) -> str:
    """The engineering unit that a birth's metric has as a property; "": none."""
    _, _, set_of, value_of = _messages()
    try:
        found = set_of.FromString(metric.properties)
        for key, value in zip(found.keys, found.values, strict=False):
            if key == b"engUnit":
                return str(value_of.FromString(value).string_value.decode())
    except Exception:  # a unit is for people: none is better than no proposal
        return ""
    return ""


def command_topic(node: str) -> str:
    """Where a node takes commands."""
    group, edge = node.split("/")
    return f"{NAMESPACE}/{group}/NCMD/{edge}"


def rebirth(now: float) -> bytes:
    """The payload of an NCMD that asks a node to be born again."""
    payload_of, metric_of, _, _ = _messages()
    at = int(now * 1e3)
    metric = metric_of(name=_REBIRTH, timestamp=at, datatype=_BOOLEAN, boolean_value=True)
    encoded: bytes = payload_of(timestamp=at, metrics=[metric.SerializeToString()]).SerializeToString()
    return encoded


def _parsed(parse: Callable[[Any], Any], encoded: Any) -> Any:
    try:
        return parse(encoded)
    except UnicodeDecodeError:
        raise Malformed(Fate.BAD_SYNTAX, "no Sparkplug payload: a metric's name is not UTF-8") from None
    except Exception as error:  # the library's, of whose implementations each has its own
        raise Malformed(Fate.BAD_SYNTAX, f"no Sparkplug payload: {error}"[:200]) from None


def _metric(raw: Any) -> Metric:
    return Metric(
        raw.name.decode(),
        raw.alias if raw.HasField("alias") else None,
        raw.datatype,
        raw.timestamp / 1e3 or None,
        field := "" if raw.is_null else raw.WhichOneof("value") or "",
        getattr(raw, field) if field else None,
        raw.properties,
    )


@cache
def _messages() -> tuple[Any, Any, Any, Any]:
    """Classes of Payload, Metric, PropertySet and PropertyValue."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="sentinel/sparkplug", package="sentinel", syntax="proto2")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        if any(field.endswith("_value") for field in fields):
            message.oneof_decl.add(name="value")
        for field, (at, kind) in fields.items():
            label = 3 if (name, field) in _REPEATED else 1
            one = {"oneof_index": 0} if field.endswith("_value") else {}
            message.field.add(name=field, number=at, type=kind, label=label, **one)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found: tuple[Any, Any, Any, Any] = tuple(
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"sentinel.{name}")) for name in _FIELDS
    )
    return found
