"""The broker adapter and its twin pass one suite; what only a real broker has is tested apart."""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel.adapters.mqtt import Broker, client
from sentinel.adapters.mqtt.client import MqttBroker, MqttOptions
from sentinel.adapters.mqtt.memory import Delivery, MemoryBroker, matches
from sentinel.adapters.mqtt.outbox import Outbox, Publish
from sentinel.adapters.mqtt.wire import GIANT, READ_SIZE, Next, Wire
from sentinel.records import Message
from sentinel.settings import MqttSettings, TlsSettings
from sentinel.stream.decode.payload import MAX_PAYLOAD
from tests.brokers import Link, Mosquitto, PlainClient, plain_client, wait_until, write_password
from tests.certificates import Authority
from tests.servers import free_port

MANY = 1_000_000
WILL_TOPIC = "sentinel/status"


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnect within a tenth of a second."""
    monkeypatch.setattr(client, "BACKOFF_FIRST", 0.02)
    monkeypatch.setattr(client, "BACKOFF_LAST", 0.1)


def drain_until(broker: Broker, condition: Callable[[list[Message]], object], timeout: float = 10.0) -> list[Message]:
    """Drain until the condition holds of all that came; fails after `timeout` seconds."""
    got: list[Message] = []
    deadline = time.monotonic() + timeout
    while not condition(got):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s; got {got[:10]}; {broker.last_error}")
        got += broker.drain(0.05, MANY, MANY)
    return got


def drain_for(broker: Broker, seconds: float) -> list[Message]:
    """All that comes in `seconds`."""
    deadline = time.monotonic() + seconds
    got: list[Message] = []
    while (left := deadline - time.monotonic()) > 0:
        got += broker.drain(left, MANY, MANY)
    return got


def payloads(messages: Sequence[Message]) -> list[bytes]:
    """Their payloads, in order."""
    return [message.payload for message in messages]


class World(Protocol):
    """A broker and those around it."""

    def connect(self, *topics: str, qos: int = 1) -> Broker: ...
    def again(self) -> Broker: ...
    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None: ...
    def publish_all(self, publishes: Sequence[tuple[str, bytes]], qos: int) -> None: ...
    def subscribe(self, topic: str) -> list[Delivery]: ...
    def cut(self) -> None: ...
    def stop(self) -> None: ...
    def resume(self) -> None: ...


class MemoryWorld:
    """A `MemoryBroker` and its outside."""

    def __init__(self) -> None:
        self._up = True
        self._broker = MemoryBroker()

    def connect(self, *topics: str, qos: int = 1) -> Broker:
        """A broker connection that is started."""
        self._broker = MemoryBroker(qos=qos, up=self._up, will_topic=WILL_TOPIC, will_payload=b"offline")
        self._broker.start(topics)
        return self._broker

    def again(self) -> Broker:
        """Close, and start anew in the same session."""
        self._broker.close(1.0)
        self._broker.start(("plant/#",))
        return self._broker

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        """Another client publishes."""
        self._broker.publish_from_outside(topic, payload, qos, retain)

    def publish_all(self, publishes: Sequence[tuple[str, bytes]], qos: int) -> None:
        """Another client publishes many."""
        for topic, payload in publishes:
            self._broker.publish_from_outside(topic, payload, qos)

    def subscribe(self, topic: str) -> list[Delivery]:
        """What another client gets."""
        return self._broker.subscribe_from_outside(topic).got

    def cut(self) -> None:
        """Cut the connection."""
        self._broker.disconnect()

    def stop(self) -> None:
        """The broker goes down."""
        self._up = False
        self._broker.stop()

    def resume(self) -> None:
        """The broker comes back."""
        self._up = True
        self._broker.resume()


class MosquittoWorld:
    """A real mosquitto behind a link."""

    def __init__(self, mosquitto: Mosquitto, version: str) -> None:
        self._mosquitto = mosquitto
        self._version = version
        self._link = Link(mosquitto.port)
        self._brokers: list[MqttBroker] = []
        self._clients: list[PlainClient] = []
        self._publisher: PlainClient | None = None
        mosquitto.start()

    def connect(self, *topics: str, qos: int = 1) -> Broker:
        """A broker connection that is started."""
        broker = MqttBroker(
            MqttOptions(
                port=self._link.port,
                version="5" if self._version == "5" else "3.1.1",
                client_id="under-test",
                qos=1 if qos else 0,
                will_topic=WILL_TOPIC,
                will_payload=lambda: b"offline",
            )
        )
        self._brokers.append(broker)
        broker.start(topics)
        return broker

    def again(self) -> Broker:
        """Close, and start anew in the same session."""
        self._brokers.pop().close(1.0)
        return self.connect("plant/#")

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        """Another client publishes."""
        self._talker().publish(topic, payload, qos, retain)

    def publish_all(self, publishes: Sequence[tuple[str, bytes]], qos: int) -> None:
        """Another client publishes many."""
        self._talker().publish_all(publishes, qos)

    def subscribe(self, topic: str) -> list[Delivery]:
        """What another client gets."""
        subscriber = PlainClient(self._mosquitto.port, topic)
        self._clients.append(subscriber)
        return subscriber.got

    def cut(self) -> None:
        """Cut the connection, and wait until the broker knows."""
        self._link.cut()

    def stop(self) -> None:
        """The broker goes down."""
        self._mosquitto.stop()

    def resume(self) -> None:
        """The broker comes back."""
        self._mosquitto.start()

    def close(self) -> None:
        """End all that was started."""
        for broker in self._brokers:
            broker.close(1.0)
        for one in self._clients:
            one.close()
        self._link.close()
        self._mosquitto.stop()

    def _talker(self) -> PlainClient:
        if self._publisher is None:
            self._publisher = PlainClient(self._mosquitto.port)
            self._clients.append(self._publisher)
        return self._publisher


class BrokerSuite:
    """What holds of every broker adapter."""

    def test_an_unacknowledged_message_comes_again_after_a_reconnect(self, world: World) -> None:
        broker = world.connect("plant/#")
        drain_until(broker, lambda _: broker.subscribed)
        world.publish("plant/a", b"1")
        first = drain_until(broker, len)
        world.cut()
        second = drain_until(broker, len)
        assert payloads(second) == [b"1"]
        assert second[0].epoch > first[0].epoch
        assert broker.reconnects == 1

    def test_an_acknowledged_message_does_not_come_again(self, world: World) -> None:
        broker = world.connect("plant/#")
        drain_until(broker, lambda _: broker.subscribed)
        world.publish("plant/a", b"1")
        world.publish("plant/a", b"2")
        got = drain_until(broker, lambda got: len(got) == 2)
        broker.acknowledge(got[:1])
        assert broker.flush(5.0)
        time.sleep(0.1)
        world.cut()
        again = drain_until(broker, lambda _: broker.epoch == 2) + drain_for(broker, 0.3)
        assert payloads(again) == [b"2"]

    def test_an_acknowledgement_of_an_earlier_connection_is_let_go(self, world: World) -> None:
        broker = world.connect("plant/#")
        drain_until(broker, lambda _: broker.subscribed)
        world.publish("plant/a", b"1")
        stale = drain_until(broker, len)
        world.cut()
        fresh = drain_until(broker, len)
        broker.acknowledge(stale)
        assert broker.stale_acks == 1
        assert broker.flush(5.0)
        time.sleep(0.1)
        world.cut()
        assert payloads(drain_until(broker, len)) == payloads(fresh)

    def test_a_session_outlives_its_connection(self, world: World) -> None:
        broker = world.connect("plant/#")
        drain_until(broker, lambda _: broker.subscribed)
        world.again()
        broker.close(1.0)
        world.publish("plant/a", b"1", qos=1)
        broker = world.again()
        assert payloads(drain_until(broker, len)) == [b"1"]

    def test_a_broker_that_is_down_at_start_is_waited_for(self, world: World) -> None:
        world.stop()
        broker = world.connect("plant/#")
        assert drain_for(broker, 0.3) == []
        assert not broker.connected
        assert not broker.subscribed
        assert broker.last_error
        world.resume()
        drain_until(broker, lambda _: broker.subscribed)
        assert broker.last_error == ""

    def test_a_broker_that_restarts_is_subscribed_to_again(self, world: World) -> None:
        broker = world.connect("plant/#")
        drain_until(broker, lambda _: broker.subscribed)
        world.stop()
        drain_until(broker, lambda _: not broker.connected)
        world.resume()
        drain_until(broker, lambda _: broker.subscribed)
        got = world.subscribe("out")
        broker.publish("out", b"hello")
        assert broker.flush(5.0)
        wait_until(lambda: got)

    def test_publishes_wait_for_the_broker(self, world: World) -> None:
        broker = world.connect("plant/#")
        drain_until(broker, lambda _: broker.subscribed)
        world.stop()
        drain_until(broker, lambda _: not broker.connected)
        broker.publish("out/event", b"1")
        broker.publish("out/state", b"old", retain=True)
        broker.publish("out/event", b"2")
        broker.publish("out/state", b"new", retain=True)
        waiting = [(publish.topic, publish.payload) for publish in broker.unconfirmed]
        assert waiting == [("out/event", b"1"), ("out/event", b"2"), ("out/state", b"new")]
        assert not broker.flush(0.2)
        world.resume()
        assert broker.flush(10.0)
        got = world.subscribe("out/#")
        wait_until(lambda: got)
        assert got[0] == Delivery("out/state", b"new", 1, True)

    def test_the_retain_flag_says_old_news(self, world: World) -> None:
        broker = world.connect("plant/#")
        drain_until(broker, lambda _: broker.subscribed)
        world.publish("plant/a", b"1", retain=True)
        assert [message.retain for message in drain_until(broker, len)] == [False]
        world.cut()
        again = drain_until(broker, lambda got: any(message.retain for message in got))
        assert {message.payload for message in again} == {b"1"}

    def test_an_empty_retained_publish_clears(self, world: World) -> None:
        broker = world.connect("plant/#")
        broker.publish("out/state", b"firing", retain=True)
        assert broker.flush(5.0)
        broker.publish("out/state", b"", retain=True)
        assert broker.flush(5.0)
        got = world.subscribe("out/#")
        time.sleep(0.2)
        assert got == []

    @pytest.mark.parametrize("qos", [0, 1])
    def test_a_message_carries_what_was_published(self, world: World, qos: int) -> None:
        broker = world.connect("plant/+/x", qos=qos)
        drain_until(broker, lambda _: broker.subscribed)
        before = time.time(), time.perf_counter()
        world.publish("plant/é/x", "ü\0".encode(), qos=1)
        world.publish("plant/a/y", b"not subscribed", qos=1)
        world.publish("plant/a/x", b"", qos=0)
        first, second = drain_until(broker, lambda got: len(got) == 2)
        assert first[:4] == ("plant/é/x", "ü\0".encode(), qos, False)
        assert second[:4] == ("plant/a/x", b"", 0, False)
        assert (first.mid > 0) == (qos == 1)
        assert second.mid == 0
        assert before[0] <= first.received <= time.time()
        assert before[1] <= first.arrived <= time.perf_counter()
        assert first.epoch == broker.epoch == 1

    def test_what_is_published_arrives_with_its_qos(self, world: World) -> None:
        broker = world.connect("plant/#")
        got = world.subscribe("out/#")
        drain_until(broker, lambda _: broker.subscribed)
        broker.publish("out/a", b"0", qos=0)
        broker.publish("out/a", b"1", qos=1)
        assert broker.flush(5.0)
        wait_until(lambda: len(got) == 2)
        assert got == [Delivery("out/a", b"0", 0, False), Delivery("out/a", b"1", 1, False)]

    def test_the_last_will_follows_a_cut_and_not_a_close(self, world: World) -> None:
        broker = world.connect("plant/#")
        got = world.subscribe(WILL_TOPIC)
        drain_until(broker, lambda _: broker.subscribed)
        world.cut()
        wait_until(lambda: got, what="the last will")
        drain_until(broker, lambda _: broker.subscribed)
        broker.close(1.0)
        time.sleep(0.3)
        assert got == [Delivery(WILL_TOPIC, b"offline", 1, False)]

    def test_wake_ends_a_wait(self, world: World) -> None:
        broker = world.connect("plant/#")
        drain_until(broker, lambda _: broker.subscribed)
        drain_for(broker, 0.2)
        timer = threading.Timer(0.2, broker.wake)
        timer.start()
        begun = time.monotonic()
        assert broker.drain(10.0, MANY, MANY) == []
        assert 0.1 < time.monotonic() - begun < 5.0
        timer.join()

    def test_a_wait_ends_after_its_time(self, world: World) -> None:
        broker = world.connect("plant/#")
        drain_until(broker, lambda _: broker.subscribed)
        drain_for(broker, 0.2)
        begun = time.monotonic()
        assert broker.drain(0.3, MANY, MANY) == []
        assert 0.2 < time.monotonic() - begun < 2.0

    def test_a_drain_keeps_to_its_bounds_and_loses_nothing(self, world: World) -> None:
        broker = world.connect("plant/#", qos=0)
        drain_until(broker, lambda _: broker.subscribed)
        world.publish_all([("plant/a", b"%d" % count + bytes(2000)) for count in range(1000)], qos=0)
        time.sleep(0.3)
        got: list[Message] = []
        rounds = 0
        while len(got) < 500 and rounds < 1000:
            few = broker.drain(1.0, 7, MANY)
            assert len(few) <= 7
            got += few
            rounds += 1
        while len(got) < 1000:
            some = broker.drain(1.0, MANY, 100_000)
            assert sum(len(message.payload) for message in some) <= 100_000 + 65536 + 2004
            assert some
            got += some
        assert [int(message.payload.rstrip(b"\0")) for message in got] == list(range(1000))

    def test_a_drain_of_nothing_sends_and_reads_no_message(self, world: World) -> None:
        broker = world.connect("plant/#")
        got = world.subscribe("out")
        deadline = time.monotonic() + 10
        while not broker.subscribed and time.monotonic() < deadline:
            assert broker.drain(0.05, 0, 0) == []
        world.publish("plant/a", b"1")
        broker.publish("out", b"x")
        begun = time.process_time(), time.monotonic()
        while time.monotonic() - begun[1] < 0.5:
            assert broker.drain(0.1, 0, 0) == []
        assert time.process_time() - begun[0] < 0.25, "it spins"
        wait_until(lambda: got)
        assert payloads(drain_until(broker, len)) == [b"1"]

    @pytest.mark.parametrize("qos", [0, 1])
    def test_many_messages_arrive_exactly_once(self, world: World, qos: int) -> None:
        broker = world.connect("plant/#", qos=qos)
        drain_until(broker, lambda _: broker.subscribed)
        sent = [(f"plant/{count % 50}", b"%d" % count) for count in range(20_000)]
        sender = threading.Thread(target=world.publish_all, args=(sent, qos))
        sender.start()
        got: list[Message] = []
        deadline = time.monotonic() + 60
        while len(got) < len(sent) and time.monotonic() < deadline:
            some = broker.drain(5.0, 5000, MANY)
            assert some or sender.is_alive(), f"{len(got)} came of {len(sent)}"
            broker.acknowledge(some)
            got += some
        sender.join()
        assert sorted((message.topic, message.payload) for message in got) == sorted(sent)
        assert broker.flush(5.0)
        time.sleep(0.1)
        world.cut()
        assert drain_until(broker, lambda _: broker.epoch == 2) + drain_for(broker, 0.5) == []

    def test_what_comes_during_a_flush_is_kept_for_the_next_drain(self, world: World) -> None:
        broker = world.connect("plant/#")
        drain_until(broker, lambda _: broker.subscribed)
        world.publish("plant/a", b"1")
        time.sleep(0.1)
        broker.publish("out", b"x")
        assert broker.flush(5.0)
        assert payloads(drain_until(broker, len)) == [b"1"]


class TestMemoryBroker(BrokerSuite):
    """The twin."""

    @pytest.fixture
    def world(self) -> World:
        return MemoryWorld()


class TestMosquitto(BrokerSuite):
    """The real one, in both versions of the protocol."""

    @pytest.fixture(params=["3.1.1", "5"])
    def world(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
        world = MosquittoWorld(Mosquitto(tmp_path), request.param)
        yield world
        world.close()


class Connect(Protocol):
    def __call__(self, options: MqttOptions, *topics: str) -> MqttBroker: ...


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Start connections that end with the test."""
    brokers: list[MqttBroker] = []

    def start(options: MqttOptions, *topics: str) -> MqttBroker:
        broker = MqttBroker(options)
        brokers.append(broker)
        broker.start(topics or ("plant/#",))
        return broker

    yield start
    for broker in brokers:
        broker.close(1.0)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> list[str]:
    """A listener's options for TLS."""
    cert, key = authority.issue("server")
    return [f"cafile {authority.ca}", f"certfile {cert}", f"keyfile {key}"]


