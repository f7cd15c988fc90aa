"""Invariant 3 on the whole daemon: a crash at any turn and a restart equal the run that nothing interrupted."""

import json
import shutil
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sentinel import trainer
from sentinel.adapters.mqtt.memory import MemoryBroker
from sentinel.adapters.mqtt.outbox import Publish
from sentinel.adapters.store import MemoryStore
from sentinel.adapters.store.memory import MemoryDisk
from sentinel.records import Message
from sentinel.service import Service
from sentinel.settings import Settings, load_settings
from tests import fleets
from tests.edges import DOUBLE, EdgeNode

CONFIG = """
[mqtt]
commands = true
[http]
port = 0
[profiles.pump]
topic = "plant/{device}/telemetry"
time = { path = "ts" }
channels = [{ name = "pressure", min = 0, max = %s }, "flow", "heat"]
model = { hidden = 8, horizons = [1, 8] }
learn = "never"
silence_after = "5m"
device_ttl = "20m"
alert_budget = "%s"
[profiles.meter]
topic = "meter/{device}/{channel}"
channels = [{ name = "power", max = 10 }, "heat"]
learn = "never"
silence_after = "7m"
[profiles.plc]
topic = "spBv1.0/#"
format = "sparkplug"
channels = [{ name = "temp", max = 10 }]
learn = "never"
silence_after = "6m"
max_gap = "1m"
"""
LIMITS = ((16, "1/week"), (6, "1/day"), (16, "off"))
PUMPS, METERS = ("d0", "d1", "d5"), ("m0", "m1")

