"""What the schema says of each key: for error texts and for the documentation's table."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sentinel.settings.schema import Settings, Text

Pattern = tuple[str, ...]


class SettingRow(NamedTuple):
    """One key of the reference: dotted, its type, its default as written ("" : none), unit and meaning."""

    key: str
    type: str
    default: str
    description: str


def _table(annotation: object) -> tuple[type[BaseModel] | None, Pattern]:
    """The table that a field holds, and the "*" that a profile's name or a list's index stands at."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ()
    origin, args = get_origin(annotation), get_args(annotation)
    for inner in args:
        table, rest = _table(inner)
        if table:
            return table, (("*", *rest) if origin in {dict, tuple} else rest)
    return None, ()


def _fields(model: type[BaseModel], at: Pattern) -> dict[Pattern, FieldInfo]:
    found: dict[Pattern, FieldInfo] = {}
    for name, field in model.model_fields.items():
        found[*at, name] = field
        table, stars = _table(field.annotation)
        if table:
            found |= _fields(table, (*at, name, *stars))
    return found


FIELDS = _fields(Settings, ())
"""Every key, with "*" for a profile's name and for a channel's place in the list."""


def _plain(annotation: object) -> object:
    inner = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) in {None, Literal, dict, tuple} or not inner:
        return annotation
    return _plain(inner[0])


def _text(field: FieldInfo) -> Text | None:
    found = [mark for mark in field.metadata if isinstance(mark, Text)]
    for kind in get_args(field.annotation):
        found += [mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Text)]
    return found[0] if found else None


def _bounds(field: FieldInfo) -> str:
    marks = {type(mark): mark for mark in field.metadata}
    if Ge in marks and Le in marks:
        return f" from {marks[Ge].ge} to {marks[Le].le}"
    if MinLen in marks:
        return f" of 1 to {marks[MaxLen].max_length} characters" if MaxLen in marks else " of at least 1 character"
    low = f" of at least {marks[Ge].ge}" if Ge in marks else f" of more than {marks[Gt].gt}" if Gt in marks else ""
    return f"{low} and less than {marks[Lt].lt}" if Lt in marks else low


def allowed(field: FieldInfo) -> str:
    """What may stand at this key; completes "must be …"."""
    text, kind = _text(field), _plain(field.annotation)
    if text:
        return text.allowed + "".join(f', or "{word}"' for word, _ in text.words)
    if get_origin(kind) is Literal:
        choices = [f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in get_args(kind)]
        return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
    names: dict[object, str] = {
        int: "a whole number",
        float: "a number",
        str: "text",
        Path: "a path",
        bool: "true or false",
    }
    if kind in names:
        return names[kind] + _bounds(field)
    table, stars = _table(field.annotation)
    if stars:
        return "tables such as [profiles.pump]"
    return f"a table with the keys {', '.join(table.model_fields)}" if table else "something else"


def _type(field: FieldInfo) -> str:
    text, kind = _text(field), _plain(field.annotation)
    if text:
        return " or ".join((text.kind, *(f'"{word}"' for word, _ in text.words)))
    if get_origin(kind) is Literal:
        return allowed(field)
    names: dict[object, str] = {int: "whole number", float: "number", str: "text", Path: "path", bool: "boolean"}
    return names.get(kind, "table") + _bounds(field)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    text = _text(field)
    value = text.write(field.default) if text else field.default
    if isinstance(value, BaseModel | dict):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else f'"{value}"' if isinstance(value, str | Path) else str(value)


def settings_reference() -> list[SettingRow]:
    """One row for each key that takes a value, in the order of the schema."""
    rows = []
    for pattern, field in FIELDS.items():
        key = ".".join(pattern).replace("profiles.*", "profiles.NAME").replace(".*", "[]")
        table, _ = _table(field.annotation)
        if table is None or _text(field) or (not field.is_required() and field.default is None):
            rows.append(SettingRow(key, _type(field), _default(field), field.description or ""))
    return rows


def holds_path(field: FieldInfo) -> bool:
    """Whether the value is a file's or a directory's path."""
    return _plain(field.annotation) is Path


def written(model: type[BaseModel], name: str, value: object) -> object:
    """The value of a key as the file would have it; None: the key would be left out."""
    text = _text(model.model_fields[name])
    if text is not None:
        return text.write(value)
    return str(value) if isinstance(value, Path) else value
