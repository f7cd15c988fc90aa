"""A configuration that does not fit what comes is told: in words, once, with the remedy; and when it is over."""

import base64
from collections.abc import Iterable

import orjson
import pytest
from structlog.testing import capture_logs

from sentinel.intake import AGAIN, LEAST, LETTER_BYTES, SPAN, WITHIN, Intake, dead_letter
from sentinel.records import Channel, Fate, Message, ProfileSpec
from sentinel.stream.decode import Refusal
from sentinel.stream.pipeline import Pipeline
from tests import fleets

PUMP = ProfileSpec("pump", topic="plant/{at}/telemetry", device_path=("meta", "id"), channels=(Channel("v", ("v",)),))
ROOM = ProfileSpec("room", topic="home/{device}/{channel}", channels=None)
GOOD, BAD = {"meta": {"id": "p1"}, "v": 1.0}, {"id": "p1", "v": 1.0}


class Watch:
    """Two profiles, listened to and judged once a second."""

    def __init__(self) -> None:
        self.pipeline = Pipeline([PUMP, ROOM])
        self.intake = Intake(self.pipeline.profiles, "sentinel")
        self.now = fleets.START
        self.listening = True

    def take(self, *payloads: object, topic: str = "plant/a/telemetry") -> None:
        messages = [Message(topic, orjson.dumps(payload), 1, False, self.now) for payload in payloads]
        turn = self.pipeline.push(messages, self.now)
        self.intake.take(turn.messages, turn.decoded.refusals)

    def wait(self, seconds: float, *each: object) -> list[str]:
        """Let time pass, with these payloads in each second; returns the reasons then."""
        for _ in range(int(seconds)):
            if each:
                self.take(*each)
            self.now += 1.0
            self.intake.judge(self.now, listening=self.listening)
        return list(self.intake.reasons)

    def of(self, profile: str) -> list[str]:
        return [reason for reason in self.intake.reasons if reason.startswith(f"profile {profile}: ")]


@pytest.fixture
def watch() -> Watch:
    made = Watch()
    made.take(21.5, topic="home/attic/temp")
    return made


def events(logs: Iterable[object]) -> list[str]:
    return [entry["event"] for entry in logs]  # type: ignore[index]


def test_a_wrong_path_is_told_with_its_share_reason_example_and_remedy(watch: Watch) -> None:
    with capture_logs() as logs:
        (reason,) = watch.wait(1, *[BAD] * 12)
    (told,) = logs
    assert told == {
        "log_level": "warning",
        "event": "messages are refused",
        "profile": "pump",
        "topic": "plant/{at}/telemetry",
        "refused": 12,
        "messages": 12,
        "reason": "bad_device",
        "example": "nothing at device path 'meta.id'; the payload has: id, v",
        "remedy": "look at profiles.pump.device.path; examples are on sentinel/dead-letter/pump",
    }
    assert reason == (
        "profile pump: all messages are refused as bad_device "
        "(nothing at device path 'meta.id'; the payload has: id, v); "
        "look at profiles.pump.device.path; examples are on sentinel/dead-letter/pump"
    )


def test_a_few_that_are_refused_among_many_are_nothing_to_tell(watch: Watch) -> None:
    with capture_logs() as logs:
        assert watch.wait(120, *[GOOD | {"v": float(n)} for n in range(2)], BAD) == []
        assert watch.wait(120) == []
    assert logs == []


def test_fewer_than_ten_are_nothing_to_tell_where_devices_are_known(watch: Watch) -> None:
    watch.take(*[GOOD | {"v": float(n)} for n in range(LEAST)])
    watch.wait(WITHIN + 2 * SPAN)
    watch.take(*[BAD] * (LEAST - 1))
    assert watch.wait(1) == []
    watch.take(*[BAD] * LEAST)
    assert watch.wait(1) != []


def test_a_fleet_that_sends_rarely_is_judged_by_its_last_messages(watch: Watch) -> None:
    watch.take(GOOD)
    for n in range(LEAST - 1):
        assert watch.wait(600) == [], n
        watch.take(BAD)
    assert watch.wait(1) != []


def test_without_any_device_after_a_minute_one_refused_message_is_enough(watch: Watch) -> None:
    watch.take(BAD)
    assert watch.wait(WITHIN) == []
    assert watch.wait(1) != []
    watch.take(GOOD)
    assert watch.wait(1) == []