def tls(ca: Path | None, cert: Path | None = None, key: Path | None = None) -> Callable[[], ssl.SSLContext]:
    return TlsSettings(ca=ca, cert=cert, key=key).context


class TestTls:
    """What can be wrong with certificates, and that it heals without a restart."""

    @pytest.mark.parametrize("version", ["3.1.1", "5"])
    def test_tls_with_a_client_certificate_and_many_messages(
        self, authority: Authority, server: list[str], tmp_path: Path, connect: Connect, version: str
    ) -> None:
        pair = authority.issue(f"client-{version}")
        with Mosquitto(tmp_path, [*server, "require_certificate true"]) as mosquitto:
            broker = connect(
                MqttOptions(
                    port=mosquitto.port,
                    version="5" if version == "5" else "3.1.1",
                    tls=tls(authority.ca, *pair),
                    client_id="t",
                )
            )
            drain_until(broker, lambda _: broker.subscribed)
            talker = PlainClient(
                mosquitto.port, setup=lambda one: one.tls_set(str(authority.ca), str(pair[0]), str(pair[1]))
            )
            sent = [(f"plant/{count % 10}", b"%d" % count + bytes(500)) for count in range(2000)]
            sender = threading.Thread(target=talker.publish_all, args=(sent,))
            sender.start()
            got: list[Message] = []
            while len(got) < len(sent):
                some = broker.drain(5.0, 100, MANY)
                assert some or sender.is_alive(), "nothing came although all was sent"
                broker.acknowledge(some)
                got += some
            sender.join()
            talker.close()
            assert sorted((one.topic, one.payload) for one in got) == sorted(sent)
            assert broker.flush(5.0)

    def test_an_unknown_authority_is_told_with_the_setting_to_change(
        self, server: list[str], tmp_path: Path, connect: Connect
    ) -> None:
        with Mosquitto(tmp_path, server) as mosquitto:
            broker = connect(MqttOptions(port=mosquitto.port, tls=tls(None), client_id="t"))
            drain_until(broker, lambda _: broker.last_error)
            assert "certificate is refused (" in broker.last_error
            assert "set mqtt.tls.ca to the certificate of the authority that signed it" in broker.last_error
            assert not broker.connected

    def test_an_authority_that_is_put_right_heals_without_a_restart(
        self, authority: Authority, server: list[str], tmp_path: Path, connect: Connect
    ) -> None:
        (tmp_path / "other").mkdir()
        mine = tmp_path / "ca.pem"
        mine.write_bytes(Authority(tmp_path / "other").ca.read_bytes())
        with Mosquitto(tmp_path, server) as mosquitto:
            broker = connect(MqttOptions(port=mosquitto.port, tls=tls(mine), client_id="t"))
            drain_until(broker, lambda _: "set mqtt.tls.ca" in broker.last_error)
            mine.write_text("half a fi")
            drain_until(broker, lambda _: "holds no certificate in PEM form" in broker.last_error)
            mine.unlink()
            drain_until(broker, lambda _: f'mqtt.tls.ca = "{mine}": cannot be read' in broker.last_error)
            mine.write_bytes(authority.ca.read_bytes())
            drain_until(broker, lambda _: broker.subscribed)
            assert broker.last_error == ""

    @pytest.mark.parametrize(
        ("names", "expired", "cause", "remedy"),
        [
            ("IP:127.0.0.1", True, "certificate has expired", "renew it on the broker, or set this machine's clock"),
            ("DNS:elsewhere", False, "not valid for '127.0.0.1'", "set mqtt.host to a name that is in it"),
        ],
    )
    def test_a_servers_certificate_that_does_not_hold_is_told(
        self,
        authority: Authority,
        tmp_path: Path,
        connect: Connect,
        *,
        names: str,
        expired: bool,
        cause: str,
        remedy: str,
    ) -> None:
        cert, key = authority.issue(f"bad-{expired}", names=names, expired=expired)
        with Mosquitto(tmp_path, [f"certfile {cert}", f"keyfile {key}"]) as mosquitto:
            broker = connect(MqttOptions(port=mosquitto.port, tls=tls(authority.ca), client_id="t"))
            drain_until(broker, lambda _: broker.last_error)
            assert cause in broker.last_error
            assert remedy in broker.last_error

    def test_a_name_that_the_certificate_lacks_is_told(
        self, authority: Authority, tmp_path: Path, connect: Connect
    ) -> None:
        cert, key = authority.issue("elsewhere", names="DNS:elsewhere")
        with Mosquitto(tmp_path, [f"certfile {cert}", f"keyfile {key}"]) as mosquitto:
            broker = connect(MqttOptions(host="localhost", port=mosquitto.port, tls=tls(authority.ca), client_id="t"))
            drain_until(broker, lambda _: "or have it made for localhost" in broker.last_error)

    @pytest.mark.parametrize(
        ("fault", "told"),
        [
            ("missing", "wants a client certificate; set mqtt.tls.cert and mqtt.tls.key"),
            ("revoked", "refuses the certificate mqtt.tls.cert (certificate revoked)"),
            ("expired", "refuses the certificate mqtt.tls.cert (certificate expired)"),
            ("foreign", "refuses the certificate mqtt.tls.cert (unknown ca)"),
        ],
    )
    def test_a_client_certificate_that_the_broker_refuses_is_told_and_tried_again(
        self, authority: Authority, server: list[str], tmp_path: Path, connect: Connect, fault: str, told: str
    ) -> None:
        (tmp_path / "other").mkdir()
        pair: tuple[Path, Path] | tuple[()] = ()
        if fault == "foreign":
            pair = Authority(tmp_path / "other").issue("client")
        elif fault != "missing":
            pair = authority.issue(fault, expired=fault == "expired")
        if fault == "revoked":
            authority.revoke(fault)
        listener = [*server, "require_certificate true", f"crlfile {authority.crl}"]
        with Mosquitto(tmp_path, listener) as mosquitto:
            broker = connect(MqttOptions(port=mosquitto.port, tls=tls(authority.ca, *pair), client_id="t"))
            drain_until(broker, lambda _: told in broker.last_error, 60)  # some connections end before it is read
            assert not broker.connected
            attempts = mosquitto.log.count("New connection")
            drain_for(broker, 0.5)
            assert mosquitto.log.count("New connection") > attempts

    def test_tls_on_one_end_alone_is_told(
        self, authority: Authority, server: list[str], tmp_path: Path, connect: Connect
    ) -> None:
        with Mosquitto(tmp_path) as plain:
            broker = connect(MqttOptions(port=plain.port, tls=tls(authority.ca), client_id="t"))
            drain_until(
                broker, lambda _: "mqtt.port" in broker.last_error and "TLS listener, usually 8883" in broker.last_error
            )
        with Mosquitto(tmp_path, server) as secure:
            broker = connect(MqttOptions(port=secure.port, client_id="t"))
            drain_until(broker, lambda _: "it may want TLS: set mqtt.tls" in broker.last_error)


