"""The reactor: one thread that drains the broker, runs the stream, commits, publishes, acknowledges.

    drain ──► push ──► journal ──► publish ──► acknowledge        (one turn)

Slow work is elsewhere: learning in a process of its own, snapshots and HTTP in threads.
"""

import gc
import math
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import orjson
import structlog
import torch
from prometheus_client import CollectorRegistry

from sentinel import __version__, trainer, turns
from sentinel.adapters.http import Access, HttpServer
from sentinel.adapters.metrics import DeviceSeries, Metrics
from sentinel.adapters.models import list_models, retire_models
from sentinel.adapters.mqtt import Broker
from sentinel.adapters.mqtt.client import MqttBroker, MqttOptions
from sentinel.adapters.notify import Notifier
from sentinel.adapters.page import Ask, Page, ProfileRows
from sentinel.adapters.sinks import (
    AlertSink,
    alerts_filter,
    command_filter,
    devices_filter,
    is_command,
    parse_alert_topic,
    parse_command,
    parse_device_topic,
    status_topic,
)
from sentinel.adapters.sinks.home_assistant import ONLINE, HomeAssistant, Scores
from sentinel.adapters.sinks.webhook import Webhook
from sentinel.adapters.store import AnyStore, Row, SnapshotReport, SnapshotWriter, Store
from sentinel.errors import ConfigError, ModelError, SentinelError, StoreError, Unavailable
from sentinel.host import Host, Rebirths, denies
from sentinel.intake import Intake, dead_letter
from sentinel.learner import MOST_APART, Learner
from sentinel.model.learn import warm
from sentinel.records import (
    Command,
    CommandFate,
    Configuration,
    Entry,
    Fate,
    Message,
    ProfileSpec,
    Promotion,
    Readings,
    Timer,
    Transition,
)
from sentinel.settings import Settings
from sentinel.stream.alerts import FLEET, AlertBook, duration, quantity
from sentinel.stream.decode import Decoded, Refusal, Template
from sentinel.stream.decode.sparkplug import command_topic, rebirth
from sentinel.stream.pipeline import Outcome, Pipeline, ProfileStream
from sentinel.window import Window

# A turn. With four times as many an alert behind a burst waited 0.1 s longer, at the same throughput.
MOST_MESSAGES, MOST_BYTES = 1024, 1 << 18
LEAST_MESSAGES, LONG_TURN = 64, 1.0  # fewer are taken after a turn that took longer, in seconds
IDLE = 0.2  # seconds that an idle turn waits
CLOCK_SET = 30.0  # seconds that the wall clock is off by; less is drift
HOUSEKEEPING = 1.0  # seconds between metrics, status and timers
HEALTHY_WITHIN = 10.0  # seconds since the last turn
SHUTDOWN = 8.0  # seconds for all of it
DEAD_LETTERS_A_SECOND = 10
COMMANDS_A_SECOND = 100
KEEP_MODELS = 3
TRIM = 0.05  # seconds that trimming may take of each HOUSEKEEPING
OVERFULL_FOR = 60.0  # seconds after the last refused device that its alert stays
SYSTEM = "_system"
COMPILING = 300.0  # seconds that the arithmetic may take to compile at the first start
REPLAY_SAYS_EVERY = 2.0
_STARTED = ("mqtt", "http", "home_assistant", "webhooks")  # tables that a start reads, a reload does not

log = structlog.get_logger("sentinel.service")


