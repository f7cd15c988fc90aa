"""The only place that knows configuration: TOML file, SENTINEL_… environment, command line.

settings = load_settings(path)      # ConfigError, with every problem found
settings.mqtt.host, settings.specs(), settings.warnings(), settings.origin("mqtt", "host")
"""

from sentinel.settings.load import Login, command_line, load_settings
from sentinel.settings.reference import SettingRow, settings_reference, written
from sentinel.settings.schema import HttpSettings, MqttSettings, ProfileSettings, Settings, StoreSettings, TlsSettings
from sentinel.settings.values import filters_overlap, parse_duration, parse_topic, topic_filter, wildcards

__all__ = [
    "HttpSettings",
    "Login",
    "MqttSettings",
    "ProfileSettings",
    "SettingRow",
    "Settings",
    "StoreSettings",
    "TlsSettings",
    "command_line",
    "filters_overlap",
    "load_settings",
    "parse_duration",
    "parse_topic",
    "settings_reference",
    "topic_filter",
    "wildcards",
    "written",
]
