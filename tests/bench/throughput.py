"""Throughput and latency through a real mosquitto, all contestants in one run, alternating.

    nothing   paho `loop_start`, orjson.loads, no more
    naive     a daemon as one would write it first: paho callback, json.loads, `torch.nn.LSTM` on one row
    sentinel  `sentinel run` with a trained model and its journal
    snapshots the same with durability = "none": what the journal costs
    relay     takes the packets apart, acknowledges, and publishes an event for each spike that it sees in a payload:
              what broker and machine alone take, for the latency alone

Each gets a mosquitto of its own with an unbounded queue. The publisher sends ready-made packets as fast as the
broker takes them; a rate is messages over the time from the first byte sent until the contestant has dealt with
the last message. Then, at half of Sentinel's rate, devices get a spike one after the other; latency is from the
send of the spike to the arrival of its event at an ordinary subscriber, on the clock of this process.

    python -m tests.bench.throughput [--json FILE] [--messages N] [--rounds N] [--qos 0|1]
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import pytest
import torch
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from prometheus_client import CollectorRegistry, Counter

from sentinel.adapters.mqtt.wire import READ_SIZE, Next, Wire
from sentinel.records import Message
from tests.brokers import Mosquitto, PlainClient
from tests.servers import free_port

DEVICES = 500
WARM_TICKS = 64  # a device is scored within its first 50
NAIVE_SHARE = 5  # the naive daemon gets so many times fewer messages
POLL = 0.1
PATIENCE = 300.0
SPIKES_A_SECOND = 10
EPOCH = 1_700_000_000
CHANNELS = ("pressure", "flow", "temperature", "vibration")
HIDDEN = 32
DURABILITY = {"sentinel": "journal", "snapshots": "none"}
CONFIG = """
[mqtt]
port = {broker}
qos = {qos}

[http]
port = {http}

[store]
path = "state"
durability = "{durability}"

[profiles.machine]
topic = "plant/{{site}}/{{device}}/telemetry"
time = {{ path = "ts", unit = "s" }}
channels = {channels}
learn = "never"
silence_after = "off"

[profiles.machine.model]
hidden = {hidden}
"""


class Plant:
    """Devices whose channels are a slow wave and noise, one tick a second of event time each."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._tick = [0] * DEVICES
        self._phase = [self._random.random() for _ in range(DEVICES)]

    def reading(self, device: int, *, spike: bool = False) -> dict[str, float]:
        """The next reading of a device."""
        tick = self._tick[device]
        self._tick[device] = tick + 1
        wave = abs((tick / 60 + self._phase[device]) % 2 - 1)
        noise = self._random.gauss
        values = (5 + wave + noise(0, 0.05), 40 + 9 * wave + noise(0, 0.3), 60 + noise(0, 0.2), 2 + noise(0, 0.1))
        reading = {"ts": float(EPOCH + tick)} | {name: round(v, 4) for name, v in zip(CHANNELS, values, strict=True)}
        return reading | {"pressure": 500.0} if spike else reading

    def packet(self, device: int, qos: int, mid: int, *, spike: bool = False) -> bytes:
        """Its PUBLISH, ready to be sent."""
        topic = _text(f"plant/hall/device-{device:03}/telemetry".encode())
        payload = json.dumps(self.reading(device, spike=spike)).encode()
        return _packet(0x30 | qos << 1, topic + (struct.pack("!H", mid) if qos else b"") + payload)

    def packets(self, count: int, qos: int) -> list[bytes]:
        """So many, the devices in turn."""
        return [self.packet(number % DEVICES, qos, number % 65535 + 1) for number in range(count)]


class Publisher:
    """A bare MQTT 3.1.1 client that sends packets and throws the acknowledgements away."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(_packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x00" + _text(b"bench")))
        assert self._socket.recv(4) == b"\x20\x02\x00\x00"
        self.send = self._socket.sendall
        self._reader = threading.Thread(target=self._discard, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Disconnect."""
        with suppress(OSError):
            self._socket.sendall(b"\xe0\x00")
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(5)
        self._socket.close()

    def _discard(self) -> None:
        with suppress(OSError):
            while self._socket.recv(65536):
                pass


