"""Influx line protocol: `measurement,tag=value field=1.5,other=2i 1700000000000000000`."""

import re
from typing import Any

from sentinel.records import Fate, Message
from sentinel.stream.decode.csvline import number, text_of
from sentinel.stream.decode.payload import MAX_READINGS, Malformed, Record

_HEAD = re.compile(r"((?:[^, \\]|\\.)++)((?:,(?:[^,= \\]|\\.)++=(?:[^,= \\]|\\.)++)*+) ++")
_TAG = re.compile(r",((?:[^,= \\]|\\.)++)=((?:[^,= \\]|\\.)++)")
_FIELD = re.compile(r'((?:[^,= \\]|\\.)++)=("(?:[^"\\]|\\.)*+"|[^",= \\]++)(,|(?: ++(-?[0-9]{1,20}))? *+$)')
_INTEGER = re.compile(r"(-?[0-9]{1,20})[iu]")
_ESCAPE = re.compile(r"\\([,= ])")
_WORDS = dict.fromkeys(("t", "T", "true", "True", "TRUE"), True) | dict.fromkeys(
    ("f", "F", "false", "False", "FALSE"), False
)


def read_influx(message: Message) -> list[Record | Malformed]:
    """A record for each set of tags and time: {measurement: {field: value}}, with `tags` and `time` (as written) about it.

    Times are nanoseconds. Raises Malformed: too large, not UTF-8, or no line is one.
    """
    lines = [line for line in text_of(message).splitlines() if line and not line.isspace() and line[0] != "#"]
    if len(lines) > MAX_READINGS:
        raise Malformed(Fate.TOO_LARGE, f"{len(lines)} lines in one message, over {MAX_READINGS}")
    records: dict[tuple[str, str | None], Record] = {}
    out: list[Record | Malformed] = []
    refused: Malformed | None = None
    for line in lines:
        try:
            name, tags, fields, time = _parse(line)
        except Malformed as error:
            out.append(error)
            refused = error
            continue
        record = records.get((tags, time))
        if record is None or name in record.values:
            about: dict[str, Any] = {"tags": {_plain(k): _plain(v) for k, v in _TAG.findall(tags)}}
            if time is not None:
                about["time"] = int(time)
            record = records[tags, time] = Record({}, about, None if time is None else int(time) * 1e-9)
            out.append(record)
        record.values[name] = fields
    if not records:
        raise refused or Malformed(Fate.BAD_SYNTAX, "no line of Influx line protocol")
    return out


def _parse(line: str) -> tuple[str, str, dict[str, Any], str | None]:
    """Measurement, tags as written, fields, time as written."""
    head = _HEAD.match(line)
    if head is None:
        raise Malformed(Fate.BAD_SYNTAX, f"no measurement and tags at the begin of {line[:40]!r}")
    fields: dict[str, Any] = {}
    at, more, time = head.end(), ",", None
    while more == ",":
        field = _FIELD.match(line, at)
        if field is None:
            raise Malformed(Fate.BAD_SYNTAX, f"no field at {line[at : at + 40]!r}")
        key, text, more, time = field.groups()
        fields[_plain(key)] = _value(text)
        at = field.end()
    return _plain(head[1]), head[2], fields, time


def _plain(text: str) -> str:
    return _ESCAPE.sub(r"\1", text) if "\\" in text else text


def _value(text: str) -> Any:
    if text[0] == '"':
        return text[1:-1]
    found = number(text)
    if found is not None:
        return found
    if integer := _INTEGER.fullmatch(text):
        return int(integer[1])
    if text in _WORDS:
        return _WORDS[text]
    if text.lstrip("+-").lower() in {"nan", "inf", "infinity"}:
        return text
    raise Malformed(Fate.BAD_SYNTAX, f"{text[:40]!r} is no field value")
