"""From file, environment and command line to one validated `Settings`, with the origin of each value."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, TypedDict, Unpack

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource

from sentinel.errors import ConfigError
from sentinel.settings import values
from sentinel.settings.files import FileProblem, Key, dotted
from sentinel.settings.reference import FIELDS, allowed, holds_path
from sentinel.settings.schema import Settings

Origins = dict[Key, str]

_PREFIX = "SENTINEL_"
_CREDENTIALS = {
    ("mqtt", "password_file"): "mqtt_password",
    ("http", "token_file"): "http_token",
    ("http", "password_file"): "http_password",
}
_MAY_END = re.compile(r"""([\]}]|\"{3}|'{3})\s*(#.*)?$""")  # the last line of a value over several lines
_ELEMENTS = {
    ("profiles", "*"): "a table with at least a topic",
    ("webhooks", "*"): "a table with a url",
    ("profiles", "*", "channels", "*"): 'a name or a table such as { name = "flow", unit = "m3/h" }',
}


class _Environment(EnvSettingsSource):
    def decode_complex_value(self, field_name: str, field: FieldInfo, value: str | bytes | bytearray) -> Any:
        """JSON where it is a list or a table; else the text itself, for the schema to judge."""
        try:
            decoded = json.loads(value)
        except ValueError:
            return value
        return decoded if isinstance(decoded, list | dict) else value


class Login(TypedDict, total=False):
    """Options of every command that goes to a broker, beside its address; a path is relative to the working directory."""

    username: str | None
    password_file: Path | None
    ca: Path | None


