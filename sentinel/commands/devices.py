"""`sentinel devices`: what the store's newest snapshot knows of each device. A daemon may run meanwhile."""

import itertools
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from sentinel import trainer
from sentinel.adapters.sinks import Place, command_topic
from sentinel.adapters.store import Store, open_snapshot
from sentinel.commands._json import write_json
from sentinel.commands._terminal import plural, say, show_facts, show_table
from sentinel.errors import DataError, ModelError, StoreError
from sentinel.model.score import Detector
from sentinel.records import Channel, Command, ProfileSpec
from sentinel.settings import Settings, load_settings
from sentinel.stream.alerts import duration, quantity
from sentinel.stream.pipeline import ProfileStream

_AT_ONCE = 4096  # devices whose memory is held
_OPEN = ("firing", "acknowledged", "pending", "shelved")


def devices(*, config: Path, action: str, device: str | None, json_file: Path | None) -> int:
    """List the devices, show one, or forget one.

    Raises:
        StoreError: the snapshot cannot be read; for forget, a daemon uses the store.
        DataError: there is no snapshot yet, or no such device.
    """
    settings = load_settings(config)
    torch.set_num_threads(1)
    if action == "forget":
        assert device is not None
        result = _forget(settings, device)
        say(*(f"forgotten: {device} of profile {name}" for name in result["forgotten"]))
    else:
        result = _look(settings, device)
        if action == "list":
            _print_list(result)
        else:
            for row in result["devices"]:
                _print_one(row, result["as_of"])
        say(*(f"note: {note}" for note in result["notes"]), stderr=True)
    if json_file is not None:
        write_json(json_file, result)
    return 0


# --- reading ---


def _look(settings: Settings, device: str | None) -> dict[str, Any]:
    """All devices in brief, or one in full where its name is given."""
    path = settings.store.path
    with closing(open_snapshot(_there(path))) as snapshot:
        image = snapshot.load()
        if image is None:
            raise DataError(_nothing_yet(path))
        profiles = orjson.loads(image.meta)["profiles"]
        specs = {name: profile.spec(name) for name, profile in settings.profiles.items()}
        notes: list[str] = []
        readers: dict[str, _Reader] = {}
        found: list[dict[str, Any]] = []
        wanted = (row for row in image.rows if device is None or row[1] == device)
        while part := list(itertools.islice(wanted, _AT_ONCE)):
            for name in dict.fromkeys(profile for profile, _, _ in part):
                if name not in profiles:
                    continue
                if name not in readers:
                    readers[name] = _Reader(name, profiles[name], specs.get(name), path / "models", notes)
                found += readers[name].read(
                    [(one, row) for profile, one, row in part if profile == name], device is not None
                )
    if device is not None and not found:
        raise DataError(f"no device {device!r} in the snapshot of {_moment(image.now)}; `sentinel devices` lists all")
    found.sort(key=lambda row: (row["profile"], row["device"]))
    return {"as_of": image.now, "devices": found, "notes": notes}


