"""Alerts to an HTTP address: each transition one POST, signed as Standard Webhooks does.

webhook-id: {alert id}-{seq}                     the same at each attempt: what came twice can be told
webhook-timestamp: seconds since the epoch       of this attempt
webhook-signature: v1,{base64 HMAC-SHA256 of "id.timestamp.body"}
"""

from __future__ import annotations

import base64
import hmac
import http.client
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from sentinel import __version__
from sentinel.adapters.sinks import encode_alert
from sentinel.records import Transition, WebhookFate

ROOM = 1000  # messages that wait
KEEP = 3600.0  # seconds after which a message that could not be delivered is given up
TIMEOUT = 10.0  # seconds for each wait for the receiver
FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0  # seconds before the next attempt; doubled at each failure, cut by chance
LONGEST_ANSWER = 64 << 10  # bytes of an answer that are read, so that the connection can be used again
GONE = 410
_LATER = frozenset({408, 425, 429})

log = structlog.get_logger("sentinel.webhook")


@dataclass(frozen=True, slots=True)
class _Post:
    """One transition, and when it was queued (steady clock)."""

    id: str
    body: bytes
    queued: float


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of an attempt. `status` 0: no answer; `after`: seconds that the receiver asks to wait."""

    status: int
    reason: str
    after: float = 0.0

    @property
    def delivered(self) -> bool:
        return 200 <= self.status < 300

    @property
    def again(self) -> bool:
        """Whether another attempt may do better."""
        return self.status == 0 or self.status >= 500 or self.status in _LATER


class Webhook:
    """Posts transitions to one address, in order, from a thread of its own. Redirects are not followed.

    Holds: at most `ROOM` messages, in memory.   Blocks: never, but for `close`.   Raises: nothing.
    Gives up, and says so to `count`: the oldest of too many, what the receiver refuses, what is older than `KEEP`,
    everything once the receiver says that it is gone, and what is left at `close`.

    Args:
        url: http or https.
        key: of the signature; None: not signed.
        tls: verifies the receiver.
        count: called with what became of each message, and with "retried"; from both threads.
    """

    def __init__(self, url: str, key: bytes | None, tls: ssl.SSLContext, count: Callable[[WebhookFate], None]) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        self.host = parts.netloc  # all that logs tell: the rest of an address may be a secret
        self._target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        self._key = key
        self._count = count
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT, context=tls)
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT)
        )
        self._waiting: deque[_Post] = deque()
        self._changed = threading.Condition()
        self._closing = self._gone = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=f"webhook {self.host}", daemon=True)

    def __len__(self) -> int:
        """Messages that wait, the one that is tried left out."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def emit(self, transitions: Sequence[Transition]) -> None:
        """Queue each transition."""
        with self._changed:
            for transition in transitions:
                alert = transition.alert
                if self._gone:
                    self._count("gone")
                    continue
                if len(self._waiting) >= ROOM:
                    self._waiting.popleft()
                    self._count("overfull")
                self._waiting.append(_Post(f"{alert.id}-{alert.seq}", encode_alert(alert), time.monotonic()))
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Deliver what waits, without further attempts, and end. Blocks: at most `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        left = self._give_up("stopped") + self._thread.is_alive()
        if left:
            log.warning("webhook: stopped before all was delivered", host=self.host, messages=left)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._connection.close()
                while not self._waiting:
                    if self._closing:
                        return
                    self._changed.wait()
                post = self._waiting.popleft()
            self._deliver(post)

    def _deliver(self, post: _Post) -> None:
        while True:
            answer = self._attempt(post)
            if not answer.again:
                break
            self._failures += 1
            wait = min(FIRST_WAIT * 2 ** min(self._failures - 1, 20), LONGEST_WAIT) * random.uniform(0.5, 1.0)
            wait = max(wait, min(answer.after, LONGEST_WAIT))
            if self._failures == 1:
                log.warning("webhook: not delivered; tried again", host=self.host, reason=answer.reason)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, wait)
                over: WebhookFate | None = "stopped" if self._closing else None
            if over is None and time.monotonic() - post.queued > KEEP:
                over = "expired"
            if over is not None:
                self._count(over)
                return
            self._count("retried")
        if self._failures and answer.delivered:
            log.info("webhook: delivered again", host=self.host, failures=self._failures)
        self._failures = 0
        if answer.delivered:
            self._count("delivered")
        elif answer.status == GONE:
            self._count("gone")
            with self._changed:
                self._gone = True
            self._give_up("gone")
            log.error("webhook: gone (410); nothing more is sent until a restart", host=self.host)
        else:
            self._count("refused")
            log.warning("webhook: refused", host=self.host, id=post.id, reason=answer.reason)

    def _give_up(self, fate: WebhookFate) -> int:
        with self._changed:
            count = len(self._waiting)
            self._waiting.clear()
        for _ in range(count):
            self._count(fate)
        return count

    def _attempt(self, post: _Post) -> _Answer:
        now = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"Sentinel/{__version__}",
            "webhook-id": post.id,
            "webhook-timestamp": str(now),
        }
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, post.id, now, post.body)
        try:
            self._connection.request("POST", self._target, post.body, headers)
            response = self._connection.getresponse()
            response.read(LONGEST_ANSWER)
            if not response.isclosed():
                self._connection.close()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return _Answer(0, f"{type(error).__name__}: {error}")
        after = response.headers.get("Retry-After", "")
        reason = f"{response.status} {response.reason}"
        if 300 <= response.status < 400:
            reason += "; redirects are not followed: set the address that it names"
        return _Answer(response.status, reason, float(after) if after.isascii() and after.isdigit() else 0.0)


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """As in the header `webhook-signature`."""
    digest = hmac.digest(key, b"%s.%d.%s" % (message_id.encode(), timestamp, body), "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"
