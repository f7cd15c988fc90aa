"""Influx line protocol: `measurement,tag=value field=1.5,other=2i 1700000000000000000`.

The lines are read by line-protocol-parser: kept, of wheels for ARM too, and twice as fast as regular expressions.
"""

from typing import Any

from line_protocol_parser import LineFormatError, parse_line

from sentinel.records import Fate, Message
from sentinel.stream.decode.csvline import text_of
from sentinel.stream.decode.payload import MAX_READINGS, Malformed, Record

_MOST = 1024  # tags and fields of a line: the parser's time grows with the square of the tags


def read_influx(message: Message) -> list[Record | Malformed]:
    """A record for each set of tags and time: {measurement: {field: value}}, with `tags` and `time` (as written) about it.

    Times are nanoseconds. A line ends at a line feed, also within quotes. Raises Malformed: too large, not UTF-8, or no
    line is one.
    """
    lines = [line for line in text_of(message).split("\n") if line and not line.isspace() and line[0] != "#"]
    if len(lines) > MAX_READINGS:
        raise Malformed(Fate.TOO_LARGE, f"{len(lines)} lines in one message, over {MAX_READINGS}")
    records: dict[tuple[tuple[tuple[str, str], ...], int | None], Record] = {}
    out: list[Record | Malformed] = []
    refused = Malformed(Fate.BAD_SYNTAX, "no line of Influx line protocol")
    for line in lines:
        if line.count(",") >= _MOST:
            raise Malformed(Fate.TOO_LARGE, f"over {_MOST} tags and fields in one line")
        try:
            point = parse_line(line.rstrip("\r"))
        except LineFormatError as error:
            refused = Malformed(Fate.BAD_SYNTAX, f"{line[:40]!r} is no Influx line: {error}")
            out.append(refused)
            continue
        name, tags, time = point["measurement"], point["tags"], point["time"]
        key = tuple(sorted(tags.items())), time
        record = records.get(key)
        if record is None or name in record.values:
            about: dict[str, Any] = {"tags": tags}
            if time is not None:
                about["time"] = time
            record = records[key] = Record({}, about, None if time is None else time * 1e-9)
            out.append(record)
        record.values[name] = point["fields"]
    if not records:
        raise refused
    return out