class _Reader:
    """Reads devices of one profile out of a snapshot."""

    def __init__(
        self, name: str, data: Mapping[str, Any], spec: ProfileSpec | None, models: Path, notes: list[str]
    ) -> None:
        self._data = data
        self._given = {channel.name: channel for channel in (spec or ProfileSpec(name)).channels or ()}
        # The snapshot says which columns its rows have, whatever the configuration says by now.
        self._spec = replace(spec or ProfileSpec(name), channels=None)
        self._detector: Detector | None = None
        if spec is None:
            notes.append(f"profile {name} is no longer configured")
        if data["model"]:
            try:
                self._detector = trainer.load(models, name, data["model"])[0]
            except ModelError as error:
                notes.append(f"profile {name} begins anew at the daemon's next start: {error}")

    def read(self, rows: Sequence[tuple[str, bytes]], full: bool) -> Iterator[dict[str, Any]]:
        stream = ProfileStream(replace(self._spec, max_devices=len(rows)))
        data = dict(self._data)
        data["pending"], data["alerts"] = [], {"open": {}, "started": {}, "recent": []}  # read from the snapshot itself
        stream.restore(data, self._detector, rows)
        for slot in stream.table:
            yield self._brief(stream, slot) | (self._full(stream, slot) if full else {})

    def _brief(self, stream: ProfileStream, slot: int) -> dict[str, Any]:
        table = stream.table
        device = table.ids[slot]
        raised = 0.0
        if stream.scorer is not None and stream.slabs is not None:
            raised = float(stream.slabs.view("raised")[slot])
        episodes = sorted(self._data["alerts"]["open"].get(device, []), key=lambda e: _OPEN.index(e["state"]))
        return {
            "profile": self._spec.name,
            "device": device,
            "state": stream.device_state(slot),
            "ticks": int(table.ticks[slot]),
            "last_seen": _finite(table.last_seen[slot]),
            "score": _finite(stream.scores()[slot]),
            "shelved_until": self._data["alerts"].get("shelved", {}).get(device),
            "alerts": [
                {key: episode[key] for key in ("id", "kind", "state", "started", "updated", "score", "ticks")}
                for episode in episodes
            ],
            "threshold_raised": raised,
        }

    def _full(self, stream: ProfileStream, slot: int) -> dict[str, Any]:
        table = stream.table
        out: dict[str, Any] = {
            "last_time": _finite(table.last_time[slot]),
            "interval_seconds": _finite(table.interval[slot]),
            "model": self._data["model"],
            "channels": [
                {
                    "name": name,
                    "unit": self._given.get(name, Channel(name)).unit,
                    "last": _finite(table.last[slot, column]),
                    "unchanged_ticks": int(table.run[slot, column]),
                }
                for column, name in enumerate(stream.channels)
            ],
        }
        if stream.scorer is None or stream.slabs is None or stream.detector is None:
            return out
        detector, slabs = stream.detector, stream.slabs

        def get(name: str) -> Any:
            return slabs.view(name)[slot].astype(np.float64)

        scale, m, s = detector.scale, get("m"), get("s")
        low, high = ((get(name) * s + m) * scale.spread + scale.location for name in ("lo", "hi"))
        by_name = {channel["name"]: channel for channel in out["channels"]}
        for at, name in enumerate(detector.channels):
            known = bool(get("lo")[at] <= get("hi")[at])
            by_name[name] |= {
                "location": float(m[at] * scale.spread[at] + scale.location[at]),
                "spread": float(s[at] * scale.spread[at]),
                "low": float(low[at]) if known else None,
                "high": float(high[at]) if known else None,
                "differenced": bool(scale.counter[at]),
                "varied": bool(get("varied")[at]),
            }
        heads = [f"{h} ahead" for h in detector.spec.horizons]
        heads += ["across channels"] * (stream.scorer.layout.heads - len(heads))
        out |= {
            "frozen": bool(get("frozen")),
            "ticks_of_state": int(get("since")),
            "calibrated_on": {head: int(n) for head, n in zip(heads, np.atleast_1d(get("n")), strict=True)},
        }
        return out


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _there(path: Path) -> Path:
    if not (path / "snapshot.sqlite").exists():
        raise DataError(_nothing_yet(path))
    return path


def _nothing_yet(path: Path) -> str:
    return f"no snapshot in {path} yet: `sentinel run` writes the first one [store] snapshot_interval after its start"


# --- forgetting ---


def _forget(settings: Settings, device: str) -> dict[str, Any]:
    """Remove a device from the snapshot, and journal it, so that what a replay brings back is forgotten too."""
    path = _there(settings.store.path)
    try:
        store = Store(path, settings.store.durability)
    except StoreError as error:
        if "in use" in str(error):
            raise StoreError(f"{error}. Or let it forget: {_ask_daemon(settings, device)}") from None
        raise
    with store:
        image = store.snapshot.load()
        if image is None:
            raise DataError(_nothing_yet(path))
        profiles = dict.fromkeys(profile for profile, one, _ in image.rows if one == device)
        if not profiles:
            raise DataError(f"no device {device!r} in the snapshot of {_moment(image.now)}; nothing is changed")
        meta = orjson.loads(image.meta)
        for name in profiles:
            data = meta["profiles"].get(name)
            if data is not None:
                data["pending"] = [waiting for waiting in data["pending"] if waiting[0] != device]
                data["alerts"]["open"].pop(device, None)
                data["alerts"].get("shelved", {}).pop(device, None)
        store.snapshot.save(image.position, image.now, orjson.dumps(meta), (), [(name, device) for name in profiles])
        store.journal.append([Command("forget", name, device) for name in profiles], image.now)
    return {"forgotten": list(profiles)}