def load_settings(path: Path | str | None, *, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The configuration of the file at `path`, under the environment's SENTINEL_…, under `overrides`.

    Relative paths are relative to the file, or to the working directory if there is none. A file of a secret that
    is not named is the systemd credential for it, if there is one.

    Raises:
        ConfigError: with every problem found.
    """
    data, origins = ({}, {}) if path is None else _read(Path(path))
    problems: list[str] = []
    in_file = list(data["profiles"]) if isinstance(data.get("profiles"), dict) else []
    environment, names = _environment(in_file, problems)
    _merge(data, environment, origins, names)
    _merge(data, overrides or {}, origins, {(): "command line"})
    _add_credentials(data, origins)
    given = {key: _nearest(origins, key) for key in _nodes(data)}

    for name in [name for name in data if name not in Settings.model_fields]:
        problems.append(_unknown((name,), origins))
        del data[name]
    problems += _profile_problems(data, origins)
    problems += _resolve(data, Path() if path is None else Path(path).parent, origins)
    try:
        settings = Settings(**data)
    except ValidationError as invalid:
        raise ConfigError(
            problems + [_problem(error, origins, in_file) for error in invalid.errors(include_url=False)]
        ) from None
    settings._origins = given  # noqa: SLF001 (set once, by the package that makes it)
    problems += _file_problems(settings)
    if problems:
        raise ConfigError(problems)
    return settings


def command_line(
    broker: str | None = None, topic: str | None = None, http_port: int | None = None, **login: Unpack[Login]
) -> dict[str, Any]:
    """Overrides for `load_settings`: a broker's address, a topic for the profile "default", and single settings.

    Raises:
        ConfigError: the address is none, or has no use for `ca`.
    """
    overrides: dict[str, Any] = {}
    mqtt: dict[str, Any] = {}
    if broker is not None:
        try:
            mqtt = values.parse_broker(broker)
        except ValueError as error:
            raise ConfigError([f"--broker {_shown(broker)}: {error}"]) from None
    if login.get("username"):
        mqtt["username"] = login["username"]
    if file := login.get("password_file"):
        mqtt["password_file"] = str(file.absolute())
    if file := login.get("ca"):
        if broker is not None and "tls" not in mqtt:
            raise ConfigError([f"--ca {file}: there is no TLS with --broker {_shown(broker)}: give mqtts://…"])
        mqtt["tls"] = {"ca": str(file.absolute())}
    if mqtt:
        overrides["mqtt"] = mqtt
    if http_port is not None:
        overrides["http"] = {"port": http_port}
    if topic is not None:
        overrides["profiles"] = {"default": {"topic": topic}}
    return overrides


def _read(path: Path) -> tuple[dict[str, Any], Origins]:
    try:
        text = path.read_text("utf-8")
        data = tomllib.loads(text)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError([f"{path}:{line}: not TOML: must be UTF-8 text"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: not TOML: nested too deeply"]) from None
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
        reason = found[1] if found else str(error)
        line = int(found[2]) if found and found[2] else text.count("\n") + 1
        raise ConfigError([f"{path}:{line}: not TOML: {reason}"]) from None
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError([f"{path}: not TOML: {error}"]) from None
    return data, {key: f"{path}:{line}" for key, line in key_lines(text).items()}


def key_lines(text: str) -> dict[Key, int]:
    """The line of each key, table and list element of a valid TOML text, from 1.

    Keys of an inline table have the line of the element or statement that they are in.
    """
    lines: dict[Key, int] = {}
    table: Key = ()
    chunk: list[str] = []
    elements: dict[Key, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        chunk.append(line)
        start = number - len(chunk) + 1
        data = _parsed(chunk) if len(chunk) == 1 or _MAY_END.search(line) else None
        if data is None:  # a value over several lines
            continue
        if chunk[0].lstrip().startswith("["):
            table = ()
            while data:
                name, inner = next(iter(data.items()))
                table = (*table, name)
                if isinstance(inner, list):
                    elements[table] = elements.get(table, -1) + 1
                    inner = inner[0]
                if table in elements:
                    lines.setdefault(table, start)
                    table = (*table, elements[table])
                data = inner
            lines[table] = start
        else:
            for key, offset in _element_lines(chunk):
                lines[(*table, *key)] = start + offset
            for key in _nodes(data):
                lines.setdefault((*table, *key), start)
        chunk = []
    return lines


def _element_lines(chunk: list[str]) -> Iterator[tuple[Key, int]]:
    """Each element of a list over several lines, with what is in it, and how many lines into the statement it ends."""
    opened = _parsed([chunk[0], "]"]) if len(chunk) > 1 else None
    if opened is None:
        return
    *_, at = (key for key in _nodes(opened) if not any(isinstance(part, int) for part in key))
    count = sum(key[:-1] == at for key in _nodes(opened))
    pending: list[str] = []
    for offset, line in enumerate(chunk[1:], 1):
        pending.append(line)
        found = _parsed(["x = [", *pending, "]"]) or _parsed(["x = [", *pending])
        if found:
            for index, *rest in _nodes(found["x"]):
                yield (*at, count + int(index), *rest), offset
            count += len(found["x"])
            pending = []


def _parsed(chunk: Iterable[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads("\n".join(chunk))
    except tomllib.TOMLDecodeError:
        return None


def _nodes(data: object) -> Iterator[Key]:
    """Every key below `data`, tables and lists included."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list | tuple) else ()
    for name, value in inner:
        yield (name,)
        yield from ((name, *key) for key in _nodes(value))


def _environment(in_file: list[str], problems: list[str]) -> tuple[dict[str, Any], Origins]:
    """The SENTINEL_… variables as a tree, and the name of each; unknown names become problems."""
    names: Origins = {}
    source = _Environment(Settings)
    source.env_vars = {}
    for name in sorted(name for name in os.environ if name.upper().startswith(_PREFIX)):
        key = tuple(name[len(_PREFIX) :].lower().split("__"))
        pattern = _pattern(key)
        if pattern in FIELDS or pattern in _ELEMENTS:
            source.env_vars[name.lower()] = os.environ[name]
            names[_in_file(key, in_file)] = name
        else:
            problems.append(f"{name}: unknown name; {_nearest_variable(key, in_file)}")
    data = source()
    if isinstance(data.get("profiles"), dict):
        data["profiles"] = {
            _in_file(("profiles", name), in_file)[1]: profile for name, profile in data["profiles"].items()
        }
    return data, names


def _in_file(key: tuple[str, ...], in_file: list[str]) -> tuple[str, ...]:
    """`key` with the profile's name as the file writes it: variables have neither small letters nor "-"."""
    if key[0] != "profiles" or len(key) == 1 or key[1] in in_file:
        return key
    alike = [name for name in in_file if name.lower().replace("-", "_") == key[1].replace("-", "_")]
    return (key[0], alike[0], *key[2:]) if alike else key


def _nearest_variable(key: tuple[str, ...], in_file: list[str]) -> str:
    profiles = [key[1]] if key[0] == "profiles" and len(key) > 1 else in_file or ["NAME"]
    known = {
        "__".join(pattern).replace("*", profile).upper()
        for pattern in FIELDS
        for profile in profiles
        if pattern.count("*") == (pattern[0] == "profiles" and len(pattern) > 1)
    }
    close = difflib.get_close_matches("__".join(key).upper(), sorted(known), 1)
    return f"did you mean {_PREFIX}{close[0]}?" if close else "a name is SENTINEL_TABLE__KEY, as in SENTINEL_MQTT__HOST"


def _merge(base: dict[str, Any], layer: Mapping[str, Any], origins: Origins, names: Origins, at: Key = ()) -> None:
    """Lay `layer` over `base`; tables join, all else is replaced."""
    for name, value in layer.items():
        key = (*at, name)
        if isinstance(value, Mapping) and isinstance(base.get(name), dict):
            _merge(base[name], value, origins, names, key)
            continue
        for old in [old for old in origins if old[: len(key)] == key]:
            del origins[old]
        origins[key] = _nearest(names, key)
        if isinstance(value, Mapping):
            base[name] = {}
            _merge(base[name], value, origins, names, key)
        else:
            base[name] = value


def _nearest(origins: Origins, key: Key) -> str:
    """Where `key` came from, or the table that it is in, or the first key of that table."""
    while key and key not in origins:
        if inner := [origin for other, origin in origins.items() if other[: len(key)] == key]:
            return inner[0]
        key = key[:-1]
    return origins.get(key, "")


def _add_credentials(data: dict[str, Any], origins: Origins) -> None:
    """Name the systemd credentials that are there as the files of secrets that nobody named."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    for (table, key), name in _CREDENTIALS.items() if directory else ():
        inner, credential = data.setdefault(table, {}), Path(str(directory), name).absolute()
        if isinstance(inner, dict) and key not in inner and credential.exists():
            inner[key] = str(credential)
            origins[table, key] = "systemd credential"


def _resolve(data: dict[str, Any], base: Path, origins: Origins) -> list[str]:
    """Make the paths in `data`, and those that are left to their default, absolute; returns those that are none."""
    problems = []
    for pattern, field in FIELDS.items():
        if not holds_path(field):
            continue
        *above, name = pattern
        tables: list[Any] = [data]
        default = None if field.is_required() else field.default
        for key in above:
            if key == "*":
                tables = [element for table in tables if isinstance(table, list | tuple) for element in table]
            else:
                tables = [table for table in tables if isinstance(table, dict)]
                tables = [t.setdefault(key, {}) if default is not None else t.get(key) for t in tables]
        for table in tables:
            if not isinstance(table, dict):
                continue
            if default is not None:
                table.setdefault(name, str(default))
            if isinstance(table.get(name), str):
                try:
                    table[name] = str((base / Path(table[name]).expanduser()).resolve())
                except (ValueError, RuntimeError, OSError) as error:  # a NUL, a user who is not there, a loop of links
                    place = _nearest(origins, pattern)
                    problems.append(f"{place}: {dotted(pattern)} = {_shown(table[name])}: {error}")
                    del table[name]
    return problems


def _pattern(key: Key) -> tuple[str, ...]:
    return tuple(
        "*" if isinstance(part, int) or (at == 1 and key[0] == "profiles") else part for at, part in enumerate(key)
    )


def _shown(value: object) -> str:
    if isinstance(value, bool | int | float):
        return str(value).lower()
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = re.sub(r"//[^@/]*@", "//***@", text)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _problem(error: ErrorDetails, origins: Origins, in_file: list[str]) -> str:
    """One sentence: place, key, value, what is allowed."""
    key, pattern = error["loc"], _pattern(error["loc"])
    place, reason = _nearest(origins, key), error.get("ctx", {}).get("error")
    if error["type"] == "extra_forbidden":
        return _unknown(key, origins)
    if error["type"] == "missing":
        if pattern == ("profiles", "*", "topic") and in_file and key[1] not in in_file:
            close = difflib.get_close_matches(str(key[1]), in_file, 1)
            hint = f'did you mean "{close[0]}"?' if close else f"known: {', '.join(in_file)}"
            return f'{place}: no profile "{key[1]}" in the file; {hint}'
        return f"{place}: {dotted(key)} is missing: must be {allowed(FIELDS[pattern])}"
    if isinstance(error["input"], dict) and reason is not None:
        return f"{place}: {dotted(key)}: {reason}"
    if reason is None:
        reason = f"must be {_ELEMENTS.get(pattern) or allowed(FIELDS[pattern])}"
    return f"{place}: {dotted(key)} = {_shown(error['input'])}: {reason}"


def _unknown(key: Key, origins: Origins) -> str:
    *table, name = _pattern(key)
    siblings = [pattern[-1] for pattern in FIELDS if list(pattern[:-1]) == table]
    close = difflib.get_close_matches(name, siblings, 1)
    elsewhere = [".".join(pattern).replace("*", "NAME") for pattern in FIELDS if pattern[-1] == name]
    if close:
        hint = f"did you mean {dotted((*key[:-1], close[0]))}?"
    elif elsewhere:
        hint = f"did you mean {elsewhere[0]}?"
    else:
        hint = f"known here: {', '.join(siblings)}"
    return f"{_nearest(origins, key)}: {dotted(key)}: unknown key; {hint}"


def _profile_problems(data: dict[str, Any], origins: Origins) -> list[str]:
    """Names that are none, and topics that two profiles, or Sentinel itself, would share."""
    problems, topics = [], {}
    profiles = data.get("profiles")
    for name, profile in profiles.items() if isinstance(profiles, dict) else ():
        key = ("profiles", name, "topic")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            problems.append(
                f'{_nearest(origins, key[:2])}: profiles."{name}": '
                'the name of a profile must be letters, digits, "_" and "-"'
            )
        try:
            topics[key] = values.parse_topic(profile["topic"])
        except (KeyError, TypeError, ValueError):
            continue  # the schema says so
    for one, other in combinations(topics, 2):
        if values.filters_overlap(values.topic_filter(topics[one]), values.topic_filter(topics[other])):
            problems.append(
                f"{_nearest(origins, other)}: {dotted(other)} = {_shown(topics[other])}: must not overlap "
                f"{dotted(one)} = {_shown(topics[one])} ({_nearest(origins, one)}): "
                "a topic belongs to one profile"
            )
    mqtt = data.get("mqtt")
    prefix = mqtt.get("prefix", "sentinel") if isinstance(mqtt, dict) else "sentinel"
    for key, topic in topics.items():
        if topic == prefix or topic.startswith(f"{prefix}/"):
            problems.append(
                f"{_nearest(origins, key)}: {dotted(key)} = {_shown(topic)}: must not lie under "
                f"mqtt.prefix = {_shown(prefix)}: what Sentinel publishes is never its input"
            )
    return problems


def _file_problems(settings: Settings) -> list[str]:
    """What keeps secrets, certificates and keys from being used, and secrets that lack a part."""
    mqtt, http, problems = settings.mqtt, settings.http, []
    readers: list[Callable[[], object]] = [mqtt.password, http.token, http.password]
    readers += [tls.context for tls in (mqtt.tls, http.tls) if tls is not None]
    for at, webhook in enumerate(settings.webhooks):
        readers += [partial(webhook.key, at), partial(webhook.context, at)]
    for read in readers:
        try:
            read()
        except FileProblem as problem:
            problems.append(f"{settings.origin(*problem.key)}: {problem}")
    if mqtt.password_file is not None and mqtt.username is None and mqtt.version == "3.1.1":
        problems.append(
            f"{settings.origin('mqtt', 'password_file')}: mqtt.password_file: needs mqtt.username: "
            'version "3.1.1" has no password without a user name'
        )
    for one, other in (("username", "password_file"), ("password_file", "username")):
        if getattr(http, one) is not None and getattr(http, other) is None:
            problems.append(f"{settings.origin('http', one)}: http.{one}: needs http.{other}")
    return problems
