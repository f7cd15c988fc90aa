"""`sentinel check-config`: the whole resolved configuration, as TOML, with the origin of each value."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from sentinel.errors import ModelError
from sentinel.settings import ProfileSettings, Settings, load_settings, written
from sentinel.settings.values import show_duration


def check_config(config: Path | None = None) -> None:
    """Print the configuration to stdout and warnings to stderr. Secrets are in files, of which only paths are shown.

    Raises:
        ConfigError: it has problems.
    """
    settings = load_settings(config)
    print("\n".join(_table(settings, settings, ())))
    for warning in settings.warnings(_intervals(settings)):
        print(f"warning: {warning}", file=sys.stderr)


def _intervals(settings: Settings) -> dict[str, float]:
    """Usual seconds between ticks, of the profiles that have a model: it has learned them."""
    root = settings.store.path / "models"
    if not root.is_dir():
        return {}
    from sentinel.adapters.models import list_models, load_model  # slow to import, and rarely needed here

    found = {}
    for name in settings.profiles:
        for model in list_models(root, name)[:1]:
            try:
                found[name] = float(load_model(model.path)[1]["interval"])
            except (ModelError, KeyError, TypeError, ValueError):
                continue  # `sentinel models` tells what is wrong with it
    return found


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
            yield _origin(line, settings.origin(*key) + _fits(table, name))
    for key, value in inner:
        yield ""
        yield f"[{'.'.join(key)}]"
        yield from _table(settings, value, key)


def _fits(table: BaseModel, name: str) -> str:
    if not isinstance(table, ProfileSettings) or name != "alert_budget":
        return ""
    longest = table.longest_interval()
    if math.isinf(longest):
        return ""
    return f"; for devices that send at least every {show_duration(float(f'{longest:.4g}'))}"


def _inline(table: BaseModel) -> str:
    values = {name: written(type(table), name, value) for name, value in table}
    return f"{{ {', '.join(f'{name} = {_toml(value)}' for name, value in values.items() if value is not None)} }}"


def _origin(line: str, origin: str) -> str:
    return f"{line:<40}  # {origin}"


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")
