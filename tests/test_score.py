"""Scores against a plain NumPy reading of the formulas, and what the defined behaviours promise."""

import math

import numpy as np
import pytest
import torch

from sentinel.model import calibrate
from sentinel.model.calibrate import WEEK, ShiftReference, level, p_value, shift_reference
from sentinel.model.scale import ProfileScale, counters, location_and_spread, longest_run
from sentinel.model.score import QUANTUM, RANGE_WEIGHT, SETTLE, WINDOWS, Scorer
from sentinel.model.slabs import Slabs
from sentinel.records import Channel, Floats
from tests import fleets

TICKS = 90


def scorer(declared: bool = False, **gates: Channel) -> tuple[Scorer, Slabs]:
    detector = fleets.learned(declared=declared).detector
    made = Scorer(detector, gates, 1 / WEEK, None)
    slabs = Slabs(made.layout, torch.device("cpu"), 2)
    made.begin(slabs, torch.arange(2))
    return made, slabs


def play(made: Scorer, slabs: Slabs, values: Floats, start: int = 0) -> list[float]:
    """Scores of one device over (T, 3) values at 1 Hz."""
    out = []
    for t, row in enumerate(values):
        x = made.detector.scale.scaled(row[None], row[None])
        now = np.array([fleets.START + start + t])
        first = np.array([t == 0 and start == 0])
        out.append(float(made.observe(slabs, np.array([1]), x, np.array([1.0]), now, first).score[0]))
    return out


def test_the_surprise_equals_a_plain_reading_of_the_formula() -> None:
    """The surprise, written out for one device, with the statistics of before the tick."""
    made, slabs = scorer()
    layout, detector = made.layout, made.detector
    view = layout.view
    values = fleets.healthy(TICKS, 0, 5)
    values[60:64, 1] += 8
    errors: list[Floats] = []
    checked = 0
    for t, row in enumerate(values):
        x = detector.scale.scaled(row[None], row[None])
        before = slabs.records[1:2].clone()
        ahead = slabs.ahead[1].clone()
        scored = made.observe(
            slabs, np.array([1]), x, np.array([1.0]), np.array([fleets.START + t]), np.array([t == 0])
        )
        m, s = view(before, "m")[0].numpy(), view(before, "s")[0].numpy()
        linear = (x[0].astype(np.float32) - m) / s
        y = np.arcsinh(linear)
        forecasts = []
        for h, offset in zip(detector.spec.horizons, layout.offsets, strict=True):
            made_then = ahead[offset + int(view(before, "tick")[0]) % h].numpy()
            forecasts.append(made_then if t >= max(h, SETTLE) else None)
        h_before = view(before, "h")[0][-1].numpy() if t else np.zeros(detector.spec.hidden)
        w = {k: v.numpy() for k, v in detector.forecaster.weights.items()}
        cross = w["cross_bias"] + w["cross_h"] @ h_before + (w["cross_y"] * (1 - np.eye(3))) @ np.clip(y, -8, 8)
        forecasts.append(cross if t >= SETTLE else None)
        e = np.array([np.clip(linear - np.sinh(f), -20, 20) if f is not None else np.zeros(3) for f in forecasts])
        errors.append(np.round(e * QUANTUM) / QUANTUM)
        calibration, n = view(before, "calibration")[0].numpy(), view(before, "n")[0].numpy()
        total = np.zeros(3)
        heads = [k for k, f in enumerate(forecasts) if f is not None and n[k] >= calibrate.LEAST]
        for k in heads:
            for stream, (window, magnitude) in enumerate(WINDOWS):
                last = np.array([past[k] for past in errors[-window:]])
                u = (np.abs(last) if magnitude else last).sum(0) / window
                for memory in range(2):
                    mean, var = calibration[memory, :, stream, 3 * k : 3 * k + 3]
                    z = (np.abs(u) - mean) / (np.sqrt(var) + 1e-3 * np.abs(mean) + 0.02)
                    total += np.clip(z, 0, 12) / 8
        if not heads:
            assert math.isnan(float(scored.score[0]))
            continue
        lo, hi = view(before, "lo")[0].numpy(), view(before, "hi")[0].numpy()
        excess = np.maximum(np.maximum(lo - linear, linear - hi), 0) / (hi - lo + 0.02)
        active = n.max() >= 300
        expected = (total / len(heads) + active * RANGE_WEIGHT * np.clip(excess / 0.02, 0, 1)).mean()
        assert float(scored.surprise[0]) == pytest.approx(expected, rel=2e-3, abs=2e-3)
        checked += 1
    assert checked > 60


