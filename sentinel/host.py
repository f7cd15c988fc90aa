"""Sentinel as a Sparkplug host application: what it says of itself, and whom it asks to be born again."""

import math
from collections.abc import Callable

import orjson

from sentinel.stream.decode.sparkplug import NAMESPACE

FIRST, LAST = 5.0, 600.0  # seconds between commands to one node, doubled from the first to the last
A_SECOND = 100  # commands to all nodes
MOST_ASKED = 10_000  # nodes


class Host:
    """The state of one host id: retained, with the last will as its end.

    Args:
        host_id: by which nodes know this host; a primary host is one that they wait for.
    """

    def __init__(self, host_id: str, clock: Callable[[], float]) -> None:
        self.topic = f"{NAMESPACE}/STATE/{host_id}"
        self._clock = clock
        self._since = clock()

    def will(self) -> bytes:
        """What the broker is to say when the connection that now begins breaks."""
        self._since = self._clock()
        return _state(self._since, online=False)

    def online(self) -> bytes:
        """Of the time that the connection's last will has: nodes compare the two."""
        return _state(self._since, online=True)

    def offline(self) -> bytes:
        """What to say at a clean end."""
        return _state(self._clock(), online=False)


def denies(payload: bytes) -> bool:
    """Whether it says that a host is offline."""
    try:
        said = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return False
    return isinstance(said, dict) and said.get("online") is False


def _state(at: float, *, online: bool) -> bytes:
    return orjson.dumps({"online": online, "timestamp": int(at * 1e3)})


class Rebirths:
    """Which nodes may be asked for a birth now: at once, then ever more rarely while there is reason to."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[float, float]] = {}  # when, and for how long not again
        self._left = A_SECOND

    def refill(self) -> None:
        """A second has passed."""
        self._left = A_SECOND

    def may_ask(self, node: str, now: float) -> bool:
        """Whether to ask; if so, it counts as asked."""
        at, pause = self._asked.get(node, (-math.inf, 0.0))
        if self._left <= 0 or 0 <= now - at < pause:
            return False
        self._left -= 1
        self._asked.pop(node, None)
        if len(self._asked) >= MOST_ASKED:
            del self._asked[next(iter(self._asked))]  # asked the longest ago
        self._asked[node] = now, FIRST if now - at > LAST else min(2 * pause, LAST)
        return True
