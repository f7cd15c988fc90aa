"""Row 7: malformed and hostile messages, on the stream itself and through the broker; each is counted, memory bounded."""

import json
import random
import resource
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import orjson

from sentinel.commands._publisher import Publisher
from sentinel.records import Message, ProfileSpec
from sentinel.settings import MqttSettings
from sentinel.stream.pipeline import Pipeline
from tests import fleets
from tests.brokers import wait_until
from tests.faults.rig import PATIENCE, Figures, Rig

Published = tuple[str, bytes]

MAX_DEVICES, MAX_CHANNELS = 100, 64
GROWTH = 300.0  # MB, of the daemon: routes and topics are remembered up to a limit
HUGE = 10 << 20  # bytes; one in HUGE_EVERY
HUGE_EVERY = 5000
AUTO = f"""
[profiles.flood]
topic = "flood/{{device}}"
max_devices = {MAX_DEVICES}
learn_after = 1_000_000
silence_after = "off"
"""
GOOD = {"ts": fleets.START, "pressure": 5.0, "flow": 20.0, "heat": 60.0}
NUMBERS: tuple[object, ...] = (
    *(0, -0.0, 1e308, -1e308, 5e-324, 2**63, 2**64, 10**400, -(10**25), 1e30, 1.1e30, 0.1, True, None, "5", [], {}),
)
TIMES: tuple[object, ...] = (0, -1, 1e11, 1e12, 1e300, "2024-01-01", "", None, True, fleets.START, [1.7e9], 1.7e18)
RAW = (
    b"",
    b" ",
    b"\0" * 50,
    b"\xff\xfe",
    b'{"ts": 1.7e9, "pressure": NaN}',
    b'{"ts": 1.7e9, "pressure": -Infinity, "flow": 1}',
    b'{"ts": 1.7e9, "pressure": 1e999}',
    b'{"ts": 1.7e9, "pressure": 1, "pressure": 2}',
    b'{"ts": 1.7e9, "pressure": \xc3\x28}',
    b'{"ts": 1.7e9, "\xed\xa0\x80": 1}',
    b'{"ts": 1.7e9, "\\ud800": 1, "pressure": 2}',
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    b"[" + b'{"ts":1.7e9,"pressure":1},' * 2000 + b"{}]",
    b"9" * 100_000,
    b"-",
    b"null",
    b'"' + b"a" * 70_000 + b'"',
    b"nan",
    b"{}" * 10,
)
TEXT = string.ascii_letters + string.digits + " %_-.{}()[]äß漢🙂\u200b\u202e"


def run(folder: Path, *, long: bool = False) -> Figures:
    """The same corpus twice."""
    count = 1_000_000 if long else 20_000
    return in_process(count) | through_the_broker(folder, count)


def corpus(count: int) -> Iterator[Published]:
    """Messages that no well-meaning device sends, the same each time. Topics are such as a broker takes."""
    pick = random.Random(7)
    good = orjson.dumps(GOOD)
    for number in range(count):
        if number % HUGE_EVERY == 1:
            yield "plant/huge/telemetry", b'{"ts": 1.7e9, "x": "' + b"x" * HUGE + b'"}'
            continue
        match number % 6:
            case 0:
                yield topic(pick), good
            case 1:
                yield "plant/d0/telemetry", pick.choice(RAW)
            case 2:
                yield "plant/d0/telemetry", _dump(GOOD | {pick.choice([*GOOD, "ts"]): pick.choice(NUMBERS + TIMES)})
            case 3:
                yield "plant/d1/telemetry", mutated(good, pick)
            case 4:  # ever new devices and channels
                channels = {_word(pick): pick.choice(NUMBERS) for _ in range(pick.randrange(8))}
                yield f"flood/{number}", _dump(channels)
            case _:
                yield f"flood/{_word(pick)}", nested(pick, pick.randrange(8))


def topic(pick: random.Random) -> str:
    """One that is matched, or nearly so."""
    return pick.choice(
        (
            "plant//telemetry",
            "plant/ /telemetry",
            "plant/%2F/telemetry",
            "/plant/a/telemetry",
            "plant/a/telemetry/",
            "plant/$SYS/telemetry",
            f"plant/{'x' * pick.choice((199, 200, 201, 60_000))}/telemetry",
            f"plant/{_word(pick)}/telemetry",
            f"plant/n{pick.randrange(10**9)}/telemetry",
            f"flood/{'y' * 65_000}",
            "flood/",
            "plant" + "/" * 150 + "telemetry",
        )
    )


