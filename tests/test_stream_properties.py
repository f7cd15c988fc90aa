"""Invariants of the stream on generated fleets, exact to the bit, and the bound on alerts whatever the scores are."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sentinel.model import kernel
from sentinel.model.score import Scored
from sentinel.model.slabs import Slabs
from sentinel.records import FATES, Bools, Fate, Floats, Ints, Readings, Transition
from sentinel.stream.pipeline import ProfileStream
from tests import fleets

CALM = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
WEIGHTS = st.sampled_from(["shared", "device"])
TICKS = 48


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(declared: bool = False, weights: str = "shared", window: float = 0.0) -> ProfileStream:
    stream = ProfileStream(fleets.spec(align_window=window))
    stream.keep_ticks = True
    learned = fleets.learned(declared=declared, weights=weights)
    for name in learned.devices:
        stream.announce(name)
    stream.adopt(learned.detector, learned.devices, learned.memory)
    return stream


def rows(devices: int, ticks: int = TICKS, seed: int = 7, faults: bool = True) -> list[tuple[str, float, Floats]]:
    """A stream of single readings, in time order, of known and new devices, with holes and a fault."""
    rng = np.random.default_rng(seed)
    parts = [fleets.healthy(ticks, i, seed) for i in range(devices)]
    if faults:
        parts[0][30:40, 1] += 40.0
    out = []
    for t in range(ticks):
        for i in range(devices):
            values = parts[i][t].copy()
            values[rng.random(3) < 0.05] = np.nan
            if not np.isnan(values).all():
                out.append((f"d{i}", fleets.START + t, values))
    return out


def scattered(given_rows: list[tuple[str, float, Floats]], seed: int) -> list[tuple[str, float, Floats]]:
    """Each channel by itself, up to 0.2 s late, and some out of order or twice."""
    rng = np.random.default_rng(seed)
    out = [
        (device, time + rng.choice([0.0, 0.2]), np.where(np.arange(3) == column, values, np.nan))
        for device, time, values in given_rows
        for column in np.flatnonzero(~np.isnan(values))
    ]
    out += [out[at] for at in rng.integers(len(out), size=len(out) // 20)]
    return [out[at] for at in np.argsort([time + rng.exponential(0.4) for _, time, _ in out], kind="stable")]


Scores = dict[tuple[str, float], tuple[float, ...]]


def run(stream: ProfileStream, chunks: list[list[tuple[str, float, Floats]]]) -> tuple[Scores, list[Transition]]:
    scores: Scores = {}
    transitions = []
    for chunk in chunks:
        outcome, _ = stream.absorb(pack(chunk), fleets.START)
        transitions += outcome.transitions
        for ticks in outcome.ticks:
            assert len(set(ticks.batch.slots.tolist())) == len(ticks.batch)
            assert ticks.scored is not None
            for at, slot in enumerate(ticks.batch.slots.tolist()):
                key = stream.table.ids[slot], float(ticks.batch.time[at])
                scores[key] = (float(ticks.scored.score[at]), float(ticks.scored.surprise[at]))
    return scores, transitions


def pack(chunk: list[tuple[str, float, Floats]]) -> Readings:
    return fleets.readings(
        [d for d, _, _ in chunk], np.array([t for _, t, _ in chunk]), np.array([v for _, _, v in chunk])
    )


def same(a: Scores, b: Scores) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        np.testing.assert_array_equal(value, b[key], err_msg=str(key))


@CALM
@given(
    st.integers(1, 20),
    st.lists(st.integers(0, 10_000), max_size=12),
    st.booleans(),
    WEIGHTS,
    st.sampled_from([0.0, 1.0]),
)
def test_chunking_a_stream_in_any_way_gives_the_same_scores_and_alerts(
    devices: int, cuts: list[int], declared: bool, weights: str, window: float
) -> None:
    for given_rows in (rows(devices), scattered(rows(devices), devices)):
        whole, alerts = run(make(declared, weights, window), [given_rows])
        edges = sorted({0, len(given_rows), *(cut % len(given_rows) for cut in cuts)})
        parts, other = run(make(declared, weights, window), [given_rows[a:b] for a, b in pairwise(edges)])
        same(whole, parts)
        told, others = ([t.alert.id + str(t.alert.seq) for t in each] for each in (alerts, other))
        assert sorted(told) == sorted(others)


ONE_CHANNEL_EACH = st.lists(
    st.tuples(
        st.sampled_from(["d0", "d1"]),
        st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]),
        st.integers(0, 2),
        st.sampled_from([1.0, 2.0]),
    ),
    min_size=1,
    max_size=12,
)


@settings(CALM, max_examples=300)
@given(ONE_CHANNEL_EACH, st.lists(st.integers(1, 11), max_size=11))
def test_readings_to_be_aligned_in_any_order_and_chunks_have_the_same_fates_and_none_accepted_is_lost(
    order: list[tuple[str, float, int, float]], cuts: list[int]
) -> None:
    given_rows = [(d, fleets.START + t, np.where(np.arange(3) == at, v, np.nan)) for d, t, at, v in order]
    edges = sorted({0, len(order), *(cut for cut in cuts if cut < len(order))})
    runs = []
    for chunks in ([given_rows], [[row] for row in given_rows], [given_rows[a:b] for a, b in pairwise(edges)]):
        stream, told, ticks = ProfileStream(fleets.spec(align_window=1.0)), Counter[Fate](), []
        codes: list[int] = []
        for chunk in chunks:
            outcome, fates = stream.absorb(pack(chunk), fleets.START)
            codes += fates.tolist()
            told.update(outcome.fates)
            ticks += outcome.ticks
        outcome = stream.timer(fleets.START + 9)
        assert not outcome.fates
        ticks += outcome.ticks
        assert told == Counter(FATES[code] for code in codes)
        out: dict[str, list[tuple[float, list[str]]]] = {}
        for batch in (each.batch for each in ticks):
            for slot, time, values in zip(batch.slots.tolist(), batch.time.tolist(), batch.values, strict=True):
                out.setdefault(stream.table.ids[slot], []).append((time, [f"{v:g}" for v in values]))
        used = [row for row, code in zip(order, codes, strict=True) if FATES[code] is Fate.ACCEPTED]
        assert Counter((d, at, f"{v:g}") for d, _, at, v in used) == Counter(
            (d, at, v) for d, taken in out.items() for _, tick in taken for at, v in enumerate(tick) if v != "nan"
        )
        runs.append((codes, out))
    assert runs[0] == runs[1] == runs[2]


@CALM
@given(st.integers(2, 20), st.randoms(use_true_random=False), WEIGHTS)
def test_permuting_a_batch_permutes_its_outcomes(devices: int, random: object, weights: str) -> None:
    ticks = [[row for row in rows(devices) if row[1] == fleets.START + t] for t in range(TICKS)]
    ordered, _ = run(make(weights=weights), ticks)
    for tick in ticks:
        random.shuffle(tick)  # type: ignore[attr-defined]
    shuffled, _ = run(make(weights=weights), ticks)
    same(ordered, shuffled)


@CALM
@given(st.integers(2, 20), WEIGHTS)
def test_other_devices_readings_change_nothing(devices: int, weights: str) -> None:
    together, _ = run(make(weights=weights), [rows(devices)])
    alone, _ = run(make(weights=weights), [[row for row in rows(devices) if row[0] == "d0"]])
    same({key: value for key, value in together.items() if key[0] == "d0"}, alone)


@CALM
@given(st.integers(1, TICKS - 1))
def test_a_score_never_depends_on_the_future(cut: int) -> None:
    given_rows = rows(3)
    whole, _ = run(make(), [given_rows])
    end = fleets.START + cut
    until = [row for row in given_rows if row[1] < end]
    earlier, _ = run(make(), [until])
    same({key: value for key, value in whole.items() if key[1] < end}, earlier)


@CALM
@given(st.integers(1, TICKS - 1), st.booleans(), WEIGHTS)
def test_a_snapshot_and_the_rest_equal_the_uninterrupted_run(cut: int, declared: bool, weights: str) -> None:
    given_rows = rows(5)
    whole, alerts = run(make(declared, weights), [given_rows])
    at = sum(row[1] < fleets.START + cut for row in given_rows)
    first = make(declared, weights)
    before, begun = run(first, [given_rows[:at]])
    slots = np.array(list(first.table))
    saved = list(zip([first.table.ids[slot] for slot in slots], first.rows(slots), strict=True))
    second = ProfileStream(fleets.spec())
    second.keep_ticks = True
    second.restore(first.export(), first.detector, saved)
    after, ended = run(second, [given_rows[at:]])
    same(whole, before | after)
    assert [t.alert for t in alerts] == [t.alert for t in begun + ended]


def test_a_tick_is_an_anomaly_exactly_where_the_score_reaches_one_and_shares_sum_to_one() -> None:
    stream = make()
    outcome, _ = stream.absorb(pack(rows(4)), fleets.START)
    scores = [float(s) for ticks in outcome.ticks if ticks.scored for s in ticks.scored.score]
    assert outcome.anomalies.get("prediction", 0) == sum(score >= 1 for score in scores) > 0
    alerts = [t.alert for t in outcome.transitions if t.alert.kind == "prediction"]
    assert alerts
    for alert in alerts:
        assert math.isclose(sum(view.share for view in alert.channels), 1.0, rel_tol=1e-6)
        assert alert.score is not None
        assert alert.score >= 1


def test_scoring_mutates_neither_its_input_nor_what_it_returned() -> None:
    stream = make()
    given_rows = rows(4)
    readings = pack(given_rows)
    time, values = readings.time.copy(), readings.values.copy()
    outcome, _ = stream.absorb(readings, fleets.START)
    np.testing.assert_array_equal(readings.time, time)
    np.testing.assert_array_equal(readings.values, values)
    scored = outcome.ticks[0].scored
    assert scored is not None
    kept = scored.score.copy()
    readings.values[:] = 99.0
    stream.absorb(pack([(d, t + TICKS, v) for d, t, v in given_rows]), fleets.START)
    np.testing.assert_array_equal(kept, scored.score)


@CALM
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=60))
def test_each_reading_has_one_fate_and_ticks_run_forward_in_time(order: list[tuple[int, int]]) -> None:
    stream = make()
    given_rows = [(f"d{d}", fleets.START + t, np.array([t + 0.5, 1.0, d])) for d, t in order]
    outcome, codes = stream.absorb(pack(given_rows), fleets.START)
    assert sum(outcome.fates.values()) == len(codes) == len(order)
    assert outcome.count == outcome.fates.get(Fate.ACCEPTED, 0)
    last: dict[int, float] = {}
    for ticks in outcome.ticks:
        for slot, time in zip(ticks.batch.slots.tolist(), ticks.batch.time.tolist(), strict=True):
            assert time >= last.get(slot, -math.inf)
            last[slot] = time


def most_of(budget: float) -> float:
    """Surprise up to which the bound holds.

    From b_max on, what is raised is lost; and a channel at its ceiling is told however far the threshold was raised.
    """
    level = kernel.level_of(math.nan, budget, 1.0, 1.0)
    return 0.999 * min(level * (1 + kernel.RAISE_LIMIT - kernel.RAISE), kernel.MOST_RAISED)


def told(surprises: Floats, budget: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ticks at which prediction alerts fired on one device with these surprises of its one channel."""
    stream = make()
    stream.respec(fleets.spec(alert_budget=budget))
    scorer = stream.scorer
    assert scorer is not None
    blank, level = scorer.observe, kernel.level_of(math.nan, budget, 1.0, 1.0)

    def observe(slabs: Slabs, slots: Ints, values: Floats, dt: Floats, time: Floats, reset: Bools) -> Scored:
        """The controller's own arithmetic, on a surprise of ours."""
        scored = blank(slabs, slots, values, 0 * dt, time, reset)
        raised = kernel.decayed(float(slabs.view("raised")[slots[0]]), budget, float(dt[0]))
        slabs.view("raised")[slots[0]] = raised
        score = kernel.score_of(float(surprises[int(time[0] - fleets.START)]), 0.0, 0.0, 0.0, level, level, raised)
        told = np.array([score], dtype=np.float32)
        return dataclasses.replace(scored, score=told, alarm=told)

    monkeypatch.setattr(scorer, "observe", observe)
    values, fired = fleets.healthy(len(surprises), 0, 7), []
    for cut in range(0, len(surprises), 500):
        part = [("d0", fleets.START + t, values[t]) for t in range(cut, min(cut + 500, len(surprises)))]
        outcome, _ = stream.absorb(pack(part), fleets.START)
        fired += [int(t.alert.updated - fleets.START) for t in outcome.transitions if t.fires]
    return fired


