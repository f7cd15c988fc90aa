"""A page in one file that opens offline: it loads nothing, runs its own script alone, and its data stay data."""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sentinel.errors import DataError


def page(title: str, body: Iterable[str], data: Any, script: str, styles: Sequence[str]) -> str:
    """The page. `script` and `styles` name files of this package; the script finds `data` in the element "data"."""
    style = "".join(_part(name) for name in styles)
    code = _part("_page.js") + _part(script)
    only = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{only}'"
    text = json.dumps(data, separators=(",", ":"))
    for mark in "<>&":  # nothing in the data can end its element
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style>\n</head>\n<body>",
            *body,
            f'<script type="application/json" id="data">{text}</script>',
            f"<script>{code}</script>\n</body>\n</html>\n",
        ]
    )


def write(path: Path, text: str) -> None:
    """Write it. Raises DataError: `path` cannot be written."""
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        msg = f"{path} cannot be written ({error.strerror}); check the folder"
        raise DataError(msg) from error


def packed(numbers: npt.NDArray[Any], dtype: str) -> str:
    """Numbers as base64, for a typed array."""
    with np.errstate(over="ignore"):
        return base64.b64encode(np.ascontiguousarray(numbers, dtype).tobytes()).decode()


def _part(name: str) -> str:
    return files("sentinel.commands").joinpath(name).read_text("utf-8")
