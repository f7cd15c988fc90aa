"""`sentinel check-config`: the whole resolved configuration, as TOML, with the origin of each value."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from sentinel.settings import Settings, load_settings, written


def check_config(config: Path | None = None) -> None:
    """Print the configuration to stdout and warnings to stderr. Secrets are in files, of which only paths are shown.

    Raises:
        ConfigError: it has problems.
    """
    settings = load_settings(config)
    print("\n".join(_lines(settings)))
    for warning in settings.warnings():
        print(f"warning: {warning}", file=sys.stderr)


def _lines(settings: Settings) -> Iterator[str]:
    yield from _table(settings, settings, ())


def _table(settings: Settings, table: BaseModel, at: tuple[str, ...]) -> Iterator[str]:
    inner: list[tuple[tuple[str, ...], BaseModel]] = []
    for name, value in table:
        key = (*at, name)
        if isinstance(value, BaseModel):
            inner.append((key, value))
        elif isinstance(value, dict):
            inner += [((*key, profile), settings_) for profile, settings_ in value.items()]
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            yield f"{name} = ["
            for index, element in enumerate(value):
                yield _origin(f"  {_inline(element)},", settings.origin(*key, index))
            yield "]"
        else:
            text = written(type(table), name, value)
            line = f"# {name} is not set" if text is None else f"{name} = {_toml(text)}"
            yield _origin(line, settings.origin(*key))
    for key, value in inner:
        yield ""
        yield f"[{'.'.join(key)}]"
        yield from _table(settings, value, key)


def _inline(table: BaseModel) -> str:
    values = {name: written(type(table), name, value) for name, value in table}
    return f"{{ {', '.join(f'{name} = {_toml(value)}' for name, value in values.items() if value is not None)} }}"


def _origin(line: str, origin: str) -> str:
    return f"{line:<40}  # {origin}"


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")
