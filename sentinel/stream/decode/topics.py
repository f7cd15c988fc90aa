"""Topic templates: `plant/{site}/{device}/telemetry`, or a plain MQTT filter."""

import re
from dataclasses import dataclass, field

_WILDCARD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
CHANNEL = "channel"


@dataclass(frozen=True)
class Template:
    """A topic with named wildcards, one level each.

    The device id is the named wildcards but `{channel}`, joined by "/"; without any, the whole topic.

    Raises:
        ValueError: a wildcard that is not a whole level, a name used twice, or no level at all.
    """

    text: str
    levels: tuple[str, ...] = field(init=False)
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names, levels = [], []
        if not self.text or "\0" in self.text:
            msg = "a topic must not be empty"
            raise ValueError(msg)
        parts = self.text.split("/")
        for at, level in enumerate(parts):
            match = _WILDCARD.fullmatch(level)
            if match:
                if match[1] in names:
                    msg = f"wildcard {{{match[1]}}} is used twice"
                    raise ValueError(msg)
                names.append(match[1])
                levels.append("+")
                continue
            if any(sign in level for sign in "{}") or (len(level) > 1 and any(sign in level for sign in "+#")):
                msg = f"{level!r}: a wildcard is a whole level, as in a/{{device}}/b"
                raise ValueError(msg)
            if level == "#" and at != len(parts) - 1:
                msg = "'#' is the last level"
                raise ValueError(msg)
            levels.append(level)
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "levels", tuple(levels))

    @property
    def filter(self) -> str:
        """The MQTT subscription: `plant/+/+/telemetry`."""
        return "/".join(self.levels)

    @property
    def has_channel(self) -> bool:
        return CHANNEL in self.names

    def match(self, topic: str) -> tuple[str, str | None] | None:
        """Device id and channel of a topic; None: it is not of this template."""
        given = topic.split("/")
        if self.levels[-1] == "#":
            if len(given) < len(self.levels) - 1 or (topic.startswith("$") and self.levels[0] == "#"):
                return None
        elif len(given) != len(self.levels):
            return None
        wild = []
        for level, part in zip(self.levels, given, strict=False):
            if level == "+":
                wild.append(part)
            elif level not in (part, "#"):
                return None
        if not self.names:
            return topic, None
        if "+" in self.text.split("/"):
            named = [
                level == "+" and text != "+" for level, text in zip(self.levels, self.text.split("/"), strict=True)
            ]
            wild = [part for part, keep in zip(given, named, strict=False) if keep]
        channel = wild.pop(self.names.index(CHANNEL)) if self.has_channel else None
        return "/".join(wild), channel
