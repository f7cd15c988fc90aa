"""Kinds of channel that are no measurement of noise: what is normal for them is not flagged."""

import numpy as np
import pytest
import torch

from sentinel.backtest import Plan
from sentinel.model import learn as learning
from sentinel.model.learn import Series, learn
from sentinel.records import Channel, Floats, ModelSpec, Readings
from sentinel.stream.pipeline import ProfileStream
from tests import fleets
from tests.bench.streams import BUDGETS, judged, simulated

LEARNED, JUDGED = 1000, 600


def moving(ticks: int, channels: int, seed: int = 0) -> Floats:
    """Channels that follow two slow loads, with noise, (T, F)."""
    rng = np.random.default_rng(seed)
    phase = 2 * np.pi * np.arange(ticks)[:, None] / np.array([40.0, 97.0])
    out: Floats = np.sin(phase) @ rng.normal(size=(2, channels)) + 0.3 * rng.normal(size=(ticks, channels))
    return out


def with_kind(kind: str, ticks: int) -> Floats:
    rng = np.random.default_rng(1)
    values = moving(ticks, 3)
    if kind == "constant":
        values[:, 1] = 7.0
    elif kind == "all constant":
        values[:] = [1.0, 7.0, 0.0]
    elif kind == "binary":
        values[:, 1] = (np.arange(ticks) // 17) % 2
    elif kind == "rarely switched":
        values[:, 1] = rng.random(ticks) < 0.01
    elif kind == "duplicated":
        values[:, 1] = values[:, 0]
    elif kind == "counter":
        values[:, 1] = np.cumsum(rng.integers(1, 9, ticks))
    elif kind == "coarse":
        values[:, 1] = values[:, 1].round()
    elif kind == "holes":
        values[rng.random(values.shape) < 0.3] = np.nan
    return values


def flagged(values: Floats, declared: bool, hidden: int = 8) -> float:
    """Share of the rows after the first thousand, which are learned from, that are flagged."""
    names = [f"c{j}" for j in range(values.shape[1])]
    channels = tuple(Channel(name) for name in names)
    spec = ModelSpec(hidden=hidden, horizons=(1, 8))
    time = fleets.START + np.arange(len(values), dtype=np.float64)
    done = learn([Series("d", time[:LEARNED], values[:LEARNED])], channels, spec, seed=1, declared=declared)
    assert all(torch.isfinite(weight).all() for weight in done.detector.forecaster.weights.values())
    stream = ProfileStream(fleets.spec(channels=channels, model=spec, stuck_after=0))
    stream.announce("d")
    stream.table.advance(np.array([1]), time[LEARNED - 1 : LEARNED], values[LEARNED - 1 : LEARNED], np.ones(1))
    stream.adopt(done.detector, done.devices, done.memory)
    count = 0
    for t in range(LEARNED, len(values)):
        row, message = slice(t, t + 1), np.zeros(1, dtype=np.int64)
        outcome, _ = stream.absorb(Readings("pump", tuple(names), ["d"], time[row], values[row], message), fleets.START)
        count += outcome.anomalies.get("prediction", 0)
    assert not np.isnan(stream.scores()[1])
    return count / (len(values) - LEARNED)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "STEPS", 150)
    monkeypatch.setattr(learning, "STAGE_STEPS", 30)


@pytest.mark.parametrize(
    "kind",
    ["plain", "constant", "all constant", "binary", "rarely switched", "duplicated", "counter", "coarse", "holes"],
)
@pytest.mark.parametrize("declared", [False, True], ids=["live", "declared"])
def test_fewer_than_two_percent_of_normal_rows_are_flagged(kind: str, declared: bool) -> None:
    share = flagged(with_kind(kind, LEARNED + JUDGED), declared)
    assert share < 0.02


def test_fewer_than_two_percent_of_sixty_channels_normal_rows_are_flagged() -> None:
    share = flagged(moving(LEARNED + JUDGED, 60), declared=True, hidden=16)
    assert share < 0.02


@pytest.mark.parametrize("noise", ["white", "ar"])
def test_at_1_hertz_a_new_extreme_of_a_healthy_channel_is_no_alert(noise: str) -> None:
    verdicts = judged(simulated(1.0, 1, noise, 8, 2500), BUDGETS["1/week"], Plan(relearn=False), noise)
    assert [verdict.alerts for verdict in verdicts] == [()] * 8
