"""The profile that a command's `--profile` names."""

from pathlib import Path

from sentinel.errors import ConfigError
from sentinel.records import ProfileSpec
from sentinel.settings import Settings


def profile_spec(settings: Settings, config: Path, name: str) -> ProfileSpec:
    """What the stream knows of it.

    Raises:
        ConfigError: there is none of that name in `config`.
    """
    for spec in settings.specs():
        if spec.name == name:
            return spec
    known = ", ".join(settings.profiles) or "none"
    raise ConfigError([f"--profile {name}: no such profile in {config}; known: {known}"])
