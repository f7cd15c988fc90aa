"""Parquet files as columns, a batch at a time; needs pyarrow."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sentinel.adapters.tables.csvfile import CHUNK_ROWS, HEAD_ROWS, Column, to_numbers
from sentinel.errors import DataError


class ParquetFile:
    """One Parquet file, in the shape of CsvFile."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if pyarrow is missing or the file cannot be read."""
        try:
            self._arrow: Any = importlib.import_module("pyarrow")
            parquet: Any = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise DataError(f"{path}: Parquet needs pyarrow; `pip install 'sentinel[parquet]'`, or give CSV") from error
        self.path = path
        try:
            self._file = parquet.ParquetFile(path)
            self.names: list[str] = list(self._file.schema_arrow.names)
            batch = next(self._file.iter_batches(HEAD_ROWS), None)
        except (OSError, self._arrow.ArrowException) as error:
            raise DataError(f"{path} cannot be read ({error}); check that it is a whole Parquet file") from error
        if batch is None or not len(batch):
            raise DataError(f"{path} has no rows; give a file with rows")
        self.head = [self._texts(column) for column in batch.columns]

    def chunks(
        self, numbers: Sequence[int], texts: Sequence[int]
    ) -> Iterator[tuple[dict[int, Column], dict[int, int]]]:
        """As CsvFile.chunks."""
        try:
            for batch in self._file.iter_batches(CHUNK_ROWS):
                columns: dict[int, Column] = {at: self._texts(batch.column(at)) for at in texts}
                bad: dict[int, int] = {}
                for at in numbers:
                    columns[at], bad[at] = self._numbers(batch.column(at))
                yield columns, bad
        except (OSError, self._arrow.ArrowException) as error:
            raise DataError(f"{self.path} cannot be read ({error}); check that it is a whole Parquet file") from error

    def line_of(self, row: int) -> int:
        """The row, from 1; a Parquet file has no lines."""
        return row

    def _numbers(self, column: Any) -> tuple[Any, int]:
        types = self._arrow.types
        if types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type):
            return column.cast("float64").to_numpy(zero_copy_only=False), 0
        return to_numbers(self._texts(column))

    def _texts(self, column: Any) -> list[str]:
        """Missing as ""; timestamps as ISO 8601, in UTC where they have a zone."""
        if self._arrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if self._arrow.types.is_timestamp(column.type):
            zone = "Z" if column.type.tz else ""
            moments = column.cast("int64").to_numpy(zero_copy_only=False).view(f"datetime64[{column.type.unit}]")
            return [f"{text}{zone}" for text in np.datetime_as_string(moments).tolist()]
        return ["" if cell is None else str(cell) for cell in column.to_pylist()]
