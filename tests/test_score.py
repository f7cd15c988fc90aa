"""Scores against a plain NumPy reading of the formulas, and what the defined behaviours promise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sentinel.model import kernel
from sentinel.model.calibrate import WEEK, declared_level, shift_reference
from sentinel.model.scale import ProfileScale, counters, location_and_spread, longest_run
from sentinel.model.score import Detector, Scored, Scorer
from sentinel.model.slabs import STREAMS, Array, Slabs
from sentinel.records import Bools, Channel, Floats
from tests import fleets

TICKS = 90


def scorer(detector: Detector | None = None, *gates: Channel, declared: bool = False) -> tuple[Scorer, Slabs]:
    made = Scorer(
        detector or fleets.learned(declared=declared).detector, {gate.name: gate for gate in gates}, 1 / WEEK, None
    )
    slabs = Slabs(made.layout, torch.device("cpu"), 2)
    made.begin(slabs, np.arange(2))
    return made, slabs


def observe(made: Scorer, slabs: Slabs, row: Floats, t: int, *, first: bool) -> Scored:
    x = made.detector.scale.scaled(row[None], row[None])
    return made.observe(slabs, np.array([1]), x, np.ones(1), np.array([fleets.START + t]), np.array([first]))


def play(made: Scorer, slabs: Slabs, values: Floats) -> list[float]:
    """Scores of one device over (T, 3) values at 1 Hz."""
    return [float(observe(made, slabs, row, t, first=t == 0).score[0]) for t, row in enumerate(values)]


class Plain:
    """One device's score, written out. What the device remembered before the tick is read from its slabs."""

    def __init__(self, made: Scorer) -> None:
        self.made, self.detector, self.layout = made, made.detector, made.layout
        self.errors: list[Floats] = []  # quantised, (K, F) each
        self.weights = {name: value[0].double().numpy() for name, value in self.detector.forecaster.weights.items()}

    def forecasts(self, slabs: Slabs, y: Floats, seen: int, tick: int) -> list[Floats | None]:
        """What each head said of this tick, (F,); None: not to be judged yet."""
        out: list[Floats | None] = []
        for horizon, offset in zip(self.detector.spec.horizons, self.layout.offsets, strict=True):
            said = slabs.ahead[1, offset + tick % horizon].astype(np.float64)
            out.append(said if seen >= horizon - 1 + kernel.SETTLE else None)
        h = slabs.state[1, 0, -1].double().numpy() * (seen > 0)
        f = self.layout.channels
        cross = self.weights["cross_bias"] + self.weights["cross_h"] @ h
        cross = cross + (self.weights["cross_y"] * (1 - np.eye(f))) @ np.clip(np.nan_to_num(y), -8, 8)
        return [*out, cross if seen >= kernel.SETTLE else None]

    def score(self, slabs: Slabs, x: Floats) -> dict[str, Array]:
        """Score, surprise and the rest of a tick of `x` (F,), in profile units."""
        one = {name: slabs.view(name)[1].astype(np.float64) for name in self.layout.fields}
        f, since = self.layout.channels, int(one["since"])
        frozen, declared = one["frozen"] > 0, self.detector.declared
        linear = np.clip((x - one["m"]) / one["s"], -kernel.LIMIT, kernel.LIMIT)
        said = self.forecasts(slabs, np.arcsinh(linear), since, int(one["tick"]))
        plain = [np.zeros(f) if s is None else np.nan_to_num(linear - np.sinh(np.clip(s, -14, 14))) for s in said]
        clipped = np.clip(plain, -kernel.ERROR_LIMIT, kernel.ERROR_LIMIT)
        self.errors.append(np.round(clipped * kernel.QUANTUM) / kernel.QUANTUM)
        heads = [k for k, s in enumerate(said) if s is not None and one["n"][k] >= kernel.LEAST]

        streams = np.zeros((STREAMS, len(said), f))
        for w, window in enumerate(kernel.WINDOWS):
            last = np.array(self.errors[-window:])
            streams[w] = np.abs((np.abs(last) if w < kernel.MAGNITUDES else last).sum(0) / window)
        by_head = np.zeros((len(said), f))
        memories = one["calibration"][: 1 if frozen else 2].reshape(-1, 2, STREAMS, len(said), f)
        for mean, var in memories:
            z = (streams - mean) / (np.sqrt(var) + 1e-3 * np.abs(mean) + kernel.FLOOR)
            by_head += np.clip(z, 0, kernel.CEILING).sum(0) / (STREAMS * len(memories))
        # As surprising as the past or the other channels say, whichever more; over all channels, the mean of the heads.
        past = [k for k in heads if k < len(said) - 1]
        others = by_head[-1] * (len(said) - 1 in heads)
        own = np.maximum(by_head[past].sum(0) / max(len(past), 1), others)
        every = by_head[heads].sum(0) / max(len(heads), 1)

        varied = one["varied"] > 0
        count = max(int(varied.sum()), 1)
        interval = float(one["interval"])
        if declared:
            level = declared_level(1 / WEEK)
        else:
            most = max(WEEK / interval / kernel.PRIOR_TICKS, 1.0)
            level = kernel.PRIOR_LEVEL + kernel.PRIOR_SLOPE * math.log(most)
            steepness = kernel.PRIOR_SLOPE
            _, _, blocks, middle, spread, length = one["tail"]
            if blocks >= kernel.TAIL_LEAST:
                scale = math.sqrt(6 * spread) / math.pi
                slope = scale * (1 + 3 / math.sqrt(blocks))
                at = middle - 0.5772156649 * scale + slope * math.log(WEEK / interval / length)
                low = max(at - kernel.PRIOR_SLOPE * math.log(count), kernel.PRIOR_LEVEL)
                level, steepness = (low, slope) if low < level else (level, steepness)
        height = min(
            level + (kernel.ALONE_SLOPE if declared else kernel.PRIOR_SLOPE) * math.log(count), kernel.MOST_LEVEL
        )
        weight = kernel.RANGE_WEIGHT
        if not declared:
            weight = min(max(kernel.RANGE_PER_LEVEL * height, kernel.RANGE_WEIGHT), kernel.MOST_RANGE)
        if one["n"].max() >= kernel.RANGE_AFTER:
            excess = np.maximum(np.maximum(one["lo"] - linear, linear - one["hi"]), 0)
            ticks = float(one["n"].max())
            steep = weight / 0.02
            if not declared and ticks < count * WEEK / interval:
                enough = ((count * WEEK / interval / ticks) ** 0.2 - 1) / 2
                steep = min(steep, height / (enough * (kernel.OF_SEVERAL if count > 1 else 1)))
            beyond = np.clip(np.nan_to_num(excess / (one["hi"] - one["lo"] + kernel.FLOOR) * steep), 0, weight)
            own, every = own + beyond, every + beyond
        own, every = np.where(varied, own, 0.0), np.where(varied, every, 0.0)
        surprise = every.sum() / count

        earned = kernel.RAISE / WEEK * min(1.0, 64 * interval) * min(one["raised"] / kernel.RAISE_REFERENCE, 1.0)
        raised = max(one["raised"] - earned, 0.0)
        highest = (own / one["accepted"][:f]).max()
        unsure = 0.0 if declared else kernel.UNSURE / max(one["n"].max(), 1.0)

        sure = min(height * (1 + unsure), max(kernel.MOST_LEVEL, height))
        terms, alarm = [highest / sure], highest / min(sure * (1 + raised), max(kernel.MOST_RAISED, height))
        if declared:
            three = np.sort(own / one["accepted"][:f])[::-1][: min(count, 3)].mean() / one["accepted"][f]
            terms.append(three / level)
            shift = self.joint(one, linear, plain[len(self.detector.spec.horizons) - 1])
            terms.append(shift ** (1 / 3))
        score = max(terms) if heads else math.nan
        p = math.exp(-(max(terms) * level - kernel.PRIOR_LEVEL) / kernel.PRIOR_SLOPE) / kernel.PRIOR_TICKS
        if not declared:
            p = math.exp(-(max(terms) - 1) * level / steepness) / max(WEEK / interval, kernel.PRIOR_TICKS)
        return {
            "terms": np.array(terms),
            "score": np.array(score),
            "surprise": np.array(surprise if heads else math.nan),
            "p_value": np.array(min(p, 1.0) if heads else math.nan),
            "own": own,
            "raised": np.array(raised),
            **({} if declared else {"alarm": np.array(alarm if heads else math.nan)}),
        }

    def joint(self, one: dict[str, Floats], linear: Floats, far: Floats) -> float:
        """The shift of the slow means over its limit."""
        reference = self.detector.shift
        if reference is None or one["since"] < kernel.EARLIEST_SHIFT:
            return 0.0
        parts = []
        for k, value in enumerate((linear, far)):
            moved = np.clip(value, -kernel.ERROR_LIMIT, kernel.ERROR_LIMIT) - one["shift"][k]
            slow = one["shift"][k] + np.where(np.isnan(linear), 0.0, kernel.SHIFT_RATE * moved)
            away = slow - one["centre"][k]
            squared = away @ reference.precision[0, k].astype(np.float64) @ away
            parts.append(math.sqrt(max(squared, 0.0)) / float(reference.most[0, k]))
        both = parts[0] if reference.values_only else math.sqrt(parts[0] * parts[1])
        return float(both / (kernel.SHIFT_LIMIT * one["accepted"][len(linear) + 1]))


