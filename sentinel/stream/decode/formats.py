"""Payload formats behind one protocol, and how they are told apart."""

from collections.abc import Mapping
from typing import Any, Protocol

from sentinel.records import Fate, Message, PayloadFormat, ProfileSpec
from sentinel.stream.decode import payload as json_form
from sentinel.stream.decode.cbor import load_cbor, looks_like_cbor, read_cbor
from sentinel.stream.decode.csvline import read_csv, read_number
from sentinel.stream.decode.influx import read_influx
from sentinel.stream.decode.payload import Malformed
from sentinel.stream.decode.senml import looks_like_senml, read_senml, resolve
from sentinel.stream.decode.sparkplug import read_payload


class Format(Protocol):
    """What a message says, as plain values.

    An object is one reading, a number one value, a list several of them: objects, `Record`s (where the format itself
    names device or time), or `Malformed` for a part that cannot be used.
    Blocks: never.   Raises: Malformed, nothing else.   Holds: at most fifty times the payload.
    """

    def __call__(self, message: Message) -> Any: ...


def recognise(message: Message) -> tuple[PayloadFormat, Any]:
    """The format that a payload can only have, and what it says: JSON, else what cannot be mistaken for it.

    Raises Malformed: none of them, with the fault of the JSON that it is not.
    """
    try:
        value = json_form.load(message)
    except Malformed as no_json:
        if no_json.fate is Fate.TOO_LARGE:
            raise
        if looks_like_cbor(message.payload):
            pack = load_cbor(message.payload, strict=False)
            if type(pack) is list and looks_like_senml(pack):
                return "senml", resolve(pack, message)
            return "cbor", read_cbor(message)
        return "influx", _lines(message, no_json)
    if type(value) is list and looks_like_senml(value):
        return "senml", resolve(value, message)
    return "json", value


def _told_apart(message: Message) -> Any:
    return recognise(message)[1]


def _told_apart_but_senml(message: Message) -> Any:
    try:
        return json_form.load(message)
    except Malformed as no_json:
        if no_json.fate is Fate.TOO_LARGE:
            raise
        return read_cbor(message) if looks_like_cbor(message.payload) else _lines(message, no_json)


def _lines(message: Message, otherwise: Malformed) -> Any:
    try:
        return read_influx(message)
    except Malformed:
        raise otherwise from None


FORMATS: Mapping[PayloadFormat, Format] = {
    "auto": _told_apart_but_senml,
    "json": json_form.load,
    "value": read_number,
    "csv": read_csv,
    "influx": read_influx,
    "senml": read_senml,
    "cbor": read_cbor,
    "sparkplug": read_payload,  # what it means, births say: see `Edges`
}


def format_of(spec: ProfileSpec) -> Format:
    """The format of a profile. SenML is told apart where no path could mean the same array otherwise."""
    paths = spec.time or spec.device_path or spec.naming
    if spec.format == "auto" and spec.channels is None and not paths:
        return _told_apart
    return FORMATS[spec.format]
