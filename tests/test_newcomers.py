"""Devices that nothing was learned from, and how often a profile that was declared alarms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sentinel.backtest import OTHER_BUDGETS, Backtest, Plan
from sentinel.model import kernel
from sentinel.model.calibrate import WEEK
from sentinel.model.learn import Series, learn
from sentinel.model.scale import location_and_spread
from sentinel.records import Channel, ProfileSpec
from sentinel.simulate import PUMP, Fleet
from tests.bench.inject import Fault, inject, spread
from tests.bench.streams import EPOCH, Stream, Verdict, recording, simulated, verdicts
from tests.test_learn import SMALL

LEARNED, TICKS = 1000, 2000
SPEC = ProfileSpec("pump", alert_budget=1 / WEEK)


def learned(streams: list[Stream], *, declared: bool) -> Backtest:
    run = Backtest(SPEC, [recording([cut(stream, 0, LEARNED) for stream in streams])], lambda _what, _share: None)
    run.learn_all(Plan(declared=declared))
    return run


def cut(stream: Stream, begin: int, end: int) -> Stream:
    return replace(stream, time=stream.time[begin:end], values=stream.values[begin:end])


def judged(streams: list[Stream], model: Backtest, spec: ProfileSpec = SPEC) -> list[Verdict]:
    assert model.stream.detector is not None
    run = Backtest(spec, [recording(streams)], lambda _what, _share: None)
    return verdicts(streams, run.run(None, (model.stream.detector, model.stream)))


@pytest.fixture(scope="module")
def pumps() -> list[Stream]:
    fleet = Fleet(PUMP, 8, interval=1.0, seed=3)
    time = EPOCH + np.arange(TICKS, dtype=np.float64)
    values = np.stack([fleet.step(now).values for now in time.tolist()], axis=1)
    return [Stream(f"p{at}", "p", time, own, PUMP.channels) for at, own in enumerate(values)]


@pytest.fixture(scope="module", params=[False, True], ids=["live", "declared"])
def model(request: pytest.FixtureRequest, pumps: list[Stream]) -> Backtest:
    return learned(pumps, declared=request.param)


class TestNewDevicesOfAMixedFleet:
    @pytest.fixture
    def newcomers(self, pumps: list[Stream]) -> list[Stream]:
        return [replace(cut(pump, LEARNED, TICKS), id=f"new-{pump.id}") for pump in pumps]

    def test_healthy_ones_have_no_alert_when_they_join(self, newcomers: list[Stream], model: Backtest) -> None:
        assert model.stream.detector is not None
        assert (model.stream.detector.spread_of_locations > 0).any(), "the fleet is not mixed"
        alerts = [alert for verdict in judged(newcomers, model) for alert in verdict.alerts]
        # One pump lies farther from the others than any that the fleet's spread is from.
        assert len(alerts) <= model.stream.detector.declared
        assert all(alert.end - alert.start < 100 for alert in alerts)

    @pytest.mark.parametrize("at", [80, 300])
    def test_faults_are_told_all_the_same(self, newcomers: list[Stream], model: Backtest, at: int) -> None:
        fault = Fault("shift", 6, 60)
        faulty = []
        for i, pump in enumerate(newcomers):
            channel, random = i % len(PUMP.channels), np.random.default_rng(i)
            size = float(spread(pump.values[:, channel : channel + 1])[0])
            values = inject(pump.values, channel, fault, at, scale=size, day=86400, random=random)
            faulty.append(replace(pump, values=values))
        found = judged(faulty, model)
        assert all(verdict.inside[at : at + fault.length].any() for verdict in found)
        assert sum(any(at <= alert.start < at + 100 for alert in verdict.alerts) for verdict in found) >= len(found) - 1

    def test_one_is_placed_ever_closer_to_its_own_mean(self, newcomers: list[Stream], model: Backtest) -> None:
        off = {}
        for ticks in (kernel.WARM + 1, kernel.PLACED):
            run = Backtest(SPEC, [recording([cut(s, 0, int(ticks)) for s in newcomers])], lambda _what, _share: None)
            assert model.stream.detector is not None
            run.run(None, (model.stream.detector, model.stream))
            slabs, scale = run.stream.slabs, model.stream.detector.scale
            assert slabs is not None
            slots = [run.stream.table.slot_of[s.id] for s in newcomers]
            place = slabs.view("m")[slots] * scale.spread + scale.location
            means = np.array([np.median(s.values[: int(kernel.PLACED)], axis=0) for s in newcomers])
            off[ticks] = np.abs((place - means) / scale.spread).mean(0)
        mixed = model.stream.detector.spread_of_locations > 0  # type: ignore[union-attr]
        early, late = off.values()
        assert (late[mixed] < early[mixed]).all()

    @pytest.mark.parametrize("declared", [False, True])
    def test_a_long_fault_while_one_is_placed_does_not_place_it(self, declared: bool) -> None:
        fleet = [
            replace(stream, values=stream.values + 10 * stream.values.std() * (at - 8))
            for at, stream in enumerate(simulated(1.0, 1, "ar", 16, 3000))
        ]
        model = learned(fleet[::2], declared=declared)
        new = [cut(stream, 0, 3000) for stream in fleet[1::2]]
        for stream in new:
            stream.values[200:400] += 20 * stream.values[:200].std()
        found = judged(new, model)
        assert all(verdict.inside[200:400].any() for verdict in found)
        assert np.mean([verdict.inside[600:].mean() for verdict in found]) < 0.01


class TestOneThatJoinedLatelyWhereTheNetworkLearnsOn:
    def test_has_a_spread_like_the_others_though_it_showed_a_part_of_a_cycle(self) -> None:
        random, time = np.random.default_rng(5), np.arange(600.0)

        def room(phase: float, level: float, ticks: int) -> Series:
            slow = np.sin(2 * np.pi * time[-ticks:] / 300 + phase)
            own = np.stack([600 + 150 * slow, level + slow], 1) + random.normal(scale=[4, 0.1], size=(ticks, 2))
            return Series(f"{phase}/{ticks}", EPOCH + time[-ticks:], own)

        rooms = [room(phase, 20 + phase, 600) for phase in range(6)]
        channels = [Channel("co2"), Channel("heat")]
        first = learn(rooms, channels, SMALL, seed=0, declared=False)
        again = learn([*rooms, room(1.5, 23, 30)], channels, SMALL, seed=0, declared=False, start=first.detector)
        view = again.detector.layout.view
        spread, n, placed = (view(again.memory[1], name) for name in ("s", "n", "warm"))
        assert (spread[-1] > 0.5 * np.median(spread[:-1], 0)).all()
        assert n[-1].max() >= kernel.LEAST
        assert (placed[:-1] == kernel.PLACED).all()
        assert placed[-1] == 30
        _, spread_of_part = location_and_spread(room(1.5, 23, 30).values)
        assert spread_of_part[0] / again.detector.scale.spread[0] < 0.3


@pytest.fixture(scope="module")
def streams() -> list[Stream]:
    return simulated(1.0, 1, "ar", 6, 4000)


@pytest.fixture(scope="module")
def model_of(streams: list[Stream]) -> Backtest:
    return learned(streams, declared=True)


class TestADeclaredProfileAtOneHertz:
    def test_alerts_keep_to_the_budget_where_flags_do_not(self, streams: list[Stream], model_of: Backtest) -> None:
        found = judged([cut(stream, LEARNED, 4000) for stream in streams], model_of)
        assert sum(int(verdict.flagged.sum()) for verdict in found) > 0
        assert sum(len(verdict.starts()) for verdict in found) == 0

    def test_what_other_budgets_would_have_given_is_what_they_give(
        self, streams: list[Stream], model_of: Backtest
    ) -> None:
        rest = [replace(cut(stream, LEARNED, 4000), values=stream.values[LEARNED:4000].copy()) for stream in streams]
        for at, stream in enumerate(rest):
            stream.values[500:510] += (at - 1) * 3 * stream.values.std()
        assert model_of.stream.detector is not None
        given = {}
        for name, budget in OTHER_BUDGETS.items():
            run = Backtest(replace(SPEC, alert_budget=budget), [recording(rest)], lambda _what, _share: None)
            result = run.run(None, (model_of.stream.detector, model_of.stream))
            given[name] = sum(len(verdict.starts()) for verdict in verdicts(rest, result))
            assert result.would_have_fired[name] == given[name]
        assert given["1/day"] > 0

    def test_a_threshold_that_the_user_gave_is_that_of_alerts_too(
        self, streams: list[Stream], model_of: Backtest
    ) -> None:
        found = judged([cut(stream, LEARNED, 4000) for stream in streams], model_of, replace(SPEC, threshold=5.0))
        assert sum(len(verdict.starts()) for verdict in found) > 0