def disturbed() -> Floats:
    """One device's ticks with noise on all channels, a spike, holes, and a lasting shift of one channel, (T, 3)."""
    values = fleets.healthy(180, 0, 5)
    values[40:50] += np.outer((-1.0) ** np.arange(10), [3.0, 9.0, 6.0])
    values[70:74, 1] += 8
    values[80:90, 0] = np.nan
    values[120:, 2] += 1.5
    return values


@pytest.mark.parametrize("errors_too", [False, True], ids=["values", "values and errors"])
@pytest.mark.parametrize("declared", [False, True], ids=["live", "declared"])
def test_the_score_equals_a_plain_reading_of_the_formula(declared: bool, errors_too: bool) -> None:
    """The whole score, written out for one device, with the statistics of before the tick."""
    detector = fleets.learned(declared=declared).detector
    if detector.shift is not None:
        detector = replace(detector, shift=replace(detector.shift, values_only=not errors_too))
    made, slabs = scorer(detector)
    slabs.view("n")[1] = 2 * kernel.RANGE_AFTER
    slabs.view("raised")[1] = 0.4
    slabs.view("accepted")[1] = [1.0, 1.3, 1.0, 1.1, 1.2]
    if not declared:
        slabs.view("tail")[1] = [0.0, 0.0, 19.0, 1.5, 0.16, 800.0]  # lowers the level
    plain, decides = Plain(made), np.zeros(3, dtype=np.int64)
    checked = 0
    for t, row in enumerate(disturbed()):
        if t == 0:
            slabs.view("since")[1] = 0
        expected = plain.score(slabs, detector.scale.scaled(row[None], row[None])[0])
        scored = observe(made, slabs, row, t, first=t == 0)
        for name in expected.keys() - {"terms", "raised"}:
            np.testing.assert_allclose(
                getattr(scored, name)[0], expected[name], rtol=2e-3, atol=2e-3, err_msg=f"{name} of tick {t}"
            )
        assert float(slabs.view("raised")[1]) == pytest.approx(float(expected["raised"]), rel=1e-5)
        if not math.isnan(float(expected["score"])):
            checked += 1
            decides[int(expected["terms"].argmax())] += 1
    assert checked > 150
    assert (decides[: 3 if declared else 1] > 0).all(), f"each term decides somewhere: {decides}"