def test_a_new_device_of_a_known_profile_is_scored_within_its_first_fifty_ticks() -> None:
    made, slabs = scorer()
    scores = play(made, slabs, fleets.healthy(50, 11, 5))
    assert not math.isnan(scores[-1])
    assert math.isnan(scores[0]), "no score yet is not 0"


def test_a_deviation_under_min_deviation_or_on_the_wrong_side_never_counts() -> None:
    values = fleets.healthy(TICKS, 0, 5)
    values[60:, 1] += 80
    assert max(play(*scorer(declared=True), values)[60:]) >= 1
    for gate in (Channel("flow", min_deviation=1000.0), Channel("flow", direction="below")):
        others = {name: Channel(name, min_deviation=1000.0) for name in ("pressure", "heat")}
        assert max(play(*scorer(declared=True, flow=gate, **others), values)[60:]) < 1
    others = {name: Channel(name, min_deviation=1000.0) for name in ("pressure", "heat")}
    assert max(play(*scorer(declared=True, flow=Channel("flow", direction="above"), **others), values)[60:]) >= 1


def test_a_gap_begins_a_new_state_and_makes_no_anomaly() -> None:
    made, slabs = scorer()
    play(made, slabs, fleets.healthy(60, 0, 5))
    row = fleets.healthy(1, 0, 6)[0] + [0, 9, 0]
    x = made.detector.scale.scaled(row[None], row[None])
    scored = made.observe(slabs, np.array([1]), x, np.array([9999.0]), np.array([fleets.START + 1e5]), np.array([True]))
    assert math.isnan(float(scored.score[0]))


def test_constant_missing_and_huge_values_keep_every_number_finite() -> None:
    made, slabs = scorer()
    values = fleets.healthy(TICKS, 0, 5)
    values[20:40, 0] = 5.0
    values[30:50, 1] = np.nan
    values[50, 2] = 1e30
    values[55, 2] = -1e30
    play(made, slabs, values)
    records = slabs.records[1]
    known = {name for name in made.layout.fields if name not in ("v1", "v2", "lo", "hi")}
    for name in known:
        assert torch.isfinite(made.layout.view(records[None], name)).all(), name


def test_the_threshold_rises_when_an_alert_has_ended_and_the_budget_is_earned_back() -> None:
    made, slabs = scorer()
    raised = made.layout.view(slabs.records, "raised")
    for _ in range(20):
        made.raise_threshold(slabs, 1)
    assert float(raised[1]) == calibrate.RAISE_LIMIT
    budget = 1 / WEEK
    b = torch.tensor([calibrate.RAISE])
    for _ in range(8 * 24 * 7):
        b = calibrate.decay(b, torch.tensor([3600.0]), budget)
    assert 0 < float(b) < calibrate.RAISE / 8


