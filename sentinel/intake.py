"""Whether each profile's messages come and can be used: where they do not, the operator is told, not a counter alone."""

import base64
import math
from codecs import getincrementaldecoder
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from sentinel.records import Fate, Message, ProfileSpec
from sentinel.stream.decode import Refusal, Template
from sentinel.stream.pipeline import ProfileStream

WITHIN, LEAST = 60.0, 10  # seconds and messages that are judged together: whichever takes longer
SPAN = 10.0  # seconds whose messages are forgotten together
BEGINS, ENDS = 0.5, 0.25  # share of them that is refused: over the one, until it is no more than the other
LONGEST = 86400.0  # seconds after which they are judged no more
AGAIN = 600.0  # seconds after which the log tells once more what lasts
MOST_UNREAD, SHOWN = 1000, 3  # devices that are kept, and shown
LETTER_BYTES = 1024  # of the payload
_NO_PAYLOAD = frozenset({Fate.OVERFULL, Fate.LATE, Fate.BAD_DEVICE})  # refused whatever is in it
_UNHEARD, _REFUSED = "no message has come", "messages are refused"
_TAKEN = frozenset({Fate.ACCEPTED, Fate.RETAINED, Fate.DUPLICATE})
_WHERE: Mapping[Fate, str] = {
    Fate.LATE: "the senders' clocks and {profile}.align_window",
    Fate.OVERFULL: "{profile}.max_devices, and whether device ids change with each message",
    Fate.UNBORN: "mqtt.rebirth",
    Fate.NO_CHANNEL: "{profile}.{channels}",
    Fate.BAD_VALUE: "{profile}.{channels}",
    Fate.BAD_TIME: "{profile}.time",
    Fate.BAD_DEVICE: "{profile}.{device}",
    Fate.BAD_SHAPE: "{profile}.{shape}",
    Fate.BAD_SYNTAX: "{profile}.format",
    Fate.TOO_LARGE: "what the senders put into one message",
}

