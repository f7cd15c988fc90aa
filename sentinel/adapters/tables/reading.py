"""A recording out of one file: which column is the time, the device, the label, and which are channels."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sentinel.adapters.tables.csvfile import MISSING, CsvFile, is_number, to_numbers
from sentinel.adapters.tables.parquet import ParquetFile
from sentinel.adapters.tables.times import BadTimeError, is_time, parse_times
from sentinel.errors import DataError
from sentinel.records import Floats

TIME_NAMES = ("timestamp", "datetime", "date_time", "date time", "date/time", "time", "ts", "date", "time_stamp",
              "epoch", "unix_time", "unixtime", "utc")  # fmt: skip
DEVICE_NAMES = ("device", "device_id", "deviceid")
LABEL_NAMES = ("label", "labels", "anomaly", "is_anomaly", "changepoint")
ROW_NAMES = ("", "no", "no.", "#", "index", "idx", "row", "id", "unnamed: 0")
CALENDAR = ("year", "month", "day", "hour", "minute", "second")
NORMAL_WORDS = frozenset({"false", "no", "normal", "ok", "benign"}) | MISSING
ANOMALY_WORDS = frozenset({"true", "yes", "anomaly", "anomalous", "abnormal", "attack", "fault"})


@dataclass(frozen=True, slots=True)
class Recording:
    """One file's readings, in input order, a row each.

    Axes: T rows, F channels, D devices.

    Attributes:
        name: of the file, without folder and suffix.
        devices: D names; one, the recording's own, where no column names a device.
        device: index into `devices`, (T,).
        time: event times, s since the epoch (or since 0 where the file has no more), (T,).
        time_text: the time as the file has it, UTF-8, (T,).
        channels: F names.
        values: (T, F), NaN where missing.
        label: 1 where the file says anomalous, (T,); None: it does not say.
        notes: sentences on how the file was read and what was left out.
    """

    name: str
    path: Path
    devices: tuple[str, ...]
    device: npt.NDArray[np.int32]
    time: Floats
    time_text: npt.NDArray[np.bytes_]
    channels: tuple[str, ...]
    values: Floats
    label: npt.NDArray[np.int8] | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.time)


@dataclass
class _Roles:
    """Which columns are what. `time`: those whose texts make up the time; none: the row number."""

    time: list[int] = field(default_factory=list)
    calendar: bool = False
    device: int | None = None
    label: int | None = None
    numbers: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def texts(self) -> list[int]:
        return [*self.time, *(at for at in (self.device, self.label) if at is not None)]


def read_table(
    path: Path,
    *,
    delimiter: str | None = None,
    time_column: str | None = None,
    device_column: str | None = None,
    label_column: str | None = None,
    name: str | None = None,
) -> Recording:
    """Read one CSV (also .gz) or Parquet file. What is not named is recognised.

    A `label_column` that the file lacks is noted, not an error. `name` stands for the file's in
    the recording. Holds one copy of the result, about 8 bytes a value, and a chunk of text.
    Raises DataError, with file, line and remedy.
    """
    source = ParquetFile(path) if path.suffix.lower() in {".parquet", ".pq"} else CsvFile(path, delimiter)
    roles = _roles(source, time_column, device_column, label_column)
    if not roles.numbers:
        raise _numberless(source)
    name = name or _stem(path)
    values: list[list[Floats]] = [[] for _ in roles.numbers]
    bad = dict.fromkeys(roles.numbers, 0)
    codes: dict[str, int] = {}
    device: list[npt.NDArray[np.int32]] = []
    times: list[npt.NDArray[np.bytes_]] = []
    labels: list[npt.NDArray[np.int8]] = []
    rows = 0
    for columns, strange in source.chunks(roles.numbers, roles.texts()):
        texts = {at: list(map(str, columns[at])) for at in roles.texts()}
        count = len(next(iter(columns.values())))
        for kept, at in zip(values, roles.numbers, strict=True):
            numbers = np.array(columns[at], np.float64)
            numbers[np.isinf(numbers)] = np.nan
            kept.append(numbers)
            bad[at] += strange.get(at, 0)
        times.append(_encode(_time_texts(texts, roles, rows, count)))
        if roles.device is not None:
            ids = [text.strip() or name for text in texts[roles.device]]
            for one in dict.fromkeys(ids):
                codes.setdefault(one, len(codes))
            device.append(np.fromiter(map(codes.__getitem__, ids), np.int32, count))
        if roles.label is not None:
            labels.append(_labels(source, roles.label, texts[roles.label], rows))
        rows += count
    if not rows:
        raise DataError(f"{path} has no rows; give a file with rows")
    time_text = np.concatenate(times)
    try:
        time, form = parse_times(_decode(time_text))
    except BadTimeError as error:
        raise DataError(
            f"{path}:{source.line_of(error.row + 1)}: {error}; correct this line, or name the time column"
        ) from error
    if roles.time:
        columns_read = " + ".join(repr(source.names[at]) for at in roles.time)
        roles.notes.insert(0, f"time: {columns_read}, {form}")
    channels = _channels(source, roles, values, bad)
    return Recording(
        name=name,
        path=path,
        devices=tuple(codes) or (name,),
        device=np.concatenate(device) if device else np.zeros(rows, np.int32),
        time=time,
        time_text=time_text,
        channels=tuple(source.names[roles.numbers[at]] or f"c{roles.numbers[at]}" for at in channels),
        values=_matrix(values, channels, rows),
        label=np.concatenate(labels) if labels else None,
        notes=tuple(roles.notes),
    )


def read_tables(paths: Sequence[Path], **options: str | None) -> list[Recording]:
    """Read several files as read_table does, under names that tell them apart: as many folders as it needs.

    A file given twice is read twice, under one name. Raises DataError.
    """
    return [read_table(path, name=name, **options) for path, name in zip(paths, _distinct(paths), strict=True)]


def _roles(
    source: CsvFile | ParquetFile, time_column: str | None, device_column: str | None, label_column: str | None
) -> _Roles:
    roles = _Roles()
    if time_column is not None:
        roles.time = [_named(source, time_column, "time")]
    else:
        _recognise_time(source, roles)
    if device_column is not None:
        roles.device = _named(source, device_column, "device")
    else:
        roles.device = next(
            (at for name in DEVICE_NAMES if (at := _find(source, name)) not in {None, *roles.time}), None
        )
    marks = [at for name in LABEL_NAMES if (at := _find(source, name)) is not None and _is_label(source.head[at])]
    if label_column is not None:
        roles.label = _find(source, label_column)
        if roles.label is None:
            roles.notes.append(f"no label column {label_column!r}")
    else:
        roles.label = marks[0] if marks else None
    counters = [at for at in range(len(source.names)) if _is_row_number(source, at)]
    if not roles.time:
        roles.time = counters[:1]
        roles.notes.append(f"no time column: {'row numbers' if counters else 'rows, counted from 0,'} taken as seconds")
    taken = {*roles.texts(), *marks, *counters}
    free = [at for at in range(len(source.names)) if at not in taken]
    roles.numbers = [at for at in free if _is_numeric(source.head[at])]
    if texts := [source.names[at] for at in free if at not in roles.numbers]:
        roles.notes.append(f"not numbers, ignored: {', '.join(texts)}")
    if others := [source.names[at] for at in marks if at != roles.label]:
        roles.notes.append(f"labels, not channels: {', '.join(others)}")
    return roles


def _recognise_time(source: CsvFile | ParquetFile, roles: _Roles) -> None:
    date, clock = _find(source, "date"), _find(source, "time")
    if date is not None and clock is not None and not is_number(source.head[clock][0]):
        roles.time = [date, clock]
        if all(map(is_time, _time_texts({at: source.head[at] for at in roles.time}, roles, 0, 1))):
            return
        roles.time = []
    named = [at for name in TIME_NAMES if (at := _find(source, name)) is not None]
    for at in named:
        if all(is_number(cell) or is_time(cell) for cell in source.head[at][:20]):
            roles.time = [at]
            return
    for at, cells in enumerate(source.head):
        if all(map(is_time, cells[:20])):
            roles.time = [at]
            return
    calendar = list(itertools.takewhile(lambda at: at is not None, (_find(source, name) for name in CALENDAR)))
    if len(calendar) >= len(CALENDAR) // 2:
        roles.time, roles.calendar = [at for at in calendar if at is not None], True


def _find(source: CsvFile | ParquetFile, name: str) -> int | None:
    if name in source.names:
        return source.names.index(name)
    return next((at for at, other in enumerate(source.names) if other.strip().casefold() == name.casefold()), None)


def _named(source: CsvFile | ParquetFile, name: str, role: str) -> int:
    at = _find(source, name)
    if at is None:
        near = difflib.get_close_matches(name, source.names, 1, 0.0)
        raise DataError(
            f"{source.path}:1: no {role} column {name!r}; its columns are {', '.join(map(repr, source.names[:20]))}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return at


def _is_numeric(cells: Sequence[str]) -> bool:
    """More numbers than other texts; a column without either may turn out to be."""
    values, bad = to_numbers(cells)
    good = int(np.isfinite(values).sum())
    return good >= bad and (good > 0 or bad == 0)


def _is_row_number(source: CsvFile | ParquetFile, at: int) -> bool:
    if source.names[at].strip().casefold() not in ROW_NAMES:
        return False
    values, _ = to_numbers(source.head[at])
    return bool(np.isfinite(values).all() and (np.diff(values) == 1).all()) and float(values[0]).is_integer()


def _is_label(cells: Sequence[str]) -> bool:
    values, _ = to_numbers(cells)
    words = {cell.strip().casefold() for cell, value in zip(cells, values.tolist(), strict=True) if value not in {0, 1}}
    return words <= NORMAL_WORDS | ANOMALY_WORDS


def _labels(source: CsvFile | ParquetFile, at: int, texts: list[str], rows: int) -> npt.NDArray[np.int8]:
    meaning: dict[str, int] = {}
    for text in dict.fromkeys(texts):
        word = text.strip().casefold()
        values, bad = to_numbers([text])
        if word not in NORMAL_WORDS | ANOMALY_WORDS and bad:
            line = source.line_of(rows + texts.index(text) + 1)
            raise DataError(f"{source.path}:{line}: label {text!r} in column {source.names[at]!r}; write 0 or 1")
        meaning[text] = int(word in ANOMALY_WORDS or (word not in NORMAL_WORDS and values[0] != 0))
    return np.fromiter(map(meaning.__getitem__, texts), np.int8, len(texts))


def _time_texts(texts: dict[int, list[str]], roles: _Roles, first: int, count: int) -> list[str]:
    """The text of each row's time; several columns are put together as one date and time."""
    if not roles.time:
        return [str(row) for row in range(first, first + count)]
    if len(roles.time) == 1:
        return list(map(str.strip, texts[roles.time[0]]))
    if not roles.calendar:
        date, clock = (texts[at] for at in roles.time)
        return [f"{day.strip()} {hour.strip()}" for day, hour in zip(date, clock, strict=True)]
    parts = zip(*(texts[at] for at in roles.time), strict=True)
    return [_calendar_text([cell.strip() for cell in cells]) for cells in parts]


