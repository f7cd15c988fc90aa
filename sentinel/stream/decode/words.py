"""What is wrong with a payload, in JSON's words and with the place."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

LONGEST = 300  # characters
_MOST_LISTED, _LONGEST_KEY, _DEEPEST = 10, 32, 4
_LONGEST_VALUE = 40

Words = str | Callable[[], str]
"""What is wrong, or what says it: of many refusals few are told, and looking around in a payload can wait for those."""


def say(words: Words) -> str:
    """At most `LONGEST` characters, which every encoding takes."""
    text = words if isinstance(words, str) else words()
    return _cut(text.encode("utf-8", "backslashreplace").decode(), LONGEST)


def kind(value: Any) -> str:
    """What a value is, and a single one itself."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"text ({_cut(value, _LONGEST_VALUE)!r})"
    if isinstance(value, int | float):
        return f"a number ({value!r})"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    return "bytes" if isinstance(value, bytes) else "no JSON value"


def unlike(what: str, path: Sequence[str], found: Any, wanted: str, *within: Any) -> str:
    """What was found at a path (None: nothing) instead of what was wanted; where that tells no value, what is there."""
    if found is None:
        return f"nothing at {what} path {dotted(path)}; {paths(*within)}"
    said = f"{kind(found)} at {what} path {dotted(path)}, expected {wanted}"
    return f"{said}; {paths(*within)}" if isinstance(found, dict) else said


def dotted(path: Sequence[str]) -> str:
    """A path as a configuration has it."""
    return f"'{_cut('.'.join(path), LONGEST // 2)}'"


def paths(*within: Any) -> str:
    """Which paths a payload has: "the payload has: id, meta.name, ts"."""
    return f"the payload has: {listed(path for each in within for path in _leaves(each))}"


def listed(names: Iterable[str]) -> str:
    """The first of them; it takes no more than it says."""
    found = list(islice(names, _MOST_LISTED + 1))
    if len(found) > _MOST_LISTED:
        found[-1] = "…"
    return ", ".join(found) or "nothing"


def _leaves(node: Any, head: str = "", depth: int = _DEEPEST) -> Iterator[str]:
    for key, child in node.items() if isinstance(node, dict) else ():
        path = head + _cut(str(key), _LONGEST_KEY)
        if isinstance(child, dict) and child and depth:
            yield from _leaves(child, f"{path}.", depth - 1)
        else:
            yield f"{path} (null)" if child is None else path


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