def _ask_daemon(settings: Settings, device: str) -> str:
    """The commands that a running daemon forgets a device by."""
    with closing(open_snapshot(settings.store.path)) as snapshot:
        image = snapshot.load()
        profiles = dict.fromkeys(profile for profile, one, _ in image.rows if one == device) if image else {}
    topics = [command_topic(settings.mqtt.prefix, "forget", Place(name, device)) for name in profiles or ["PROFILE"]]
    asked = "; ".join(f"mosquitto_pub -t {shlex.quote(topic)} -n" for topic in topics)
    return asked if settings.mqtt.commands else f"{asked} (set mqtt.commands = true, and restart it, first)"


# --- for people ---


def _print_list(result: Mapping[str, Any]) -> None:
    rows = result["devices"]
    scored = any(row["score"] is not None for row in rows)
    columns = [
        "profile",
        "device",
        "state",
        "ticks",
        "last seen",
        *["score"] * scored,
        "threshold raised",
        "open alerts",
    ]
    show_table(
        columns,
        [_cells(row, scored) for row in rows],
        title=f"{plural(len(rows), 'device')} as of {_moment(result['as_of'])}",
        right=("ticks", "score", "threshold raised"),
        styles=[
            "red" if row["alerts"] else {"silent": "yellow", "scoring": ""}.get(row["state"], "dim") for row in rows
        ],
    )


def _cells(row: Mapping[str, Any], scored: bool) -> list[str]:
    alerts = ", ".join([f"{alert['kind']} ({alert['state']})" for alert in row["alerts"]] + _shelf(row))
    score = ["–" if row["score"] is None else f"{row['score']:.2f}"] if scored else []
    raised = f"+{row['threshold_raised']:.0%}" if row["threshold_raised"] >= 0.005 else "–"
    seen = "never" if row["last_seen"] is None else _moment(row["last_seen"])
    return [row["profile"], row["device"], row["state"], f"{row['ticks']:,}", seen, *score, raised, alerts or "–"]


def _shelf(row: Mapping[str, Any]) -> list[str]:
    return [] if row["shelved_until"] is None else [f"shelved until {_moment(row['shelved_until'])}"]


def _print_one(row: Mapping[str, Any], as_of: float) -> None:
    say(f"{row['device']} of profile {row['profile']}, as of {_moment(as_of)}")
    facts = {
        "state": row["state"],
        "ticks": f"{row['ticks']:,}",
        "last seen": "never" if row["last_seen"] is None else _moment(row["last_seen"]),
        "last event time": "none" if row["last_time"] is None else _moment(row["last_time"]),
        "usual interval": "unknown" if not row["interval_seconds"] else f"{quantity(row['interval_seconds'])} s",
        "model": row["model"] or "none yet",
    }
    if row["score"] is not None:
        facts["score"] = f"{row['score']:.2f}"
    if "calibrated_on" in row:
        facts["recurrent state"] = f"{row['ticks_of_state']:,} ticks old"
        on = ", ".join(f"{n:,} ({head})" for head, n in row["calibrated_on"].items())
        facts["calibrated on"] = f"{on} ticks" + ("; frozen: learned from a recording" if row["frozen"] else "")
        facts["threshold"] = f"raised by {row['threshold_raised']:.0%} after past alerts"
    for shelf in _shelf(row):
        facts["alerts"] = shelf
    for alert in row["alerts"]:
        lasted = duration(alert["updated"] - alert["started"])
        facts[f"alert {alert['id']}"] = (
            f"{alert['kind']}, {alert['state']}, since {_moment(alert['started'])} ({lasted})"
        )
    show_facts(facts.items(), indent="  ")
    columns = ["channel", "last", "location", "spread", "range so far", "notes"]
    show_table(columns, [_channel_cells(channel) for channel in row["channels"]])


def _channel_cells(channel: Mapping[str, Any]) -> list[str]:
    notes = [f"unchanged for {channel['unchanged_ticks']:,} ticks"] if channel["unchanged_ticks"] > 1 else []
    if "location" not in channel:
        return [channel["name"], _amount(channel["last"], channel["unit"]), "–", "–", "–", "; ".join(notes)]
    if channel["differenced"]:
        notes.insert(0, "a counter: numbers are of its steps")
    if not channel["varied"]:
        notes.insert(0, "at most two values so far: not scored beside those that vary")
    known = channel["low"] is not None
    span = f"{quantity(channel['low'])} to {quantity(channel['high'])}" if known else "–"
    unit = channel["unit"]
    amounts = [_amount(channel[key], unit) for key in ("last", "location", "spread")]
    return [channel["name"], *amounts, span, "; ".join(notes)]


def _amount(value: float | None, unit: str) -> str:
    return "–" if value is None else quantity(value, unit)


def _moment(time: float) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{time:g} s"
