"""CSV files as columns, a chunk at a time: any delimiter, quotes, gz, a header or none."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sentinel.errors import DataError
from sentinel.records import Floats

Column = Floats | list[str]
"""One column of a chunk: numbers, NaN where missing, or text."""

HEAD_ROWS = 500
CHUNK_ROWS = 20_000
TEXT_WIDTH = 64  # longer texts are read one by one
DELIMITERS = ",;\t|"
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "nil", "-", "--", "?", "missing", "#n/a", "\\n"})
_MISSING = dict.fromkeys((form(text) for text in MISSING for form in (str.lower, str.upper, str.title)), "nan")

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


class CsvFile:
    """One CSV file.

    Attributes:
        names: of the columns; "" for one without a name.
        head: the first rows' texts by column, to decide on.
    """

    def __init__(self, path: Path, delimiter: str | None = None) -> None:
        """Reads the head. Raises DataError if the file cannot be read as a table."""
        self.path = path
        self._encoding = _encoding(path)
        with _open(path, self._encoding) as stream:
            lines = _take(path, stream, HEAD_ROWS)
        self.delimiter = delimiter or _delimiter(lines)
        rows = [row for row in self._split(lines, 1) if _filled(row)]
        if not rows:
            raise DataError(f"{path} is empty; give a file with a header and rows")
        self.names, self._header = _names(rows)
        self._header_lines = self._first_row_ends(lines) if self._header else 0
        body = rows[1:] if self._header else rows
        if not body:
            raise DataError(f"{path}:1: a header and no rows; give a file with rows")
        self._check(body, lines)
        self.head: list[list[str]] = [list(column) for column in zip(*body, strict=True)]

    def chunks(
        self, numbers: Sequence[int], texts: Sequence[int]
    ) -> Iterator[tuple[dict[int, Column], dict[int, int]]]:
        """The columns `numbers` as float64 and `texts` as text, and how many cells of each are no number.

        Rows in input order; blank ones are left out. Raises DataError with file and line.
        """
        form = np.dtype([(str(at), _dtype(at, numbers, texts)) for at in range(len(self.names))])
        with _open(self.path, self._encoding) as stream:
            _take(self.path, stream, self._header_lines, whole=False)
            line = self._header_lines + 1
            while batch := _take(self.path, stream, CHUNK_ROWS):
                fast = self._fast(batch, form, texts)
                if fast is not None:
                    yield (
                        {at: fast[str(at)] if at in numbers else fast[str(at)].tolist() for at in (*numbers, *texts)},
                        {},
                    )
                else:
                    yield self._slow(batch, line, numbers, texts)
                line += len(batch)

    def line_of(self, row: int) -> int:
        """The line of the file on which the row ends, both counted from 1."""
        with _open(self.path, self._encoding) as stream:
            reader = csv.reader(stream, delimiter=self.delimiter)
            filled = (reader.line_num for cells in reader if _filled(cells))
            return next(itertools.islice(filled, row - 1 + self._header, None), 0)

    def _fast(
        self, batch: list[str], form: np.dtype[np.void], texts: Sequence[int]
    ) -> np.ndarray[tuple[int], np.dtype[np.void]] | None:
        """The whole batch at once, if its numbers are plain; None: it needs `_slow`."""
        try:
            block: np.ndarray[tuple[int], np.dtype[np.void]] = np.loadtxt(
                batch, dtype=form, delimiter=self.delimiter, comments=None, quotechar='"', ndmin=1
            )
        except ValueError:
            return None
        too_long = any(np.char.str_len(block[str(at)]).max(initial=0) >= TEXT_WIDTH for at in texts)
        return None if too_long or not len(block) else block

    def _slow(
        self, batch: list[str], line: int, numbers: Sequence[int], texts: Sequence[int]
    ) -> tuple[dict[int, Column], dict[int, int]]:
        rows = [row for row in self._split(batch, line) if _filled(row)]
        self._check(rows, batch, line)
        cells = list(zip(*rows, strict=True)) or [() for _ in self.names]
        columns: dict[int, Column] = {at: list(cells[at]) for at in texts}
        bad: dict[int, int] = {}
        for at in numbers:
            columns[at], bad[at] = to_numbers(cells[at])
        return columns, bad

    def _split(self, lines: list[str], first: int) -> Iterator[list[str]]:
        reader = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=self.delimiter == " ")
        try:
            yield from reader
        except csv.Error as error:
            where = first + reader.line_num - 1
            raise DataError(f"{self.path}:{where}: {error}; correct this line") from error

    def _first_row_ends(self, lines: list[str]) -> int:
        reader = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=self.delimiter == " ")
        return next(reader.line_num for row in reader if _filled(row))

    def _check(self, rows: list[list[str]], lines: list[str], first: int = 1) -> None:
        """Every row must be as wide as the header. Raises DataError."""
        width = len(self.names)
        if all(len(row) == width for row in rows):
            return
        reader = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=self.delimiter == " ")
        skip = self._header and first == 1
        for row in reader:
            if skip and _filled(row):
                skip = False
            elif _filled(row) and len(row) != width:
                raise DataError(
                    f"{self.path}:{first + reader.line_num - 1}: {len(row)} fields where there are {width} columns "
                    f"(delimiter {self.delimiter!r}); is this a table? correct this line"
                )


def _filled(row: list[str]) -> bool:
    """Whether a row has more than blanks; others are passed over."""
    return any(map(str.strip, row))


def to_numbers(cells: Sequence[str]) -> tuple[Floats, int]:
    """Numbers, NaN where missing or no number; and how many cells are no number.

    A decimal comma is understood where the file's delimiter let it through.
    """
    bad = 0
    try:
        values = np.fromiter(map(float, map(_MISSING.get, cells, cells)), np.float64, len(cells))
    except ValueError:
        values = np.empty(len(cells))
        for row, cell in enumerate(cells):
            number = _number(cell)
            bad += number is None
            values[row] = np.nan if number is None else number
    return values, bad


def _number(cell: str) -> float | None:
    """NaN for a missing value; None for what is no number."""
    try:
        return float(cell)
    except ValueError:
        pass
    if cell.strip().lower() in MISSING:
        return float("nan")
    try:
        return float(cell.replace(",", ".")) if cell.count(",") == 1 else None
    except ValueError:
        return None


def is_number(cell: str) -> bool:
    """Whether the text is a plain number."""
    return _NUMBER.fullmatch(cell) is not None


def _dtype(at: int, numbers: Sequence[int], texts: Sequence[int]) -> str:
    return "f8" if at in numbers else f"U{TEXT_WIDTH}" if at in texts else "U1"


def _names(rows: list[list[str]]) -> tuple[list[str], bool]:
    """The columns' names, and whether the first row is a header."""
    cells = [cell.strip() for cell in rows[0]]
    plain = [is_number(cell) for cell in cells]
    counted = cells in ([str(at) for at in range(len(cells))], [str(at + 1) for at in range(len(cells))])
    if all(plain[1:]) and (plain[0] or re.match(r"\d{4}-\d\d-\d\d", cells[0])) and not (counted and len(cells) > 1):
        return ["time" if at == 0 and not plain[0] else f"c{at}" for at in range(len(cells))], False
    names = cells
    if rows[1:] and all(len(row) == len(cells) + 1 for row in rows[1:]):
        trailing = all(not row[-1].strip() for row in rows[1:])
        names = [*cells, ""] if trailing else ["", *cells]  # else the header does not name the row number
    seen: dict[str, int] = {}
    for at, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if name and seen[name] > 1:
            names[at] = f"{name}_{seen[name]}"
    return names, True