def _calendar_text(cells: list[str]) -> str:
    year, month, day, *clock = (cell.removesuffix(".0").zfill(2) for cell in cells)
    return f"{year}-{month}-{day} {':'.join([*clock, '00', '00'][: max(2, len(clock))])}"


def _encode(texts: list[str]) -> npt.NDArray[np.bytes_]:
    try:
        return np.array(texts, dtype=np.bytes_)
    except UnicodeEncodeError:
        return np.char.encode(np.array(texts, dtype=np.str_), "utf-8")


def _decode(texts: npt.NDArray[np.bytes_]) -> list[str]:
    try:
        decoded = texts.astype(np.str_)
    except UnicodeDecodeError:
        decoded = np.char.decode(texts, "utf-8")
    return list(decoded.tolist())


def _channels(
    source: CsvFile | ParquetFile, roles: _Roles, values: list[list[Floats]], bad: dict[int, int]
) -> list[int]:
    """Which of the number columns are channels: those with numbers in them. Raises DataError if none is."""
    kept, empty = [], []
    for place, at in enumerate(roles.numbers):
        good = sum(int(np.isfinite(part).sum()) for part in values[place])
        if good > bad[at]:
            kept.append(place)
            if bad[at]:
                roles.notes.append(f"{source.names[at]}: {bad[at]} cells are not numbers and count as missing")
        else:
            empty.append(source.names[at] or f"column {at + 1}")
    if empty:
        roles.notes.append(f"without numbers, ignored: {', '.join(empty)}")
    if not kept:
        raise _numberless(source)
    return kept


def _numberless(source: CsvFile | ParquetFile) -> DataError:
    return DataError(
        f"{source.path}: no column of numbers among {', '.join(map(repr, source.names[:20]))}; "
        "a recording needs one at least (is the delimiter right?)"
    )


def _matrix(values: list[list[Floats]], kept: list[int], rows: int) -> Floats:
    matrix = np.empty((rows, len(kept)))
    for column, place in enumerate(kept):
        np.concatenate(values[place], out=matrix[:, column])
        values[place].clear()
    return matrix


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.rsplit(".", 1)[0] if "." in name.lstrip(".") else name


def _distinct(paths: Sequence[Path]) -> list[str]:
    """Names that tell the paths apart, with as few folders as that takes."""
    whole = [path.absolute() for path in paths]
    depth = 0
    names = [_stem(path) for path in whole]
    while len(set(names)) < len(set(whole)) and depth < max(len(path.parts) for path in whole):
        depth += 1
        names = ["/".join([*path.parent.parts[-depth:], _stem(path)]) for path in whole]
    return names