def mutated(payload: bytes, pick: random.Random) -> bytes:
    """Some bytes changed, removed or doubled."""
    out = bytearray(payload)
    for _ in range(pick.randrange(1, 6)):
        at = pick.randrange(len(out)) if out else 0
        match pick.randrange(3):
            case 0:
                out[at : at + 1] = pick.randbytes(1)
            case 1:
                del out[at : at + pick.randrange(1, 9)]
            case _:
                out[at:at] = out[at : at + pick.randrange(1, 30)]
    return bytes(out)


def nested(pick: random.Random, depth: int) -> bytes:
    """Objects in arrays in objects."""
    value: object = pick.choice(NUMBERS)
    for _ in range(depth):
        value = [value] * pick.randrange(3) if pick.random() < 0.3 else {_word(pick): value, "ts": pick.choice(TIMES)}
    return _dump(value)


def _word(pick: random.Random) -> str:
    return "".join(pick.choice(TEXT) for _ in range(pick.randrange(1, 12)))


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()


def in_process(count: int) -> Figures:
    """No exception leaves the stream, every message has one outcome, tables keep their limits."""
    given = ("pressure", "flow", "heat")
    pump = fleets.spec(max_devices=MAX_DEVICES)
    pipeline = Pipeline([pump, ProfileSpec("flood", "flood/{device}", max_devices=MAX_DEVICES)])
    counted = foreign = sent = 0
    batch: list[Message] = []
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, (where, payload) in enumerate(corpus(count), 1):
        batch.append(Message(where, payload, received=fleets.START + number))
        if len(batch) == 1000 or number == count:
            turn = pipeline.push(batch, fleets.START + number)
            counted, foreign, sent = (
                counted + sum(turn.fates.values()),
                foreign + len(turn.decoded.foreign),
                sent + len(batch),
            )
            batch = []
    assert counted + foreign == sent == count
    streams = pipeline.profiles
    assert all(len(stream.table) <= MAX_DEVICES for stream in streams.values())
    assert streams["pump"].channels == list(given)
    assert len(streams["flood"].channels) <= MAX_CHANNELS
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    return {"decoded": counted, "on no profile's topic": foreign, "grown by MB": round(grown)}


def through_the_broker(folder: Path, count: int) -> Figures:
    """The daemon lives, counts each message that a profile's filter matches, and takes good readings as before."""
    ours = ("plant/", "flood/")
    with Rig(folder, {"max_devices": MAX_DEVICES, "more": AUTO}) as rig:
        daemon = rig.daemon
        daemon.start()
        before, delivered, after = daemon.rss(), 0, 0.0
        with Publisher(MqttSettings(host="127.0.0.1", port=rig.broker.port), in_flight=200) as publisher:
            for number, (where, payload) in enumerate(corpus(count), 1):
                publisher.publish([(where, payload)])
                levels = where.split("/")
                delivered += levels[0] + "/" in ours and len(levels) == (3 if levels[0] == "plant" else 2)
                delivered -= levels[0] == "plant" and levels[-1] != "telemetry" and len(levels) == 3
                if number % 10_000 == 0:
                    after = max(after, daemon.rss())
            publisher.drain()
            wait_until(lambda: daemon.messages() >= delivered, 5 * PATIENCE, f"{delivered} messages are counted")
            after = max(after, daemon.rss())
            accepted = 'sentinel_messages_total{outcome="accepted",profile="pump"}'
            good = int(daemon.metric(accepted))
            publisher.publish([("plant/d0/telemetry", orjson.dumps(GOOD | {"ts": fleets.START * 2}))])
            wait_until(lambda: daemon.metric(accepted) > good, PATIENCE, "a good reading is accepted")
        messages, metrics = daemon.messages(), daemon.metrics()
        assert messages == delivered + 1, "a message was counted twice, or without being sent"
        assert after - before < GROWTH, f"memory grew from {before:.0f} to {after:.0f} MB"
        rig.end()
        outcomes: Counter[str] = Counter()
        for name, value in metrics.items():
            if name.startswith("sentinel_messages_total") and value:
                outcomes[name.split('"')[1]] += int(value)
        told = ", ".join(f"{value} {name}" for name, value in outcomes.items())
        return {"delivered": messages, "counted": told, "RSS MB": f"{before:.0f} to {after:.0f}"}
