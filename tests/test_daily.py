"""The daily profile: what a time of day usually brings is learned, and its absence is surprising."""

from functools import cache

import numpy as np
import pytest

from sentinel.model import features
from sentinel.model import learn as learning
from sentinel.model.kernel import MOST_VISITS
from sentinel.model.learn import Learned, Series, learn
from sentinel.records import Channel, Floats, ModelSpec, Readings
from sentinel.stream.pipeline import ProfileStream
from tests import fleets

HOUR, DAYS, LATER = 3600.0, 28, 7
BEGIN = 19_700 * features.DAY  # a midnight
PEAK = (9, 10, 11)


def days(count: int, seed: int) -> Floats:
    """Hours of noise, with a peak each morning, (24 count, 1)."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(24 * count, 1))
    for hour in PEAK:
        values[hour::24] += 8.0
    return values


@cache
def learned() -> Learned:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "STEPS", 300)
        patch.setattr(learning, "STAGE_STEPS", 60)
        time = BEGIN + HOUR * np.arange(24 * DAYS, dtype=np.float64)
        spec = ModelSpec(hidden=16, horizons=(1, 8))
        return learn([Series("d", time, days(DAYS, 0))], [Channel("load")], spec, seed=1, declared=True)


def play(values: Floats) -> tuple[ProfileStream, Floats, Floats]:
    """Scores of the hours that follow, and each channel's surprise, (T,)."""
    done = learned()
    stream = ProfileStream(fleets.spec(channels=(Channel("load"),), model=done.detector.spec, stuck_after=0))
    stream.keep_ticks = True
    stream.adopt(done.detector, done.devices, done.memory)
    score, surprise = [], []
    for t, row in enumerate(values):
        time = np.array([BEGIN + DAYS * features.DAY + HOUR * t])
        readings = Readings("pump", ("load",), ["d"], time, row[None], np.zeros(1, dtype=np.int64))
        outcome, _ = stream.absorb(readings, 0.0)
        scored = outcome.ticks[0].scored
        assert scored is not None
        score.append(float(scored.score[0]))
        surprise.append(float(scored.own[0, 0]))
    return stream, np.array(score), np.array(surprise)


def test_the_profile_is_what_each_time_of_day_usually_brings() -> None:
    stream, _, _ = play(days(LATER, 1))
    detector, slabs = stream.detector, stream.slabs
    assert detector is not None
    assert slabs is not None
    slot = stream.table.slot_of["d"]
    assert detector.layout.bins == 24
    m, s = (float(slabs.view(name)[slot, 0]) for name in ("m", "s"))
    usual = (np.sinh(slabs.daily[slot, :, 0, 0]) * s + m) * detector.scale.spread[0] + detector.scale.location[0]
    assert usual[list(PEAK)].min() > 5.0
    assert np.abs(np.delete(usual, PEAK)).max() < 2.5
    assert slabs.visits[slot].min() >= min(LATER, MOST_VISITS)


def test_the_absence_of_what_a_time_of_day_brings_is_surprising_and_so_is_its_presence_at_another() -> None:
    usual, last = days(LATER, 1), 24 * (LATER - 1)
    _, score, surprise = play(usual)
    assert (score[24:] < 1).all()
    absent, moved = usual.copy(), usual.copy()
    absent[last:][list(PEAK)] -= 8.0
    moved[last + 18 : last + 21] += 8.0
    for changed in (absent, moved):
        _, other, surprised = play(changed)
        np.testing.assert_array_equal(score[:last], other[:last])
        assert surprised[last:].max() > 3 * surprise[24:].max()
        assert other[last:].max() > 3 * score[24:].max()


@pytest.mark.parametrize(
    ("channels", "calendar", "interval", "expected"),
    [
        (1, True, HOUR, 24),
        (1, True, 60.0, features.MOST_BINS),
        (features.PROFILED, True, 300.0, features.MOST_BINS),
        (features.PROFILED + 1, True, HOUR, 0),
        (1, False, HOUR, 0),
    ],
)
def test_there_is_a_profile_of_few_channels_whose_days_are_known(
    channels: int, calendar: bool, interval: float, expected: int
) -> None:
    assert features.bins(channels, calendar, interval) == expected