class TestRefusals:
    """Passwords, access control lists, and brokers that are not there."""

    @pytest.mark.parametrize("version", ["3.1.1", "5"])
    def test_a_wrong_password_is_told_and_tried_until_it_is_right(
        self, tmp_path: Path, connect: Connect, version: Literal["3.1.1", "5"]
    ) -> None:
        write_password(tmp_path / "passwords", "sentinel", "right")
        given = ["wrong"]
        with Mosquitto(tmp_path, options=[f"password_file {tmp_path}/passwords"]) as mosquitto:
            options = MqttOptions(
                port=mosquitto.port,
                version=version,
                client_id="p",
                username="sentinel",
                password=lambda: given[0],
            )
            broker = connect(options)
            drain_until(broker, lambda _: "ot authori" in broker.last_error)
            assert "check mqtt.username and the file mqtt.password_file" in broker.last_error
            assert "wrong" not in broker.last_error
            attempts = mosquitto.log.count("not authorised")
            drain_for(broker, 0.5)
            assert mosquitto.log.count("not authorised") > attempts
            given[0] = "right"
            drain_until(broker, lambda _: broker.subscribed)
            assert broker.last_error == ""

    @pytest.mark.parametrize(
        ("username", "told"),
        [("nobody", "that the broker lets this user in"), (None, "takes no anonymous clients: set mqtt.username")],
    )
    def test_an_unknown_user_is_told_and_let_in_once_the_broker_knows_him(
        self, tmp_path: Path, connect: Connect, username: str | None, told: str
    ) -> None:
        write_password(tmp_path / "passwords", "sentinel", "right")
        with Mosquitto(tmp_path, options=[f"password_file {tmp_path}/passwords"]) as mosquitto:
            options = MqttOptions(port=mosquitto.port, client_id="p", username=username, password=lambda: None)
            broker = connect(options)
            drain_until(broker, lambda _: told in broker.last_error)

    def test_a_password_file_that_goes_away_is_told_and_waited_for(self, tmp_path: Path, connect: Connect) -> None:
        write_password(tmp_path / "passwords", "sentinel", "right")
        secret = tmp_path / "secret"
        settings = MqttSettings(username="sentinel", password_file=secret)
        with Mosquitto(tmp_path, options=[f"password_file {tmp_path}/passwords"]) as mosquitto:
            broker = connect(
                MqttOptions(port=mosquitto.port, client_id="p", username="sentinel", password=settings.password)
            )
            drain_until(broker, lambda _: f'mqtt.password_file = "{secret}": cannot be read' in broker.last_error)
            secret.write_text("right\n")
            drain_until(broker, lambda _: broker.subscribed)

    @pytest.mark.parametrize("version", ["3.1.1", "5"])
    def test_a_forbidden_subscription_is_told_and_granted_once_the_list_allows_it(
        self, tmp_path: Path, connect: Connect, version: Literal["3.1.1", "5"]
    ) -> None:
        plugin = [
            Path(folder, "mosquitto_dynamic_security.so")
            for folder in ("/usr/lib", *map(str, Path("/usr/lib").glob("*-linux-gnu")))
        ]
        if not (found := [file for file in plugin if file.exists()]):
            pytest.skip("needs mosquitto_dynamic_security.so")
        rules = tmp_path / "dynamic.json"

        def allow(*patterns: str) -> None:
            acls = [{"acltype": "subscribePattern", "topic": topic, "allow": True} for topic in patterns]
            rules.write_text(
                json.dumps(
                    {
                        "defaultACLAccess": {
                            "publishClientSend": True,
                            "publishClientReceive": True,
                            "subscribe": False,
                        },
                        "groups": [{"groupname": "all", "roles": [{"rolename": "reader"}]}],
                        "anonymousGroup": "all",
                        "roles": [{"rolename": "reader", "acls": acls}],
                    }
                )
            )

        allow("plant/#")
        options = [f"plugin {found[0]}", f"plugin_opt_config_file {rules}"]
        with Mosquitto(tmp_path, options=options) as mosquitto:
            broker = connect(MqttOptions(port=mosquitto.port, version=version, client_id="acl"), "plant/#", "other/#")
            drain_until(broker, lambda _: broker.refused)
            assert broker.connected
            assert not broker.subscribed
            (told,) = broker.refused
            assert told.startswith("other/#: ")
            assert "the broker must allow this client to subscribe to this topic" in told
            with plain_client(mosquitto.port) as talker:
                talker.publish("plant/a", b"1")
            drain_until(broker, lambda got: payloads(got) == [b"1"])
            mosquitto.stop()
            allow("plant/#", "other/#")
            mosquitto.start()
            drain_until(broker, lambda _: broker.subscribed)

    def test_a_refused_subscription_is_asked_for_again_on_the_same_connection(self, connect: Connect) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            script = threading.Thread(target=_refuse_subscriptions, args=(server, 2))
            script.start()
            broker = connect(MqttOptions(port=server.getsockname()[1]))
            drain_until(broker, lambda _: broker.refused)
            assert not broker.subscribed
            drain_until(broker, lambda _: broker.subscribed)
            assert broker.refused == []
            assert broker.epoch == 1
            broker.close(1.0)
            script.join(5)

    def test_a_forbidden_publish_is_told_with_its_topic_until_it_is_taken(
        self, tmp_path: Path, connect: Connect
    ) -> None:
        rules = tmp_path / "acl"
        rules.write_text("topic read plant/#\n")
        with Mosquitto(tmp_path, options=[f"acl_file {rules}"]) as mosquitto:
            broker = connect(MqttOptions(port=mosquitto.port, version="5", client_id="acl"))
            drain_until(broker, lambda _: broker.subscribed)
            broker.publish("sentinel/status", b"1")
            drain_until(broker, lambda _: broker.refused)
            (told,) = broker.refused
            assert told.startswith("sentinel/status: Not authorized; the broker must allow this client to publish")
            drain_for(broker, 0.5)  # mosquitto 2.0 ends the connection after that, and takes the next
            drain_until(broker, lambda _: broker.subscribed)
            assert broker.refused == [told]
            assert broker.dropped == 1
            rules.write_text("topic readwrite #\n")
            os.kill(mosquitto.pid, 1)
            wait_until(lambda: "Reloading config" in mosquitto.log)
            broker.publish("sentinel/status", b"2")
            drain_until(broker, lambda _: not broker.refused)

    @pytest.mark.parametrize(
        ("host", "told"),
        [("127.0.0.1", "nothing listens there: start the broker"), ("no.such.invalid", "correct mqtt.host")],
    )
    def test_a_broker_that_is_not_there_is_told(self, connect: Connect, host: str, told: str) -> None:
        broker = connect(MqttOptions(host=host, port=free_port()))
        drain_until(broker, lambda _: told in broker.last_error)


