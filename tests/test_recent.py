"""The newest ticks of every device."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel.records import Command
from sentinel.stream.recent import KEPT, Recent
from tests import fleets

A_DEVICE = KEPT * (12 + 12 * 3)  # bytes, of three channels


def take(recent: Recent, at: float, slots: list[int], capacity: int = 8, channels: int = 3) -> None:
    slot = np.array(slots)
    values = slot[:, None] + np.full((len(slots), channels), at)
    recent.take(slot, np.full(len(slots), 1.7e9 + at), values, np.zeros((capacity, channels)), None, None)


@settings(deadline=None)  # the first compiles
@given(st.lists(st.sets(st.integers(1, 7), min_size=1), max_size=3 * KEPT))
def test_of_each_device_the_newest_ticks_are_there_in_order(turns: list[set[int]]) -> None:
    recent = Recent(1 << 20)
    for at, slots in enumerate(turns):
        take(recent, at, sorted(slots))
    for slot in range(8):
        came = [at for at, slots in enumerate(turns) if slot in slots][-KEPT:]
        rows = recent.of(slot)
        assert rows["time"].tolist() == [1.7e9 + at for at in came]
        assert rows["values"].tolist() == [[at + slot] * 3 for at in came]
        for name in ("score", "low", "high"):
            assert np.isnan(rows[name]).all(), "nothing was expected"


def test_devices_beyond_its_bytes_have_none_and_those_within_keep_theirs_as_the_table_grows() -> None:
    recent = Recent(10 * A_DEVICE)
    take(recent, 0, [3], capacity=8)
    take(recent, 1, [3, 9, 10, 15], capacity=16)
    assert [len(recent.of(slot)) for slot in (3, 9, 10, 15, 99)] == [2, 1, 0, 0, 0]
    assert recent._ticks.nbytes <= 10 * A_DEVICE


def test_what_is_kept_begins_anew_with_a_new_channel_and_a_new_device() -> None:
    recent = Recent(1 << 20)
    take(recent, 0, [1, 2])
    recent.forget(1)
    assert [len(recent.of(slot)) for slot in (1, 2)] == [0, 1]
    take(recent, 1, [1], channels=4)
    assert [len(recent.of(slot)) for slot in (1, 2)] == [1, 0]


@pytest.mark.parametrize("counter", [False, True])
def test_what_is_kept_is_what_a_watched_device_shows_and_changes_nothing(counter: bool) -> None:
    learned = fleets.learned()
    if counter:
        scale = replace(learned.detector.scale, counter=np.array([False, True, False]))
        learned = replace(learned, detector=replace(learned.detector, scale=scale))
    plain, kept = (fleets.running(fleets.spec(), learned) for _ in range(2))
    kept.recent = Recent(1 << 20)
    values = fleets.healthy(120, 0, 3)
    values[100:103, 0] = np.nan
    values[110:, 1] += 40
    slot = kept.table.slot_of["d0"]
    kept.table.watched[slot] = True
    moved: list[list[Any]] = [[], []]
    both, looks = list(zip((plain, kept), moved, strict=True)), []
    for at, row in enumerate(values):
        for stream, told in both:
            outcome, _ = stream.absorb(fleets.readings(["d0"], np.array([1.7e9 + at]), row[None]), 1.7e9 + at)
            told.extend(outcome.transitions)
            looks += outcome.looks
    assert moved[0] == moved[1] != []
    np.testing.assert_array_equal(plain.scores(), kept.scores())
    rows = kept.recent.of(slot)
    assert rows["time"].tolist() == [look.time for look in looks[-KEPT:]]
    for name in ("score", "values", "low", "high"):
        shown = np.array([getattr(look, name) for look in looks[-KEPT:]])
        np.testing.assert_allclose(rows[name], shown, rtol=1e-4, atol=1e-4)
    assert not np.isnan(rows["low"]).any()
    assert moved[0][0].recent is None
    assert moved[1][0].recent["time"][-1] == moved[1][0].alert.updated
    kept.command(Command("forget", "pump", "d0"), 1.7e9)
    assert len(kept.recent.of(slot)) == 0
