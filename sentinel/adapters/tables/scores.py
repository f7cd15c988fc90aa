"""Writing `scores.csv`: one line a row of the input, in its order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import orjson

from sentinel.errors import DataError
from sentinel.records import Floats, Ints

COLUMNS = ("time", "device", "score", "p_value", "anomaly", "alert_id")
CHANNEL_COLUMNS = ("value", "expected", "low", "high")
DIGITS = 7  # of what was forecast: as many as float32 carries
CHUNK_ROWS = 10_000


class ScoresWriter:
    """Streams scores into a CSV file. NaN is written as an empty field; scores and values in full precision."""

    def __init__(self, path: Path, channels: Sequence[str]) -> None:
        """Write the header. Raises DataError if the file cannot be written."""
        self.path = path
        try:
            self._stream = path.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror}); check the folder") from error
        names = [*COLUMNS, *(f"{channel}_{what}" for channel in channels for what in CHANNEL_COLUMNS)]
        self._write(",".join(_quoted(names)) + "\n")

    def write(
        self,
        *,
        time: npt.NDArray[np.bytes_] | Sequence[str],
        device: Sequence[str],
        score: Floats,
        p_value: Floats,
        anomaly: Ints | npt.NDArray[np.bool_],
        alert_id: Sequence[str],
        value: Floats,
        expected: Floats,
        low: Floats,
        high: Floats,
    ) -> None:
        """Append B rows.

        Args:
            time: as the input has it, (B,).
            score, p_value: (B,), NaN: no score.
            anomaly: 0 or 1, (B,).
            alert_id: "" where no alert is open, (B,).
            value, expected, low, high: (B, F) in the channel's unit, NaN: none.

        Raises DataError if the disk refuses.
        """
        texts = time.tolist() if isinstance(time, np.ndarray) else time
        for start in range(0, len(device), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            forecast = [_rounded(array[part]) for array in (expected, low, high)]
            cells = np.stack([value[part], *forecast], axis=2).reshape(len(device[part]), -1)
            rows = zip(
                _quoted([str(text, "utf-8") if isinstance(text, bytes) else text for text in texts[part]]),
                _quoted(device[part]),
                _lines(np.stack([score[part], p_value[part]], axis=1)),
                np.asarray(anomaly[part]).astype(np.int64).tolist(),
                _quoted(alert_id[part]),
                _lines(cells),
                strict=True,
            )
            self._write("".join([f"{a},{b},{c},{d},{e}{',' if f else ''}{f}\n" for a, b, c, d, e, f in rows]))

    def close(self) -> None:
        """Raises DataError if the disk refuses."""
        try:
            self._stream.close()
        except OSError as error:
            raise DataError(f"{self.path} cannot be written ({error.strerror}); make room") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except OSError as error:
            raise DataError(f"{self.path} cannot be written ({error.strerror}); make room") from error


def _quoted(texts: Sequence[str]) -> Sequence[str]:
    """As CSV fields."""
    whole = "".join(texts)
    if not any(mark in whole for mark in ',"\r\n'):
        return texts
    return ['"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text for text in texts]


def _lines(cells: Floats) -> list[str]:
    """(B, C) as B texts of C fields; the shortest digits that give the same float64 again."""
    if not cells.shape[1]:
        return [""] * len(cells)
    text = orjson.dumps(np.ascontiguousarray(cells), option=orjson.OPT_SERIALIZE_NUMPY).decode()
    return text[2:-2].replace("null", "").split("],[")


def _rounded(numbers: Floats) -> Floats:
    """To DIGITS significant decimal digits."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        power = DIGITS - 1 - np.floor(np.log10(np.abs(numbers)))
        scale = np.power(10.0, np.abs(power))
        rounded = np.where(power >= 0, np.round(numbers * scale) / scale, np.round(numbers / scale) * scale)
    return np.where(np.isfinite(rounded), rounded, numbers)
