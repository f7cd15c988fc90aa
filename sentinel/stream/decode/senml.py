"""SenML (RFC 8428), JSON and CBOR: packs of records, resolved and gathered by device and time."""

import math
import re
from typing import Any

from sentinel.records import Fate, Message
from sentinel.stream.decode import payload as json_form
from sentinel.stream.decode.cbor import load_cbor, looks_like_cbor
from sentinel.stream.decode.payload import MAX_READINGS, Malformed, Record
from sentinel.stream.decode.words import kind

_VERSION = 10
_RELATIVE = 1 << 28  # seconds; a smaller time counts from now
_LONGEST_NAME = 1024  # characters, base name and name; each record makes its own
_LABELS = {
    -1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs",
    0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut", 8: "vd",
}  # fmt: skip
_KEYS = frozenset(_LABELS.values())
_BASE = frozenset({"bver", "bn", "bt", "bv", "bs"})
_VALUES = frozenset({"v", "vs", "vb", "vd", "s"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-:./_]*+")
_DEVICE_URN = re.compile(r"(urn:dev:[^:]++:[^:/_]++)[:/_]?(.*)", re.DOTALL)


def read_senml(message: Message) -> list[Record | Malformed]:
    """The readings of a pack: {name: value}, a sum under "{name}_sum", with the device as `bn` about it.

    Raises Malformed: not JSON or CBOR, no pack, of a later version, or with a field that must be understood.
    """
    if looks_like_cbor(message.payload):
        return resolve(load_cbor(message.payload, strict=False), message)
    return resolve(json_form.load(message), message)


def looks_like_senml(pack: list[Any]) -> bool:
    """Nothing but records of SenML's own fields, the first with a name."""
    return (
        bool(pack)
        and all(
            type(record) is dict and all(key in _KEYS or (type(key) is int and key in _LABELS) for key in record)
            for record in pack
        )
        and any(type(pack[0].get(key)) is str for key in ("bn", "n", -2, 0))
    )


def resolve(pack: Any, message: Message) -> list[Record | Malformed]:
    """Records with their base fields applied, one for each device and time."""
    if type(pack) is not list or not pack:
        raise Malformed(Fate.BAD_SHAPE, f"the payload is {kind(pack)}, expected an array of SenML records")
    base: dict[str, Any] = {}
    found: dict[tuple[str, float], Record] = {}
    out: list[Record | Malformed] = []
    for raw in pack:
        if type(raw) is not dict:
            raise Malformed(Fate.BAD_SHAPE, f"a SenML record is {kind(raw)}, expected an object")
        record = raw if raw.keys() <= _KEYS else _understood(raw)
        if not _BASE.isdisjoint(record):
            _check_version(record)
            base |= {key: record[key] for key in _BASE & record.keys()}
        if _VALUES.isdisjoint(record):
            continue
        if len(out) > MAX_READINGS:
            raise Malformed(Fate.TOO_LARGE, f"over {MAX_READINGS} readings in one message")
        try:
            device, channel, time = _place(base, record)
        except Malformed as error:
            out.append(error)
            continue
        if time < _RELATIVE:
            if message.retain:
                raise Malformed(Fate.RETAINED, "a time relative to now in a retained message")
            time += message.received
        reading = found.get((device, time))
        if reading is None:
            reading = found[device, time] = Record({}, {"bn": device}, time)
            out.append(reading)
        if "v" in record:
            reading.values[channel] = _sum(base.get("bv"), record["v"])
        else:
            for key in ("vs", "vb", "vd"):
                if key in record:
                    reading.values[channel] = record[key]
        if "s" in record:
            reading.values[f"{channel}_sum"] = _sum(base.get("bs"), record["s"])
    if not out:
        raise Malformed(Fate.NO_CHANNEL, "no record has a value")
    return out


def _understood(raw: dict[Any, Any]) -> dict[Any, Any]:
    """A record's fields by their names, with those of later days. Raises Malformed: one that must be understood."""
    record = {_LABELS.get(key, key) if type(key) is int else key: value for key, value in raw.items()}
    for key in record:
        if type(key) is str and key.endswith("_"):
            raise Malformed(Fate.BAD_SHAPE, f"field {key[:40]!r} must be understood and is not")
    return record


def _check_version(record: dict[Any, Any]) -> None:
    version = record.get("bver", _VERSION)
    if type(version) is not int or not 0 < version <= _VERSION:
        raise Malformed(Fate.BAD_SHAPE, f"SenML version {str(version)[:20]}, expected {_VERSION}")


def _place(base: dict[str, Any], record: dict[Any, Any]) -> tuple[str, str, float]:
    """Device, channel and time of a record. Raises Malformed."""
    head, tail = base.get("bn", ""), record.get("n", "")
    if (
        type(head) is not str
        or type(tail) is not str
        or len(head) + len(tail) > _LONGEST_NAME
        or not _NAME.fullmatch(head + tail)
    ):
        raise Malformed(Fate.BAD_DEVICE, f"a SenML name must be at most {_LONGEST_NAME} letters, digits and - : . / _")
    begin, since = base.get("bt", 0), record.get("t", 0)
    for part in (begin, since):
        if type(part) is not float and type(part) is not int:
            raise Malformed(Fate.BAD_TIME, f"time is {kind(part)}, expected a number of seconds")
    time = 0.0 + begin + since
    if not math.isfinite(time):
        raise Malformed(Fate.BAD_TIME, "time is out of range")
    return *_split(head, tail), time


def _split(head: str, tail: str) -> tuple[str, str]:
    """Device and channel: the base name and the name; of one name, a device's URN (RFC 9039) or what ends at / or :."""
    if not (head and tail):
        name = head + tail
        if urn := _DEVICE_URN.fullmatch(name):
            head, tail = urn.groups()
        else:
            at = max(name.rfind("/"), name.rfind(":"))
            head, tail = name[: max(at, 0)], name[at + 1 :]
    return head.rstrip(":/_-."), tail.lstrip(":/_-.") or "value"


def _sum(base: Any, value: Any) -> Any:
    """Base and value added; what is no finite number stays what it is, for the reader to refuse."""
    if type(value) is not float and type(value) is not int:
        return value if value is not None else "null"
    total = value + base if type(base) is float or type(base) is int else value
    return total if math.isfinite(total) else str(total)
