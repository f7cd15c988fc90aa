"""Where alerts go: topics, bytes, and the sink that publishes them.

    {prefix}/alerts/{profile}/{device}     retained: what is wrong with the device now; empty: nothing
    {prefix}/alerts/{profile}/_fleet       retained: a storm over the profile
    {prefix}/alerts/_system                retained: Sentinel itself
    {prefix}/events/…                      the same places, not retained: every transition
    {prefix}/devices/{profile}/{device}    retained: how the device is, for Home Assistant
    {prefix}/status                        retained, also the last will
    {prefix}/command/…                     what operators say

All are published at QoS 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple, Protocol
from urllib.parse import unquote

import orjson

from sentinel.records import COMMAND_VERBS, Alert, Command, CommandFate, CommandVerb, Transition

SCHEMA_FILE = "alert.schema.json"
FLEET = "_fleet"
SYSTEM = "_system"
EMPTY_LEVEL = "%"
COMMAND_LEVELS = 3
LONGEST_SHELF = 366 * 86400.0  # seconds
LONGEST_COMMAND = 1024  # bytes of payload
MAX_LEVELS = 100  # of a device id; brokers bound the depth of a topic (mosquitto at 200)
# What a topic may not hold, or what has a meaning there: wildcards, "$", our own "%", controls, lone
# surrogates and noncharacters (MQTT 5, 1.5.4).
_SPECIAL = re.compile(
    "[+#%$\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
    + "]"
)


class Publish(Protocol):
    """What a sink needs of a broker: `Broker.publish`."""

    def __call__(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None: ...


class Place(NamedTuple):
    """Whom an alert is about. `device` None: the profile's fleet; `profile` None too: Sentinel itself."""

    profile: str | None
    device: str | None


def encode_device(device: str) -> str:
    """A device id as levels of a topic: "/" stays, what topics cannot hold is percent-encoded.

    A level that is empty becomes "%", a leading "_" is encoded so that `_fleet` stays ours.
    """
    levels = device.split("/", MAX_LEVELS - 1)
    coded = [_SPECIAL.sub(_percent, level).replace("/", "%2F") or EMPTY_LEVEL for level in levels]
    if coded[0].startswith("_"):
        coded[0] = "%5F" + coded[0][1:]
    return "/".join(coded)


def decode_device(levels: str) -> str:
    """The inverse of `encode_device`. Raises UnicodeDecodeError where it is the inverse of nothing."""
    return "/".join(
        "" if level == EMPTY_LEVEL else unquote(level, errors="surrogatepass") for level in levels.split("/")
    )


def alert_topic(prefix: str, place: Place) -> str:
    """The retained topic that says what is wrong there now."""
    return f"{prefix}/alerts/{_levels(place)}"


def event_topic(prefix: str, place: Place) -> str:
    """The topic of every transition there."""
    return f"{prefix}/events/{_levels(place)}"


def device_topic(prefix: str, place: Place) -> str:
    """The retained topic of how a device is."""
    return f"{prefix}/devices/{_levels(place)}"


def status_topic(prefix: str) -> str:
    """The retained topic of Sentinel's own state."""
    return f"{prefix}/status"


def command_filter(prefix: str) -> str:
    """The topic filter of operators' commands."""
    return f"{prefix}/command/#"


def alerts_filter(prefix: str) -> str:
    """The topic filter of our own retained alerts."""
    return f"{prefix}/alerts/#"


def devices_filter(prefix: str) -> str:
    """The topic filter of what we retain of devices."""
    return f"{prefix}/devices/#"


def parse_alert_topic(prefix: str, topic: str) -> Place | None:
    """The inverse of `alert_topic`; None: not a topic of that kind."""
    return _parse(f"{prefix}/alerts/", topic)


def parse_device_topic(prefix: str, topic: str) -> Place | None:
    """The inverse of `device_topic`; None: not a topic of that kind."""
    return _parse(f"{prefix}/devices/", topic)