@CALM
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(1, 120), st.floats(0.0, 1.0), st.floats(0.0, 1.0)), min_size=4, max_size=40),
    st.sampled_from([1 / 200, 1 / 2000, 1 / 604800]),
)
def test_alerts_in_any_span_stay_within_the_budgets_bound_whatever_the_scores_are(
    seed: int, blocks: list[tuple[int, float, float]], budget: float
) -> None:
    """At most B W + b_max / g alerts in any span W, and the one that is open, stationary or not."""
    rng = np.random.default_rng(seed)
    surprises = np.concatenate([low + (high - low) * rng.random(n) for n, low, high in blocks]) * most_of(budget)
    with pytest.MonkeyPatch.context() as patch:
        fired = told(surprises, budget, patch)
    for first in range(len(fired)):
        for last in range(first, len(fired)):
            span = fired[last] - fired[first]
            assert last - first + 1 <= budget * span + kernel.RAISE_LIMIT / kernel.RAISE + 1


@pytest.mark.parametrize("budget", [1 / 200, 1 / 2000, 1 / 20000])  # well below the most that a level can be
def test_the_controller_holds_back_what_comes_again_and_again(budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An excursion every 60 ticks, each of them over the threshold at first: few are told, but not none."""
    ticks, every = 3000, 60
    level, most = kernel.level_of(math.nan, budget, 1.0, 1.0), most_of(budget)
    high = level + (most - level) * np.random.default_rng(0).random(ticks)
    fired = told((np.arange(ticks) % every < 5) * high, budget, monkeypatch)
    assert len(fired) <= budget * ticks + kernel.RAISE_LIMIT / kernel.RAISE + 1
    assert 2 <= len(fired) < ticks / every / 2


def test_a_channel_at_its_ceiling_is_told_however_far_the_threshold_was_raised() -> None:
    for raised, interval in itertools.product((0.0, 1.0, kernel.RAISE_LIMIT), (1e-3, 1.0, 3600.0)):
        level = kernel.level_of(math.nan, 1 / 604800, interval, 3.0)
        height = kernel.height_of(level, 3.0, declared=False)
        assert kernel.score_of(kernel.CEILING, 0.0, 0.0, 0.0, height, level, raised) >= 1.0
        assert kernel.score_of(0.0, kernel.CEILING, 0.0, 0.0, height, level, raised) >= 1.0
