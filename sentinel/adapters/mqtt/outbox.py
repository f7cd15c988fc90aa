"""Publishes that wait for the connection."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

BOUND = 10_000


class Publish(NamedTuple):
    """One PUBLISH to be sent."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


class Outbox:
    """A queue that forgets what nobody would miss first.

    Holds: at most `bound` publishes that are not retained, and one retained for each topic.
    Drops, counted in `dropped`: the oldest not retained.
    """

    def __init__(self, bound: int = BOUND) -> None:
        self.dropped = 0
        self._bound = bound
        self._waiting: OrderedDict[int | str, Publish] = OrderedDict()
        self._passing: deque[int] = deque()  # keys of those not retained, oldest first
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self) -> list[Publish]:
        """What `pop` would give, in order."""
        return list(self._waiting.values())

    def put(self, publish: Publish) -> None:
        """Append; a retained one takes the place of an older one for its topic, at the end."""
        if publish.retain:
            self._waiting.pop(publish.topic, None)
            self._waiting[publish.topic] = publish
            return
        self._count += 1
        self._waiting[self._count] = publish
        self._passing.append(self._count)
        if len(self._passing) > self._bound:
            del self._waiting[self._passing.popleft()]
            self.dropped += 1

    def pop(self) -> Publish:
        """Take the oldest. Raises KeyError if there is none."""
        _, publish = self._waiting.popitem(last=False)
        if not publish.retain:
            self._passing.popleft()
        return publish
