"""What devices keep at a promotion: their statistics, on the new detector's scale, and their calm."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel import trainer
from sentinel.model import learn as learning
from sentinel.model.carry import carry
from sentinel.model.features import MOST_BINS
from sentinel.model.forecaster import Forecaster, weight_shapes
from sentinel.model.kernel import LEAST
from sentinel.model.learn import Learned, Series, learn
from sentinel.model.scale import ProfileScale
from sentinel.model.score import Detector
from sentinel.model.slabs import Array, Layout, Slabs
from sentinel.records import Channel, Floats, ModelSpec
from sentinel.stream.pipeline import ProfileStream
from tests import fleets

F, BINS = 2, 24
SPEC = ModelSpec(hidden=4, horizons=(1, 4))


def detector(location: Floats, spread: Floats, *, declared: bool = False, counter: bool = False) -> Detector:
    shapes = weight_shapes(SPEC, F, calendar=True, bins=BINS)
    zeros = {name: torch.zeros(1, *shape) for name, shape in shapes.items()}
    return Detector(
        channels=("a", "b"),
        scale=ProfileScale(location, spread, np.full(F, counter)),
        forecaster=Forecaster(SPEC, F, calendar=True, bins=BINS, weights=zeros),
        prior=np.zeros(Layout(SPEC, F, BINS).width, dtype=np.float32),
        spread_of_locations=np.zeros(F, dtype=np.float32),
        interval=3600.0,
        longest_run=np.ones(F),
        declared=declared,
    )


def filled(of: Detector, seed: int, calibrated: float = 500.0) -> Slabs:
    """Three slots: nobody, a calibrated device and one that has only begun."""
    rng = np.random.default_rng(seed)
    slabs = Slabs(of.layout, torch.device("cpu"), 3)
    slabs.records[:] = rng.random(slabs.records.shape)
    slabs.view("m")[:] = rng.normal(size=(3, F))
    slabs.view("s")[:] = 0.5 + rng.random((3, F))
    slabs.view("lo")[:], slabs.view("hi")[:] = -2 - rng.random((3, F)), 2 + rng.random((3, F))
    slabs.view("n")[:] = np.array([0.0, calibrated, LEAST - 1])[:, None]
    slabs.daily[:] = rng.normal(size=slabs.daily.shape)
    slabs.visits[:] = rng.integers(0, 9, slabs.visits.shape)
    return slabs


def in_units(of: Detector, slabs: Slabs, linear: Array, row: int) -> Floats:
    """Values on a device's linear scale, (…, F), in the channels' units."""
    m, s = (slabs.view(name)[row].astype(np.float64) for name in ("m", "s"))
    out: Floats = (linear.astype(np.float64) * s + m) * of.scale.spread + of.scale.location
    return out


positive = st.floats(0.01, 100.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), positive, positive)
def test_statistics_mean_the_same_in_the_channels_units(
    seed: int, old_at: float, new_at: float, old_spread: float, new_spread: float
) -> None:
    old = detector(np.array([old_at, 0.0]), np.array([old_spread, 1.0]))
    new = detector(np.array([new_at, 0.3]), np.array([new_spread, 2.0]))
    before, after = filled(old, seed), filled(new, seed + 1)
    m, s = after.view("m")[1].copy(), after.view("s")[1].copy()
    carry(old, before, new, after)
    np.testing.assert_array_equal(after.view("m")[1], m, "where the device lies is the new detector's")
    np.testing.assert_array_equal(after.view("s")[1], s)
    ratio = before.view("s")[1] * old.scale.spread / (s * new.scale.spread)
    ratio = np.tile(ratio, after.layout.heads)
    for memory in range(2):
        was, now = before.view("calibration")[1, memory], after.view("calibration")[1, memory]
        np.testing.assert_allclose(now[0], was[0] * ratio, rtol=1e-5)
        np.testing.assert_allclose(now[1], was[1] * ratio**2, rtol=1e-5)
    size = abs(old_at) + abs(new_at) + 10 * (old_spread + new_spread)
    for name in ("lo", "hi"):
        was, now = (in_units(of, slabs, slabs.view(name)[1], 1) for of, slabs in ((old, before), (new, after)))
        np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-5 * size)
    was, now = (in_units(of, slabs, np.sinh(slabs.daily[1]), 1) for of, slabs in ((old, before), (new, after)))
    inside = np.abs(after.daily[1]) < 8.0
    np.testing.assert_allclose(now[inside], was[inside], rtol=1e-4, atol=1e-4 * size)
    np.testing.assert_array_equal(after.visits[1], before.visits[1])
    for name in ("n", "accepted", "peak", "alarmed", "refractory", "raised"):
        np.testing.assert_array_equal(after.view(name)[1], before.view(name)[1], name)


def test_a_channel_that_has_varied_stays_so_and_its_first_values_are_the_new_streams() -> None:
    same = detector(np.zeros(F), np.ones(F))
    before, after = filled(same, 1), filled(same, 2)
    before.view("varied")[1], after.view("varied")[1] = [1.0, 0.0], [0.0, 0.0]
    first = after.view("v1")[1].copy()
    carry(same, before, same, after)
    np.testing.assert_array_equal(after.view("varied")[1], [1.0, 0.0])
    np.testing.assert_array_equal(after.view("v1")[1], first)


def test_the_same_scale_changes_no_bit() -> None:
    same = detector(np.array([3.0, -7.0]), np.array([0.5, 4.0]))
    before = filled(same, 1)
    after = filled(same, 2)
    for name in ("m", "s"):
        after.view(name)[:] = before.view(name)
    carry(same, before, same, after)
    np.testing.assert_array_equal(after.view("calibration")[1], before.view("calibration")[1])
    np.testing.assert_array_equal(after.view("lo")[1], before.view("lo")[1])
    np.testing.assert_allclose(after.daily[1], before.daily[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("why", ["not calibrated", "other channels", "declared", "counters"])
def test_what_cannot_be_kept_begins_as_the_new_detector_says_but_for_the_raised_threshold(why: str) -> None:
    old = detector(np.zeros(F), np.ones(F))
    new = detector(np.zeros(F), np.full(F, 2.0), declared=why == "declared", counter=why == "counters")
    if why == "other channels":
        new = replace(new, channels=("a", "c"))
    before, after = filled(old, 1), filled(new, 2)
    untouched = filled(new, 2)
    carry(old, before, new, after)
    row = 2 if why == "not calibrated" else 1
    np.testing.assert_array_equal(after.view("raised"), before.view("raised"))
    after.view("raised")[:] = untouched.view("raised")
    np.testing.assert_array_equal(after.records[row], untouched.records[row])
    np.testing.assert_array_equal(after.daily[row], untouched.daily[row])
    assert len(after.daily[row]) < MOST_BINS


DEVICES, FIRST, SECOND, AFTER = 4, 400, 600, 400


@dataclass(frozen=True, slots=True)
class Promoted:
    """A stream that was promoted, one that was not, when each fired afterwards, and the detector before."""

    live: ProfileStream
    other: ProfileStream
    fired: list[tuple[int, str]]
    otherwise: list[tuple[int, str]]
    old: Detector


@pytest.fixture(scope="module")
def promoted() -> Promoted:
    """A healthy fleet whose swings grow after learning; then learned anew, and promoted live."""
    values = [fleets.healthy(FIRST + SECOND + AFTER, i, 4) for i in range(DEVICES)]
    time = fleets.START + np.arange(FIRST + SECOND + AFTER, dtype=np.float64)
    channels = [Channel(name) for name in fleets.CHANNELS]
    names, spec = [f"d{i}" for i in range(DEVICES)], ModelSpec(hidden=8, horizons=(1, 8))

    def series(end: int) -> list[Series]:
        return [Series(name, time[:end], v[:end]) for name, v in zip(names, values, strict=True)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "STEPS", 150)
        patch.setattr(learning, "FINE_STEPS", 60)
        patch.setattr(learning, "STAGE_STEPS", 30)
        first = learn(series(FIRST), channels, spec, seed=1, declared=False)
        for v in values:
            v[FIRST:] = v[:FIRST].mean(0) + 1.15 * (v[FIRST:] - v[:FIRST].mean(0))
        second = learn(series(FIRST + SECOND), channels, spec, seed=1, declared=False, start=first.detector)
    assert second.better

    def stream(learned: Learned) -> ProfileStream:
        made = ProfileStream(fleets.spec())
        for name in names:
            made.announce(name)
        trainer.adopt(made, learned)
        return made

    def feed(to: ProfileStream, begin: int, end: int) -> list[tuple[int, str]]:
        out = []
        for t in range(begin, end):
            rows = np.array([v[t] for v in values])
            outcome, _ = to.absorb(fleets.readings(names, np.full(DEVICES, time[t]), rows), 0.0)
            out += [(t, moved.alert.device) for moved in outcome.transitions if moved.fires]
        return out

    live, other = stream(first), stream(first)
    assert feed(live, FIRST, FIRST + SECOND) == feed(other, FIRST, FIRST + SECOND)
    trainer.take_over(live, stream(second))
    fired, otherwise = (feed(to, FIRST + SECOND, FIRST + SECOND + AFTER) for to in (live, other))
    return Promoted(live, other, fired, otherwise, first.detector)


def test_a_promotion_while_a_healthy_fleet_sends_makes_no_alarm(promoted: Promoted) -> None:
    """Whatever fires afterwards would have fired without it."""
    assert promoted.live.detector is not promoted.old
    assert set(promoted.fired) <= set(promoted.otherwise)
    assert not np.isnan(promoted.live.scores()[list(promoted.live.table)]).any()


def test_calibration_goes_on_where_it_was(promoted: Promoted) -> None:
    assert promoted.live.slabs is not None
    assert promoted.other.slabs is not None
    slots = list(promoted.live.table)
    ticks = promoted.live.slabs.view("n")[slots]
    np.testing.assert_array_equal(ticks, promoted.other.slabs.view("n")[slots])
    assert ticks.min() > SECOND + AFTER - 100
    assert np.isfinite(promoted.live.slabs.view("calibration")[slots]).all()