class TestConnection:
    """Reconnecting, keeping alive, resubscribing."""

    def test_start_and_drain_do_not_block_while_the_broker_does_not_answer(self, connect: Connect) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
            begun = time.monotonic()
            broker = connect(MqttOptions(port=silent.getsockname()[1]))
            for _ in range(20):
                broker.drain(0.01, 10, MANY)
            assert time.monotonic() - begun < 2.0
            assert not broker.connected

    def test_a_broker_that_never_says_connack_is_left(self, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "CONNACK_TIMEOUT", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            broker = connect(MqttOptions(port=silent.getsockname()[1]))
            drain_until(broker, lambda _: "no CONNACK" in broker.last_error)

    def test_garbage_ends_the_connection_and_nothing_else(self, connect: Connect) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            script = threading.Thread(target=_talk_garbage, args=(server, 20))
            script.start()
            broker = connect(MqttOptions(port=server.getsockname()[1]))
            deadline = time.monotonic() + 20
            while script.is_alive() and time.monotonic() < deadline:
                broker.drain(0.05, 10, MANY)
            assert not script.is_alive()

    def test_a_slow_reader_is_not_taken_for_a_dead_connection(self, tmp_path: Path, connect: Connect) -> None:
        """Keepalive 1 s, while for 4 s every answer of the broker waits behind a backlog."""
        with Mosquitto(tmp_path) as mosquitto, plain_client(mosquitto.port) as talker:
            broker = connect(MqttOptions(port=mosquitto.port, client_id="slow", keepalive=1, qos=0))
            drain_until(broker, lambda _: broker.subscribed)
            talker.publish_all([("plant/a", bytes(50_000))] * 800, qos=0)
            begun, count = time.monotonic(), 0
            while time.monotonic() - begun < 4.0:
                count += len(broker.drain(0.05, 2, MANY))
                time.sleep(0.02)
            assert 0 < count < 800
            count += len(drain_until(broker, lambda got: len(got) + count >= 800))
            assert count == 800
            assert broker.reconnects == 0

    def test_it_goes_on_asking_while_the_answers_wait_behind_a_backlog(self, connect: Connect) -> None:
        """A broker ends a connection that sent nothing for 1.5 keepalives, and at QoS 0 a PINGREQ is all that is sent."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            asked: list[float] = []
            script = threading.Thread(target=_never_answer, args=(server, asked, 4.5))
            script.start()
            broker = connect(MqttOptions(port=server.getsockname()[1], client_id="behind", keepalive=1, qos=0))
            while script.is_alive():
                broker.drain(0.05, 10, MANY)
            assert broker.reconnects == 0
            assert len(asked) >= 3
            assert max(later - earlier for earlier, later in pairwise(asked)) < 1.0, "at half of the keepalive"

    def test_a_reader_that_takes_no_messages_stays_connected(self, tmp_path: Path, connect: Connect) -> None:
        with Mosquitto(tmp_path) as mosquitto, plain_client(mosquitto.port) as talker:
            broker = connect(MqttOptions(port=mosquitto.port, client_id="stalled", keepalive=1))
            drain_until(broker, lambda _: broker.subscribed)
            talker.publish_all([("plant/a", bytes(100))] * 100)
            begun = time.monotonic()
            while time.monotonic() - begun < 3.5:
                assert broker.drain(0.1, 0, 0) == []
            assert len(drain_until(broker, len)) > 0
            assert broker.reconnects == 0

    def test_a_quiet_connection_is_kept_alive(self, tmp_path: Path, connect: Connect) -> None:
        with Mosquitto(tmp_path) as mosquitto:
            broker = connect(MqttOptions(port=mosquitto.port, client_id="quiet", keepalive=1))
            drain_until(broker, lambda _: broker.subscribed)
            drain_for(broker, 3.5)
            assert broker.reconnects == 0
            assert broker.connected

    def test_a_large_message_arrives_whole_and_of_a_giant_one_as_much_as_tells_it_is_too_large(
        self, tmp_path: Path, connect: Connect
    ) -> None:
        with Mosquitto(tmp_path) as mosquitto, plain_client(mosquitto.port) as talker:
            broker = connect(MqttOptions(port=mosquitto.port, client_id="large"))
            drain_until(broker, lambda _: broker.subscribed)
            large, giant = os.urandom(2_000_000), os.urandom(10_000_000)
            for payload in (large, giant, b"small"):
                talker.publish("plant/a", payload)
            got = payloads(drain_until(broker, lambda got: len(got) == 3))
            assert (got[0], got[2]) == (large, b"small")
            assert MAX_PAYLOAD < len(got[1]) < len(giant)

    def test_many_publishes_go_out_in_order(self, tmp_path: Path, connect: Connect) -> None:
        with Mosquitto(tmp_path) as mosquitto, plain_client(mosquitto.port, "out/#") as listener:
            broker = connect(MqttOptions(port=mosquitto.port, client_id="many"))
            for count in range(3000):
                broker.publish("out/a", b"%d" % count)
            assert broker.flush(20.0)
            wait_until(lambda: len(listener.got) == 3000)
            assert [int(one.payload) for one in listener.got] == list(range(3000))
            assert broker.dropped == 0

    def test_close_ends_neither_session_nor_subscription(self, tmp_path: Path, connect: Connect) -> None:
        with Mosquitto(tmp_path) as mosquitto, plain_client(mosquitto.port) as talker:
            first = connect(MqttOptions(port=mosquitto.port, client_id="same"))
            drain_until(first, lambda _: first.subscribed)
            first.close(1.0)
            wait_until(lambda: "Client same disconnected." in mosquitto.log, what="a clean DISCONNECT")
            talker.publish("plant/a", b"while away")
            second = connect(MqttOptions(port=mosquitto.port, client_id="same"))
            assert payloads(drain_until(second, len)) == [b"while away"]

    def test_close_is_quick_when_the_broker_is_away(self) -> None:
        broker = MqttBroker(MqttOptions(port=free_port()))
        broker.start(["plant/#"])
        drain_for(broker, 0.1)
        broker.publish("out", b"x")
        begun = time.monotonic()
        broker.close(5.0)
        assert time.monotonic() - begun < 1.0
        assert broker.dropped == 1


def _read_packet(peer: socket.socket) -> bytes:
    head = peer.recv(2)
    return head + (peer.recv(head[1]) if len(head) == 2 else b"")


def _refuse_subscriptions(server: socket.socket, times: int) -> None:
    peer, _ = server.accept()
    with peer:
        _read_packet(peer)
        peer.sendall(b"\x20\x02\x00\x00")
        for answer in [b"\x80"] * times + [b"\x01"]:
            subscribe = _read_packet(peer)
            peer.sendall(b"\x90\x03" + subscribe[2:4] + answer)
        _read_packet(peer)


def _never_answer(server: socket.socket, asked: list[float], seconds: float) -> None:
    """A broker whose every answer is one more message; notes when it is asked for a sign of life."""
    link, _ = server.accept()
    with link:
        assert link.recv(4096)[0] == 0x10
        link.sendall(b"\x20\x02\x00\x00")
        end = time.monotonic() + seconds
        link.settimeout(0.02)
        while time.monotonic() < end:
            with suppress(TimeoutError):
                if b"\xc0\x00" in link.recv(4096):
                    asked.append(time.monotonic())
            link.sendall(b"\x30\x0a\x00\x07plant/a1")


def _talk_garbage(server: socket.socket, times: int) -> None:
    rubbish = (
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x30\xff\xff\xff\xff\xff",
        b"\x20\x02\x00\x00\x30\x03\xff\xff\x00",
        b"\x20\x02\x00\x00\x32\x03\x00\x01a",
        b"\x20\x02\x00\x00\xf0\x00",
        b"\x20\x01\x00",
        b"\x20\x02\x00\x63",
        b"",
    )
    for count in range(times):
        peer, _ = server.accept()
        with peer, suppress(OSError):
            _read_packet(peer)
            peer.sendall(rubbish[count % len(rubbish)])
            peer.shutdown(socket.SHUT_WR)
            peer.settimeout(2)
            while peer.recv(1000):
                pass


def _packet(head: int, body: bytes) -> bytes:
    size, length = len(body), bytearray()
    while True:
        size, digit = size >> 7, size & 127
        length.append(digit | (128 if size else 0))
        if not size:
            return bytes([head]) + bytes(length) + body


PUBLISHES = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=200),
        st.binary(max_size=300),
        st.sampled_from([0, 1]),
        st.booleans(),
    ),
    max_size=30,
)


class TestWire:
    """The parser: any cut, any mixture."""

    @given(publishes=PUBLISHES, version5=st.booleans(), cuts=st.lists(st.integers(1, 400)), limit=st.integers(1, 40))
    def test_every_cut_of_the_stream_gives_the_same_messages(
        self,
        publishes: list[tuple[str, bytes, int, bool]],
        version5: bool,
        cuts: list[int],
        limit: int,
    ) -> None:
        stream = bytearray()
        expected = []
        for count, (topic, payload, qos, retain) in enumerate(publishes):
            name = topic.encode()
            properties = b"\x00" if count % 2 else b"\x81\x01\x26" + bytes(128)
            body = struct.pack("!H", len(name)) + name + (struct.pack("!H", count + 1) if qos else b"")
            stream += _packet(0x30 | qos << 1 | retain, body + (properties if version5 else b"") + payload)
            expected.append((topic, payload, qos, retain, count + 1 if qos else 0))
            stream += b"\xd0\x00" if count % 3 == 0 else b""
        near, far = socket.socketpair()
        with far:
            wire = Wire(near, version5=version5)
            got: list[Message] = []
            handed = bytearray()
            sizes = iter(cuts)
            while stream or len(got) < len(expected):
                chunk = stream[: next(sizes, len(stream))]
                del stream[: len(chunk)]
                far.sendall(chunk)
                _take_all(wire, got, handed, limit)
                if not chunk:
                    break
            wire.close()
        assert [(one.topic, one.payload, one.qos, one.retain, one.mid) for one in got] == expected
        assert handed == b"\xd0\x00" * len(range(0, len(publishes), 3))
        assert wire.lost is None

    @given(st.binary(max_size=2000), st.booleans())
    def test_any_bytes_are_taken_or_refused(self, stream: bytes, version5: bool) -> None:
        near, far = socket.socketpair()
        with far:
            wire = Wire(near, version5=version5)
            far.sendall(stream)
            _take_all(wire, [], bytearray(), 100)
            wire.close()

    @pytest.mark.parametrize("version5", [False, True])
    def test_of_a_giant_packet_only_the_beginning_is_kept_and_the_next_is_whole(self, version5: bool) -> None:
        near, far = socket.socketpair()
        wire = Wire(near, version5=version5)
        properties = b"\x00" if version5 else b""
        stream = _packet(0x32, b"\x00\x01a\x00\x07" + properties + b"x" * (20 << 20))
        stream += _packet(0x32, b"\x00\x01b\x00\x08" + properties + b"1")
        sender = threading.Thread(target=far.sendall, args=(stream,))
        sender.start()
        got: list[Message] = []
        longest = 0
        while len(got) < 2:
            if wire.take(got, 10) is Next.FILL:
                wire.fill()
            longest = max(longest, len(wire._rest))
        sender.join()
        far.close()
        wire.close()
        assert [(one.topic, one.mid) for one in got] == [("a", 7), ("b", 8)]
        assert MAX_PAYLOAD < len(got[0].payload) <= GIANT, "enough for it to be refused as too large"
        assert got[1].payload == b"1"
        assert longest <= GIANT + READ_SIZE

    def test_a_giant_packet_whose_properties_are_as_long_is_a_message_without_a_payload(self) -> None:
        near, far = socket.socketpair()
        wire = Wire(near, version5=True)
        size = 3 << 20
        length = bytes(((size >> 7 * place) & 127) | 128 * (place < 3) for place in range(4))
        sender = threading.Thread(
            target=far.sendall, args=(_packet(0x32, b"\x00\x01a\x00\x07" + length + bytes(size) + b"1"),)
        )
        sender.start()
        got: list[Message] = []
        while not got:
            if wire.take(got, 10) is Next.FILL:
                wire.fill()
        sender.join()
        far.close()
        wire.close()
        assert [(one.topic, one.mid, one.payload) for one in got] == [("a", 7, b"")]
        assert wire.lost is None

    def test_long_topics_are_not_remembered(self) -> None:
        near, far = socket.socketpair()
        wire = Wire(near, version5=False)
        for length in (10, 513):
            far.sendall(_packet(0x30, struct.pack("!H", length) + b"t" * length + b"1"))
        got: list[Message] = []
        _take_all(wire, got, bytearray(), 100)
        assert [len(one.topic) for one in got] == [10, 513]
        assert [len(name) for name in wire._topics] == [10]
        far.close()
        wire.close()

    def test_paho_gets_one_packet_at_a_time_and_then_the_loss(self) -> None:
        near, far = socket.socketpair()
        wire = Wire(near, version5=False)
        far.sendall(b"\xd0\x00\xd0\x00")
        far.close()
        assert wire.fill() == 4
        for _ in range(2):
            assert wire.take([], 10) is Next.HAND_ON
            assert wire.recv(1) + wire.recv(10) == b"\xd0\x00"
            with pytest.raises(BlockingIOError):
                wire.recv(1)
        assert wire.take([], 10) is Next.FILL
        assert wire.fill() == 0
        with pytest.raises(ConnectionResetError):
            wire.recv(1)
        wire.close()


def _take_all(wire: Wire, got: list[Message], handed: bytearray, limit: int) -> None:
    while True:
        batch: list[Message] = []
        asked = wire.take(batch, limit)
        got += batch
        if asked is Next.HAND_ON:
            with suppress(BlockingIOError):
                while True:
                    handed += wire.recv(7)
        elif asked is Next.FILL and wire.fill() == 0:
            return


class TestOutbox:
    """What waits, and what is dropped."""

    def test_the_oldest_not_retained_is_dropped_and_counted(self) -> None:
        outbox = Outbox(bound=2)
        for payload in (b"1", b"2", b"3"):
            outbox.put(Publish("event", payload, 1, False))
            outbox.put(Publish(f"state/{payload.decode()}", payload, 1, True))
        assert outbox.dropped == 1
        assert [outbox.pop().payload for _ in range(len(outbox))] == [b"1", b"2", b"2", b"3", b"3"]

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans())))
    def test_of_each_topic_the_last_retained_is_sent(self, steps: list[tuple[str, bool, bool]]) -> None:
        outbox = Outbox(bound=3)
        sent: list[Publish] = []
        put: list[Publish] = []
        for count, (topic, retain, pop) in enumerate(steps):
            put.append(Publish(topic, b"%d" % count, 1, retain))
            outbox.put(put[-1])
            if pop:
                sent.append(outbox.pop())
        sent += [outbox.pop() for _ in range(len(outbox))]
        last_put = {one.topic: one for one in put if one.retain}
        last_sent = {one.topic: one for one in sent if one.retain}
        assert last_put == last_sent
        assert Counter(one.retain for one in sent)[False] + outbox.dropped == Counter(one.retain for one in put)[False]


class TestMatches:
    """Topic filters."""

    @pytest.mark.parametrize(
        ("topic_filter", "topic", "expected"),
        [
            ("#", "a/b", True),
            ("#", "$SYS/x", False),
            ("$SYS/#", "$SYS/x", True),
            ("a/#", "a", True),
            ("a/+", "a", False),
            ("a/+", "a/", True),
            ("a/+/c", "a/b/c", True),
            ("a/+/c", "a/b/d", False),
            ("+", "a/b", False),
            ("a/b", "a/b/c", False),
        ],
    )
    def test_a_filter_matches_as_the_protocol_says(self, topic_filter: str, topic: str, expected: bool) -> None:
        assert matches(topic_filter, topic) is expected