def _delimiter(lines: list[str]) -> str:
    """The one that splits the first line, outside quotes, into most fields."""
    if not lines:
        return ","
    header = re.sub(r'"[^"]*"', "", lines[0])
    return max(DELIMITERS, key=header.count)


def _encoding(path: Path) -> str:
    """UTF-8 unless a mark or the bytes say otherwise. Raises DataError if the file cannot be read."""
    try:
        with _open(path, "latin-1") as stream:
            head = stream.read(1 << 16).encode("latin-1")
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.end < len(head) - 4:  # else a character was cut at the end of what was read
            return "cp1252"
    return "utf-8-sig"


def _open(path: Path, encoding: str) -> io.TextIOWrapper:
    with path.open("rb") as probe:
        packed = probe.read(2) == b"\x1f\x8b"
    raw = gzip.GzipFile(path) if packed else path.open("rb")
    return io.TextIOWrapper(raw, encoding=encoding, errors="replace", newline="")


def _take(path: Path, stream: io.TextIOWrapper, count: int, whole: bool = True) -> list[str]:
    """The next `count` lines, and if `whole` those that a quoted field still open at the end needs."""
    try:
        lines = list(itertools.islice(stream, count))
        quotes = sum(map(str.count, lines, itertools.repeat('"'))) if whole else 0
        while quotes % 2 and (line := stream.readline()):
            lines.append(line)
            quotes += line.count('"')
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise _unreadable(path, error) from error
    return lines


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"{path} cannot be read ({reason}); check the name, the permissions and that the file is whole")
