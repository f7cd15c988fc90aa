"""Injected faults touch what they say, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from sentinel.records import Floats
from tests.bench.inject import FAULTS, Fault, inject, spread

ONSET, DAY, CHANNEL = 600, 24, 1


def values(rows: int = 1000) -> Floats:
    random = np.random.default_rng(0)
    return np.cumsum(random.standard_normal((rows, 3)), axis=0)


def injected(fault: Fault, before: Floats) -> Floats:
    return inject(before, CHANNEL, fault, ONSET, scale=2.0, day=DAY, random=np.random.default_rng(1))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_stays_in_its_channel_and_its_time(fault: Fault) -> None:
    before = values()
    untouched = before.copy()
    after = injected(fault, before)
    changed = np.argwhere(after != before)
    assert np.array_equal(before, untouched)
    assert len(changed) > 0
    assert changed[:, 0].min() >= ONSET
    assert changed[:, 0].max() < ONSET + fault.length
    assert set(changed[:, 1]) == ({0, 1, 2} if fault.kind == "replayed" else {CHANNEL})


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_nothing_after_its_end_shapes_a_fault(fault: Fault) -> None:
    before = values()
    other = before.copy()
    other[ONSET + fault.length :] += 100.0
    end = ONSET + fault.length
    assert np.array_equal(injected(fault, before)[:end], injected(fault, other)[:end])


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.kind in ("shift", "spike", "drift")], ids=lambda f: f.name)
def test_a_size_is_counted_in_spreads_of_the_channel(fault: Fault) -> None:
    before = values()
    away = np.abs(injected(fault, before) - before)[ONSET : ONSET + fault.length, CHANNEL]
    assert away.max() == pytest.approx(2.0 * fault.size)
    assert (away[0] < away[-1]) == (fault.kind == "drift")


def test_a_stuck_channel_holds_the_last_value_that_came() -> None:
    before = values()
    before[ONSET - 3 : ONSET, CHANNEL] = np.nan
    after = injected(Fault("stuck", 0), before)
    assert set(after[ONSET : ONSET + 200, CHANNEL]) == {before[ONSET - 4, CHANNEL]}


def test_a_decoupled_channel_shows_a_stretch_of_its_own_past() -> None:
    before = values()
    after = injected(Fault("decoupled", 0), before)
    begin = int(np.flatnonzero(before[:, CHANNEL] == after[ONSET, CHANNEL])[0])
    assert begin + 200 <= ONSET
    assert np.array_equal(after[ONSET : ONSET + 200, CHANNEL], before[begin : begin + 200, CHANNEL])


def test_a_replay_shows_all_channels_at_the_same_time_of_day_before_it_began() -> None:
    before = values()
    after = injected(Fault("replayed", 0), before)
    assert np.array_equal(after[ONSET : ONSET + 200], before[ONSET - 216 : ONSET - 16])


def test_the_spread_ignores_a_few_wild_values_and_is_not_0_of_a_channel_that_seldom_moves() -> None:
    normal = np.random.default_rng(0).standard_normal((5000, 2))
    normal[:50, 0] = 1e6
    normal[:, 1] = 0.0
    normal[:100, 1] = 1.0
    robust, seldom = spread(normal)
    assert robust == pytest.approx(1.0, abs=0.05)
    assert seldom == pytest.approx(np.std(normal[:, 1]))