def test_what_lasts_is_told_again_each_ten_minutes_and_stays_the_same_for_the_page(watch: Watch) -> None:
    with capture_logs() as logs:
        first = watch.wait(30, BAD)
        assert watch.wait(AGAIN - 60, BAD) == first
        assert len(logs) == 1
        watch.wait(60, BAD)
    assert events(logs) == ["messages are refused"] * 2
    assert logs[-1]["refused"] == logs[-1]["messages"] >= 60


def test_another_reason_is_shown_at_once_and_not_logged_sooner(watch: Watch) -> None:
    late = {"meta": {"id": "p1"}, "v": "high"}
    with capture_logs() as logs:
        watch.wait(20, BAD)
        (reason,) = watch.wait(60, late, late)
    assert "refused as bad_value (text ('high') at channel path 'v', expected a number" in reason
    assert "profiles.pump.channels" in reason
    assert len(logs) == 1


def test_its_end_is_one_line_and_comes_once_few_are_refused(watch: Watch) -> None:
    with capture_logs() as logs:
        watch.wait(30, BAD)
        n = 0
        while watch.intake.reasons:
            n += 1
            watch.wait(1, GOOD | {"v": float(n)}, GOOD | {"v": -float(n)})
            assert n < WITHIN + SPAN
        watch.wait(30, GOOD | {"v": 0.5})
    assert n > 20, "it does not flap around the share at which it began"
    assert events(logs) == ["messages are refused", "messages are taken again"]
    assert logs[-1]["log_level"] == "info"


def test_silence_after_refusals_does_not_end_it(watch: Watch) -> None:
    told = watch.wait(20, BAD)
    assert watch.wait(1200) == told != []


def test_a_topic_on_which_nothing_comes_is_told_after_a_minute_and_when_it_is_over(watch: Watch) -> None:
    with capture_logs() as logs:
        assert watch.wait(WITHIN) == []
        (reason,) = watch.wait(1)
        watch.take(GOOD)
        assert watch.wait(600) == [], "from here on, silence is for the rules"
    assert events(logs) == ["no message has come", "messages come"]
    assert logs[0]["topic"] == "plant/{at}/telemetry"
    for word in ("profiles.pump.topic", "access list", "mosquitto_sub -v -t 'plant/+/telemetry'"):
        assert word in reason


def test_time_without_a_subscription_does_not_count(watch: Watch) -> None:
    watch.wait(WITHIN - 10)
    watch.listening = False
    assert watch.wait(600) == []
    watch.listening = True
    assert watch.wait(10) == []
    assert watch.wait(2) != []
    watch.listening = False
    assert watch.wait(600) != [], "nothing has shown that it is over"


def test_a_profile_whose_devices_are_known_may_be_quiet(watch: Watch) -> None:
    watch.pipeline.profiles["pump"].announce("p1", watch.now)
    assert watch.wait(600) == []


def test_what_first_comes_and_is_refused_is_another_trouble(watch: Watch) -> None:
    with capture_logs() as logs:
        watch.wait(WITHIN + 1)
        watch.take(BAD)
        (reason,) = watch.wait(1)
    assert "all messages are refused as bad_device" in reason
    assert events(logs) == ["no message has come", "messages come", "messages are refused"]


def test_each_profile_is_judged_by_itself(watch: Watch) -> None:
    watch.take(*["on"] * LEAST, topic="home/attic/light")
    watch.wait(1, *[GOOD | {"v": float(n)} for n in range(50)])
    assert (len(watch.of("room")), watch.of("pump")) == (1, [])


def test_readings_that_come_too_late_are_told_without_a_dead_letter(watch: Watch) -> None:
    watch.intake.take({"pump": {Fate.LATE: 20}}, [])
    (reason,) = watch.wait(1)
    assert reason == (
        "profile pump: all messages are refused as late; look at the senders' clocks and profiles.pump.align_window"
    )


def test_what_is_said_of_a_flood_is_made_of_few_messages(watch: Watch) -> None:
    asked = []

    def words() -> str:
        asked.append(1)
        return "why"

    watch.intake.take({"pump": {Fate.BAD_SHAPE: 1000}}, [Refusal(0, "pump", Fate.BAD_SHAPE, words)] * 1000)
    watch.wait(SPAN)
    assert len(asked) == 1


