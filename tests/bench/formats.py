"""How fast each payload format is decoded, the same reading in each, side by side in one run.

A turn is 4096 messages of 500 devices, each a reading of four channels with its time (`value`: a bare number, without one).
A round decodes a turn of each format in turn, and parses its payloads by the format's library alone: what is left is ours.

    python -m tests.bench.formats [--json FILE] [--rounds N]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cbor2
import orjson
from line_protocol_parser import parse_line

from sentinel.records import Channel, EventTime, Message, Naming, PayloadFormat, ProfileSpec
from sentinel.stream.decode import Decoder
from tests import edges

TURN = 4096  # messages
DEVICES = 500
NAMES = ("pressure", "flow", "temperature", "vibration")
EPOCH = 1_700_000_000
Values = Sequence[float]


@dataclass(frozen=True, slots=True)
class Form:
    """One row of the bench.

    Attributes:
        payload: a reading, time in s and values, as the format writes it.
        alone: the library's own call on a payload.
        paths: of the channels.
        time: where the profile finds it; None: receipt, or the format's own.
        readings, naming: where entries lie that name their channels, and how.
        template, topic: of the profile, and of a reading of a device by its number.
        birth: what each device says first, on the topic `birth_topic`.
    """

    format: PayloadFormat
    payload: Callable[[int, Values], bytes]
    alone: Callable[[bytes], object]
    paths: Sequence[tuple[str, ...]]
    time: EventTime | None = None
    readings: tuple[str, ...] = ()
    naming: Naming | None = None
    template: str = "plant/{site}/{device}/telemetry"
    topic: str = "plant/hall/device-{:03}/telemetry"
    birth: bytes = b""
    birth_topic: str = ""


def _named(time: int, values: Values) -> dict[str, float]:
    return {"ts": time} | dict(zip(NAMES, values, strict=True))


def _line(time: int, values: Values) -> bytes:
    fields = ",".join(f"{name}={value}" for name, value in zip(NAMES, values, strict=True))
    return f"machine {fields} {time}000000000".encode()


def _pack(time: int, values: Values) -> list[dict[str, Any]]:
    pack: list[dict[str, Any]] = [{"n": name, "v": value} for name, value in zip(NAMES, values, strict=True)]
    return [{"bn": "machine/", "bt": time}, *pack]


def _nested(time: int, values: Values) -> dict[str, Any]:
    return {"ts": time, "machine": {name: {"value": value} for name, value in zip(NAMES, values, strict=True)}}


def _entries(time: int, values: Values) -> dict[str, Any]:
    return {"ts": time, "values": [{"id": name, "v": value} for name, value in zip(NAMES, values, strict=True)]}


KEYS = [(name,) for name in NAMES]
FORMS: Mapping[str, Form] = {
    "json": Form("json", lambda at, v: orjson.dumps(_named(at, v)), orjson.loads, KEYS, EventTime(("ts",))),
    "json, nested": Form(
        "json",
        lambda at, v: orjson.dumps(_nested(at, v)),
        orjson.loads,
        [("machine", name, "value") for name in NAMES],
        EventTime(("ts",)),
    ),
    "json, named": Form(
        "json",
        lambda at, v: orjson.dumps(_entries(at, v)),
        orjson.loads,
        KEYS,
        EventTime(("ts",)),
        ("values",),
        Naming(("id",), ("v",)),
    ),
    "value": Form("value", lambda _, v: f"{v[0]}".encode(), float, KEYS[:1]),
    "csv": Form(
        "csv",
        lambda at, v: ",".join(map(str, (at, *v))).encode(),
        lambda payload: next(csv.reader([payload.decode()])),
        [(f"{column}",) for column in range(1, 5)],
        EventTime(("0",)),
    ),
    "influx": Form(
        "influx", _line, lambda payload: parse_line(payload.decode()), [("machine", name) for name in NAMES]
    ),
    "senml": Form("senml", lambda at, v: orjson.dumps(_pack(at, v)), orjson.loads, KEYS),
    "senml, CBOR": Form("senml", lambda at, v: cbor2.dumps(_pack(at, v)), cbor2.loads, KEYS),
    "sparkplug": Form(
        "sparkplug",
        lambda at, v: edges.payload(
            at, None, *(edges.metric(field="double_value", value=value, alias=n) for n, value in enumerate(v))
        ),
        edges.parse,
        KEYS,
        template="spBv1.0/#",
        topic="spBv1.0/hall/DDATA/edge/device-{:03}",
        birth=edges.payload(
            EPOCH - 1, None, *(edges.metric(name, edges.DOUBLE, alias=n) for n, name in enumerate(NAMES))
        ),
        birth_topic="spBv1.0/hall/DBIRTH/edge/device-{:03}",
    ),
    "cbor": Form("cbor", lambda at, v: cbor2.dumps(_named(at, v)), cbor2.loads, KEYS, EventTime(("ts",))),
}


def turn(form: Form) -> list[Message]:
    """The messages of a turn, the same readings for every form."""
    noise = random.Random(7)
    return [
        Message(
            form.topic.format(number % DEVICES),
            form.payload(EPOCH + number // DEVICES, [round(noise.gauss(40, 9), 4) for _ in NAMES]),
            1,
        )
        for number in range(TURN)
    ]


def decoder(form: Form) -> Decoder:
    channels = tuple(Channel(name, path) for name, path in zip(NAMES, form.paths, strict=False))
    spec = ProfileSpec(
        "machine",
        form.template,
        channels,
        form.time,
        format=form.format,
        readings_path=form.readings,
        naming=form.naming,
    )
    made = Decoder([(spec, [channel.name for channel in channels])], "sentinel")
    if form.birth:
        made.decode([Message(form.birth_topic.format(number), form.birth, 1) for number in range(DEVICES)])
    return made


def _parse(alone: Callable[[bytes], object], messages: Sequence[Message]) -> None:
    for message in messages:
        alone(message.payload)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(rounds: int, forms: Mapping[str, Form] = FORMS) -> dict[str, Any]:
    """Seconds of each round for each form: a turn decoded, and its payloads parsed by the library alone."""
    turns = {name: turn(form) for name, form in forms.items()}
    decoders = {name: decoder(form) for name, form in forms.items()}
    readings = {}
    for name, messages in turns.items():
        decoded = decoders[name].decode(messages)
        readings[name] = sum(map(len, decoded.readings))
        assert readings[name] >= TURN, f"{name}: {decoded.refusals[:1]}"
    ours: dict[str, list[float]] = {name: [] for name in forms}
    alone: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, messages in turns.items():
            ours[name].append(_seconds(partial(decoders[name].decode, messages)))
            alone[name].append(_seconds(partial(_parse, forms[name].alone, messages)))
    return {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
        "rounds": rounds,
        "formats": {
            name: {
                "bytes": round(sum(len(message.payload) for message in turns[name]) / TURN),
                "messages_per_s": TURN / median(ours[name]),
                "readings_per_s": readings[name] / median(ours[name]),
                "slowest": TURN / max(ours[name]),
                "fastest": TURN / min(ours[name]),
                "ratio_to_json": median(j / o for j, o in zip(ours["json"], ours[name], strict=True)),
                "us": median(ours[name]) / TURN * 1e6,
                "us_alone": median(alone[name]) / TURN * 1e6,
            }
            for name in forms
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    print(f"{'format':12} {'bytes':>5} {'messages/s':>11} {'slowest to fastest':>20} {'readings/s':>11} "
          f"{'to JSON':>8} {'µs each':>8} {'library':>8}")  # fmt: skip
    for name, of in result["formats"].items():
        spread = f"{of['slowest']:.0f} to {of['fastest']:.0f}"
        print(f"{name:12} {of['bytes']:5} {of['messages_per_s']:11.0f} {spread:>20} {of['readings_per_s']:11.0f} "
              f"{of['ratio_to_json']:8.2f} {of['us']:8.2f} {of['us_alone']:8.2f}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
