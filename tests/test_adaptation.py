"""What alarms for too long, and what a person calls normal, is taken for normal; nothing else is."""

import numpy as np
import pytest

from sentinel import trainer
from sentinel.model.kernel import LASTING
from sentinel.records import Alert, Command, Floats
from sentinel.stream.pipeline import ProfileStream
from tests import fleets

CALM = 150  # ticks before anything happens


SHORT, LONG = 400, 1200  # ticks of a recording: nothing is held out, or a quarter is


def make(declared: bool, ticks: int = LONG) -> ProfileStream:
    stream = ProfileStream(fleets.spec())
    learned = fleets.learned(devices=2, ticks=ticks, declared=declared)
    stream.announce("d0")
    trainer.adopt(stream, learned)
    return stream


def feed(to: ProfileStream, values: Floats, begin: int) -> list[Alert]:
    """Ticks of one device from second `begin` on; the transitions of its prediction alerts."""
    out: list[Alert] = []
    for cut in range(0, len(values), 200):
        part = values[cut : cut + 200]
        time = fleets.START + begin + cut + np.arange(len(part), dtype=np.float64)
        outcome, _ = to.absorb(fleets.readings(["d0"] * len(part), time, part), fleets.START)
        out += [t.alert for t in outcome.transitions if t.alert.kind == "prediction"]
    return out


def frozen(of: ProfileStream) -> bool:
    assert of.slabs is not None
    return bool(of.slabs.view("frozen")[of.table.slot_of["d0"]])


class TestLasting:
    """A level that came to stay, on a device whose recording was declared clean."""

    def moved(self, ticks: int) -> Floats:
        values = fleets.healthy(ticks, 0, 5)
        values[CALM:, 1] += 12.0
        return values

    @pytest.mark.parametrize("ticks", [SHORT, LONG])
    def test_after_patience_the_device_learns_on_and_asks_once_and_falls_quiet(self, ticks: int) -> None:
        stream = make(declared=True, ticks=ticks)
        asked = CALM + int(LASTING)
        values = self.moved(asked + 1200)
        before = feed(stream, values[: asked - 100], 0)
        assert [(a.state, "new normal" in a.message) for a in before] == [("firing", False)]
        assert frozen(stream)
        after = feed(stream, values[asked - 100 :], asked - 100)
        assert [(a.state, a.id == before[0].id) for a in after] == [("firing", True), ("resolved", True)]
        assert after[0].message.endswith("; a new normal?")
        assert abs(after[0].updated - fleets.START - asked) < 50
        assert "it became the new normal" in after[1].message
        assert not frozen(stream)
        last = float(stream.scores()[stream.table.slot_of["d0"]])
        assert last < 1.0

    def test_what_is_unusual_at_the_new_level_still_alarms(self) -> None:
        stream = make(declared=True)
        ticks = CALM + int(LASTING) + 1200
        values = self.moved(ticks + 300)
        values[ticks:, 0] += 5.0
        feed(stream, values[:ticks], 0)
        later = feed(stream, values[ticks:], ticks)
        assert [a.state for a in later[:1]] == ["firing"]
        assert later[0].channels[0].name == "pressure"

    def test_an_alarm_of_400_ticks_is_not_taken_for_normal(self) -> None:
        stream = make(declared=True)
        values = fleets.healthy(CALM + 400 + 300, 0, 5)
        values[CALM : CALM + 400, 1] += 12.0
        alerts = feed(stream, values, 0)
        assert [a.state for a in alerts] == ["firing", "resolved"]
        assert not any("new normal" in a.message for a in alerts)
        assert frozen(stream)
        again = self.moved(CALM + 60)[CALM:]
        assert [a.state for a in feed(stream, again, len(values))] == ["firing"], "and it alarms again"


class TestNormal:
    """A person says of an alert that what it is about is normal."""

    def pattern(self, channel: int, seed: int) -> Floats:
        """120 healthy ticks, then 12 with a pattern."""
        values = fleets.healthy(132, 0, seed)
        values[120:, channel] += (8.0, 24.0, 16.0)[channel]
        return values

    # Live, what has alarmed has also been learned from: there the same again may pass without a word.
    @pytest.mark.parametrize(
        ("declared", "said"),
        [(False, True), (True, True), (True, False)],
        ids=["live, said", "declared, said", "declared, unsaid"],
    )
    def test_the_same_again_alarms_only_where_nobody_said_so(self, declared: bool, said: bool) -> None:
        stream = make(declared)
        first = feed(stream, self.pattern(1, 5), 0)
        assert [a.state for a in first] == ["firing"]
        assert first[0].channels[0].name == "flow"
        if said:
            (end,) = stream.command(Command("normal", "pump", "d0"), fleets.START).transitions
            assert (end.alert.state, end.retained) == ("resolved", None)
            assert "accepted as normal" in end.alert.message
        else:
            feed(stream, fleets.healthy(60, 0, 8), 132)
        begun = 132 + 60 * (not said)
        again = feed(stream, self.pattern(1, 6), begun)
        assert ("firing" in [a.state for a in again]) == (not said)
        other = feed(stream, self.pattern(2, 7), begun + 132)
        fired = [a for a in other if a.state == "firing"]
        assert fired, "another channel's fault is told all the same"
        assert fired[-1].channels[0].name == "heat"

    def test_without_an_alert_it_teaches_nothing(self) -> None:
        stream = make(declared=True)
        feed(stream, fleets.healthy(60, 0, 5), 0)
        assert stream.slabs is not None
        before = stream.slabs.view("accepted").copy()
        assert stream.command(Command("normal", "pump", "d0"), fleets.START).transitions == []
        np.testing.assert_array_equal(stream.slabs.view("accepted"), before)