def taught(made: Scorer, slabs: Slabs, row: Floats, t: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """What a device knew before and after a tick; `stream`: its window means with that tick."""
    names = ("calibration", "n", "lo", "hi", "waiting")
    before = {name: slabs.view(name)[1].astype(np.float64) for name in names}
    observe(made, slabs, row, t, first=t == 0)
    after = {name: slabs.view(name)[1].astype(np.float64) for name in names}
    size = np.array(kernel.WINDOWS)[:, None] * kernel.QUANTUM
    after["stream"] = np.abs(slabs.view("sums")[1].astype(np.float64)) / size
    return before, after


def test_live_statistics_learn_blocks_of_ticks_as_if_one_by_one() -> None:
    """Of all history: mean and variance of every tick that was learned, whatever the blocks were."""
    made, slabs = scorer()
    for name in ("n", "calibration"):
        slabs.view(name)[1] = 0.0
    learned: list[list[Floats]] = [[] for _ in range(3)]
    for t, row in enumerate(fleets.healthy(400, 0, 5)):
        before, after = taught(made, slabs, row, t)
        told = before["n"] + before["waiting"]
        learns = after["n"] + after["waiting"] > told
        np.testing.assert_array_equal(after["n"] + after["waiting"] - told, learns.astype(float))
        assert t >= kernel.SETTLE or not learns.any()
        for k in range(3):
            learned[k] += [after["stream"].reshape(STREAMS, 3, 3)[:, k]] * bool(learns[k])
            assert after["waiting"][k] < kernel.BLOCK
            n = int(after["n"][k])
            if n >= 2 and after["waiting"][k] == 0:
                known = np.array(learned[k])
                mean, var = after["calibration"].reshape(2, 2, STREAMS, 3, 3)[0, :, :, k]
                np.testing.assert_allclose(mean, known.mean(0), rtol=1e-3, atol=1e-4)
                np.testing.assert_allclose(var, known.var(0), rtol=1e-2, atol=1e-4)
    assert slabs.view("n")[1].min() > 256


def test_the_short_memory_weighs_a_block_by_its_ticks() -> None:
    made, slabs = scorer()
    slabs.view("n")[1] = 5000.0
    slabs.view("waiting")[1] = slabs.view("pending")[1] = 0.0
    streams = []
    for t, row in enumerate(fleets.healthy(300, 0, 5)):
        before, after = taught(made, slabs, row, t)
        streams.append(after["stream"])
        if (after["n"] > before["n"]).any():
            break
    k = int(np.argmax(after["n"] > before["n"]))
    block = np.array(streams[-kernel.BLOCK :]).reshape(kernel.BLOCK, STREAMS, 3, 3)[:, :, k]
    rate = 1 - (1 - 1 / kernel.MEMORY) ** kernel.BLOCK
    (mean, var), (mean_, var_) = (x["calibration"].reshape(2, 2, STREAMS, 3, 3)[1, :, :, k] for x in (before, after))
    away = block.mean(0) - mean
    np.testing.assert_allclose(mean_, mean + rate * away, rtol=1e-4)
    np.testing.assert_allclose(var_, (1 - rate) * (var + rate * away**2) + rate * block.var(0), rtol=1e-3, atol=1e-6)


def test_what_lasts_is_told_at_the_strictest_budget() -> None:
    """Learned tick by tick, what has lasted k of n ticks is sqrt(n / k) sd away at most, whatever its size."""
    made = Scorer(fleets.learned().detector, {}, 1 / (52 * WEEK), None)
    slabs = Slabs(made.layout, torch.device("cpu"), 2)
    made.begin(slabs, np.arange(2))
    slabs.view("n")[1] = 500.0
    values = fleets.healthy(300, 0, 5)
    values[160:, 1] += np.linspace(0, 200, 140)
    scores = play(made, slabs, values)
    assert max(scores[100:160]) < 0.5
    assert max(scores[160:]) >= 1.0


@pytest.mark.parametrize("seed", range(3))
def test_a_devices_own_tail_is_that_of_its_surprise(seed: int) -> None:
    """Exponential surprise of scale 0.25: exceeded once in N ticks is 0.25 ln N; a scale from few blocks is taken for larger."""
    surprise = np.random.default_rng(seed).exponential(0.25, 200_000)
    kept = np.zeros(6, dtype=np.float32)
    for at, value in enumerate(surprise.tolist()):
        kernel.note_tail(kept, value, 2000.0)
        if at + 1 == kernel.TAIL_BLOCK * (kernel.TAIL_LEAST - 1):
            assert math.isnan(kernel.tail_of(kept)[0]), "too few blocks say nothing"
    assert kept[5] == 1600.0, "blocks grow to the longest allowed"
    tail, slope = kernel.tail_of(kept)
    for n in (1e4, 1e5, 6e5):
        assert 0.95 * 0.25 * math.log(n) < tail + slope * math.log(n) < 1.7 * 0.25 * math.log(n)


def test_the_own_tail_lowers_the_level_and_never_raises_it() -> None:
    budget, interval = 1 / WEEK, 1.0
    prior = kernel.level_of(math.nan, budget, interval, 4.0)
    assert kernel.level_of(math.nan, budget, interval, 4.0, 1.0, 0.2) < prior
    assert kernel.level_of(math.nan, budget, interval, 4.0, -9.0, 0.1) == kernel.PRIOR_LEVEL
    assert kernel.level_of(math.nan, budget, interval, 4.0, 5.0, 3.0) == prior
    assert kernel.level_of(5.0, budget, interval, 4.0, 1.0, 0.2) == 5.0, "what is given is given"


def test_what_was_declared_follows_what_comes_but_at_a_bounded_rate() -> None:
    made, slabs = scorer(declared=True)
    settled = np.array([*made.detector.spec.horizons, 1]) - 1 + kernel.SETTLE
    values = fleets.healthy(140, 0, 5)
    values[90:] += 1000.0
    for t, row in enumerate(values):
        before, after = taught(made, slabs, row, t)
        np.testing.assert_array_equal(after["n"], before["n"])
        mean, var = before["calibration"][0]
        was = np.sqrt(before["calibration"][1, 1]) + kernel.FLOOR
        most, sd = kernel.MOST_AT_ONCE * was, np.sqrt(var) + 1e-3 * np.abs(mean) + kernel.FLOOR
        trusted = np.repeat((after["n"] >= kernel.LEAST) & (t >= settled), 3)
        away = after["stream"] - mean
        far = np.minimum(away**2, np.minimum(kernel.MOST_AT_ONCE * sd, kernel.WIDEST * was) ** 2)
        moved, widened = kernel.FOLLOWS * np.clip(away, -most, most) * trusted, kernel.WIDENS * (far - var) * trusted
        np.testing.assert_allclose(after["calibration"][0, 0], mean + moved, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(after["calibration"][0, 1], var + widened, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(after["calibration"][1], before["calibration"][1])
        room = 1.001 * kernel.FOLLOWS * (before["hi"] - before["lo"])
        assert (after["lo"] <= before["lo"]).all()
        assert (after["hi"] >= before["hi"]).all()
        assert (before["lo"] - after["lo"] <= room).all()
        assert (after["hi"] - before["hi"] <= room).all()


def test_a_new_device_of_a_known_profile_is_scored_within_its_first_fifty_ticks() -> None:
    made, slabs = scorer()
    scores = play(made, slabs, fleets.healthy(50, 11, 5))
    assert not math.isnan(scores[-1])
    assert math.isnan(scores[0]), "no score yet is not 0"


def test_a_deviation_under_min_deviation_or_on_the_wrong_side_never_counts() -> None:
    values = fleets.healthy(TICKS, 0, 5)
    values[60:, 1] += 80
    assert max(play(*scorer(declared=True), values)[60:]) >= 1
    others = [Channel(name, min_deviation=1000.0) for name in ("pressure", "heat")]
    for gate in (Channel("flow", min_deviation=1000.0), Channel("flow", direction="below")):
        assert max(play(*scorer(None, gate, *others, declared=True), values)[60:]) < 1
    assert max(play(*scorer(None, Channel("flow", direction="above"), *others, declared=True), values)[60:]) >= 1


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
    for name in set(made.layout.fields) - {"v1", "v2", "lo", "hi"}:
        assert np.isfinite(slabs.view(name)[1]).all(), name
    assert torch.isfinite(slabs.state).all()
    assert np.isfinite(slabs.ahead).all()


def test_the_threshold_rises_when_an_alert_has_ended_and_the_budget_is_earned_back() -> None:
    made, slabs = scorer()
    raised = slabs.view("raised")
    made.raise_threshold(slabs, 1)
    assert float(raised[1]) == pytest.approx(kernel.RAISE)
    for _ in range(20):
        made.raise_threshold(slabs, 1)
    assert float(raised[1]) == kernel.RAISE_LIMIT
    b = kernel.RAISE
    for _ in range(8 * 24 * 7):
        b = kernel.decayed(b, 1 / WEEK, 3600.0)
    assert 0 < b < kernel.RAISE / 8
    assert kernel.decayed(kernel.RAISE_LIMIT, 1 / WEEK, WEEK) == pytest.approx(kernel.RAISE_LIMIT - kernel.RAISE)


@pytest.mark.parametrize("interval", [1.0, 60.0, 3600.0])
def test_the_p_value_at_the_threshold_is_one_in_the_budgets_ticks(interval: float) -> None:
    made, slabs = scorer()
    slabs.view("interval")[1] = interval
    values, seen = fleets.healthy(TICKS, 0, 5), []
    values[60:, 1] += 3
    for t, row in enumerate(values):
        scored = observe(made, slabs, row, t, first=t == 0)
        if float(scored.p_value[0]) < 1:
            seen.append((float(scored.score[0]), math.log(float(scored.p_value[0]))))
    slope, at_zero = np.polyfit([score for score, _ in seen], [p for _, p in seen], 1)
    ticks = max(WEEK / interval, kernel.PRIOR_TICKS)
    assert len(seen) > 20
    assert slope + at_zero == pytest.approx(-math.log(ticks), rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_alerts_counted_for_another_budget_are_those_of_its_own_controller(seed: int) -> None:
    """`starts` against the controller written out, on arbitrary scores."""
    rng = np.random.default_rng(seed)
    budget, quiet, rest, ticks = 1 / 500.0, 5, 40, 5000
    level = kernel.level_of(math.nan, budget, 1.0, 1.0)
    highest = (rng.exponential(1.0, ticks) * (1 + np.sin(np.arange(ticks) / 300))).astype(np.float32)
    highest[rng.random(ticks) < 0.05] = np.nan
    zero, one = np.zeros(ticks, dtype=np.float32), np.ones(ticks, dtype=np.float32)
    unsure = (rng.random(ticks) < 0.5).astype(np.float32)
    b, last, still, going, total = 0.0, -math.inf, 0, False, 0
    for t, value in enumerate(highest.tolist()):
        b = max(b - kernel.RAISE * budget * min(b / kernel.RAISE_REFERENCE, 1.0), 0.0)
        if math.isnan(value):
            continue
        sure = min(level * (1 + unsure[t]), max(kernel.MOST_LEVEL, level))
        if value >= min(sure * (1 + b), max(kernel.MOST_RAISED, level)):
            still = 0
            if not going and t - last > rest:
                going, last, total = True, t, total + 1
        elif going:
            still += 1
            if still == quiet:
                going, b = False, min(b + kernel.RAISE, kernel.RAISE_LIMIT)
    assert total > 5
    none = np.full(ticks, np.nan, dtype=np.float32)
    terms = np.stack([highest, zero, zero, one, unsure, none, none, zero, zero])
    told = kernel.starts(terms, np.ones(ticks), 1.0, budget, math.nan, rest, quiet, False)
    assert told == total


class TestShift:
    def reference(self) -> tuple[Floats, Floats, Floats, Floats]:
        rng = np.random.default_rng(0)
        a = rng.normal(size=(2000, 1))
        values = np.hstack([a, a, a]) + 0.1 * rng.normal(size=(2000, 3))
        return (*shift_reference(values, values, np.ones(3)), values)

    def test_clean_ticks_are_within_one_and_a_broken_correlation_is_far_outside(self) -> None:
        centre, precision, most, values = self.reference()
        away = np.vstack([values, [[2.0, 2.0, -2.0]]]) - centre[0]
        distance = np.sqrt(np.einsum("ti,ij,tj->t", away, precision[0], away)) / most[0]
        assert distance[:-1].max() == pytest.approx(1.0)
        assert distance[-1] > kernel.SHIFT_LIMIT

    def test_the_distance_is_mahalanobis_with_a_ridge(self) -> None:
        centre, precision, _, values = self.reference()
        c = np.cov(values.T, bias=True)
        c += 0.003 * np.trace(c) / 3 * np.eye(3)
        for k in range(2):
            np.testing.assert_allclose(centre[k], values.mean(0))
            np.testing.assert_allclose(precision[k], np.linalg.inv(c), rtol=1e-6)

    def test_channels_that_never_varied_take_no_part(self) -> None:
        *_, values = self.reference()
        varied: Floats = np.array([1.0, 0.0, 1.0])
        _, precision, _ = shift_reference(values, values, varied)
        used: Bools = varied > 0
        assert (precision[:, ~used] == 0).all()
        assert (precision[:, :, ~used] == 0).all()
        assert (precision[:, used][:, :, used] != 0).all()

    def test_the_clean_centre_follows_slow_drift_but_at_a_bounded_rate(self) -> None:
        detector = fleets.learned(declared=True).detector
        assert detector.shift is not None
        made, slabs = scorer(detector)
        play(made, slabs, fleets.healthy(kernel.EARLIEST_SHIFT + 20, 0, 5))
        sd = 1 / np.sqrt(np.diagonal(detector.shift.precision[0, 0]))
        row, limits = fleets.healthy(1, 0, 5)[0], set()
        for away in (1e6,) * 10 + (-1e6,) * 10:
            before = slabs.view("centre")[1, 0].copy()
            scored = observe(made, slabs, row + away, 200, first=False)
            moved = np.abs(slabs.view("centre")[1, 0] - before)
            assert (moved > 0).any()
            most = kernel.MOST_AT_ONCE if scored.joint[0] >= 1 else kernel.MOST_UNFLAGGED
            limits.add(float(most))
            assert (moved <= kernel.FOLLOWS * most * sd * 1.001).all()
        assert limits == {3.0, 12.0}, "what is flagged is followed more slowly"


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
