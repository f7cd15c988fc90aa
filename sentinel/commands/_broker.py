"""The broker that a command's `--broker` names, and as whom to come to it."""

import sys
from getpass import getpass
from typing import Unpack

from sentinel.settings import Login, MqttSettings, command_line, load_settings


def broker_settings(broker: str, **login: Unpack[Login]) -> MqttSettings:
    """Connection settings for `mqtt[s]://[user@]host[:port]`, the rest from SENTINEL_MQTT__….

    A password that no file holds is asked for where a person sits.

    Raises:
        ConfigError: the address or a file is none.
    """
    settings = load_settings(None, overrides=command_line(broker, **login)).mqtt
    if settings.username is None or settings.password_file is not None or not sys.stdin.isatty():
        return settings
    try:
        return settings.with_password(getpass(f"password of {settings.username} at {settings.host} (empty: none): "))
    except EOFError:
        raise KeyboardInterrupt from None