class Contestant:
    """A consumer in a process of its own.

    Args:
        ready: whether nothing published from now on is missed.
        done: how many messages it has dealt with.
    """

    def __init__(self, command: list[str], folder: Path, ready: Callable[[], bool], done: Callable[[], int]) -> None:
        self.done = done
        self.log = folder / "contestant.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=_environment())
        self.wait(ready)

    def wait(self, condition: Callable[[], bool]) -> float:
        """Poll until it holds; returns the time of the poll that saw it."""
        deadline = time.perf_counter() + PATIENCE
        while True:
            with suppress(OSError, ValueError):
                now = time.perf_counter()
                if condition():
                    return now
            if self._process.poll() is not None or time.perf_counter() > deadline:
                self.stop()
                sys.exit(f"it ended or hangs:\n{self.log.read_text()[-3000:]}")
            time.sleep(POLL)

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _environment() -> dict[str, str]:
    here = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}


@contextmanager
def baseline(kind: str, broker: int, qos: int, folder: Path) -> Iterator[Contestant]:
    """A baseline's process, which writes its progress into a file."""
    progress = folder / "progress"
    command = [sys.executable, "-m", __spec__.name, "--consumer", kind, "--port", str(broker), "--qos", str(qos)]
    contestant = Contestant(
        [*command, "--progress", str(progress)], folder, progress.exists, lambda: int(progress.read_text())
    )
    try:
        yield contestant
    finally:
        contestant.stop()


@contextmanager
def sentinel(broker: int, qos: int, folder: Path, store: Path, durability: str) -> Iterator[Contestant]:
    """`sentinel run` on a copy of a store that holds a trained model."""
    http = free_port()
    _write_config(folder, broker, http, qos, durability)
    subprocess.run(["cp", "-r", str(store), str(folder / "state")], check=True)
    address = f"http://127.0.0.1:{http}"
    contestant = Contestant(
        [sys.executable, "-m", "sentinel", "run", "--config", "sentinel.toml"],
        folder,
        lambda: _get(f"{address}/readyz") is not None,
        lambda: _messages(_get(f"{address}/metrics") or ""),
    )
    try:
        yield contestant
    finally:
        contestant.stop()


def _write_config(folder: Path, broker: int, http: int, qos: int, durability: str) -> None:
    channels = json.dumps(CHANNELS)
    (folder / "sentinel.toml").write_text(
        CONFIG.format(broker=broker, http=http, qos=qos, durability=durability, channels=channels, hidden=HIDDEN)
    )


def _get(url: str) -> str | None:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def _messages(metrics: str) -> int:
    lines = [line for line in metrics.splitlines() if line.startswith("sentinel_messages_total")]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


