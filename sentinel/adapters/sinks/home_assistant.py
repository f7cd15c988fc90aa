"""Home Assistant's MQTT discovery: each device has a binary sensor of its problem and a sensor of its score.

    {discovery}/device/{id}/config         retained: the device and its two entities (Home Assistant 2024.11 and newer)
    {discovery}/status                     Home Assistant's own: "online" once it has started
    {prefix}/devices/{profile}/{device}    retained: how the device is

The alerts' own topics hold nothing while a device is well, which Home Assistant would show as "unknown".
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from sentinel import __version__
from sentinel.adapters.sinks import Place, Publish, device_topic, place_of, status_topic
from sentinel.records import Alert, Bools, Floats, Transition

AT_ONCE = 200  # messages a report, over all profiles
LOOKS = 5_000  # devices looked at a report
EVERY = 60.0  # seconds after which a score that has moved is said again
ONLINE = b"online"
_IDS = "sentinel_"
LONGEST_SLUG = 64
_TOLD = ("firing", "acknowledged")
_ATTRIBUTES = ("alert", "kind", "severity", "message")  # of the problem; none that moves while a device is well
_NOT_IN_AN_ID = re.compile(r"[^a-zA-Z0-9_-]+")


class Scores(NamedTuple):
    """One profile's devices as of one turn, a row each. `score`: NaN where there is none yet."""

    device: Sequence[str]
    score: Floats
    silent: Bools


class _Said(NamedTuple):
    """What was last said of a device. `score` None: it has none; `at`: when."""

    score: float | None
    silent: bool
    at: float

    def stale(self, score: float | None, silent: bool, now: float) -> bool:
        """Whether it is worth saying again: it fell silent, crossed the threshold, or has moved and a while has passed."""
        if silent != self.silent or (score is None) != (self.score is None):
            return True
        if score is None or self.score is None or score == self.score:
            return False
        return (score >= 1) != (self.score >= 1) or abs(now - self.at) >= EVERY