Action = tuple[Any, ...]
ACTIONS = st.one_of(
    st.tuples(st.just("pumps"), st.integers(1, 8), st.sampled_from([0.0, 60.0]), st.sampled_from([PUMPS, PUMPS[:1]])),
    st.tuples(st.just("meter"), st.sampled_from(METERS), st.sampled_from(["power", "heat"]), st.floats(0, 12)),
    st.tuples(st.just("retained"), st.sampled_from(["m1", "m2"])),
    st.tuples(st.just("edge"), st.sampled_from(["birth", "data", "lost", "death"]), st.sampled_from(["", "p1"])),
    st.tuples(
        st.just("say"),
        st.sampled_from(["acknowledge", "shelve", "unshelve", "normal", "forget"]),
        st.sampled_from(["pump/d0", "pump/d5", "meter/m0"]),
    ),
    st.tuples(st.just("reload"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.sampled_from([5.0, 400.0, 1300.0])),
    st.tuples(st.just("promote"), st.integers(0, 1)),
)


@cache
def configured(limits: int) -> Settings:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "sentinel.toml"
        file.write_text(CONFIG % LIMITS[limits])
        return load_settings(file)


@cache
def models() -> tuple[TemporaryDirectory[str], list[str]]:
    """Two models of the pumps, one declared, one that is brought up from the journal's second turn."""
    folder, versions = TemporaryDirectory(), []
    for declared, position in ((True, 0), (False, 2)):
        learned = fleets.learned(declared=declared)
        stream = fleets.running(configured(0).specs()[0], learned)
        versions.append(trainer.save(Path(folder.name), stream, learned.detector, position))
    return folder, versions


class Run:
    """One daemon on twins, driven by actions, a turn each."""

    def __init__(self) -> None:
        self.now, self.at, self.limits = fleets.START, 0, 0
        self.disk, self.broker = MemoryDisk(), Punctual(self)
        shutil.copytree(models()[0].name, self.disk.models, dirs_exist_ok=True)
        self.events = self.broker.subscribe_from_outside("sentinel/events/#")
        self.node = EdgeNode()
        self.scores: dict[tuple[str, float], float] = {}
        self.start()

    def start(self) -> None:
        self.store = MemoryStore(self.disk)
        self.service = Service(
            configured(self.limits),
            broker=self.broker,
            store=self.store,
            clock=lambda: self.now,
            steady=lambda: self.now,
            reread=lambda: configured(self.limits),
        )
        self.save, self.service._snapshot = self.service._snapshot, lambda: None  # type: ignore[method-assign]
        self.service.restore()
        self.service.start()
        self.turn()

    def crash(self) -> None:
        self.store.close()
        self.broker.disconnect()
        self.start()

    def cut(self) -> None:
        """What a crash does to others: the connection goes, and silence is counted from the next one."""
        self.broker.disconnect()
        self.service._next_chores = 0.0
        self.turn()

    def snapshot(self) -> None:
        """The only ones that are taken."""
        self.save()
        self.service._writer.wait()

    def turn(self) -> None:
        fleets.settle(self.service)
        stream = self.service.pipeline.profiles["pump"]
        for device, slot in stream.table.slot_of.items():
            self.scores[device, float(stream.table.last_time[slot])] = float(stream.scores()[slot])

    def do(self, action: Action) -> None:
        publish = self.broker.publish_from_outside
        self.now += 1.0
        match action:
            case "pumps", turns, fault, devices:
                for _ in range(turns):
                    for device in devices:
                        values = fleets.healthy(600, PUMPS.index(device), 7)[self.at] + [0.0, fault, 0.0]
                        publish(f"plant/{device}/telemetry", orjson.dumps(fleets.payload(self.at, values)))
                    self.now, self.at = self.now + 1.0, self.at + 1
                    self.turn()
            case "meter", device, channel, value:
                publish(f"meter/{device}/{channel}", str(value).encode())
            case "edge", verb, device:
                if (sent := self.edge(verb, device)) is not None and verb != "lost":
                    publish(*sent)
            case "retained", device:
                topic = f"meter/{device}/power"
                self.broker.retained[topic] = Publish(topic, b"1.0", 1, retain=True)
                self.broker.disconnect()
            case "say", verb, device:
                seconds = {"shelve": b'{"seconds": 7}', "unshelve": b'{"seconds": 0}'}.get(verb, b"")
                publish(f"sentinel/command/{verb.removeprefix('un')}/{device}", seconds)
            case "reload", limits:
                self.limits = limits
                self.service.reload()
            case "wait", seconds:
                self.now += seconds
            case "promote", which:
                self.service._promote("pump", models()[1][which], self.now)
        self.turn()

    def edge(self, verb: str, device: str) -> tuple[str, bytes] | None:
        """What the edge node says; None: what it would say has no name yet."""
        node, values = self.node, {"temp": (DOUBLE, self.now % 12)}
        if verb == "birth":
            return node.birth(self.now, values, device)
        if verb == "death":
            return node.death(self.now, device)
        return node.data(self.now, values, device) if (device, "temp") in node.aliases else None

    def state(self) -> dict[str, Any]:
        """All that the stream remembers, in no order of slots."""
        out = {}
        for name, stream in self.service.pipeline.profiles.items():
            slots = np.array(list(stream.table), dtype=np.int64)
            export = json.loads(orjson.dumps(stream.export()))
            export["awaited"].sort()
            export["alerts"]["recent"].sort()
            rows = dict(zip([stream.table.ids[slot] for slot in slots], stream.rows(slots), strict=True))
            out[name] = (export, rows, stream.spec, stream.listening_since)
        return out

    def alerts(self) -> set[tuple[Any, ...]]:
        """Those that were out before a crash may come again, identical."""
        found = [json.loads(d.payload) for d in self.events.got]
        return {(a["id"], a["seq"], a["state"], a["updated"], a["message"]) for a in found}


class Punctual(MemoryBroker):
    """Receives by the run's clock."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._by = run

    def drain(self, timeout: float, max_messages: int, max_bytes: int) -> list[Message]:
        return [m._replace(received=self._by.now) for m in super().drain(timeout, max_messages, max_bytes)]


def assert_a_crash_changes_nothing(actions: Sequence[Action], crash: int, snapshots: Collection[int]) -> None:
    whole, broken = Run(), Run()
    for at, action in enumerate(actions):
        whole.do(action)
        broken.do(action)
        if at in snapshots:
            broken.snapshot()
        if at == crash:
            whole.cut()
            broken.crash()
            assert broken.state() == whole.state(), "as it was before"
    assert broken.state() == whole.state()
    assert broken.alerts() == whole.alerts()
    np.testing.assert_equal(broken.scores, whole.scores)


EDGES = ("edge", "birth", ""), ("edge", "birth", "p1")
SHELVE, FAULT = ("say", "shelve", "pump/d0"), ("pumps", 3, 60.0, ("d0",))
ALL, ONE, NEVER = ("pumps", 8, 0.0, PUMPS), ("pumps", 8, 0.0, ("d0",)), frozenset[int]()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ACTIONS, min_size=4, max_size=50), st.integers(0, 49), st.frozensets(st.integers(0, 49), max_size=3))
@example([ALL, ("promote", 1), ALL, ("promote", 0), ALL], 4, NEVER)
@example([("promote", 0), ONE, ("say", "forget", "pump/d0"), ONE], 2, {2})
@example([ONE, SHELVE, FAULT, ("wait", 5.0), FAULT, ("wait", 400.0)], 2, NEVER)
@example([ONE, SHELVE, FAULT, ("wait", 5.0), ("say", "unshelve", "pump/d0"), FAULT], 2, {1})
@example([ONE, FAULT, SHELVE, ("say", "forget", "pump/d0"), ONE, FAULT], 2, {2})
@example([("reload", 1), ALL, ("reload", 0), ALL], 3, NEVER)
@example([("reload", 1), ALL, ("reload", 0), ALL], 3, {0})
@example([*EDGES, ("edge", "data", "p1"), ("edge", "lost", ""), ("edge", "data", "p1")], 2, NEVER)
@example([*EDGES, ("edge", "death", ""), ("wait", 400.0), ("edge", "data", "p1"), *EDGES], 2, {1})
@example([*EDGES, ("wait", 400.0), ("edge", "death", "p1"), ("wait", 400.0), ("wait", 5.0)], 3, {3})
@example([("meter", "m0", "power", 5.0), ("wait", 5.0), ("wait", 5.0)], 1, {0, 1})
@example([("retained", "m2"), ("wait", 400.0), ("wait", 400.0)], 1, NEVER)
@example([("promote", 1), *[ALL] * 6, ("pumps", 2, 60.0, PUMPS), ("say", "normal", "pump/d0"), ALL], 8, NEVER)
def test_a_crash_at_any_turn_and_a_restart_change_no_state_no_score_and_no_alert(
    actions: list[Action], crash: int, snapshots: Collection[int]
) -> None:
    """Readings of three kinds, births and deaths, alerts, commands, silence, forgotten and announced devices, reloads, promotions."""
    assert_a_crash_changes_nothing(actions, crash % len(actions), snapshots)
