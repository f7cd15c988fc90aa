"""What stands apart in the ticks that are learned from is not taken for health, and is told."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel.model.apart import LEAST_TICKS, MOST_SHARE, Episode, episodes, faults
from sentinel.model.kernel import QUANTUM
from sentinel.model.learn import Learned, Series, Stretch, learn
from sentinel.model.score import Detector
from sentinel.records import Channel, Floats, ModelSpec
from sentinel.trainer import told_apart
from tests import fleets
from tests.test_learn import SMALL

TICKS, FAR = 600, 16


def quanta(errors: Floats) -> np.ndarray[tuple[int, int], np.dtype[np.int16]]:
    return np.round(np.clip(errors, -20, 20) * QUANTUM).astype(np.int16)


def found(errors: Floats, values: Floats | None = None) -> list[Episode]:
    return episodes(quanta(errors), fleets.healthy(len(errors)) if values is None else values, 100, FAR)


def usual(seed: int = 0, heads: int = 3) -> Floats:
    return np.random.default_rng(seed).normal(size=(TICKS, 3 * heads))


class TestEpisodes:
    def test_of_noise_there_are_none(self) -> None:
        assert [found(usual(seed)) for seed in range(20)] == [[]] * 20

    def test_of_noise_with_heavy_tails_there_are_none(self) -> None:
        random = np.random.default_rng(1)
        assert [found(random.standard_t(4, (TICKS, 9)) / 2) for _ in range(20)] == [[]] * 20

    @pytest.mark.parametrize("at", [30, 300, TICKS - 10])
    def test_ten_ticks_of_large_errors_are_one_that_holds_them(self, at: int) -> None:
        errors = usual()
        errors[at : at + 10, 4] += 12
        ((begin, end, channel),) = found(errors)
        assert channel == 1
        assert begin <= at + 2
        assert at + 8 <= end <= at + 10 + 30

    def test_what_a_fault_spoils_later_is_part_of_it(self) -> None:
        errors = usual()
        errors[300:310, 1] += 15
        errors[300 + FAR : 310 + FAR, 7] += 15
        assert len(found(errors)) == 1

    def test_what_comes_three_times_is_how_the_device_is(self) -> None:
        errors = usual()
        for at in (150, 300, 450):
            errors[at : at + 10, 4] += 15
        assert found(errors) == []

    def test_what_lasts_is_how_the_device_is(self) -> None:
        errors = usual()
        errors[300:, 4] += 15
        assert found(errors) == []

    def test_each_has_the_channel_whose_errors_stand_apart(self) -> None:
        errors = usual()
        errors[150:160, 4] += 15
        errors[400:410, 5] += 15
        assert [episode.channel for episode in found(errors)] == [1, 2]

    def test_what_many_devices_show_in_one_channel_is_how_the_fleet_is(self) -> None:
        heat, flow = Episode(100, 120, 0), Episode(300, 320, 1)
        assert faults([[heat, flow], [heat], [heat], []]) == [[flow], [], [], []]
        assert faults([[heat], [heat], [], []]) == [[heat], [heat], [], []]
        assert faults([[heat]] * 3 + [[]] * 27) == [[heat]] * 3 + [[]] * 27

    def test_a_channel_that_seldom_switches_is_none(self) -> None:
        values = fleets.healthy(TICKS)
        values[:, 1] = 0.0
        values[300:340, 1] = 1.0
        errors = usual()
        errors[:, 1::3] *= 0.01
        errors[300:310, 1::3] = 20.0
        assert found(errors, values) == []
        assert found(errors) != []

    def test_few_ticks_tell_nothing(self) -> None:
        errors = usual()[: LEAST_TICKS - 1]
        errors[100:110] += 15
        assert found(errors) == []

    @given(st.integers(0, 2**32 - 1), st.floats(0, 20), st.integers(1, 200), st.floats(0, 0.9))
    def test_there_are_at_most_two_in_order_and_no_more_than_a_third(
        self, seed: int, size: float, length: int, missing: float
    ) -> None:
        random = np.random.default_rng(seed)
        errors = random.normal(size=(TICKS, 6))
        at = int(random.integers(TICKS))
        errors[at : at + length] += size
        errors[random.random(errors.shape) < missing] = 0.0
        places = episodes(quanta(errors), fleets.healthy(TICKS), int(random.integers(300)), FAR)
        edges = [edge for place in places for edge in place[:2]]
        assert edges == sorted(edges)
        assert len(places) <= 2
        assert sum(end - begin for begin, end, _ in places) <= MOST_SHARE * TICKS


def with_fault(values: Floats, at: int) -> Floats:
    out = values.copy()
    out[at : at + 10, 1] += 25.0
    return out


def learned(
    values: list[Floats],
    *,
    declared: bool = False,
    spec: ModelSpec = SMALL,
    start: Detector | None = None,
    left_out: tuple[Stretch, ...] = (),
) -> Learned:
    series = [
        Series(f"d{i}", fleets.START + np.arange(len(own), dtype=np.float64), own) for i, own in enumerate(values)
    ]
    channels = [Channel(name) for name in fleets.CHANNELS]
    return learn(series, channels, spec, seed=1, declared=declared, start=start, left_out=left_out)


def highest_flow(done: Learned, row: int) -> float:
    """The end of the range so far of channel "flow", over the device's median, in its unit."""
    view = done.detector.layout.view
    return float(view(done.memory[1], "hi")[row, 1] * view(done.memory[1], "s")[row, 1] * done.detector.scale.spread[1])


