"""Attribution: of many coupled channels the one that is at fault is blamed, and what was unusual of it is said."""

from functools import cache

import numpy as np
import pytest
import torch

from sentinel.model import learn as learning
from sentinel.model.explain import Explanation, explain
from sentinel.model.learn import Learned, Series, learn
from sentinel.model.score import Scorer
from sentinel.model.slabs import Slabs
from sentinel.records import Channel, Floats, ModelSpec
from tests import fleets

F, TICKS, CALM, FAULT = 5, 1200, 120, 40
KINDS = ("shift", "spike", "noise", "stuck", "decoupled")


@cache
def plant(ticks: int, seed: int) -> Floats:
    """Channels that two slow factors drive, each with noise of its own, (T, 5)."""
    rng = np.random.default_rng(seed)
    loads = np.random.default_rng(0).normal(size=(2, F))
    factors = np.zeros((ticks, 2))
    for t in range(1, ticks):
        factors[t] = 0.95 * factors[t - 1] + 0.31 * rng.normal(size=2)
    out: Floats = factors @ loads + 0.2 * rng.normal(size=(ticks, F))
    return out


@cache
def learned(width: int = F) -> Learned:
    """From the plant, or from so many channels of noise of their own, both declared clean."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "STEPS", 300)
        patch.setattr(learning, "STAGE_STEPS", 30)
        time = fleets.START + np.arange(TICKS, dtype=np.float64)
        noise: Floats = 0.3 * np.random.default_rng(2).normal(size=(TICKS, width))
        given = [Series("d", time, plant(TICKS, 1) if width == F else noise)]
        channels = [Channel(f"c{j}") for j in range(width)]
        return learn(given, channels, ModelSpec(hidden=16, horizons=(1, 8)), seed=1, declared=True)


def faulty(kind: str, channel: int, seed: int) -> Floats:
    values = plant(CALM + FAULT, seed).copy()
    rng, column = np.random.default_rng(seed), values[CALM:, channel]
    spread = plant(TICKS, 1)[:, channel].std()
    if kind == "shift":
        column += 3 * spread
    elif kind == "spike":
        column[::10] += 6 * spread
    elif kind == "noise":
        column += 2 * spread * rng.normal(size=FAULT)
    elif kind == "stuck":
        column[:] = column[0] + 2 * spread
    else:
        column[:] = plant(CALM + FAULT, seed + 1000)[CALM:, channel]
    return values


@cache
def explained(seed: int) -> dict[tuple[str, int], tuple[float, Explanation]]:
    """Highest score of each fault of each channel, and the explanation at that tick."""
    done = learned()
    cases = [(kind, channel) for kind in KINDS for channel in range(F)]
    scorer = Scorer(done.detector, {}, 1 / 604800, None)
    slabs = Slabs(scorer.layout, torch.device("cpu"), len(cases) + 1)
    slots = np.arange(1, len(cases) + 1)
    slabs.put(slots, tuple(part[np.zeros(len(cases), dtype=np.int64)] for part in done.memory))
    values = np.stack([faulty(kind, channel, seed) for kind, channel in cases])
    found: dict[tuple[str, int], tuple[float, Explanation]] = {}
    ones, none = np.ones(len(cases)), np.zeros(len(cases), dtype=np.bool_)
    for t in range(CALM + FAULT):
        x = done.detector.scale.scaled(values[:, t], values[:, t])
        scored = scorer.observe(slabs, slots, x, ones, ones * (fleets.START + TICKS + t), none)
        for at, case in enumerate(cases):
            score = float(scored.score[at])
            if t >= CALM and score > found.get(case, (0.0, None))[0]:
                found[case] = score, explain(done.detector, slabs, int(slots[at]))
    return found


@pytest.mark.parametrize(
    ("kind", "least"), [("shift", 0.95), ("spike", 0.95), ("noise", 0.95), ("stuck", 0.95), ("decoupled", 0.9)]
)
def test_a_fault_of_one_of_five_coupled_channels_is_blamed_on_it(kind: str, least: float) -> None:
    cases = [(channel, explained(seed)[kind, channel][1]) for seed in range(10, 14) for channel in range(F)]
    right = [int(why.shares.argmax()) == channel for channel, why in cases]
    assert np.mean(right) >= least


def test_shares_sum_to_one_and_are_of_no_negative_size() -> None:
    for _, why in explained(10).values():
        assert why.shares.sum() == pytest.approx(1.0)
        assert (why.shares >= 0).all()


def test_a_channel_that_moved_alone_is_unlike_the_others_by_about_so_much() -> None:
    moved = 3 * plant(TICKS, 1).std(0)
    for seed in range(10, 14):
        for channel in range(F):
            why = explained(seed)["shift", channel][1]
            by = why.by[channel] * learned().detector.scale.spread[channel]
            assert why.how[channel] == "unlike the others"
            assert 0.5 * moved[channel] < by < 1.2 * moved[channel]
            assert 1 <= why.readings[channel] <= 30


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize(("kind", "how"), [("up", "above"), ("down", "below"), ("noise", "noisy")])
def test_of_a_channel_that_the_others_say_nothing_of_the_side_is_said_or_that_it_is_noisy(
    kind: str, how: str, width: int
) -> None:
    done = learned(width)
    scorer = Scorer(done.detector, {}, 1 / 604800, None)
    slabs = Slabs(scorer.layout, torch.device("cpu"), 2)
    slabs.put(np.array([1]), done.memory)
    values = 0.3 * np.random.default_rng(3).normal(size=(CALM + 30, width))
    values[CALM:, 0] += 3.0 * {"up": np.ones(30), "down": -np.ones(30), "noise": (-1.0) ** np.arange(30)}[kind]
    for t, row in enumerate(values):
        x = done.detector.scale.scaled(row[None], row[None])
        time = np.array([fleets.START + TICKS + t])
        scorer.observe(slabs, np.array([1]), x, np.ones(1), time, np.zeros(1, dtype=np.bool_))
    why = explain(done.detector, slabs, 1)
    assert why.how[0] == how
    assert why.shares[0] == pytest.approx(1.0, abs=0.0 if width == 1 else 0.01)
    if kind != "noise":
        assert np.sign(why.by[0]) == (1 if kind == "up" else -1)
        assert abs(why.by[0]) * done.detector.scale.spread[0] == pytest.approx(3.0, rel=0.4)
