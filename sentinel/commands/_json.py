"""What a command found, for a program to read."""

from pathlib import Path
from typing import Any

import orjson

from sentinel.errors import DataError


def write_json(path: Path, result: Any, *, indent: bool = True) -> None:
    """Write it. Raises DataError: `path` cannot be written."""
    options = orjson.OPT_SERIALIZE_NUMPY | (orjson.OPT_INDENT_2 if indent else 0)
    try:
        path.write_bytes(orjson.dumps(result, option=options))
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from error