@pytest.fixture(scope="module")
def healthy() -> list[Floats]:
    return [fleets.healthy(TICKS + 200, i) for i in range(4)]


@pytest.fixture(scope="module")
def dirty(healthy: list[Floats]) -> Learned:
    return learned([with_fault(healthy[0][:TICKS], 400), *(own[:TICKS] for own in healthy[1:])])


class TestLearning:
    def test_a_fault_while_learning_is_told_with_device_time_and_channel(self, dirty: Learned) -> None:
        (apart,) = dirty.apart
        assert (apart.device, apart.channel) == ("d0", "flow")
        assert fleets.START + 390 <= apart.since <= fleets.START + 402
        assert fleets.START + 408 <= apart.until <= fleets.START + 450
        assert apart.value > 35
        assert apart.usual == pytest.approx(20, abs=1)

    def test_the_like_of_it_is_found_afterwards(self, dirty: Learned, healthy: list[Floats]) -> None:
        stream = fleets.running(fleets.spec(model=SMALL, alert_budget=1 / 604800), dirty)
        values, fired = with_fault(healthy[0], TICKS + 100), []
        for t in range(TICKS, TICKS + 200):
            outcome, _ = stream.absorb(fleets.readings(["d0"], np.array([fleets.START + t]), values[t][None]), 0.0)
            fired += [t for moved in outcome.transitions if moved.alert.state == "firing"]
        assert [TICKS + 100 <= t < TICKS + 112 for t in fired] == [True]

    def test_a_network_that_must_begin_anew_leaves_it_out_too(self, dirty: Learned, healthy: list[Floats]) -> None:
        given = [with_fault(healthy[0][:TICKS], 400), *(own[:TICKS] for own in healthy[1:])]
        larger = replace(SMALL, hidden=SMALL.hidden + 1)
        again = learned(given, spec=larger, start=dirty.detector)
        assert [apart.device for apart in again.apart] == ["d0"]
        assert highest_flow(again, 0) < 10

    def test_what_was_left_out_once_is_left_out_where_a_network_learns_on(
        self, dirty: Learned, healthy: list[Floats]
    ) -> None:
        given = [with_fault(healthy[0][: TICKS + 60], 400), *(own[: TICKS + 60] for own in healthy[1:])]
        (one,) = dirty.apart
        assert highest_flow(learned(given, start=dirty.detector), 0) > 20
        again = learned(given, start=dirty.detector, left_out=((one.device, one.since, one.until),))
        assert (again.apart, highest_flow(again, 0) < 10) == ((), True)

    def test_a_healthy_fleet_has_nothing_to_tell(self, healthy: list[Floats]) -> None:
        assert learned([own[:TICKS] for own in healthy]).apart == ()

    def test_what_the_user_declared_is_told_and_learned(self, healthy: list[Floats]) -> None:
        given = with_fault(healthy[0][:TICKS], 400)
        done = learned([given], declared=True)
        assert [apart.channel for apart in done.apart] == ["flow"]
        assert highest_flow(done, 0) > 20

    def test_it_is_told_in_words(self, dirty: Learned) -> None:
        (sentence,) = told_apart(dirty, fleets.spec(timezone="Europe/Berlin"))
        assert re.fullmatch(
            r"d0: flow \d\d\.?\d? m3/h \(usually (19|20)\.?\d? m3/h\) at 2023-11-14 23:1\d:\d\d CET "
            r"was unlike all else; \d\d readings of about then were not learned",
            sentence,
        )

    def test_a_time_that_is_no_date_is_told_as_it_is(self, dirty: Learned) -> None:
        (one,) = dirty.apart
        undated = replace(dirty, apart=(replace(one, since=390.0),))
        assert " at time 390 was " in told_apart(undated, fleets.spec())[0]