class TestDeadLetter:
    def letter(self, payload: bytes, topic: str = "plant/a") -> dict[str, object]:
        refusal = Refusal(0, "pump", Fate.BAD_SHAPE, "why")
        made: dict[str, object] = orjson.loads(dead_letter(refusal, Message(topic, payload)))
        return made

    def test_says_where_why_and_what(self) -> None:
        assert self.letter(b'{"t": "21,5 \xc2\xb0C"}\n') == {
            "topic": "plant/a",
            "profile": "pump",
            "reason": "bad_shape",
            "detail": "why",
            "bytes": 18,
            "payload": '{"t": "21,5 °C"}\n',
        }

    @pytest.mark.parametrize("payload", [b"\xff\xfe", b"\0", b"a\x1b[2Jb", "\u202eabc".encode(), b"\xc3"])
    def test_what_is_no_text_is_base64(self, payload: bytes) -> None:
        letter = self.letter(payload)
        assert base64.b64decode(str(letter["payload_base64"])) == payload
        assert "payload" not in letter

    def test_a_long_payload_is_cut_between_characters(self) -> None:
        letter = self.letter(b"x" + "é".encode() * LETTER_BYTES)
        assert letter["payload"] == "x" + "é" * (LETTER_BYTES // 2 - 1)
        assert letter["bytes"] == 2 * LETTER_BYTES + 1

    def test_a_topic_that_is_no_unicode_is_told_escaped(self) -> None:
        assert self.letter(b"", "plant/\ud800")["topic"] == "plant/\\ud800"


def test_the_log_says_it_again_only_of_new_messages_and_a_day_later_it_is_over(watch: Watch) -> None:
    with capture_logs() as logs:
        watch.wait(1, *[BAD] * 20)
        assert watch.of("pump")
        watch.wait(2 * AGAIN)
        told = events(logs).count("messages are refused")
        watch.wait(1, BAD)
        assert (told, events(logs).count("messages are refused")) == (1, 2)
    for _ in range(25):
        watch.now += 3600
        watch.intake.judge(watch.now, listening=True)
    watch.wait(1)
    assert not any("refused" in reason for reason in watch.of("pump"))


class TestDevicesThatAreNotUnderstood:
    def test_one_among_many_is_told_with_what_is_wrong_until_it_is_understood(self, watch: Watch) -> None:
        def second(bad: object) -> None:
            for at in range(9):
                watch.take(20.5, topic=f"home/room{at}/temp")
            watch.take(bad, topic="home/cellar/temp")
            watch.wait(1)

        with capture_logs() as logs:
            for _ in range(int(WITHIN) + 5):
                second({"value": "warm"})
        (told,) = [entry for entry in logs if entry["profile"] == "room"]
        assert told["event"] == "devices are not understood"
        assert told["devices"] == watch.intake.unread["room"]
        assert watch.intake.unread["room"][0].startswith("cellar: ")
        assert "warm" in watch.intake.unread["room"][0]
        assert watch.of("room") == []
        second(19.5)
        assert watch.intake.unread["room"] == []

    def test_who_sends_no_more_is_told_no_more(self, watch: Watch) -> None:
        for _ in range(5):
            watch.take({"value": "warm"}, topic="home/cellar/temp")
            watch.take(*[20.5] * 9, topic="home/attic/temp")
            watch.wait(1)
        watch.wait(WITHIN, 1)
        watch.take(*[20.5] * 90, topic="home/attic/temp")
        watch.wait(1)
        assert watch.intake.unread["room"]
        watch.wait(AGAIN)
        assert watch.intake.unread["room"] == []

    def test_devices_beyond_three_are_counted_and_ever_new_ones_bounded(self, watch: Watch) -> None:
        watch.wait(WITHIN + 1)
        for at in range(1500):
            watch.take("warm", topic=f"home/cellar{at}/temp")
        watch.take(*[20.5] * 2000, topic="home/attic/temp")
        watch.wait(1)
        assert len(watch.intake.unread["room"]) == 4
        assert watch.intake.unread["room"][-1] == "997 more"

    def test_messages_that_no_device_could_be_told_of_name_none(self, watch: Watch) -> None:
        watch.wait(WITHIN + 1, BAD, GOOD, GOOD, GOOD)
        assert watch.intake.unread["pump"] == []
