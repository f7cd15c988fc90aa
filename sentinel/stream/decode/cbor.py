"""CBOR (RFC 8949): maps and arrays, read as their JSON counterparts would be."""

import math
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import cbor2

from sentinel.records import Fate, Message
from sentinel.stream.decode.payload import MAX_VALUES, Malformed, sized

_DEPTH = 64
_SMALL = 1 << 12  # bytes; whatever so few hold is soon done
_UNSIGNED, _NEGATIVE, _BYTES, _STRING, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)  # major types
_KEYS = frozenset({_UNSIGNED, _NEGATIVE, _BYTES, _STRING})
_INDEFINITE, _ENDLESS = 31, 1 << 65
_TEXT, _LABELS = frozenset({str}), frozenset({str, int})
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
    """The same; `strict`: keys are text, else also whole numbers."""
    if len(sized(payload)) > _SMALL:
        _survey(payload)
    file = BytesIO(payload)
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
    return _plain(value, _TEXT if strict else _LABELS)


def _survey(payload: bytes) -> None:
    """Go over the heads of the items, before anything is made of them.

    An item may be one byte and an object of a hundred, and keys of other kinds than text and numbers can be made to
    collide, so that a map of n takes n² steps.
    Raises Malformed: too many items, or such a key. What is no CBOR is left for the decoder to tell.
    """
    left = [1]  # items still to come at each level, keys and values each one; they are even where a key is next
    maps = [False]
    at, end = 0, len(payload)
    for _ in range(MAX_VALUES):
        while left and not left[-1]:
            left.pop()
            maps.pop()
        if not left or at >= end:
            return
        kind, size = payload[at] >> 5, payload[at] & 31
        at += 1
        if kind == _SIMPLE and size == _INDEFINITE:  # the end of what had no stated length
            left[-1] = 0
            continue
        if maps[-1] and not left[-1] & 1 and kind not in _KEYS:
            raise Malformed(Fate.BAD_SHAPE, "a key of a map is no text")
        if 24 <= size < 28:
            width = 1 << (size - 24)
            size = int.from_bytes(payload[at : at + width])
            at += width
        elif size == _INDEFINITE:
            size = _ENDLESS
        if kind != _TAG:
            left[-1] -= 1
        if kind in (_ARRAY, _MAP) or size == _ENDLESS:
            left.append(2 * size if kind == _MAP else size)
            maps.append(kind == _MAP)
        elif kind in (_BYTES, _STRING):
            at += size
    raise Malformed(Fate.TOO_LARGE, f"over {MAX_VALUES} values")


def _plain(value: Any, keys: frozenset[type]) -> Any:
    """Without what only CBOR can say: undefined is null, NaN is text; with keys of these types alone."""
    kind = type(value)
    if kind is int or kind is str or kind is bool:
        return value
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind is dict or isinstance(value, Mapping):
        if not keys.issuperset(map(type, value)):
            raise Malformed(Fate.BAD_SHAPE, "a key of a map is no text")
        return {key: _plain(item, keys) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_plain(item, keys) for item in value]
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
