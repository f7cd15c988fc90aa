"""Configuration: what is read, what overrides what, and the exact text of what is refused."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel.adapters.models import save_model
from sentinel.commands.check_config import check_config
from sentinel.errors import ConfigError
from sentinel.model.calibrate import REFRACTORY
from sentinel.records import Channel, EventTime, ModelSpec, Naming, ProfileSpec
from sentinel.settings import (
    Settings,
    command_line,
    filters_overlap,
    load_settings,
    parse_duration,
    schema,
    settings_reference,
    topic_filter,
    wildcards,
)
from sentinel.settings.load import key_lines
from sentinel.settings.reference import FIELDS
from sentinel.settings.values import (
    parse_broker,
    parse_budget,
    parse_size,
    parse_topic,
    show_budget,
    show_duration,
    show_size,
)
from tests.certificates import Authority

ROOT = Path(__file__).parent.parent

MQTT = """\
[mqtt]
host = "127.0.0.1"
port = 1883
# version = "3.1.1" | "5", client_id, username, password_file, tls = { ca, cert, key }, qos, keepalive, prefix …
"""
HTTP = """\
[http]
host = "127.0.0.1"
port = 9108
"""
STORE = """\
[store]
path = "./state"
"""
PUMP = """\
[profiles.pump]
topic = "plant/{site}/{device}/telemetry"     # device id: the wildcards joined by "/", here "{site}/{device}"
time = { path = "ts", unit = "s" }             # left out: receive time; units s, ms, us, ns, iso8601
channels = [
  { name = "pressure", path = "pressure", unit = "bar", min = 0, max = 16 },
  { name = "flow", path = "flow.value", unit = "m3/h" },
]
alert_budget = "1/week"
silence_after = "5m"
"""
PUMP_MODEL = """\
[profiles.pump.model]
cell = "lstm"
layers = 1
hidden = 32
"""
ROOM = """\
[profiles.room]
topic = "home/{device}/{channel}"              # one value per topic; the payload is a bare number or {"value": …}
channels = "auto"
"""
WHOLE = f"{MQTT}\n{HTTP}\n{STORE}\n{PUMP}\n{PUMP_MODEL}\n{ROOM}"
TOPIC = '[profiles.pump]\ntopic = "plant/{device}"\n'


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("SENTINEL_") or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def load(folder: Path, text: str) -> Settings:
    file = folder / "s.toml"
    (folder / "word").write_text("word\n")
    file.write_text(text)
    return load_settings(file)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


class TestTheFile:
    def test_the_whole_example_gives_these_specs(self, tmp_path: Path) -> None:
        pump, room = load(tmp_path, WHOLE).specs()
        assert pump == ProfileSpec(
            name="pump",
            topic="plant/{site}/{device}/telemetry",
            time=EventTime(("ts",), "s"),
            channels=(
                Channel("pressure", ("pressure",), "bar", 0.0, 16.0),
                Channel("flow", ("flow", "value"), "m3/h"),
            ),
            alert_budget=1 / 604800,
            silence_after=300.0,
            model=ModelSpec("lstm", 1, 32),
        )
        assert room == ProfileSpec(name="room", topic="home/{device}/{channel}", align_window=1.0)

    @pytest.mark.parametrize("part", [MQTT, HTTP, STORE, PUMP, ROOM, PUMP + PUMP_MODEL, "", "[mqtt]\n[store]\n"])
    def test_each_part_works_alone(self, tmp_path: Path, part: str) -> None:
        load(tmp_path, part)

    def test_no_file_at_all_gives_the_defaults(self) -> None:
        settings = load_settings(None)
        assert (settings.mqtt.keepalive, settings.mqtt.qos, settings.mqtt.version) == (60, 1, "3.1.1")
        assert (settings.mqtt.client_id, settings.mqtt.prefix, settings.http.port) == (None, "sentinel", 9108)
        assert (settings.store.durability, settings.store.max_bytes) == ("journal", 4 << 30)
        assert settings.store.path == Path("state").resolve()
        assert settings.mqtt.password() is None

    def test_a_profile_needs_only_a_topic(self, tmp_path: Path) -> None:
        assert load(tmp_path, TOPIC).specs() == (ProfileSpec(name="pump", topic="plant/{device}"),)

    def test_specs_without_a_profile_say_what_to_give(self) -> None:
        with pytest.raises(ConfigError) as caught:
            load_settings(None).specs()
        assert caught.value.problems == [
            (
                "no profile: nothing to watch. Give --config FILE with a table [profiles.NAME] that has a topic, "
                "or --broker and --topic"
            )
        ]

    def test_every_value_of_a_profile_reaches_its_spec(self, tmp_path: Path) -> None:
        text = """
            [profiles.a]
            topic = "a/{device}"
            channels = ["x", "y.z", { name = "w", path = ["a.b", "c"], max_rate = 2, min_deviation = 0.5, direction = "above" }]
            device = { path = "meta.id" }
            alert_budget = "2/day"
            threshold = 5
            silence_after = "off"
            max_gap = "1h30m"
            stuck_after = "off"
            align_window = "250ms"
            max_devices = 10
            max_channels = 8
            device_ttl = "2d"
            min_ticks = 2
            quiet_ticks = 3
            learn = "once"
            learn_after = 100
            format = "cbor"
            readings = { path = "data.*" }
            model = { cell = "gru", layers = 2, hidden = 8, dropout = 0.1, horizons = [1, 4], weights = "device" }
        """
        assert load(tmp_path, text).specs() == (
            ProfileSpec(
                name="a",
                topic="a/{device}",
                channels=(
                    Channel("x", ("x",)),
                    Channel("y.z", ("y", "z")),
                    Channel("w", ("a.b", "c"), max_rate=2.0, min_deviation=0.5, direction="above"),
                ),
                device_path=("meta", "id"),
                format="cbor",
                readings_path=("data", "*"),
                alert_budget=2 / 86400,
                threshold=5.0,
                silence_after=0.0,
                max_gap=5400.0,
                stuck_after=0,
                align_window=0.25,
                max_devices=10,
                max_channels=8,
                device_ttl=172800.0,
                min_ticks=2,
                quiet_ticks=3,
                learn="once",
                learn_after=100,
                model=ModelSpec("gru", 2, 8, 0.1, (1, 4), "device"),
            ),
        )

    def test_a_channel_named_by_the_topic_has_no_path(self, tmp_path: Path) -> None:
        text = '[profiles.a]\ntopic = "a/{device}/{channel}"\nchannels = ["x", { name = "y", path = "v" }]\n'
        channels = load(tmp_path, text).specs()[0].channels
        assert channels == (Channel("x"), Channel("y", ("v",)))

    def test_channels_named_by_the_payload_have_no_path_and_their_messages_are_joined(self, tmp_path: Path) -> None:
        text = """
            [profiles.a]
            topic = "a/{device}"
            channels = ["x.y"]
            channel = { path = "meta.id", value = "v", split = "/" }
        """
        (spec,) = load(tmp_path, text).specs()
        assert spec.channels == (Channel("x.y"),)
        assert spec.naming == Naming(("meta", "id"), ("v",), "/")
        assert spec.align_window == 1.0

    def test_a_device_may_come_from_the_payload_alone(self, tmp_path: Path) -> None:
        text = '[profiles.a]\ntopic = "a/{channel}"\ndevice = { path = "id" }\n'
        assert load(tmp_path, text).specs()[0].device_path == ("id",)

    def test_paths_are_relative_to_the_file(self, tmp_path: Path, authority: Authority) -> None:
        (tmp_path / "secret").write_text("hunter2\n")
        (tmp_path / "ca.pem").write_bytes(authority.ca.read_bytes())
        text = '[mqtt]\nusername = "me"\npassword_file = "secret"\ntls = { ca = "ca.pem" }\n[store]\npath = "../x"\n'
        settings = load(tmp_path, text)
        assert settings.store.path == tmp_path.parent / "x"
        assert settings.mqtt.tls is not None
        assert settings.mqtt.tls.ca == tmp_path / "ca.pem"
        assert settings.mqtt.password() == "hunter2"
        assert load(tmp_path, "").store.path == tmp_path / "state"

    def test_an_empty_tls_table_means_tls(self, tmp_path: Path) -> None:
        assert load(tmp_path, "[mqtt]\ntls = {}\n").mqtt.tls is not None
        assert load(tmp_path, "[mqtt.tls]\n").mqtt.tls is not None

    @pytest.mark.parametrize("name", ["sentinel.toml", "minimal.toml"])
    def test_the_shipped_examples_load(self, name: str) -> None:
        assert load_settings(ROOT / "config" / name).specs()

    def test_the_complete_example_names_every_key_and_its_default(self) -> None:
        text = (ROOT / "config" / "sentinel.toml").read_text()
        text = re.sub(r'(?m)^# (?=\[{1,2}[a-z_.]+\]|[a-z_]+ = ["\d{])', "", text)
        example = tomllib.loads(text)
        for row in settings_reference():
            value: object = example
            for part in row.key.replace("NAME", "pump").replace("[]", ".0").split("."):
                if part.isdigit():
                    assert isinstance(value, list)
                    value = {key: found for item in value if isinstance(item, dict) for key, found in item.items()}
                else:
                    assert isinstance(value, dict), row.key
                    assert part in value, row.key
                    value = value[part]
            examples = {"profiles.NAME.channels", "profiles.NAME.silence_after", "store.path", "webhooks"}
            if row.default not in {"", '""', "required"} and row.key not in examples and "[]" not in row.key:
                assert value == tomllib.loads(f"x = {row.default}")["x"], row.key


class TestOverrides:
    def test_the_environment_overrides_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SENTINEL_MQTT__HOST", "broker")
        monkeypatch.setenv("SENTINEL_PROFILES__PUMP__ALERT_BUDGET", "2/day")
        monkeypatch.setenv("SENTINEL_PROFILES__PUMP__CHANNELS", '["a", {"name": "b", "max": 3}]')
        monkeypatch.setenv("SENTINEL_PROFILES__PUMP__TIME__PATH", "when")
        monkeypatch.setenv("SENTINEL_PROFILES__PUMP__SILENCE_AFTER", "90")
        monkeypatch.setenv("SENTINEL_PROFILES__PUMP__STUCK_AFTER", "20")
        monkeypatch.setenv("SENTINEL_PROFILES__ROOM__CHANNELS", "auto")
        monkeypatch.setenv("SENTINEL_PROFILES__PUMP__MODEL__DEVICE", "cpu")
        settings = load(tmp_path, WHOLE)
        pump, room = settings.specs()
        assert (settings.mqtt.host, settings.mqtt.port, pump.device, room.device) == ("broker", 1883, "cpu", "auto")
        assert (pump.alert_budget, pump.silence_after, pump.stuck_after) == (2 / 86400, 90.0, 20)
        assert pump.channels == (Channel("a", ("a",)), Channel("b", ("b",), max=3.0))
        assert pump.time == EventTime(("when",), "s")
        assert room.channels is None

    def test_a_variable_finds_a_profile_with_capitals_and_hyphens(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SENTINEL_PROFILES__PUMP_A__MIN_TICKS", "3")
        (spec,) = load(tmp_path, '[profiles.Pump-A]\ntopic = "p/{device}"\n').specs()
        assert (spec.name, spec.min_ticks) == ("Pump-A", 3)

    def test_the_environment_alone_can_make_a_profile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SENTINEL_PROFILES__PUMP__TOPIC", "p/{device}")
        assert load_settings(None).specs() == (ProfileSpec(name="pump", topic="p/{device}"),)

    def test_the_command_line_overrides_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SENTINEL_MQTT__HOST", "broker")
        (tmp_path / "s.toml").write_text(WHOLE)
        settings = load_settings(
            tmp_path / "s.toml", overrides=command_line("mqtts://me@other", "more/{device}/telemetry")
        )
        assert (settings.mqtt.host, settings.mqtt.port, settings.mqtt.username) == ("other", 8883, "me")
        assert settings.mqtt.tls is not None
        assert settings.origin("mqtt", "host") == "command line"
        assert [spec.name for spec in settings.specs()] == ["pump", "room", "default"]
        assert settings.specs()[2] == ProfileSpec(name="default", topic="more/{device}/telemetry")

    def test_options_beside_the_address_override_single_keys_and_their_files_lie_where_the_user_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "s.toml").write_text('[mqtt]\nusername = "other"\n[http]\nhost = "::1"\n')
        (tmp_path / "secret").write_text("hunter2\n")
        monkeypatch.chdir(tmp_path)
        given = command_line("mqtt://me@h", None, 8080, username="you", password_file=Path("secret"))
        settings = load_settings(Path("there/s.toml"), overrides=given)
        assert (settings.mqtt.username, settings.mqtt.password()) == ("you", "hunter2")
        assert (settings.http.host, settings.http.port) == ("::1", 8080)

    def test_authorities_go_with_an_address_of_tls(self) -> None:
        assert command_line("mqtts://h", ca=Path("/ca.pem"))["mqtt"]["tls"] == {"ca": "/ca.pem"}
        with pytest.raises(ConfigError, match=r'--ca /ca.pem: there is no TLS with --broker "mqtt://h": give mqtts://'):
            command_line("mqtt://h", ca=Path("/ca.pem"))

    def test_a_broker_and_a_topic_are_enough(self) -> None:
        settings = load_settings(None, overrides=command_line("mqtt://host", "plant/{device}/telemetry"))
        assert settings.specs() == (ProfileSpec(name="default", topic="plant/{device}/telemetry"),)

    def test_the_origin_of_each_value_is_known(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SENTINEL_HTTP__PORT", "0")
        settings = load(tmp_path, WHOLE)
        file = tmp_path / "s.toml"
        assert settings.origin("mqtt", "host") == f"{file}:2"
        assert settings.origin("mqtt", "qos") == "default"
        assert settings.origin("http", "port") == "SENTINEL_HTTP__PORT"
        assert settings.origin("profiles", "pump", "channels", 1, "path") == f"{file}:{line_of(WHOLE, 'flow')}"
        assert settings.origin("profiles", "pump", "model", "hidden") == f"{file}:{line_of(WHOLE, 'hidden')}"

    def test_the_password_is_taken_from_the_systemd_credential(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "mqtt_password").write_text("from systemd")
        (tmp_path / "other").write_text("named")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        mine = load(tmp_path, '[mqtt]\nusername = "me"\n')
        assert mine.mqtt.password() == "from systemd"
        assert mine.origin("mqtt", "password_file") == "systemd credential"
        assert load(tmp_path, '[mqtt]\nusername = "me"\npassword_file = "other"\n').mqtt.password() == "named"


def line_of(text: str, what: str) -> int:
    return next(number for number, line in enumerate(text.split("\n"), 1) if what in line)


PORT = "must be a whole number from 1 to 65535"
CHANNELS = 'must be a list of channels such as ["pressure", { name = "flow", unit = "m3/h" }], or "auto"'
DURATION = 'must be a duration such as "500ms", "5m", "1h30m", "2d", or a number of seconds'
POSITIVE = 'must be more than zero, a duration such as "500ms", "5m", "1h30m", "2d", or a number of seconds'
BUDGET = 'must be a number of alerts per device and time such as "1/week", "2/day", "1/month", "3/hour", or "off"'
PATH = 'must be a path into the payload such as "flow.value" or ["flow", "value"]'
PART = "must not have a wildcard in a part of a level"

REFUSED_KEYS = {
    # [mqtt]
    '[mqtt]\nport = "x"': f's.toml:2: mqtt.port = "x": {PORT}',
    "[mqtt]\nport = 0": f"s.toml:2: mqtt.port = 0: {PORT}",
    "[mqtt]\nport = true": f"s.toml:2: mqtt.port = true: {PORT}",
    "[mqtt]\nport = 1.5": f"s.toml:2: mqtt.port = 1.5: {PORT}",
    "[mqtt]\nversion = 5": 's.toml:2: mqtt.version = 5: must be "3.1.1" or "5"',
    "[mqtt]\nqos = 2": "s.toml:2: mqtt.qos = 2: must be a whole number from 0 to 1",
    "[mqtt]\nhost = 5": "s.toml:2: mqtt.host = 5: must be a host name or an address, "
    'without "mqtt://" and without a port',
    '[mqtt]\nhost = "mqtt://me:pw@h"': 's.toml:2: mqtt.host = "mqtt://***@h": must be a host name or an address, '
    'without "mqtt://" and without a port',
    '[mqtt]\nclient_id = ""': 's.toml:2: mqtt.client_id = "": must be text of 1 to 256 characters',
    '[mqtt]\nusername = ""': 's.toml:2: mqtt.username = "": must be text of at least 1 character',
    '[mqtt]\nprefix = "a/#"': 's.toml:2: mqtt.prefix = "a/#": must be a topic without wildcards '
    'such as "sentinel" or "site/sentinel"',
    "[mqtt]\npassword_file = 5": "s.toml:2: mqtt.password_file = 5: must be a path",
    '[mqtt]\npassword_file = "none"\nusername = "me"': 's.toml:2: mqtt.password_file = "none": '
    "cannot be read: No such file or directory",
    '[mqtt]\npassword_file = "word"': "s.toml:2: mqtt.password_file: needs mqtt.username: "
    'version "3.1.1" has no password without a user name',
    '[mqtt]\ntls = { ca = "none" }': 's.toml:2: mqtt.tls.ca = "none": cannot be read: No such file or directory',
    "[mqtt]\ntls = true": "s.toml:2: mqtt.tls = true: must be a table with the keys ca, cert, key",
    '[mqtt]\nsession_expiry = "1500ms"': 's.toml:2: mqtt.session_expiry = "1500ms": must be a whole number of seconds',
    # unknown keys
    '[mqtt]\nhots = "x"': "s.toml:2: mqtt.hots: unknown key; did you mean mqtt.host?",
    '[mqtt]\npassword = "hunter2"': "s.toml:2: mqtt.password: unknown key; did you mean mqtt.password_file?",
    "[mqqt]\nport = 1": "s.toml:1: mqqt: unknown key; did you mean mqtt?",
    "keepalive = 5": "s.toml:1: keepalive: unknown key; did you mean mqtt.keepalive?",
    '_env_file = "x"': "s.toml:1: _env_file: unknown key; known here: mqtt, http, store, home_assistant, webhooks, profiles",
    "[http]\nzzz = 1": "s.toml:2: http.zzz: unknown key; known here: host, port, "
    "token_file, username, password_file, tls, max_device_series",
    TOPIC + 'budget = "1/day"': "s.toml:3: profiles.pump.budget: unknown key; did you mean profiles.pump.alert_budget?",
    TOPIC + "[profiles.pump.model]\nhiden = 3": "s.toml:4: profiles.pump.model.hiden: unknown key; "
    "did you mean profiles.pump.model.hidden?",
    TOPIC + 'channels = [\n  "a",\n  { name = "b", mim = 2 },\n]': "s.toml:5: profiles.pump.channels[1].mim: "
    "unknown key; did you mean profiles.pump.channels[1].min?",
    # top level and other tables
    '[profiles.p]\ntopic = "p/{device}"\nmodel = { device = "gpu" }': (
        's.toml:3: profiles.p.model.device = "gpu": must be "auto", "cpu" or "cuda"'
    ),
    '[profiles.p]\ntopic = "p/{device}"\nmodel = { weights = "each" }': (
        's.toml:3: profiles.p.model.weights = "each": must be "shared" or "device"'
    ),
    "mqtt = 5": "s.toml:1: mqtt = 5: must be a table with the keys host, port, version, client_id, username, "
    "password_file, tls, qos, keepalive, prefix, commands, host_id, rebirth, session_expiry",
    "[http]\nport = 70000": "s.toml:2: http.port = 70000: must be a whole number from 0 to 65535",
    "[http]\nmax_device_series = -1": "s.toml:2: http.max_device_series = -1: must be a whole number of at least 0",
    '[store]\ndurability = "all"': 's.toml:2: store.durability = "all": must be "journal" or "none"',
    '[store]\nsnapshot_interval = "soon"': f's.toml:2: store.snapshot_interval = "soon": {DURATION}',
    '[store]\nsnapshot_interval = "0s"': f's.toml:2: store.snapshot_interval = "0s": {POSITIVE}',
    '[store]\nmax_bytes = "4 gigs"': 's.toml:2: store.max_bytes = "4 gigs": '
    'must be a size such as "500MB", "4GiB", or a number of bytes',
    "[store]\npath = 5": "s.toml:2: store.path = 5: must be a path",
    "profiles = 5": "s.toml:1: profiles = 5: must be tables such as [profiles.pump]",
    "[profiles]\npump = 5": "s.toml:2: profiles.pump = 5: must be a table with at least a topic",
    '[profiles."a b"]\ntopic = "a/{device}"': 's.toml:1: profiles."a b": the name of a profile must be letters, '
    'digits, "_" and "-"',
    # profiles
    "[profiles.pump]\nmin_ticks = 2": "s.toml:1: profiles.pump.topic is missing: must be a topic template "
    'such as "plant/{device}/telemetry"',
    TOPIC + "channels = 5": f"s.toml:3: profiles.pump.channels = 5: {CHANNELS}",
    TOPIC + "channels = []": f"s.toml:3: profiles.pump.channels = []: {CHANNELS}",
    TOPIC + "channels = [5]": "s.toml:3: profiles.pump.channels[0] = 5: must be a name or a table "
    'such as { name = "flow", unit = "m3/h" }',
    TOPIC + 'channels = [{ unit = "bar" }]': "s.toml:3: profiles.pump.channels[0].name is missing: "
    "must be text of 1 to 200 characters",
    TOPIC + 'channels = ["a", "a"]': 's.toml:1: profiles.pump: channels must have distinct names: "a" is there twice',
    TOPIC + 'channels = ["b", { name = "a", path = "x" }]\nchannel = { path = "id" }': "s.toml:1: profiles.pump: "
    'with channel = { path = "…" } a channel is found by its name: leave path out of "a", '
    "and name it as the payload does",
    TOPIC + 'format = "csv"\nchannel = { path = "id" }': "s.toml:1: profiles.pump: channel has no meaning with "
    'format = "csv": it is for "json" and "cbor"',
    TOPIC + 'device = { path = "d" }\nchannel = { path = "id", split = "." }': "s.toml:1: profiles.pump: "
    "channel.split takes the device's id from the channel's name: leave out device, or split",
    TOPIC + "channel = 5": "s.toml:3: profiles.pump.channel = 5: must be a table with the keys path, value, split",
    TOPIC + 'channels = ["a", "b"]\nmax_channels = 1': "s.toml:1: profiles.pump: channels must be at most "
    "max_channels = 1",
    TOPIC + 'channels = [{ name = "a", min = 2, max = 1 }]': "s.toml:3: profiles.pump.channels[0]: "
    "min must be less than max",
    TOPIC + 'channels = [{ name = "a", max = nan }]': "s.toml:3: profiles.pump.channels[0].max = nan: must be a number",
    TOPIC + 'channels = [{ name = "a", max_rate = 0 }]': "s.toml:3: profiles.pump.channels[0].max_rate = 0: "
    "must be a number of more than 0",
    TOPIC + 'channels = [{ name = "a", path = "a..b" }]': f's.toml:3: profiles.pump.channels[0].path = "a..b": {PATH}',
    TOPIC + 'channels = [{ name = "a", direction = "up" }]': "s.toml:3: profiles.pump.channels[0].direction = "
    '"up": must be "above", "below" or "both"',
    TOPIC + 'time = { path = "ts", unit = "h" }': 's.toml:3: profiles.pump.time.unit = "h": '
    'must be "s", "ms", "us", "ns" or "iso8601"',
    TOPIC + 'time = "ts"': 's.toml:3: profiles.pump.time = "ts": must be a table with the keys path, unit',
    TOPIC + 'alert_budget = "1/fortnight"': f's.toml:3: profiles.pump.alert_budget = "1/fortnight": {BUDGET}',
    TOPIC + "alert_budget = 1": f"s.toml:3: profiles.pump.alert_budget = 1: {BUDGET}",
    TOPIC + 'alert_budget = "0/day"': f's.toml:3: profiles.pump.alert_budget = "0/day": {BUDGET}',
    TOPIC + "silence_after = 0": f's.toml:3: profiles.pump.silence_after = 0: {POSITIVE}, or "auto", or "off"',
    TOPIC + 'max_gap = "off"': f's.toml:3: profiles.pump.max_gap = "off": {DURATION}, or "auto"',
    TOPIC + "stuck_after = 1": "s.toml:3: profiles.pump.stuck_after = 1: must be a number of ticks of at least 2, "
    'or "auto", or "off"',
    TOPIC + 'align_window = "-1s"': f's.toml:3: profiles.pump.align_window = "-1s": {DURATION}, or "auto"',
    TOPIC + "threshold = 0": "s.toml:3: profiles.pump.threshold = 0: must be a number of more than 0",
    TOPIC + 'learn = "yes"': 's.toml:3: profiles.pump.learn = "yes": must be "online", "once" or "never"',
    TOPIC + "model = { horizons = [4, 1] }": "s.toml:3: profiles.pump.model.horizons = [4, 1]: "
    "must be a list of ticks from 1 to 1024, ascending, such as [1, 64]",
    TOPIC + "model = { horizons = [61, 127, 1021] }": "s.toml:3: profiles.pump.model.horizons = [61, 127, 1021]: "
    "must be ticks whose least common multiple is small: powers of 2 such as [1, 16, 64]",
    TOPIC + "model = { dropout = 1 }": "s.toml:3: profiles.pump.model.dropout = 1: "
    "must be a number of at least 0 and less than 1",
    # topics
    '[profiles.a]\ntopic = ""': 's.toml:2: profiles.a.topic = "": must be a topic template '
    'such as "plant/{device}/telemetry"',
    '[profiles.a]\ntopic = "a/{channel}"': 's.toml:1: profiles.a: topic = "a/{channel}" names no device: '
    'add a wildcard such as {device}, or device = { path = "…" } for an id in the payload',
    '[profiles.a]\ntopic = "a/{}"': 's.toml:2: profiles.a.topic = "a/{}": '
    'must name each wildcard with letters, digits and "_" ("{}")',
    '[profiles.a]\ntopic = "{x}/{x}"': 's.toml:2: profiles.a.topic = "{x}/{x}": must not use the wildcard "{x}" twice',
    '[profiles.a]\ntopic = "a/p-{x}"': f's.toml:2: profiles.a.topic = "a/p-{{x}}": {PART} ("p-{{x}}"): '
    "a name stands for all of it",
    '[profiles.a]\ntopic = "a/b+"': f's.toml:2: profiles.a.topic = "a/b+": {PART} ("b+")',
    '[profiles.a]\ntopic = "a/#/b"': 's.toml:2: profiles.a.topic = "a/#/b": must have "#" as its last level only',
    '[profiles.a]\ntopic = "a/{x}/#"': 's.toml:2: profiles.a.topic = "a/{x}/#": must not mix named wildcards '
    'with "#": name that level, for example {area}, or name none',
    '[profiles.a]\ntopic = "$share/g/a"': 's.toml:2: profiles.a.topic = "$share/g/a": must not be a shared '
    "subscription: a device's readings must all come here, in order",
    '[profiles.a]\ntopic = "sentinel/{x}"': 's.toml:2: profiles.a.topic = "sentinel/{x}": must not lie under '
    'mqtt.prefix = "sentinel": what Sentinel publishes is never its input',
    '[profiles.a]\ntopic = "a/{x}/b"\n[profiles.b]\ntopic = "a/c/{y}"': 's.toml:4: profiles.b.topic = "a/c/{y}": '
    'must not overlap profiles.a.topic = "a/{x}/b" (s.toml:2): a topic belongs to one profile',
    # not TOML
    "[mqtt\nport = 1": "s.toml:1: not TOML: Expected ']' at the end of a table declaration",
    "port = ": "s.toml:1: not TOML: Invalid value",
    "[mqtt]\nport = 1\nport = 2": "s.toml:3: not TOML: Cannot overwrite a value",
    "a = " + "[" * 3000: "s.toml: not TOML: nested too deeply",
    f"[mqtt]\nport = {'9' * 5000}": "s.toml: not TOML: Exceeds the limit (4300 digits) for integer string conversion: "
    "value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit",
    # numbers that nothing holds
    TOPIC + "stuck_after = 100000000000000000000": "s.toml:3: profiles.pump.stuck_after = 100000000000000000000: "
    'must be a number of ticks of at least 2, or "auto", or "off"',
    TOPIC + "quiet_ticks = 100000000000000000000": "s.toml:3: profiles.pump.quiet_ticks = 100000000000000000000: "
    "must be a number of at most 9007199254740992",
    TOPIC + "silence_after = 100000000000000000000": "s.toml:3: profiles.pump.silence_after = 100000000000000000000: "
    f'{DURATION}, or "auto", or "off"',
    '[mqtt]\npassword_file = "a\\u0000b"': 's.toml:2: mqtt.password_file = "a\\u0000b": embedded null byte',
    '[store]\npath = "~nobody-of-that-name/x"': 's.toml:2: store.path = "~nobody-of-that-name/x": '
    "Could not determine home directory.",
}


class TestRefusals:
    @pytest.mark.parametrize("text", REFUSED_KEYS)
    def test_a_bad_key_or_value_is_named_with_what_is_allowed(self, tmp_path: Path, text: str) -> None:
        assert problems(tmp_path, text) == [REFUSED_KEYS[text]]

    def test_all_problems_are_told_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SENTINEL_MQTT__PROT", "1")
        monkeypatch.setenv("SENTINEL_HTTP__PORT", "none")
        text = '[mqtt]\nport = 0\nqos = 3\n[profiles.a]\ntopic = "#"\n[profiles.b]\ntopic = "b/{x}"\nlean = "x"\n'
        assert problems(tmp_path, text) == [
            "SENTINEL_MQTT__PROT: unknown name; did you mean SENTINEL_MQTT__PORT?",
            (
                's.toml:7: profiles.b.topic = "b/{x}": must not overlap profiles.a.topic = "#" (s.toml:5): '
                "a topic belongs to one profile"
            ),
            "s.toml:2: mqtt.port = 0: must be a whole number from 1 to 65535",
            "s.toml:3: mqtt.qos = 3: must be a whole number from 0 to 1",
            'SENTINEL_HTTP__PORT: http.port = "none": must be a whole number from 0 to 65535',
            "s.toml:8: profiles.b.lean: unknown key; did you mean profiles.b.learn?",
        ]

    def test_a_missing_file_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load_settings(tmp_path / "none.toml")
        assert caught.value.problems == [f"{tmp_path}/none.toml: cannot be read: No such file or directory"]

    def test_a_file_in_another_encoding_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "s.toml").write_bytes(b'[mqtt]\nhost = "\xe4"\n')
        with pytest.raises(ConfigError) as caught:
            load_settings(tmp_path / "s.toml")
        assert caught.value.problems == [f"{tmp_path}/s.toml:2: not TOML: must be UTF-8 text"]

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("SENTINEL_MQTT__HOTS", "did you mean SENTINEL_MQTT__HOST?"),
            ("SENTINEL_MQTT_HOST", "did you mean SENTINEL_MQTT__HOST?"),
            ("SENTINEL_PROFILES__PUMP__BUDGET", "did you mean SENTINEL_PROFILES__PUMP__ALERT_BUDGET?"),
            ("SENTINEL_STORE__PATH__X", "did you mean SENTINEL_STORE__PATH?"),
            ("SENTINEL_MQTT__PASSWORD", "did you mean SENTINEL_MQTT__PASSWORD_FILE?"),
            ("SENTINEL_9", "a name is SENTINEL_TABLE__KEY, as in SENTINEL_MQTT__HOST"),
        ],
    )
    def test_an_unknown_variable_is_refused_without_its_value(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
    ) -> None:
        monkeypatch.setenv(name, "hunter2")
        assert problems(tmp_path, WHOLE) == [f"{name}: unknown name; {hint}"]

    def test_a_bad_value_in_a_variable_names_the_variable(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SENTINEL_PROFILES__PUMP__CHANNELS", '["a"')
        assert problems(tmp_path, WHOLE) == [
            rf'SENTINEL_PROFILES__PUMP__CHANNELS: profiles.pump.channels = "[\"a\"": {CHANNELS}'
        ]

    def test_a_variable_for_a_profile_that_is_not_there_names_the_nearest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SENTINEL_PROFILES__PUPM__MIN_TICKS", "2")
        assert problems(tmp_path, WHOLE) == [
            'SENTINEL_PROFILES__PUPM__MIN_TICKS: no profile "pupm" in the file; did you mean "pump"?'
        ]

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("http://h", "must be a broker's address such as mqtt://host:1883, or mqtts://host:8883 for TLS"),
            ("mqtt://h:99999", "must be a broker's address such as mqtt://host:1883, or mqtts://host:8883 for TLS"),
            ("mqtt://h/a", "must be a broker's address such as mqtt://host:1883, or mqtts://host:8883 for TLS"),
            (
                "mqtt://me:hunter2@h",
                (
                    "must not hold a password, which other users of the machine could read: "
                    "give --password-file, a file that holds it"
                ),
            ),
        ],
    )
    def test_a_bad_broker_address_is_refused_without_its_password(self, url: str, reason: str) -> None:
        with pytest.raises(ConfigError) as caught:
            command_line(url)
        assert caught.value.problems == [f'--broker "{url.replace("me:hunter2", "***")}": {reason}']


class TestSecretsAndCertificates:
    """What is in the files is looked at before anything starts, and never told."""

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "is empty: write the secret into it"),
            (b"\n", "is empty: write the secret into it"),
            (b"hunter2\nhunter3\n", "must be one line of text of at most 4096 characters"),
            (b"hunter2\0", "must be one line of text of at most 4096 characters"),
            (b"x" * 4097, "must be one line of text of at most 4096 characters"),
            (b"hunter2\xff", "must be UTF-8 text"),
            (None, "cannot be read: No such file or directory"),
        ],
    )
    @pytest.mark.parametrize("key", ["mqtt.password_file", "http.password_file", "http.token_file"])
    def test_a_file_that_holds_no_secret_is_refused_without_what_it_holds(
        self, tmp_path: Path, key: str, content: bytes | None, reason: str
    ) -> None:
        if content is not None:
            (tmp_path / "secret").write_bytes(content)
        table, name = key.split(".")
        username = 'username = "me"\n' if name == "password_file" else ""
        (problem,) = problems(tmp_path, f'[{table}]\n{name} = "secret"\n{username}')
        assert problem == f's.toml:2: {key} = "secret": {reason}'

    def test_half_a_basic_authentication_is_refused(self, tmp_path: Path) -> None:
        assert problems(tmp_path, '[http]\nusername = "me"\n') == ["s.toml:2: http.username: needs http.password_file"]
        assert problems(tmp_path, '[http]\npassword_file = "word"\n') == [
            "s.toml:2: http.password_file: needs http.username"
        ]

    def test_secrets_of_http_are_taken_from_systemd_credentials(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "http_token").write_text("a token\n")
        (tmp_path / "http_password").write_text("a password\n")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        settings = load(tmp_path, '[http]\nusername = "me"\n')
        assert (settings.http.token(), settings.http.password()) == ("a token", "a password")
        assert settings.origin("http", "token_file") == "systemd credential"

    def test_the_fitting_certificate_and_key_are_taken_by_both_ends(self, tmp_path: Path, authority: Authority) -> None:
        cert, key = authority.issue("mine")
        chain = f'cert = "{cert}", key = "{key}"'
        settings = load(tmp_path, f'[mqtt]\ntls = {{ ca = "{authority.ca}", {chain} }}\n[http]\ntls = {{ {chain} }}\n')
        assert settings.mqtt.tls is not None
        assert settings.http.tls is not None
        assert settings.mqtt.tls.context().verify_mode is ssl.CERT_REQUIRED
        assert settings.mqtt.tls.context().check_hostname
        assert settings.http.tls.context().minimum_version >= ssl.TLSVersion.TLSv1_2

    @pytest.mark.parametrize("table", ["mqtt", "http"])
    @pytest.mark.parametrize(
        ("cert", "key", "told"),
        [
            ("rubbish", "mine.key", 'tls.cert = "rubbish": holds no certificate in PEM form'),
            ("mine.key", "mine.key", 'tls.cert = "mine.key": holds no certificate in PEM form'),
            ("mine.crt", "rubbish", 'tls.key = "rubbish": holds no usable private key in PEM form'),
            ("mine.crt", "other.key", 'tls.key = "other.key": is not the key of the certificate mine.crt'),
            ("mine.crt", "locked.key", 'tls.key = "locked.key": is encrypted: give a key without a passphrase'),
            ("mine.crt", "none", 'tls.key = "none": cannot be read: No such file or directory'),
            ("none", "mine.key", 'tls.cert = "none": cannot be read: No such file or directory'),
        ],
    )
    def test_a_certificate_or_key_that_cannot_be_used_is_refused(
        self, tmp_path: Path, authority: Authority, table: str, cert: str, key: str, told: str
    ) -> None:
        for name in ("mine", "other"):
            for file in authority.issue(name):
                (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "locked.key").write_bytes(authority.encrypted(tmp_path / "mine.key"))
        (tmp_path / "rubbish").write_text("rubbish")
        (problem,) = problems(tmp_path, f'[{table}]\ntls = {{ cert = "{cert}", key = "{key}" }}\n')
        assert problem.startswith(f"s.toml:2: {table}.{told}")

    def test_an_authority_that_is_none_is_refused(self, tmp_path: Path) -> None:
        assert problems(tmp_path, '[mqtt]\ntls = { ca = "word" }\n') == [
            's.toml:2: mqtt.tls.ca = "word": holds no certificate in PEM form'
        ]

    @pytest.mark.parametrize(
        ("text", "warned"),
        [
            ('[http]\nhost = "0.0.0.0"\n', ['http.host = "0.0.0.0" without http.token_file or http.password_file']),
            ('[http]\nhost = "::1"\n', []),
            ('[http]\nhost = "localhost"\n', []),
            ('[http]\nhost = "10.0.0.1"\ntoken_file = "word"\n', ["http.token_file or http.password_file without"]),
            ('[mqtt]\nhost = "b"\nusername = "me"\npassword_file = "word"\n', ["mqtt.username without mqtt.tls"]),
            ('[mqtt]\nusername = "me"\npassword_file = "word"\ncommands = true\n', []),
            ("[mqtt]\ncommands = true\n", ["mqtt.commands on a broker that takes anonymous clients"]),
        ],
    )
    def test_what_leaves_a_door_open_is_a_warning(self, tmp_path: Path, text: str, warned: list[str]) -> None:
        told = load(tmp_path, text + TOPIC).warnings()
        assert len(told) == len(warned)
        assert all(one.startswith(begin) for one, begin in zip(told, warned, strict=True))


class TestWarnings:
    def test_a_sound_configuration_has_none(self, tmp_path: Path) -> None:
        assert load(tmp_path, WHOLE).warnings() == []
        assert load(tmp_path, WHOLE).warnings({"pump": 1.0}) == []

    def test_a_budget_near_the_ticks_between_alerts_is_said(self, tmp_path: Path) -> None:
        assert load(tmp_path, TOPIC + 'alert_budget = "1/day"').warnings({"pump": 3600.01}) == [
            (
                'profiles.pump.alert_budget = "1/day" is one alert in 24 ticks of 1h: below 150, '
                "single alerts cannot be told apart; choose a smaller budget"
            )
        ]

    @pytest.mark.parametrize("threshold", ["", "threshold = 3\n"])
    def test_of_a_budget_that_does_not_rule_or_of_an_unknown_interval_nothing_is_said(
        self, tmp_path: Path, threshold: str
    ) -> None:
        settings = load(tmp_path, TOPIC + 'alert_budget = "1/day"\n' + threshold)
        assert settings.warnings({"other": 3600.0}) == []
        assert settings.warnings({"pump": 3600.0 if threshold else 575.9}) == []

    def test_alerts_can_be_told_apart_from_twice_the_refractory_on(self) -> None:
        assert schema._LEAST_TICKS_PER_ALERT == 2 * REFRACTORY

    def test_what_has_no_effect_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "key").touch()
        text = '[mqtt]\nusername = "me"\nqos = 0\ntls = { key = "key" }\n' + TOPIC
        assert load(tmp_path, text + 'threshold = 3\nalert_budget = "off"\n').warnings({"pump": 1.0}) == [
            "mqtt.tls.key has no effect without mqtt.tls.cert",
            "mqtt.port = 1883 with TLS: brokers usually expect TLS on 8883",
            "mqtt.username without mqtt.password_file: no password will be sent",
            "mqtt.qos = 0: the broker may lose readings before they reach the journal",
            'profiles.pump.threshold has no effect with alert_budget = "off"',
        ]

    def test_no_profile_is_said(self) -> None:
        assert load_settings(None).warnings() == [
            "no profile: nothing to watch; add a table [profiles.NAME] with a topic"
        ]


class TestDurationsBudgetsSizes:
    @given(st.floats(min_value=0, max_value=1e9))
    def test_a_duration_is_read_as_it_was_shown(self, seconds: float) -> None:
        assert parse_duration(show_duration(seconds)) == seconds

    @given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
    def test_a_duration_is_the_sum_of_its_parts(self, d: int, h: int, m: int, s: int, ms: int) -> None:
        total = (86400_000 * d + 3600_000 * h + 60_000 * m + 1000 * s + ms) / 1000
        assert parse_duration(f"{d}d{h}h {m}m{s}s {ms}ms") == total

    @pytest.mark.parametrize("value", ["", " ", "5 minutes", "-5m", "5", "1e3s", "m", "5m5", None, True, -1, [5]])
    def test_only_durations_are_durations(self, value: object) -> None:
        if value == "5":
            assert parse_duration(value) == 5
            return
        with pytest.raises(ValueError, match="must be a duration such as"):
            parse_duration(value)

    @given(st.integers(1, 10**6), st.sampled_from(["minute", "hour", "day", "week", "month", "year"]))
    def test_a_budget_is_read_as_it_was_shown(self, count: int, unit: str) -> None:
        rate = parse_budget(f"{count}/{unit}")
        assert parse_budget(show_budget(rate)) == rate

    @given(st.floats(min_value=1e-12, max_value=1e3))
    def test_an_odd_budget_is_read_nearly_as_it_was_shown(self, rate: float) -> None:
        assert parse_budget(show_budget(rate)) == pytest.approx(rate, rel=1e-12)

    def test_budgets_are_alerts_per_second(self) -> None:
        assert [parse_budget(text) for text in ("1/week", "2/day", "1/month", "3/hour", "0.5/year")] == [
            1 / 604800,
            2 / 86400,
            1 / 2592000,
            3 / 3600,
            0.5 / 31536000,
        ]

    @given(st.integers(1, 10**16))
    def test_a_size_is_read_as_it_was_shown(self, size: int) -> None:
        assert parse_size(show_size(size)) == size

    def test_sizes_are_bytes(self) -> None:
        assert [parse_size(text) for text in ("4GiB", "1.5 KiB", "2MB", "7", 8)] == [4 << 30, 1536, 2000000, 7, 8]

    @pytest.mark.parametrize("value", [True, 0, -1, "", "4 gb", "0GiB", 1.5])
    def test_only_sizes_are_sizes(self, value: object) -> None:
        with pytest.raises(ValueError, match="must be a size such as"):
            parse_size(value)

    def test_broker_addresses(self) -> None:
        assert parse_broker("host") == {"host": "host", "port": 1883}
        assert parse_broker("mqtt://me@[::1]:1884/") == {"host": "::1", "port": 1884, "username": "me"}
        assert parse_broker("mqtts://host") == {"host": "host", "port": 8883, "tls": {}}


def matches(pattern: str, topic: str) -> bool:
    """MQTT 3.1.1 §4.7, level by level."""
    if topic.startswith("$") != pattern.startswith("$"):
        return False
    return _matches(pattern.split("/"), topic.split("/"))


def _matches(pattern: list[str], topic: list[str]) -> bool:
    if pattern == ["#"]:
        return True
    if not pattern or not topic:
        return not pattern and not topic
    return pattern[0] in {"+", topic[0]} and _matches(pattern[1:], topic[1:])


LEVELS = st.lists(st.sampled_from(["", "a", "b", "+", "$s"]), min_size=1, max_size=3)
FILTERS = st.tuples(LEVELS, st.booleans()).map(lambda f: "/".join([*f[0], *(["#"] if f[1] else [])])) | st.just("#")
TOPICS = ["/".join(levels) for depth in range(1, 5) for levels in product(["", "a", "b", "$s"], repeat=depth)]


class TestTopics:
    @given(FILTERS, FILTERS)
    def test_filters_overlap_when_some_topic_matches_both(self, one: str, other: str) -> None:
        both = any(matches(one, topic) and matches(other, topic) for topic in TOPICS)
        assert filters_overlap(one, other) == both
        assert filters_overlap(other, one) == both

    def test_a_template_names_its_wildcards_and_subscribes_with_plus(self) -> None:
        assert wildcards("plant/{site}/{device}/{channel}") == ("site", "device", "channel")
        assert topic_filter("plant/{site}/{device}/telemetry") == "plant/+/+/telemetry"

    @pytest.mark.parametrize("topic", ["#", "a/#", "+/b/+", "a", "/a//{x}", "{x}", "$SYS/#", "ä/{x_1}"])
    def test_these_are_topics(self, topic: str) -> None:
        assert parse_topic(topic) == topic

    @given(st.text(alphabet="a/+#{}$x\0", max_size=12))
    def test_what_passes_is_a_filter_that_a_broker_takes(self, text: str) -> None:
        try:
            parsed = topic_filter(parse_topic(text))
        except ValueError:
            return
        levels = parsed.split("/")
        assert parsed
        assert "\0" not in parsed
        assert not any(len(level) > 1 and set(level) & set("+#{}") for level in levels)
        assert "#" not in levels[:-1]


class TestLines:
    def test_lines_of_keys_tables_and_list_elements(self) -> None:
        text = (
            'a = 1\n\n[t."x y"]\nb.c = """\n[no]\n"""\n'
            "l = [ # one\n  1,\n  { k = 2 }, 3,\n]\n[[e]]\nf = 1\n[[e]]\nf = 2\n"
        )
        lines = key_lines(text)
        assert lines["a",] == 1
        assert lines["t", "x y"] == 3
        assert lines["t", "x y", "b", "c"] == 4
        assert [lines["t", "x y", "l", index] for index in range(3)] == [8, 9, 9]
        assert lines["t", "x y", "l", 1, "k"] == 9
        assert (lines["e", 0], lines["e", 0, "f"], lines["e", 1], lines["e", 1, "f"]) == (11, 12, 13, 14)

    def test_channels_as_an_array_of_tables_have_their_own_lines(self, tmp_path: Path) -> None:
        text = TOPIC + '[[profiles.pump.channels]]\nname = "a"\n[[profiles.pump.channels]]\nname = 5\n'
        assert problems(tmp_path, text) == [
            "s.toml:6: profiles.pump.channels[1].name = 5: must be text of 1 to 200 characters"
        ]


class TestReference:
    def test_every_key_has_a_row_with_a_description(self) -> None:
        rows = {row.key: row for row in settings_reference()}
        leaves = {
            ".".join(pattern).replace("profiles.*", "profiles.NAME").replace(".*", "[]")
            for pattern in FIELDS
            if not any(other[: len(pattern)] == pattern and other != pattern for other in FIELDS)
        }
        of_profile = {f"profiles.NAME.{table}" for table in ("channels", "readings", "time", "device", "channel")}
        tables = {"mqtt.tls", "http.tls", "home_assistant", "webhooks"} | of_profile
        assert set(rows) == leaves | tables
        assert all(row.description and row.type for row in rows.values())
        assert rows["mqtt.port"] == ("mqtt.port", "whole number from 1 to 65535", "1883", "the broker's port")
        assert rows["profiles.NAME.alert_budget"].default == '"1/week"'
        assert rows["profiles.NAME.silence_after"].type == 'duration or "auto" or "off"'
        assert rows["profiles.NAME.topic"].default == "required"

    def test_every_field_of_a_profile_spec_can_be_set(self) -> None:
        keys = {pattern[2] for pattern in FIELDS if pattern[:2] == ("profiles", "*") and len(pattern) == 3}
        assert {*ProfileSpec.__dataclass_fields__} - {"name", "device_path", "readings_path", "naming"} <= keys

    def test_importing_settings_loads_nothing_heavy(self) -> None:
        code = "import sys, sentinel.settings; print(*({'torch', 'paho', 'prometheus_client'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ""


class TestCheckConfig:
    def test_it_prints_a_file_that_loads_to_the_same_settings(
        self, authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "secret").write_text("hunter2")
        extra = f'username = "me"\npassword_file = "secret"\ntls = {{ ca = "{authority.ca}" }}\n'
        (tmp_path / "s.toml").write_text(WHOLE.replace('"127.0.0.1"\nport = 1883\n', f'"b\\u00e4r"\n{extra}'))
        check_config(tmp_path / "s.toml")
        printed = capsys.readouterr()
        (tmp_path / "again.toml").write_text(printed.out)
        again, first = load_settings(tmp_path / "again.toml"), load_settings(tmp_path / "s.toml")
        assert again.model_dump() == first.model_dump()
        assert "hunter2" not in printed.out + printed.err
        assert printed.err == "warning: mqtt.port = 1883 with TLS: brokers usually expect TLS on 8883\n"

    def test_each_value_has_its_origin(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SENTINEL_MQTT__QOS", "0")
        (tmp_path / "s.toml").write_text(WHOLE)
        check_config(tmp_path / "s.toml")
        lines = [re.sub(r" +", " ", line) for line in capsys.readouterr().out.replace(f"{tmp_path}/", "").splitlines()]
        assert "port = 1883 # s.toml:3" in lines
        assert "qos = 0 # SENTINEL_MQTT__QOS" in lines
        assert "keepalive = 60 # default" in lines
        assert "# client_id is not set # default" in lines
        assert 'silence_after = "5m" # s.toml:' + str(line_of(WHOLE, "silence_after")) in lines

    def test_it_says_from_which_interval_on_a_budget_makes_no_sense(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = '[profiles.{}]\ntopic = "{}/{{device}}"\nalert_budget = "{}"\n'
        (tmp_path / "s.toml").write_text(text.format("a", "a", "1/day") + text.format("b", "b", "off"))
        check_config(tmp_path / "s.toml")
        printed = capsys.readouterr()
        budgets = [line for line in printed.out.splitlines() if line.startswith("alert_budget")]
        assert [line.endswith("; for devices that send at least every 9m36s") for line in budgets] == [True, False]
        assert printed.err == ""

    def test_it_warns_where_the_model_has_learned_a_longer_interval(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "s.toml").write_text('[store]\npath = "state"\n[profiles.pump]\ntopic = "plant/{device}"\n')
        for profile, manifest in (("pump", {"interval": 7200.0}), ("other", {"interval": 9.0})):
            save_model(tmp_path / "state" / "models", profile, {"w": np.zeros(1)}, manifest)
        check_config(tmp_path / "s.toml")
        assert capsys.readouterr().err == (
            'warning: profiles.pump.alert_budget = "1/week" is one alert in 84 ticks of 2h: below 150, '
            "single alerts cannot be told apart; choose a smaller budget\n"
        )

    def test_a_model_that_cannot_be_read_is_not_its_business(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "s.toml").write_text('[store]\npath = "state"\n[profiles.pump]\ntopic = "plant/{device}"\n')
        folder = tmp_path / "state" / "models" / "pump" / "broken"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{")
        check_config(tmp_path / "s.toml")
        assert capsys.readouterr().err == ""
