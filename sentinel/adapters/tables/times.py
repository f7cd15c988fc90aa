"""Event times out of text: ISO 8601, dates with slashes or dots, epoch numbers, bare row numbers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from sentinel.records import Floats

EPOCH_UNITS = (("ns", 1e17, 1e9), ("us", 1e14, 1e6), ("ms", 1e11, 1e3), ("s", 1e8, 1.0))  # name, least, a second
FIRST_DAY, LAST_DAY = 19000101, 21001231  # of dates written as one number

YEAR_DIGITS, MONTHS = 4, 12

_ZONE = re.compile(r"(?:Z|:[\d.,]+[+-]\d\d:?(?:\d\d)?| ?UTC| ?GMT)$")
_DATE = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})(?:(?:[T ]| - )\s*(.+))?")
_CLOCK = re.compile(r"(\d{1,2})[:.](\d{2})(?:[:.](\d{2})(?:[.,](\d+))?)?\s*([AaPp][Mm])?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class BadTimeError(ValueError):
    """One text is not a time. Attribute `row`: which, from 0."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(f"{text!r} is not a time")
        self.row = row


def is_time(text: str) -> bool:
    """Whether the text can only be a time: a date, with or without a time of day."""
    if _NUMBER.fullmatch(text.strip()):
        return False
    try:
        parse_times([text])
    except BadTimeError:
        return False
    return True


def parse_times(texts: Sequence[str]) -> tuple[Floats, str]:
    """Seconds since the epoch, (T,), and a note on how the texts were read.

    Times without a zone are UTC. Numbers are epoch s, ms, us or ns by their size, and small ones
    seconds from 0. In dates such as 3/4/2020 the month comes first if some other date says so or
    none says otherwise; with dots the day does. Raises BadTimeError for the first that cannot be read.
    """
    try:
        numbers = np.array(texts, dtype=np.float64) if _NUMBER.fullmatch(texts[0].strip()) else None
    except ValueError:
        numbers = None
    if numbers is not None and np.isfinite(numbers).all():
        return _from_numbers(numbers)
    try:
        if not _ZONE.search(texts[0]) and min(map(len, texts)) >= len("20200101"):  # not "now", which NumPy knows
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                moments = np.array(texts, dtype="datetime64[us]")
            if not np.isnat(moments).any():
                return moments.astype(np.int64) / 1e6, "ISO 8601"
    except (ValueError, UserWarning):
        pass
    return _from_texts(texts)


def _from_numbers(numbers: Floats) -> tuple[Floats, str]:
    if ((numbers >= FIRST_DAY) & (numbers <= LAST_DAY) & (numbers % 1 == 0)).all():
        days = numbers.astype(np.int64).astype(str)
        try:
            moments = np.array([f"{day[:4]}-{day[4:6]}-{day[6:]}" for day in days.tolist()], dtype="datetime64[s]")
            return moments.astype(np.float64), "YYYYMMDD"
        except ValueError:
            pass
    size = float(np.median(np.abs(numbers)))
    for unit, least, second in EPOCH_UNITS:
        if size >= least:
            return numbers / second, f"epoch {unit}"
    return numbers, "seconds"


def _from_texts(texts: Sequence[str]) -> tuple[Floats, str]:
    """One by one, with whatever can be understood. Raises BadTimeError."""
    day_first = _day_first(texts)
    times = np.empty(len(texts))
    for row, text in enumerate(texts):
        try:
            moment = _moment(text.strip(), day_first)
            times[row] = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError) as error:
            raise BadTimeError(row, text) from error
    return times, "dates, day first" if day_first else "dates, year or month first"


def _moment(text: str, day_first: bool) -> datetime:
    text = re.sub(r" ?(UTC|GMT)$", "+00:00", text)
    try:
        return datetime.fromisoformat(text.replace(",", "."))
    except ValueError:
        match = _DATE.fullmatch(text)
        if match is None:
            raise
    first, _, second, third, rest = match.groups()
    if len(first) == YEAR_DIGITS:
        year, month, day = first, second, third
    else:
        year, month, day = (third, second, first) if day_first else (third, first, second)
    clock = _CLOCK.match(rest or "0:00")
    if clock is None:
        raise ValueError(text)
    if len(year) < YEAR_DIGITS:
        year = ("19" if year > "69" else "20") + year
    hour, minute, seconds, fraction, half = clock.groups()
    tail = (rest or "0:00")[clock.end() :].strip()
    whole = int(hour) if half is None else int(hour) % 12 + 12 * (half[0] in "pP")
    digits = (fraction or "0")[:6].ljust(6, "0")
    return datetime.fromisoformat(
        f"{int(year):04d}-{int(month):02d}-{int(day):02d}T{whole:02d}:{minute}:{seconds or '00'}.{digits}{tail}"
    )


def _day_first(texts: Sequence[str]) -> bool:
    """Whether the day comes before the month, in dates that do not begin with the year."""
    for text in texts:
        match = _DATE.match(text.strip())
        if match is None or len(match[1]) == YEAR_DIGITS:
            return False
        if int(match[1]) > MONTHS:
            return True
        if int(match[3]) > MONTHS:
            return False
    return bool(texts) and "." in texts[0].strip()[:3]