def train(folder: Path) -> Path:
    """Train the model once; returns the store that holds it."""
    plant = Plant(seed=1)
    data = folder / "recording.csv"
    with data.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "device", *CHANNELS])
        for _ in range(400):
            for device in range(20):
                reading = plant.reading(device)
                writer.writerow([reading["ts"], f"hall/device-{device:03}", *(reading[name] for name in CHANNELS)])
    _write_config(folder, free_port(), 0, 1, "journal")
    command = [sys.executable, "-m", "sentinel", "train", "--config", "sentinel.toml", "--profile", "machine"]
    done = subprocess.run(
        [*command, str(data)], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"training failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return folder / "state"


def measure_rate(contestant: Contestant, publisher: Publisher, plant: Plant, count: int, qos: int) -> float:
    """Messages a second, after a warm-up that also gives each device a past that it is scored by."""
    warm = plant.packets(DEVICES * WARM_TICKS, qos)
    publisher.send(b"".join(warm))
    contestant.wait(lambda: contestant.done() >= len(warm))
    packets = plant.packets(count, qos)
    stream = b"".join(packets)
    begun = time.perf_counter()
    publisher.send(stream)
    ended = contestant.wait(lambda: contestant.done() >= len(warm) + count)
    surplus = contestant.done() - len(warm) - count
    assert surplus == 0, f"{surplus} messages too many"
    return count / (ended - begun)


def measure_latency(broker: int, publisher: Publisher, plant: Plant, rate: float, qos: int) -> list[float]:
    """Seconds from a spike's send to its event's arrival, for as many devices as there are, at `rate`."""
    subscriber = PlainClient(broker, "sentinel/events/#")
    sent: dict[str, float] = {}
    try:
        every = max(int(rate / SPIKES_A_SECOND), DEVICES + 1)
        while math.gcd(every, DEVICES) > 1:  # each spike is another device's
            every += 1
        total = every * min(DEVICES // 2, 200)
        packets = [
            plant.packet(number % DEVICES, qos, number % 65535 + 1, spike=number % every == every - 1)
            for number in range(total)
        ]
        begun = time.perf_counter()
        number = 0
        while number < total:
            due = min(int((time.perf_counter() - begun) * rate) + 1, total)
            for spike in range(number, due):
                if spike % every == every - 1:
                    sent.setdefault(f"device-{spike % DEVICES:03}", time.perf_counter())
            publisher.send(b"".join(packets[number:due]))
            number = due
            time.sleep(0.001)
        time.sleep(2.0)
    finally:
        subscriber.close()
    arrived: dict[str, float] = {}
    for delivery, at in zip(subscriber.got, subscriber.arrived, strict=True):
        device = delivery.topic.rpartition("/")[2]
        if device in sent and at > sent[device]:
            arrived.setdefault(device, at)
    missing = set(sent) - set(arrived)
    if missing:
        print(f"  {len(missing)} of {len(sent)} spikes gave no event", file=sys.stderr)
    return sorted(arrived[device] - sent[device] for device in arrived)


def compare(messages: int, rounds: int, qos: int) -> dict[str, Any]:
    """Run all contestants in turn, `rounds` times."""
    rates: dict[str, list[float]] = {"nothing": [], "naive": [], "sentinel": [], "snapshots": []}
    latencies: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        store = train(Path(place))
        for round_ in range(rounds):
            for name, taken in rates.items():
                with tempfile.TemporaryDirectory() as own:
                    folder = Path(own)
                    (folder / "mosquitto").mkdir()
                    with Mosquitto(folder / "mosquitto") as mosquitto:
                        publisher, plant = Publisher(mosquitto.port), Plant(seed=2)
                        started = (
                            sentinel(mosquitto.port, qos, folder, store, DURABILITY[name])
                            if name in DURABILITY
                            else baseline(name, mosquitto.port, qos, folder)
                        )
                        with started as contestant:
                            count = messages // NAIVE_SHARE if name == "naive" else messages
                            taken.append(measure_rate(contestant, publisher, plant, count, qos))
                            print(f"  round {round_ + 1}  {name:9} {taken[-1]:9.0f} messages/s", file=sys.stderr)
                            if name in DURABILITY and round_ == rounds - 1:
                                half = median(taken) / 2
                                latencies[name] = measure_latency(mosquitto.port, publisher, plant, half, qos)
                        publisher.close()
        beside = Path(place)
        with Mosquitto(beside) as mosquitto, baseline("relay", mosquitto.port, qos, beside):
            publisher = Publisher(mosquitto.port)
            half = median(rates["sentinel"]) / 2
            latencies["relay"] = measure_latency(mosquitto.port, publisher, Plant(seed=2), half, qos)
            publisher.close()
    medians = {name: median(taken) for name, taken in rates.items()}
    return {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
        "messages": messages,
        "qos": qos,
        "rounds": rounds,
        "rates": rates,
        "medians": medians,
        "ratio_to_nothing": medians["sentinel"] / medians["nothing"],
        "ratio_to_naive": medians["sentinel"] / medians["naive"],
        "ratio_to_snapshots": medians["sentinel"] / medians["snapshots"],
        "latency_ms": {
            name: {
                "rate": medians.get(name, medians["sentinel"]) / 2,
                "spikes": len(taken),
                "p50": _quantile(taken, 0.5) * 1000,
                "p99": _quantile(taken, 0.99) * 1000,
            }
            for name, taken in latencies.items()
        },
    }


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else float("nan")


def consume(kind: str, port: int, qos: int, progress: Path) -> None:
    """A baseline, until SIGTERM. Writes how many messages it has dealt with into `progress`."""
    registry = CollectorRegistry()
    counter = Counter("readings", "Readings scored.", ["profile"], registry=registry).labels("machine")
    torch.set_num_threads(1)
    lstm = torch.nn.LSTM(len(CHANNELS), HIDDEN)
    head = torch.nn.Linear(HIDDEN, len(CHANNELS))
    states: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    forecasts: dict[str, torch.Tensor] = {}
    count = 0

    def do_nothing(client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        nonlocal count
        orjson.loads(message.payload)
        count += 1

    def score_naively(client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        nonlocal count
        reading = json.loads(message.payload)
        device = message.topic.split("/")[2]
        row = torch.tensor([[reading[name] for name in CHANNELS]])
        with torch.no_grad():
            if device in forecasts:
                float((row - forecasts[device]).abs().max())
            output, states[device] = lstm(row, states.get(device))
            forecasts[device] = head(output)
        counter.inc()
        count += 1

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=kind)
    client.on_message = do_nothing if kind == "nothing" else score_naively
    subscribed, stopped = threading.Event(), threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe("plant/#", qos)
    subscribed.wait(10)
    while not stopped.wait(POLL / 2):
        fresh = progress.with_suffix(".new")
        fresh.write_text(str(count))
        fresh.replace(progress)
    client.disconnect()
    client.loop_stop()


def relay(port: int, qos: int, progress: Path) -> None:
    """Publish an event for each spike, and do nothing else, until SIGTERM."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(_packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x00" + _text(b"relay")))
    assert connection.recv(4) == b"\x20\x02\x00\x00"
    connection.sendall(_packet(0x82, b"\x00\x01" + _text(b"plant/#") + bytes([qos])))
    wire = Wire(connection, version5=False)
    progress.write_text("0")
    while wire.lost is None:
        select.select([connection], [], [])
        messages: list[Message] = []
        while wire.fill():
            while wire.take(messages, sys.maxsize) is Next.HAND_ON:
                with suppress(BlockingIOError):
                    while wire.recv(READ_SIZE):
                        pass
        acknowledgements = [struct.pack("!BBH", 0x40, 2, message.mid) for message in messages if message.qos]
        spikes = [message for message in messages if b"500.0" in message.payload]
        events = [b"sentinel/events/machine/hall/" + spike.topic.split("/")[2].encode() for spike in spikes]
        packets = [_packet(0x30, _text(topic) + spike.payload) for topic, spike in zip(events, spikes, strict=True)]
        wire.queue(b"".join(acknowledgements + packets))
        wire.flush()


def _packet(head: int, body: bytes) -> bytes:
    size = len(body)
    return bytes([head, size] if size < 128 else [head, size & 127 | 128, size >> 7]) + body


def _text(text: bytes) -> bytes:
    return struct.pack("!H", len(text)) + text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--messages", type=int, default=100_000, help="for each contestant and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--qos", type=int, choices=(0, 1), default=1)
    parser.add_argument("--consumer", choices=("nothing", "naive", "relay"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--progress", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.consumer == "relay":
        relay(arguments.port, arguments.qos, arguments.progress)
        return
    if arguments.consumer:
        consume(arguments.consumer, arguments.port, arguments.qos, arguments.progress)
        return
    try:
        result = compare(arguments.messages, arguments.rounds, arguments.qos)
    except pytest.skip.Exception as missing:
        sys.exit(f"{missing}")
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