log = structlog.get_logger("sentinel.intake")


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with the messages of one profile.

    Attributes:
        event, facts: for the log.
        over: for the log, once it has passed.
        gist: what of it is news for people when it changes.
        words: for people; without counts, for those change each second.
    """

    event: str
    over: str
    facts: Mapping[str, Any]
    gist: str
    words: str


@dataclass(slots=True)
class _Span:
    """What became of the messages of some seconds, and the fault of the first of each reason."""

    began: float
    fates: Counter[Fate] = field(default_factory=Counter)
    examples: dict[Fate, str] = field(default_factory=dict)


class _Profile:
    """The newest messages of one profile."""

    def __init__(self, stream: ProfileStream, prefix: str) -> None:
        self.stream = stream
        self.letters = f"{prefix}/dead-letter/{stream.spec.name}"
        self.spans = deque([_Span(-math.inf)])
        self.trouble: Trouble | None = None
        self.told = -math.inf
        self.news = False  # whether a message was refused since the log was told
        self.unread: dict[str, tuple[str, float]] = {}  # devices without a reading: what is wrong, and when it was
        self.unread_told, self.told_of = -math.inf, 0

    def refused(self, refusal: Refusal) -> None:
        """Note a message that was refused, and the device that it leaves without a reading."""
        newest, device, self.news = self.spans[-1], refusal.device, True
        if refusal.fate not in newest.examples:
            newest.examples[refusal.fate] = refusal.detail
        if not device or refusal.fate in _NO_PAYLOAD or device in self.stream.table.slot_of:
            return
        if device in self.unread or len(self.unread) < MOST_UNREAD:
            before = self.unread.get(device)
            self.unread[device] = before[0] if before else refusal.detail, newest.began

    def look_at_unread(self, now: float) -> list[str]:
        """Devices that send, and none of whose messages could be used; the log is told of them, too.

        Most messages of the profile are good, else that is told.
        """
        known = self.stream.table.slot_of
        self.unread = {
            device: (detail, at)
            for device, (detail, at) in self.unread.items()
            if device not in known and now - at < AGAIN
        }
        if self.trouble is not None or not self.unread:
            return []
        shown = [f"{device}: {detail}" for device, (detail, _) in list(self.unread.items())[:SHOWN]]
        if more := len(self.unread) - len(shown):
            shown.append(f"{more} more")
        if len(self.unread) > self.told_of and now - self.unread_told >= AGAIN:
            spec = self.stream.spec
            remedy = f"look at their payloads, or leave them out of profiles.{spec.name}.topic; examples are on {self.letters}"
            log.warning("devices are not understood", profile=spec.name, devices=shown, remedy=remedy)
            self.unread_told = now
        self.told_of = len(self.unread)
        return shown

    def look(self, now: float, *, settled: bool) -> Trouble | None:
        """Judge, and let the log know what changed.

        Args:
            settled: whether it was listened for long enough that something should have come.
        """
        self._forget(now)
        before, found = self.trouble, self._judge(settled=settled)
        name = self.stream.spec.name
        if before is not None and (found is None or found.event != before.event):
            log.info(before.over, profile=name)
            self.told = -math.inf
        if found is not None and now - self.told >= AGAIN and (self.news or found.event == _UNHEARD):
            log.warning(found.event, profile=name, **found.facts)
            self.told, self.news = now, False
        elif found is not None and before is not None and found.gist == before.gist:
            found = before
        self.trouble = found
        return found

    def _forget(self, now: float) -> None:
        newest = self.spans[-1]
        if not newest.fates or math.isinf(newest.began):
            newest.began = now
        elif now - newest.began >= SPAN:
            self.spans.append(_Span(now))
        while len(self.spans) > 1:
            oldest, next_ = self.spans[0], self.spans[1]
            needed = (
                next_.began > now - WITHIN or sum(s.fates.total() for s in self.spans) - oldest.fates.total() < LEAST
            )
            if needed and oldest.began > now - LONGEST:
                break
            self.spans.popleft()

    def _judge(self, *, settled: bool) -> Trouble | None:
        fates = sum((span.fates for span in self.spans), Counter[Fate]())
        unknown = settled and not len(self.stream.table)  # no device after all that time: whatever came counts
        if not fates:
            return self._unheard() if unknown else None
        refused = Counter({fate: n for fate, n in fates.items() if fate not in _TAKEN})
        lasts = self.trouble is not None and self.trouble.event == _REFUSED
        enough = unknown or fates.total() >= LEAST
        if not enough or refused.total() <= (ENDS if lasts else BEGINS) * fates.total():
            return None
        return self._refused(refused, fates.total())

    def _unheard(self) -> Trouble:
        spec = self.stream.spec
        remedy = (
            f"look at profiles.{spec.name}.topic, at the broker's access list, and at what "
            f"mosquitto_sub -v -t '{Template(spec.topic).filter}' shows to the same user"
        )
        return Trouble(
            _UNHEARD,
            "messages come",
            {"topic": spec.topic, "remedy": remedy},
            "",
            f"profile {spec.name}: no message has come on {spec.topic}; {remedy}",
        )

    def _refused(self, refused: Counter[Fate], messages: int) -> Trouble:
        spec = self.stream.spec
        ((fate, _),) = refused.most_common(1)
        example = next((span.examples[fate] for span in reversed(self.spans) if fate in span.examples), "")
        remedy = f"look at {_where(fate, spec)}" + (f"; examples are on {self.letters}" if example else "")
        share = "all" if refused.total() == messages else "most"
        gist = f"profile {spec.name}: {share} messages are refused as {fate}"
        return Trouble(
            _REFUSED,
            "messages are taken again",
            {
                "topic": spec.topic,
                "refused": refused.total(),
                "messages": messages,
                "reason": str(fate),
                "example": example,
                "remedy": remedy,
            },
            gist,
            f"{gist}{example and f' ({example})'}; {remedy}",
        )


class Intake:
    """Judges the messages of each profile, and tells where most of them are refused or none has ever come.

    That a known device is silent is for the stream's rules to tell. Costs some operations a turn, and one a refusal.

    Args:
        profiles: by name.
        prefix: of our own topics.

    Attributes:
        reasons: what is wrong, a line a profile; replaced, never changed, so that any thread may read it.
        unread: of profiles that are well, devices of which no message could be used, and why; a line each.
    """

    def __init__(self, profiles: Mapping[str, ProfileStream], prefix: str) -> None:
        self.reasons: tuple[str, ...] = ()
        self.unread: Mapping[str, list[str]] = {}
        self._profiles = {name: _Profile(stream, prefix) for name, stream in profiles.items()}
        self._listened = 0.0  # seconds
        self._judged = math.nan

    def take(self, messages: Mapping[str, Mapping[Fate, int]], refusals: Sequence[Refusal]) -> None:
        """A turn's messages, by profile and what became of them, and which of them were refused."""
        for name, fates in messages.items():
            self._profiles[name].spans[-1].fates.update(fates)
        for refusal in refusals:
            self._profiles[refusal.profile].refused(refusal)

    def judge(self, now: float, *, listening: bool) -> None:
        """Judge all profiles; to be called about once a second.

        Args:
            now: on a clock that nobody sets.
            listening: whether the broker has granted the subscriptions; without, all stays as it was.
        """
        if listening:
            self._listened += 0.0 if math.isnan(self._judged) else now - self._judged
            settled = self._listened >= WITHIN
            found = [profile.look(now, settled=settled) for profile in self._profiles.values()]
            self.reasons = tuple(trouble.words for trouble in found if trouble is not None)
            if settled:
                self.unread = {name: profile.look_at_unread(now) for name, profile in self._profiles.items()}
        self._judged = now if listening else math.nan


def _where(fate: Fate, spec: ProfileSpec) -> str:
    device = "device.path" if spec.device_path else "topic"
    shapes = ["readings"] * bool(spec.readings_path) + ["channel"] * bool(spec.naming)
    shape = " and ".join(shapes) or "format"
    channels = "channel and channels" if spec.naming else "channels"
    return _WHERE[fate].format(profile=f"profiles.{spec.name}", device=device, shape=shape, channels=channels)


def dead_letter(refusal: Refusal, message: Message) -> bytes:
    """A refused message for people, as JSON: its payload's beginning as `payload` if that is text, else `payload_base64`."""
    head, body = message.payload[:LETTER_BYTES], {}
    try:
        text = getincrementaldecoder("utf-8")().decode(
            head, final=head == message.payload
        )  # a cut character is left out
    except UnicodeDecodeError:
        text = "\0"
    if all(sign.isprintable() or sign in "\t\r\n" for sign in text):
        body["payload"] = text
    else:
        body["payload_base64"] = base64.b64encode(head).decode()
    letter = {
        "topic": message.topic.encode("utf-8", "backslashreplace").decode(),
        "profile": refusal.profile,
        "reason": refusal.fate,
        "detail": refusal.detail,
        "bytes": len(message.payload),
    }
    return orjson.dumps(letter | body)
