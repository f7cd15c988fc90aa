"""CBOR (RFC 8949): maps and arrays, read as their JSON counterparts would be."""

import math
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import cbor2

from sentinel.records import Fate, Message
from sentinel.stream.decode.payload import Malformed, sized

_DEPTH = 64
_SELF_DESCRIBED = b"\xd9\xd9\xf7"


def looks_like_cbor(payload: bytes) -> bool:
    """An array or a map, self-described or not: no text begins so, for no UTF-8 does."""
    return payload[:3] == _SELF_DESCRIBED or 0x80 <= (payload[0] if payload else 0) < 0xC0


def read_cbor(message: Message) -> Any:
    """The value of a payload; bytes, bignums and NaN are no numbers.

    Raises:
        Malformed: too large, not one CBOR item, nested too deep, a key twice in one map or one that is no text.
    """
    return load_cbor(message.payload, strict=True)


def load_cbor(payload: bytes, *, strict: bool) -> Any:
    """The same; `strict`: keys are text."""
    file = BytesIO(sized(payload))
    decoder = cbor2.CBORDecoder(
        file,
        semantic_decoders=_TAGS,
        max_depth=_DEPTH,
        allow_duplicate_keys=False,
        strict_hashable_types=strict,
    )
    try:
        value = decoder.decode()
    except Exception as error:  # whatever a hostile payload makes of a tag or a key
        raise Malformed(Fate.BAD_SYNTAX, f"no CBOR: {error}"[:200]) from None
    if file.tell() != len(payload):
        raise Malformed(Fate.BAD_SYNTAX, f"no CBOR: {len(payload) - file.tell()} bytes after its end")
    return _plain(value, strict)


def _plain(value: Any, strict: bool) -> Any:
    """Without what only CBOR can say: undefined is null, NaN is text."""
    kind = type(value)
    if kind is int or kind is str or kind is bool:
        return value
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        if strict and not all(type(key) is str for key in value):
            raise Malformed(Fate.BAD_SHAPE, "a key of a map is no text")
        return {key: _plain(item, strict) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_plain(item, strict) for item in value]
    return None if value is cbor2.undefined else value


def _content(value: Any, _immutable: bool) -> Any:
    return value


def _decimal_fraction(pair: Any, _immutable: bool) -> Any:
    if isinstance(pair, list | tuple) and len(pair) == 2 and all(type(part) is int for part in pair):
        exponent, mantissa = pair
        return mantissa * 10.0**exponent if abs(exponent) <= 30 else "out of range"
    return "no decimal fraction"


# Times are left as text or number for the profile's `time`; the rest is no measurement and must cost nothing.
_TAGS: dict[int, Callable[[Any, bool], Any]] = dict.fromkeys(
    (0, 1, 2, 3, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799), _content
) | {4: _decimal_fraction}