def _parse(head: str, topic: str) -> Place | None:
    if not topic.startswith(head):
        return None
    profile, slash, device = topic[len(head) :].partition("/")
    if not slash:
        return Place(None, None) if profile == SYSTEM else None
    try:
        return Place(unquote(profile, errors="surrogatepass"), None if device == FLEET else decode_device(device))
    except UnicodeDecodeError:  # "%FF": somebody else wrote it
        return None


def command_topic(prefix: str, verb: CommandVerb, place: Place) -> str:
    """The topic of a command to a device."""
    return f"{prefix}/command/{verb}/{_levels(place)}"


def is_command(prefix: str, topic: str) -> bool:
    """Whether it came on a topic of `command_filter`."""
    return topic.startswith(f"{prefix}/command/")


def parse_command(prefix: str, topic: str, payload: bytes) -> Command | CommandFate:
    """A command from `{prefix}/command/{verb}/{profile}/{device}`, or why it is none.

    `shelve` takes {"seconds": …}, an hour without, 0 to shelve no longer; the others take no payload.
    """
    parts = topic.removeprefix(f"{prefix}/command/").split("/", 2)
    verbs = [verb for verb in COMMAND_VERBS if verb == parts[0]]
    if not verbs or len(parts) != COMMAND_LEVELS:
        return "bad_topic"
    seconds = _shelf(payload) if verbs[0] == "shelve" else 0.0 if payload in {b"", b"{}"} else None
    if seconds is None:
        return "bad_payload"
    try:
        return Command(verbs[0], unquote(parts[1], errors="surrogatepass"), decode_device(parts[2]), seconds)
    except UnicodeDecodeError:
        return "bad_topic"


def _shelf(payload: bytes) -> float | None:
    """Seconds to shelve for; None: the payload does not say so."""
    if not payload:
        return 3600.0
    try:
        body = orjson.loads(payload) if len(payload) <= LONGEST_COMMAND else None
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict) or not body.keys() <= {"seconds"}:
        return None
    given = body.get("seconds", 3600.0)
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 <= given <= LONGEST_SHELF:
        return None
    return float(given)


def place_of(alert: Alert) -> Place:
    """Whom it is about."""
    if alert.kind == "system":
        return Place(None, None)
    return Place(alert.profile, None if alert.kind == "storm" else alert.device)


def encode_alert(alert: Alert) -> bytes:
    """JSON as `alert.schema.json` describes it."""
    return orjson.dumps(alert)


def load_schema() -> dict[str, object]:
    """The JSON Schema of an alert."""
    text = resources.files("sentinel").joinpath(SCHEMA_FILE).read_bytes()
    schema: dict[str, object] = orjson.loads(text)
    return schema


class AlertSink:
    """Publishes alerts. Never blocks; drops nothing itself.

    Args:
        publish: queues a publish.
        prefix: of all topics.
    """

    def __init__(self, publish: Publish, prefix: str) -> None:
        self._publish = publish
        self._prefix = prefix

    def emit(self, transitions: Sequence[Transition]) -> None:
        """Publish each transition as an event, and set or clear the retained alert of its place."""
        for transition in transitions:
            place = place_of(transition.alert)
            retained = b"" if transition.retained is None else encode_alert(transition.retained)
            self._publish(event_topic(self._prefix, place), encode_alert(transition.alert), qos=1, retain=False)
            self._publish(alert_topic(self._prefix, place), retained, qos=1, retain=True)

    def renew(self, alert: Alert) -> None:
        """Say again what is wrong at an alert's place, to a broker that may have forgotten it."""
        self._publish(alert_topic(self._prefix, place_of(alert)), encode_alert(alert), qos=1, retain=True)

    def clear(self, place: Place) -> None:
        """Clear the retained alert of a place."""
        self._publish(alert_topic(self._prefix, place), b"", qos=1, retain=True)

    def status(self, payload: bytes) -> None:
        """Set the retained status."""
        self._publish(status_topic(self._prefix), payload, qos=1, retain=True)


def _levels(place: Place) -> str:
    if place.profile is None:
        return SYSTEM
    profile = _SPECIAL.sub(_percent, place.profile).replace("/", "%2F")
    return f"{profile}/{FLEET if place.device is None else encode_device(place.device)}"


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode(errors="surrogatepass"))
