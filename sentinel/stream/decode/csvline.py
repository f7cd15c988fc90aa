"""CSV lines and bare numbers: text that is not JSON."""

import csv
import math
from typing import Any

from sentinel.records import Fate, Message
from sentinel.stream.decode.payload import MAX_READINGS, Malformed, sized


def number(text: str) -> float | None:
    """A finite decimal number; None: it is none. Wider than JSON's: "+1", ".5" and "5." are numbers."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) and text.isascii() and "_" not in text else None


def text_of(message: Message) -> str:
    """Raises Malformed: too large, of too many values, or not UTF-8."""
    try:
        return sized(message.payload, b",;\t").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(Fate.BAD_SYNTAX, f"not UTF-8: {error.reason} at byte {error.start}") from None


def read_number(message: Message) -> float:
    """A bare number with white space round it. Raises Malformed."""
    text = text_of(message).strip()
    found = number(text)
    if found is None:
        wild = text.lstrip("+-").lower() in {"nan", "inf", "infinity"}
        raise Malformed(Fate.BAD_VALUE if wild else Fate.BAD_SYNTAX, f"{text[:40]!r} is no number")
    return found


def read_csv(message: Message) -> Any:
    """A line a reading: an object of its cells by column ("0", "1", …); several lines are a list.

    The separator is a tab or ";" where the line has one, else ",". With ";" a comma is a decimal point. An empty cell
    is missing. Raises Malformed.
    """
    lines = [line for line in text_of(message).splitlines() if line.strip()]
    if len(lines) > MAX_READINGS:
        raise Malformed(Fate.TOO_LARGE, f"{len(lines)} readings in one message, over {MAX_READINGS}")
    if not lines:
        raise Malformed(Fate.BAD_SYNTAX, "no CSV line: the payload is empty")
    if len(lines) == 1:
        return _row(lines[0])
    rows: list[dict[str, Any] | Malformed] = []
    for line in lines:
        try:
            rows.append(_row(line))
        except Malformed as error:
            rows.append(error)
    return rows


def _row(line: str) -> dict[str, Any]:
    separator = "\t" if "\t" in line else ";" if ";" in line else ","
    if '"' in line:
        try:
            (cells,) = csv.reader([line], delimiter=separator, strict=True)
        except (csv.Error, ValueError) as error:
            raise Malformed(Fate.BAD_SYNTAX, f"no CSV line: {error}") from None
    else:
        cells = line.split(separator)
    decimal_comma = separator == ";" and "." not in line
    return {str(at): _cell(cell.strip(), decimal_comma) for at, cell in enumerate(cells)}


def _cell(text: str, decimal_comma: bool) -> float | str | None:
    found = number(text.replace(",", ".") if decimal_comma else text)
    return found if found is not None else text or None