@pytest.mark.parametrize("interval", [1.0, 60.0, 3600.0])
def test_the_p_value_at_the_threshold_is_one_in_the_budgets_ticks(interval: float) -> None:
    base = level(1 / WEEK, interval, declared=False)
    ticks = max(WEEK / interval, 2000.0)
    assert float(p_value(torch.tensor([base]))[0]) == pytest.approx(1 / ticks, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_alerts_in_any_span_stay_within_the_budgets_bound_whatever_comes(seed: int) -> None:
    """At most B W + b_max / g alerts in any span W, while b < b_max, stationary or not."""
    rng = np.random.default_rng(seed)
    budget, dt = 1 / 2000.0, 1.0
    b = torch.zeros(1)
    starts: list[int] = []
    for t in range(60_000):
        surprise = rng.exponential(0.3 + 0.3 * math.sin(t / 3000) ** 2)
        if surprise >= 1.7 * (1 + float(b)) and (not starts or t - starts[-1] > calibrate.REFRACTORY):
            starts.append(t)
            b = (b + calibrate.RAISE).clamp(max=calibrate.RAISE_LIMIT)
            assert float(b) < calibrate.RAISE_LIMIT, "the bound holds below the limit"
        b = calibrate.decay(b, torch.tensor([dt]), budget)
    assert len(starts) > 10
    for span in (1000, 5000, 20_000):
        most = max(sum(s <= x < s + span for x in starts) for s in starts)
        assert most <= budget * span + calibrate.RAISE_LIMIT / calibrate.RAISE + 1


class TestShift:
    def reference(self) -> tuple[ShiftReference, Floats]:
        rng = np.random.default_rng(0)
        a = rng.normal(size=(2000, 1))
        values = np.hstack([a, a, a]) + 0.1 * rng.normal(size=(2000, 3))
        parts = shift_reference(values, values, np.ones(3))
        tensors = [torch.tensor(part[None], dtype=torch.float32) for part in parts]
        return ShiftReference(tensors[0], tensors[1], tensors[2], values_only=False), values

    def test_clean_ticks_are_within_one_and_a_broken_correlation_is_far_outside(self) -> None:
        reference, values = self.reference()
        rows = np.vstack([values, [[2.0, 2.0, -2.0]]])
        given = torch.tensor(np.stack([rows, rows], 1), dtype=torch.float32)
        distance, blame = reference.distance(given, torch.zeros(len(rows), dtype=torch.long), torch.ones_like(given))
        assert float(distance[:-1].max()) <= 1.001
        assert float(distance[-1]) > 4
        assert int(blame[-1].argmax()) == 2

    def test_the_distance_is_mahalanobis(self) -> None:
        reference, values = self.reference()
        c = np.cov(values.T, bias=True)
        c += 0.003 * np.trace(c) / 3 * np.eye(3)
        away = values[5] - values.mean(0)
        expected = math.sqrt(away @ np.linalg.inv(c) @ away)
        given = torch.tensor(np.stack([values[5:6]] * 2, 1), dtype=torch.float32)
        distance, _ = reference.distance(given, torch.zeros(1, dtype=torch.long), torch.ones_like(given))
        assert float(distance[0] * reference.most[0, 0]) == pytest.approx(expected, rel=1e-3)


class TestScale:
    def test_location_and_spread_are_robust_and_never_zero(self) -> None:
        rng = np.random.default_rng(0)
        normal = rng.normal(10, 2, 5000)
        columns = np.stack([normal, np.full(5000, 7.0), np.full(5000, np.nan), np.zeros(5000)], axis=1)
        location, spread = location_and_spread(columns)
        np.testing.assert_allclose(location, [10, 7, 0, 0], atol=0.1)
        np.testing.assert_allclose(spread, [2, 0.35, 1, 1e-3], rtol=0.05)

    def test_a_counter_is_differenced_and_its_restart_is_zero(self) -> None:
        count = np.arange(100.0) * 3
        assert counters([np.stack([count, np.sin(count)], axis=1)]).tolist() == [True, False]
        scale = ProfileScale(np.zeros(1), np.ones(1), np.array([True]))
        got = [scale.scaled(np.array([[v]]), np.array([[p]]))[0, 0] for v, p in ((10, 7), (2, 10), (5, math.nan))]
        np.testing.assert_array_equal(got, [3, 0, math.nan])

    def test_the_longest_run_says_nothing_of_channels_that_rest(self) -> None:
        rng = np.random.default_rng(0)
        moving = rng.normal(size=200)
        moving[50:53] = 1.0
        resting = np.repeat([1.0, 2.0, 3.0, 4.0], 50)
        runs = longest_run(np.stack([moving, resting, np.zeros(200)], axis=1))
        assert runs.tolist() == [3.0, math.inf, math.inf]