class HomeAssistant:
    """Publishes the devices as Home Assistant discovers them. Never blocks; drops nothing, but takes its time.

    Args:
        publish: queues a publish.
        prefix: of Sentinel's topics.
        discovery: of Home Assistant's topics.
    """

    def __init__(self, publish: Publish, prefix: str, discovery: str) -> None:
        self._publish = publish
        self._prefix, self._discovery = prefix, discovery
        self._said: dict[Place, _Said] = {}
        self._alerts: dict[Place, Alert] = {}
        self._next: dict[str, int] = {}
        self._reports = 0

    @property
    def status_topic(self) -> str:
        """Where Home Assistant says that it has started."""
        return f"{self._discovery}/status"

    def is_own(self, topic: str) -> bool:
        """Whether it is one of the topics above, and so no reading, whatever the profiles subscribe to."""
        return topic == self.status_topic or topic.startswith(f"{self._discovery}/device/{_IDS}")

    def greet(self) -> None:
        """Broker or Home Assistant are new: all devices are said again, and open alerts are to be renewed."""
        self._said.clear()
        self._alerts.clear()

    def again(self) -> None:
        """Home Assistant has started: all devices are said again."""
        self._said.clear()

    def renew(self, alert: Alert) -> None:
        """An alert is open that no transition told of."""
        self._alerts[place_of(alert)] = alert

    def emit(self, transitions: Sequence[Transition]) -> None:
        """Say at once what an alert changes of a device that Home Assistant knows."""
        for transition in transitions:
            place = place_of(transition.alert)
            if place.device is None:
                continue
            self._alerts.pop(place, None)
            if transition.retained is not None:
                self._alerts[place] = transition.retained
            if (said := self._said.get(place)) is not None:
                self._state(place, said.score, said.silent)

    def report(self, profiles: Mapping[str, Scores], now: float) -> None:
        """Say what is new, a bounded number of messages at a time: devices first seen, then scores that have moved."""
        left, names = AT_ONCE, list(profiles)
        first = self._reports % max(len(names), 1)  # each begins in its turn, and has what those before it leave
        self._reports += 1
        for profile in names[first:] + names[:first]:
            rows = profiles[profile]
            count, begin = len(rows.device), self._next.get(profile, 0)
            for at in range(begin, begin + min(count, LOOKS)):
                if left < 2:
                    break
                self._next[profile] = at + 1
                row = at % count
                place, value = Place(profile, rows.device[row]), float(rows.score[row])
                score, silent = None if math.isnan(value) else round(value, 2), bool(rows.silent[row])
                said = self._said.get(place)
                if said is None:
                    self._publish(self._config_topic(place), orjson.dumps(self.config(place)), qos=1, retain=True)
                    left -= 1
                if said is None or said.stale(score, silent, now):
                    self._said[place] = _Said(score, silent, now)
                    self._state(place, score, silent)
                    left -= 1

    def forget(self, profile: str, device: str) -> None:
        """The device is gone: Home Assistant removes it and its entities."""
        place = Place(profile, device)
        self._said.pop(place, None)
        self._alerts.pop(place, None)
        for topic in (self._config_topic(place), device_topic(self._prefix, place)):
            self._publish(topic, b"", qos=1, retain=True)

    def config(self, place: Place) -> dict[str, Any]:
        """What Home Assistant is told of a device."""
        unique, state = self._id(place), device_topic(self._prefix, place)
        running = {
            "topic": status_topic(self._prefix),
            "value_template": "{{ 'offline' if value_json.state == 'offline'"
            f" or '{place.profile}' not in value_json.profiles else 'online' }}}}",
        }
        heard = {"topic": state, "value_template": "{{ 'offline' if value_json.silent else 'online' }}"}
        problem = {
            "platform": "binary_sensor",
            "unique_id": f"{unique}_problem",
            "name": "Problem",
            "device_class": "problem",
            "value_template": "{{ 'ON' if value_json.problem else 'OFF' }}",
            "json_attributes_topic": state,
            "json_attributes_template": _pick(_ATTRIBUTES),
            "availability": [running],  # a silent device is a problem that can be seen
            "qos": 1,  # Home Assistant hands topics and availability of the device down to components, but not this
        }
        score = {
            "platform": "sensor",
            "unique_id": f"{unique}_score",
            "name": "Anomaly score",
            "icon": "mdi:chart-bell-curve",
            "state_class": "measurement",
            "suggested_display_precision": 2,
            "value_template": "{{ value_json.score }}",
            "availability": [running, heard],
            "availability_mode": "all",
            "qos": 1,
        }
        return {
            "device": {"identifiers": [unique], "name": place.device, "model": place.profile},
            "origin": {"name": "Sentinel", "sw_version": __version__},
            "state_topic": state,
            "components": {"problem": problem, "score": score},
        }

    def _state(self, place: Place, score: float | None, silent: bool) -> None:
        alert = self._alerts.get(place)
        state = {
            "problem": alert is not None and alert.state in _TOLD,
            "score": score,
            "silent": silent,
            "alert": alert and alert.state,
            "kind": alert and alert.kind,
            "severity": alert and alert.severity,
            "message": alert and alert.message,
        }
        self._publish(device_topic(self._prefix, place), orjson.dumps(state), qos=1, retain=True)

    def _config_topic(self, place: Place) -> str:
        return f"{self._discovery}/device/{self._id(place)}/config"

    def _id(self, place: Place) -> str:
        """Of the characters that discovery allows, and of no other device under any prefix."""
        name = f"{self._prefix}\0{place.profile}\0{place.device}"
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        slug = _NOT_IN_AN_ID.sub("_", f"{place.profile}_{place.device}")[:LONGEST_SLUG]
        return f"{_IDS}{slug}_{digest}"


def _pick(names: Sequence[str]) -> str:
    """The template of an object that has these members of a payload alone."""
    return "{{ {" + ", ".join(f"'{name}': value_json.{name}" for name in names) + "} | tojson }}"