class Service:
    """The daemon. `run` blocks until `stop`.

    Args:
        broker, store: in-memory twins for tests; by default the real ones that `settings` names.
        clock, steady: wall clock, and one that nobody sets.
        reread: reads the configuration again, for `reload`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        broker: Broker | None = None,
        store: AnyStore | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        reread: Callable[[], Settings] | None = None,
    ) -> None:
        self.settings = settings
        self._reread = reread or (lambda: settings)
        self._clock, self._steady = clock, steady
        self._clocks_apart = clock() - steady()
        self.store = store if store is not None else Store(settings.store.path, settings.store.durability)
        self.prefix = settings.mqtt.prefix
        self.host = Host(settings.mqtt.host_id, clock) if settings.mqtt.host_id else None
        self.rebirths = Rebirths()
        self.broker = broker if broker is not None else self._make_broker()
        self.sink = AlertSink(self.broker.publish, self.prefix)
        asked_for = settings.home_assistant
        self.home = HomeAssistant(self.broker.publish, self.prefix, asked_for.prefix) if asked_for else None
        specs = settings.specs()
        if not torch.cuda.is_available() and (asked := [s.name for s in specs if s.device == "cuda"]):
            problem = 'model.device = "cuda": no CUDA device is there; use "auto" or "cpu"'
            raise ConfigError([f"profiles.{name}.{problem}" for name in asked])
        self.pipeline = Pipeline(specs, self.prefix)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, list(self.pipeline.profiles), settings.http.max_device_series, clock)
        self.webhooks = [
            Webhook(given.url, given.key(at), given.context(at), self.metrics.webhook)
            for at, given in enumerate(settings.webhooks)
        ]
        http = settings.http
        access = Access(http.token(), http.username, http.password())
        words: dict[str, Callable[..., str]] = {"quantity": quantity, "duration": duration}
        self.page = Page(self.ready, self.broker.wake, commands=access.commands, words=words)
        self.window = Window(self.pipeline, self.page)
        self.intake = Intake(self.pipeline.profiles, self.prefix)
        self.http = HttpServer(
            http.host,
            http.port,
            self.registry,
            self.health,
            self.ready,
            pages=self.page.routes,
            access=access,
            tls=None if http.tls is None else http.tls.context(),
        )
        self.notifier = Notifier()
        self._writer = SnapshotWriter(self.store.snapshot, clock())
        self._learners = {
            name: Learner(stream, settings.store.path, self.store.seed)
            for name, stream in self.pipeline.profiles.items()
        }
        self._stopping = False
        self._reload = False
        self._last_turn = 0.0
        self._next_chores = 0.0
        self._next_snapshot = time.monotonic() + settings.store.snapshot_interval
        self._unwritten: list[tuple[list[Entry], float]] = []
        self._held: list[Callable[[], None]] = []
        self._position = 0
        self._forgotten: list[tuple[str, str]] = []
        self._status: bytes = b""
        self._letters_left = DEAD_LETTERS_A_SECOND
        self._commands_left = COMMANDS_A_SECOND
        self._counted = {"reconnects": 0, "dropped": 0}
        self._store_error = ""
        self._restored = False
        self._committed = 0.0
        self._most = LEAST_MESSAGES
        self._listening_since = math.inf
        self._epoch = 0
        self._seen_report: SnapshotReport | None = None
        self._system = AlertBook(ProfileSpec("sentinel"))
        self._overfull_until = 0.0
        self._deaf_reason = ""
        self._promoted = 0  # position of the newest promotion
        self._named: dict[str, set[str]] = {}  # models that were kept when old ones were last deleted
        self._known_specs: dict[str, ProfileSpec] = {}  # the newest settings that the journal holds

    def _make_broker(self) -> MqttBroker:
        mqtt = self.settings.mqtt
        return MqttBroker(
            MqttOptions(
                host=mqtt.host,
                port=mqtt.port,
                version=mqtt.version,
                client_id=mqtt.client_id or self.store.client_id,
                username=mqtt.username,
                password=mqtt.password,
                tls=None if mqtt.tls is None else mqtt.tls.context,
                qos=1 if mqtt.qos else 0,
                keepalive=mqtt.keepalive,
                session_expiry=mqtt.session_expiry,
                will_topic=self.host.topic if self.host else status_topic(self.prefix),
                will_payload=self.host.will if self.host else lambda: orjson.dumps({"state": "offline"}),
            )
        )

    # --- life ---

    def run(self) -> None:
        """Restore, serve until `stop`, shut down in order.

        Raises:
            SentinelError: it cannot start, with the reason and the remedy.
        """
        torch.set_num_threads(1)
        try:
            self.http.start()  # first: an address that is taken is told before anything takes its time
            self.notifier.extend_timeout(COMPILING)
            warm(partial(log.info, "compiling the arithmetic, once: up to 20 s"))
            self.restore()
            self.start()
            gc.collect()
            gc.freeze()  # a full collection through all that start-up left would stop a turn for 0.2 s
            self.notifier.ready("running")
            while not self._stopping:
                self.turn(IDLE)
        except BaseException:
            self._restored = False  # a turn that broke off may have left states that no journal accounts for
            raise
        finally:
            self.shutdown()

    def start(self) -> None:
        """Begin to listen."""
        filters = [Template(stream.spec.topic).filter for stream in self.pipeline.profiles.values()]
        own = [alerts_filter(self.prefix)]
        if self.settings.mqtt.commands:
            own.append(command_filter(self.prefix))
        if self.home is not None:
            own += [self.home.status_topic, devices_filter(self.prefix)]
        if self.host is not None:
            own.append(self.host.topic)
        for webhook in self.webhooks:
            webhook.start()
        self.broker.start([*filters, *own])

    def stop(self) -> None:
        """End `run` after its turn. From any thread, and from a signal handler."""
        self._stopping = True
        self.broker.wake()

    def reload(self) -> None:
        """Read the configuration again at the next turn. From a signal handler."""
        self._reload = True
        self.broker.wake()

    def shutdown(self) -> None:
        """Drain what is queued, snapshot, close: within one deadline."""
        deadline = time.monotonic() + SHUTDOWN

        def left() -> float:
            return max(deadline - time.monotonic(), 0.1)

        self.notifier.stopping("saving")
        for learner in self._learners.values():
            learner.stop()
        if self.broker.connected:
            self.sink.status(orjson.dumps({"state": "offline"}))
            if self.host is not None:
                self.broker.publish(self.host.topic, self.host.offline(), retain=True)
            self.broker.flush(min(left(), 3.0))
        self._writer.wait(left())
        if self._restored:
            self._snapshot()
            self._writer.wait(left())
        for webhook in self.webhooks:
            webhook.close(min(left(), 2.0))
        self.broker.close(min(left(), 1.0))
        self.page.close()
        self.http.stop(min(left(), 1.0))
        self.store.close()
        log.info("stopped")

    # --- one turn ---

    def turn(self, timeout: float) -> int:
        """Turn over once; returns the number of messages taken. Blocks at most `timeout` seconds for want of any."""
        if self._unwritten:
            # The disk is away: nothing more is read until what was read is safe. The backlog lies in the broker.
            self.broker.drain(timeout, 0, 0)
            self._commit([], self._clock())
            messages: list[Message] = []
            asks: list[Ask] = []
        else:
            messages = self.broker.drain(self._wait(timeout), self._most, self._most_bytes)
            asks = self.page.asks()
        now = self._clock()
        self._watch_clock(now)
        began = time.monotonic()
        if messages or asks:
            self._take(messages, now, asks)
            # Many readings of one device are as many steps: a turn stays short enough for keepalive and watchdog.
            if (took := time.monotonic() - began) > LONG_TURN:
                self._most = max(int(self._most * LONG_TURN / took), LEAST_MESSAGES)
            elif self._most < MOST_MESSAGES and self._fills_a_turn(messages):
                self._most = min(self._most * 2, MOST_MESSAGES)
        if self._steady() >= self._next_chores:
            self._next_chores = self._steady() + HOUSEKEEPING
            self._chores(now)
        elif any(s.aligner is not None and (s.aligner.next_due(now) or now + 1) <= now for s in self._streams()):
            self._timers(now)
        if asks or self.page.hurried:
            self.window.tell()
        self.notifier.watchdog()
        self._last_turn = time.monotonic()
        return len(messages)

    @property
    def _most_bytes(self) -> int:
        return self._most * MOST_BYTES // MOST_MESSAGES

    def _fills_a_turn(self, messages: list[Message]) -> bool:
        size = sum(len(message.payload) for message in messages)
        return len(messages) >= self._most or size >= self._most_bytes // 2

    def _watch_clock(self, now: float) -> None:
        """Where the wall clock was set, or the machine slept, silence counts anew: nobody was silent in what it skipped."""
        apart = now - self._steady()
        if abs(apart - self._clocks_apart) > CLOCK_SET:
            log.warning("the clock was set", seconds=round(apart - self._clocks_apart))
            self._clocks_apart = apart
            if math.isfinite(self._listening_since):
                self._listening_since = now
            for stream in self._streams():
                stream.listening_since = self._listening_since

    def _wait(self, timeout: float) -> float:
        now = self._clock()
        dues = [s.aligner.next_due(now) for s in self._streams() if s.aligner is not None]
        return max(0.0, min([timeout, *(due - now for due in dues if due is not None)]))

    def _streams(self) -> list[ProfileStream]:
        return list(self.pipeline.profiles.values())

    def _take(self, messages: list[Message], now: float, asks: Sequence[Ask] = ()) -> None:
        began = time.perf_counter()
        own = self.pipeline.decoder.is_own
        given: list[Message] = []
        told: list[Message] = []
        for message in messages:
            if self.home is not None and self.home.is_own(message.topic):
                if message.topic == self.home.status_topic and message.payload == ONLINE:
                    self.home.again()
            elif self.host is not None and message.topic == self.host.topic:
                if not message.retain and denies(message.payload):
                    self._say_online()
            elif not own(message.topic):
                given.append(message)
            elif is_command(self.prefix, message.topic):
                told.append(message)
            elif message.retain:
                self._clear_if_stale(message)
        turn = self.pipeline.push(given, now)
        self.intake.take(turn.messages, turn.decoded.refusals)
        self._dead_letters(turn.decoded.refusals, given)
        self._ask_for_births(turn.decoded, now)
        scored = time.perf_counter()
        self._count(turn.messages, turn.outcomes, turn.decoded.bad_values, turn.decoded.unknown)
        transitions = [t for outcome in turn.outcomes.values() for t in outcome.transitions]
        commands: list[Command] = []
        for asked in asks:
            fate, moved = self._obey(asked.command, now, page=True)
            transitions += moved
            if fate == "accepted":  # which is told once it is journalled
                commands.append(asked.command)
                self._held.append(partial(self.page.answer, asked, fate))
            else:
                self.page.answer(asked, fate)
        for message in told:
            found = self._command(message)
            fate, moved = self._obey(found, now, topic=message.topic[:200])
            transitions += moved
            if isinstance(found, Command) and fate == "accepted":
                commands.append(found)
        arrivals = [given[t.message].arrived if 0 <= t.message < len(given) else 0.0 for t in transitions]
        # In order: journal, publish, acknowledge. What a disk refuses is held, and done once it took it.
        self._held.append(partial(self._publish, transitions, arrivals))
        self._held.append(partial(self.broker.acknowledge, messages))
        self._commit([*turn.entries, *commands], now)
        self.metrics.observe("score", scored - began)
        readings = turn.decoded.readings
        self.metrics.turn(time.perf_counter() - began, sum(map(len, readings)))
        if readings:
            newest = max(float(part.time.max()) for part in readings)
            self.metrics.ingest_lag(now - newest)

    def _commit(self, entries: list[Entry], now: float) -> None:
        """Journal entries and do what waits for it; keep all of it where the disk is away."""
        if entries:
            self._unwritten.append((entries, now))
        began = time.perf_counter()
        try:
            while self._unwritten:
                self._position = self.store.journal.append(*self._unwritten[0])
                if any(isinstance(entry, Promotion) for entry in self._unwritten.pop(0)[0]):
                    self._promoted = self._position
                self._committed = now
        except Unavailable as error:
            if not self._store_error:
                log.error("journal is away; not reading until it is back", reason=str(error))
            self._store_error = str(error)
            return
        if self._store_error:
            log.info("journal is back")
            self._store_error = ""
        written = time.perf_counter()
        held, self._held = self._held, []
        for act in held:
            act()
        self.metrics.observe("journal", written - began)
        self.metrics.observe("publish", time.perf_counter() - written)

    def _publish(self, transitions: Sequence[Transition], arrivals: Sequence[float]) -> None:
        self.window.took_alerts(transitions)
        latencies = []
        for transition, arrived in zip(transitions, arrivals, strict=True):
            self._emit([transition])
            alert = transition.alert
            if transition.fires:
                self.metrics.alerts_started(alert.profile, alert.kind)
                log.info("alert", id=alert.id, kind=alert.kind, device=alert.device, message=alert.message)
            if arrived > 0:
                latencies.append(arrived)
        if latencies:
            self.broker.drain(0.0, 0, 0)  # hands them to the socket
            done = time.perf_counter()
            self.metrics.publish_to_alert(done - arrived for arrived in latencies)

    def _emit(self, transitions: Sequence[Transition]) -> None:
        """One record, every sink."""
        self.sink.emit(transitions)
        if self.home is not None:
            self.home.emit(transitions)
        for webhook in self.webhooks:
            webhook.emit(transitions)

    def _command(self, message: Message) -> Command | CommandFate:
        """The command in a message, or why there is none."""
        if not self.settings.mqtt.commands:
            return "off"
        # A retained one would be done again at each start.
        return "retained" if message.retain else parse_command(self.prefix, message.topic, message.payload)

    def _obey(self, found: Command | CommandFate, now: float, **whence: object) -> tuple[CommandFate, list[Transition]]:
        """Do a command if it can be done, count it and write it down, whatever becomes of it."""
        self._commands_left -= 1
        if self._commands_left < 0:
            self.metrics.command("rate_limited")
            return "rate_limited", []
        moved: list[Transition] = []
        fate: CommandFate = "accepted"
        if not isinstance(found, Command):
            fate = found
        elif (stream := self.pipeline.profiles.get(found.profile)) is None or not stream.knows(found.device):
            fate = "unknown_device"
        else:
            outcome = stream.command(found, now)
            self._forget(found.profile, outcome)
            moved = outcome.transitions
            if found.verb in ("acknowledge", "normal") and not moved:
                fate = "no_alert"
        self.metrics.command(fate)
        if isinstance(found, Command) and fate == "accepted":
            log.info("command", **asdict(found), **whence)
        else:
            log.warning("command refused", outcome=fate, **whence)
        return fate, moved

    def _clear_if_stale(self, message: Message) -> None:
        """At start the broker tells what we retain: alerts no longer open and devices no longer known are cleared."""
        if not message.payload:
            return
        shown = parse_device_topic(self.prefix, message.topic)
        if self.home is not None and shown is not None and shown.profile is not None and shown.device is not None:
            known = self.pipeline.profiles.get(shown.profile)
            if known is not None and shown.device not in known.table.slot_of:
                self.home.forget(shown.profile, shown.device)
            return
        place = parse_alert_topic(self.prefix, message.topic)
        if place is None:
            return
        if place.profile is None:
            stale = not self._system.open
        else:
            stream = self.pipeline.profiles.get(place.profile)
            # Another daemon's profile is its own business.
            stale = stream is not None and (place.device or FLEET) not in stream.book.open
        if stale:
            self.sink.clear(place)

    def _greet(self, now: float) -> None:
        """On a new connection: say again what a broker may have forgotten or a last will has overwritten."""
        if not self.broker.subscribed:
            self._listening_since = math.inf
        elif self._epoch != self.broker.epoch or math.isinf(self._listening_since):
            self._epoch, self._listening_since, self._status = self.broker.epoch, now, b""
            if self.home is not None:
                self.home.greet()
            self._say_online()
            for stream in self._streams():
                for device in stream.book.open:
                    retained = stream.book.retained(device)
                    if retained is not None:
                        self.sink.renew(retained)
                        if self.home is not None:
                            self.home.renew(retained)
        for stream in self._streams():
            stream.listening_since = self._listening_since

    def _say_online(self) -> None:
        if self.host is not None:
            self.broker.publish(self.host.topic, self.host.online(), retain=True)

    def _ask_for_births(self, decoded: Decoded, now: float) -> None:
        """Let Sparkplug nodes say again what their metrics mean, where that is missing and may be asked for."""
        for name, n in decoded.gaps.items():
            self.metrics.sparkplug_gaps(name, n)
        if self.settings.mqtt.rebirth:
            for name, node in sorted(decoded.unborn):
                if self.rebirths.may_ask(node, now):
                    self.broker.publish(command_topic(node), rebirth(now), qos=0)
                    self.metrics.sparkplug_rebirth(name)
                    log.info("asked for a birth", profile=name, node=node)

    def _dead_letters(self, refusals: Sequence[Refusal], messages: Sequence[Message]) -> None:
        told = refusals[: self._letters_left]
        for refusal in told:
            letter = dead_letter(refusal, messages[refusal.message])
            self.broker.publish(f"{self.prefix}/dead-letter/{refusal.profile}", letter, qos=0)
        self._letters_left -= len(told)
        self.metrics.dead_letters(len(told), len(refusals) - len(told))

    def _count(
        self,
        messages: Mapping[str, Mapping[Fate, int]],
        outcomes: Mapping[str, Outcome],
        bad: Mapping[str, int],
        unknown: Mapping[str, int],
    ) -> None:
        for name, fates in messages.items():
            self.metrics.messages(name, fates)
        if any(Fate.OVERFULL in each for each in (*messages.values(), *(each.fates for each in outcomes.values()))):
            self._overfull_until = self._clock() + OVERFULL_FOR
        for name, outcome in outcomes.items():
            self.metrics.readings(name, outcome.fates)
            if outcome.looks:
                self.window.took_looks(name, outcome.looks)
            if count := outcome.count:
                self.metrics.ticks(name, count)
            if outcome.heard:
                self.metrics.heard(name, outcome.heard)
            if outcome.gaps:
                self.metrics.state_resets(name, outcome.gaps)
            for kind, n in outcome.anomalies.items():
                self.metrics.anomalies(name, kind, n)
        for name, n in bad.items():
            self.metrics.values_dropped(name, {"bad_value": n})
        for name, n in unknown.items():
            self.metrics.unknown_channels(name, n)

    # --- chores ---

    def _forget(self, name: str, outcome: Outcome) -> None:
        """Devices that are gone leave the next snapshot too."""
        self._forgotten += [(name, device) for device in outcome.forgotten]
        if self.home is not None:
            for device in outcome.forgotten:
                self.home.forget(name, device)

    def _timers(self, now: float) -> None:
        due = {name: stream for name, stream in self.pipeline.profiles.items() if stream.timer_due(now)}
        if not due:
            return
        outcomes = {name: stream.timer(now) for name, stream in due.items()}
        for name, outcome in outcomes.items():
            self._forget(name, outcome)
        self._count({}, outcomes, {}, {})
        transitions = [t for outcome in outcomes.values() for t in outcome.transitions]
        self._held.append(partial(self._publish, transitions, [0.0] * len(transitions)))
        self._commit([Timer(self._listening_since)], now)

    def _chores(self, now: float) -> None:
        self._greet(now)
        self._letters_left = DEAD_LETTERS_A_SECOND
        self._commands_left = COMMANDS_A_SECOND
        self.rebirths.refill()
        self._timers(now)
        for name, learner in self._learners.items():
            # A promotion reads the journal: it waits until all that the stream took is there.
            version = learner.poll(now) if not self._unwritten else None
            if version is not None:
                self._promote(name, version, now)
            learner.consider(now)
        self._watch_room(now)
        self.intake.judge(self._steady(), listening=self.broker.subscribed)
        if self._reload:
            self._reload = False
            self._read_settings_again(now)
        if time.monotonic() >= self._next_snapshot:
            self._next_snapshot = time.monotonic() + self.settings.store.snapshot_interval
            self._snapshot()
        for chore in (partial(self._trim, now), self._look_at_snapshot, partial(self._report, now)):
            try:
                chore()
            except (SentinelError, OSError, sqlite3.Error) as error:
                log.warning("chores", reason=str(error))

    def _look_at_snapshot(self) -> None:
        """A snapshot that failed is told; after one that did not, models that nothing names any more may go."""
        report = self._writer.report
        if report is None or report is self._seen_report:
            return
        self._seen_report = report
        if report.error:
            self.metrics.snapshot_failed()
            log.error("snapshot failed; tried again at the next interval", reason=report.error)
        elif report.position >= self._promoted:  # else the snapshot may name the model before
            for name in self.pipeline.profiles:
                self._retire_models(name)

    def _trim(self, now: float) -> None:
        """Let go of the journal's oldest turns, never of what a restart or a promotion's replay needs."""
        report = self._writer.report
        if report is None or report.error or report.position < self._promoted:
            return
        if any(learner.busy for learner in self._learners.values()):
            return
        store, until = self.settings.store, time.monotonic() + TRIM
        while self.store.journal.trim(store.max_bytes, store.max_age, now, report.position):
            if time.monotonic() > until:
                break

    def _retire_models(self, name: str) -> None:
        """Delete a profile's old models, but for those that a retained entry names: a replay loads them again."""
        detector = self.pipeline.profiles[name].detector
        named = {promotion.version for promotion in self.store.journal.promotions(name)}
        named |= {detector.version} if detector is not None else set()
        if named == self._named.get(name):
            return
        retire_models(self.store.models, name, KEEP_MODELS, named)
        self._named[name] = named

    def _promote(self, name: str, version: str, now: float) -> None:
        try:
            loaded = trainer.load(self.store.models, name, version)
            turns.run_model(self.pipeline.profiles[name], loaded, self.store.journal, self.store.journal.last())
        except (ModelError, Unavailable) as error:
            self._learners[name].refused(str(error), now)
            return
        self._runs(name, loaded)
        log.info("promoted", profile=name, version=version, states=self.pipeline.profiles[name].states())
        self._commit([Promotion(name, version)], now)
        self._snapshot()

    def _watch_room(self, now: float) -> None:
        """One system alert while more devices send than `max_devices` allows."""
        if self._overfull_until == 0.0:
            return
        if now < self._overfull_until:
            full = [
                name for name, s in self.pipeline.profiles.items() if len(s.table) >= s.spec.max_devices or s.edges.full
            ]
            detail = f"more devices than max_devices in {', '.join(full)}; their readings are refused"
            moved = self._system.start(SYSTEM, "system", now, now, detail)
        else:
            self._overfull_until = 0.0
            moved = self._system.end(SYSTEM, "system", now)
        self._publish(moved, [0.0] * len(moved))

    def _runs(self, name: str, loaded: trainer.Loaded) -> None:
        """A profile runs this model now."""
        detector, manifest, _ = loaded
        live = self.pipeline.profiles[name]
        self._learners[name].scored_before(int(live.table.ticks.sum()))
        self._learners[name].apart = [one["told"] for one in manifest["apart"]]
        self.metrics.model(name, detector.version, detector.spec.cell, float(manifest["trained"]))

    def _report(self, now: float) -> None:
        metrics, broker = self.metrics, self.broker
        metrics.broker_connected(broker.connected)
        for _ in range(broker.reconnects - self._counted["reconnects"]):
            metrics.broker_reconnected()
        metrics.publishes_dropped(broker.dropped - self._counted["dropped"])
        self._counted = {"reconnects": broker.reconnects, "dropped": broker.dropped}
        reason = broker.last_error or "; ".join(broker.refused)
        if reason != self._deaf_reason:
            self._deaf_reason = reason
            if reason:
                log.warning("broker", reason=reason)
        view, scores = {}, {}
        rows: list[ProfileRows] = []
        profiles: dict[str, Any] = {}
        for name, stream in self.pipeline.profiles.items():
            states = stream.states()
            firing = stream.book.firing()
            metrics.devices(name, states)
            metrics.alerts_firing(name, firing)
            metrics.alert_budget(name, stream.spec.alert_budget)
            metrics.learning(name, 1.0 if stream.detector is not None else self._learners[name].gathered)
            slots = np.flatnonzero(stream.table.used)
            if stream.scorer is not None and stream.slabs is not None and len(slots):
                sample = slots[:: max(len(slots) // 256, 1)]
                metrics.state_saturation(name, stream.scorer.saturation(stream.slabs, sample))
            view[name] = DeviceSeries(
                [stream.table.ids[slot] for slot in slots],
                stream.scores()[slots],
                stream.table.open[slots].copy(),
                stream.table.last_seen[slots],
            )
            scores[name] = Scores(
                view[name].device, view[name].score, (stream.table.silent | stream.table.offline)[slots]
            )
            learner = self._learners[name]
            profiles[name] = {
                "stage": "scoring" if stream.detector is not None else learner.stage,
                "progress": round(1.0 if stream.detector is not None else learner.progress, 2),
                "training": learner.busy,
                "model": stream.detector.version if stream.detector is not None else None,
                "devices": states,
                "firing": firing,
                "failure": learner.failure,
                "apart": learner.apart[:MOST_APART],
                "unread": self.intake.unread.get(name, []),
            }
            seen = view[name]
            states_of = stream.state_codes()[slots]
            rows.append(ProfileRows(name, seen.device, states_of, seen.score, seen.last_seen, profiles[name]))
        metrics.set_devices(view)
        self.window.show(rows, now)
        metrics.webhooks_waiting(sum(map(len, self.webhooks)))
        if self.home is not None and broker.connected:
            self.home.report(scores, now)
        report = self._writer.report
        stored = self._store_error or (f"snapshot: {report.error}" if report is not None and report.error else "")
        reason = "; ".join(filter(None, (stored, *self.intake.reasons)))
        status = orjson.dumps(
            {
                "state": "degraded" if reason else "online",
                "version": __version__,
                "reason": reason,
                "profiles": profiles,
            }
        )
        if status != self._status and broker.connected:
            self._status = status
            self.sink.status(status)
        if report is not None and not report.error:
            metrics.snapshot(now - self._writer.age(now))
        metrics.journal(self.store.journal.bytes(), self._committed)

    def _read_settings_again(self, now: float) -> None:
        """Take what can change while running; a bad file is refused and the old settings go on."""
        self.notifier.reloading()
        try:
            fresh = self._reread()
        except ConfigError as error:
            log.error("reload refused; the old configuration goes on", problems=error.problems)
        else:
            for spec in fresh.specs():
                stream = self.pipeline.profiles.get(spec.name)
                if stream is None or not stream.takes(spec):
                    log.warning("needs a restart", profile=spec.name)
                elif spec != stream.spec:
                    stream.respec(spec)
                    self._commit([Configuration(spec)], now)
                    log.info("reloaded", profile=spec.name)
            started = {name: getattr(self.settings, name) for name in _STARTED}
            for name in [name for name, given in started.items() if getattr(fresh, name) != given]:
                log.warning("needs a restart", table=name)
            self.settings = fresh.model_copy(update=started)
        self.notifier.ready("running")

    # --- state ---

    def _snapshot(self) -> None:
        if self._writer.busy or self._unwritten:
            return  # a state may hold nothing that the journal up to its position does not
        rows: list[Row] = []
        # Alerts that are not out yet: the journal up to here will not be replayed.
        own = f"{self.prefix}/alerts/", f"{self.prefix}/events/"
        waiting = [publish for publish in self.broker.unconfirmed if publish.topic.startswith(own)]
        meta: dict[str, Any] = {
            "profiles": {},
            "unconfirmed": [(topic, payload.decode(), retain) for topic, payload, _, retain in waiting],
            "past": self.window.export(),
        }
        dirty = {}
        for name, stream in self.pipeline.profiles.items():
            slots = np.flatnonzero(stream.table.dirty & stream.table.used)
            dirty[name] = slots
            rows += [(name, stream.table.ids[s], row) for s, row in zip(slots, stream.rows(slots), strict=True)]
            meta["profiles"][name] = stream.export() | {"spec": asdict(stream.spec)}
        if self._writer.submit(self._position, self._clock(), orjson.dumps(meta), rows, self._forgotten):
            self._forgotten = []
            for name, slots in dirty.items():
                self.pipeline.profiles[name].table.dirty[slots] = False

    def restore(self) -> None:
        """Newest snapshot, then what the journal holds after it.

        Raises:
            StoreError: the snapshot cannot be used.
        """
        image = self.store.snapshot.load()
        if image is not None:
            self._position = image.position
            if next(iter(self.store.journal.read(image.position - 1)), None) is None:
                log.warning("the journal has lost its end: the snapshot is newer", snapshot=image.position)
            rows: dict[str, list[tuple[str, bytes]]] = {}
            for profile, device, row in image.rows:
                rows.setdefault(profile, []).append((device, row))
            try:
                meta = orjson.loads(image.meta)
                for name, data in meta["profiles"].items():
                    self._restore_profile(name, data, rows.get(name, []))
                self.window.restore(meta.get("past", []))
                for topic, payload, retain in meta.get("unconfirmed", []):
                    self.broker.publish(topic, payload.encode(), retain=retain)
            except (ValueError, KeyError, TypeError) as error:
                msg = f"the snapshot does not fit: {error!r}; move {self.settings.store.path} away to start anew"
                raise StoreError(msg) from None
        replayed = self._replay()
        if self._stopping:
            log.info("stopped while restoring; nothing is changed", position=self._position)
            return  # no snapshot is taken of states that are on their way
        self._position = max(self._position, self.store.journal.last())
        self._configure()
        self._adopt_trained()
        devices = {name: len(stream.table) for name, stream in self.pipeline.profiles.items()}
        self._restored = True
        self.window.restored()
        log.info("restored", position=self._position, replayed=replayed, devices=devices)

    def _restore_profile(self, name: str, data: dict[str, Any], rows: list[tuple[str, bytes]]) -> None:
        stream = self.pipeline.profiles.get(name)
        if stream is None:
            log.warning("profile is no longer configured; its devices are left", profile=name)
            return
        if "spec" in data:
            self._known_specs[name] = spec = ProfileSpec.load(data["spec"])
            if stream.takes(spec):  # what follows in the journal came while these were in force
                stream.respec(spec)
        if data["model"] and not self._load(stream, data["model"]):
            stream.edges.restore(data.get("edges", {}))  # births are not told again
            return
        stream.restore(data, stream.detector, rows)
        self._learners[name].scored_before(int(stream.table.ticks.sum()))

    def _configure(self) -> None:
        """From here on, what the configuration says; the journal holds it where that is new."""
        for spec in self.settings.specs():
            self.pipeline.profiles[spec.name].respec(spec)
            if self._known_specs.get(spec.name) != spec:
                self._commit([Configuration(spec)], self._clock())

    def _replay(self) -> int:
        count, said = 0, time.monotonic()
        for turn in self.store.journal.read(self._position):
            for done in turns.apply(turn, self.pipeline, self.store.journal, self.store.models):
                name = done.stream.spec.name
                self._say_again(name, done.outcome)
                match done.entry:
                    case Readings():
                        count += len(done.entry)
                    case Configuration(spec=spec):
                        self._known_specs[name] = spec
                    case Promotion(version=version):
                        self._promoted = turn.seq
                        if done.loaded is not None:
                            self._runs(name, done.loaded)
                        else:
                            log.error("model refused", profile=name, version=version, reason=done.refused)
            self._position = turn.seq
            if self._stopping:
                break
            if time.monotonic() - said > REPLAY_SAYS_EVERY:
                said = time.monotonic()
                self.notifier.extend_timeout(10 * REPLAY_SAYS_EVERY)
        return count

    def _say_again(self, name: str, outcome: Outcome) -> None:
        """What a replayed turn did: the crash may have come before its alerts were out. Id and seq tell what came twice."""
        self._forget(name, outcome)
        self.window.took_looks(name, outcome.looks)
        self.window.took_alerts(outcome.transitions)
        self._emit(outcome.transitions)

    def _adopt_trained(self) -> None:
        """A model that `sentinel train` left for a profile, newer than what it runs, is taken up."""
        for name, stream in self.pipeline.profiles.items():
            saved = list_models(self.store.models, name)
            if not saved or (stream.detector is not None and stream.detector.version == saved[0].version):
                continue
            try:
                loaded = trainer.load(self.store.models, name, saved[0].version)
                if loaded[1]["position"] and not loaded[0].declared:
                    continue  # learned in a daemon: its promotion is in the journal, or it was beaten
                turns.run_model(stream, loaded, self.store.journal, self.store.journal.last())
            except ModelError as error:
                log.error("model refused", profile=name, version=saved[0].version, reason=str(error))
                continue
            self._runs(name, loaded)
            self._commit([Promotion(name, saved[0].version)], self._clock())
            log.info("trained model", profile=name, version=saved[0].version, path=str(saved[0].path))

    def _load(self, stream: ProfileStream, version: str) -> bool:
        """Run the model that a snapshot names; False: it cannot be used, and its profile starts anew."""
        name = stream.spec.name
        try:
            loaded = trainer.load(self.store.models, name, version)
            turns.run_model(stream, loaded, self.store.journal, 0)
        except ModelError as error:
            log.error("model refused; its profile starts anew", profile=name, version=version, reason=str(error))
            return False
        self._runs(name, loaded)
        return True

    # --- how it is ---

    def health(self) -> tuple[bool, list[str]]:
        """Whether the reactor turns over."""
        age = time.monotonic() - self._last_turn
        if self._last_turn and age <= HEALTHY_WITHIN:
            return True, []
        return False, ["no turn yet"] if not self._last_turn else [f"no turn for {age:.0f} s"]

    def ready(self) -> tuple[bool, list[str]]:
        """Whether nothing that is published is missed, and what the operator must look into.

        Messages that are refused are heard: they are a reason, but a probe that fails for them would mend nothing.
        """
        if not self._restored:
            return False, ["starting: nothing is read yet"]
        reasons = []
        if not self.broker.subscribed:
            reasons.append(f"not subscribed: {self.broker.last_error or 'waiting for the broker'}")
        if self.broker.refused:
            reasons.append(f"refused: {'; '.join(self.broker.refused)}")
        if self._store_error:
            reasons.append(f"journal: {self._store_error}")
        for name, stream in self.pipeline.profiles.items():
            if stream.detector is None and stream.spec.learn == "never":
                reasons.append(f'profile {name}: no model and learn = "never"; run `sentinel train`')
        return not reasons, [*reasons, *self.intake.reasons]
