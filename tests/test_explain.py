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
def learned() -> Learned:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "STEPS", 300)
        patch.setattr(learning, "STAGE_STEPS", 30)
        time = fleets.START + np.arange(TICKS, dtype=np.float64)
        given = [Series("d", time, plant(TICKS, 1))]
        channels = [Channel(f"c{j}") for j in range(F)]
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_one_of_five_coupled_channels_is_blamed_on_it(kind: str) -> None:
    cases = [(channel, explained(seed)[kind, channel][1]) for seed in range(10, 14) for channel in range(F)]
    right = [int(why.shares.argmax()) == channel for channel, why in cases]
    print(kind, np.mean(right), [s[0] for s in [explained(10)[kind, c] for c in range(F)]])
    assert np.mean(right) >= 0.9


def test_shares_sum_to_one_and_are_of_no_negative_size() -> None:
    for _, why in explained(10).values():
        assert why.shares.sum() == pytest.approx(1.0)
        assert (why.shares >= 0).all()


def test_the_side_and_the_size_of_a_shift_are_said() -> None:
    spread = plant(TICKS, 1).std(0)
    for channel in range(F):
        why = explained(10)["shift", channel][1]
        print(why.how[channel], why.by[channel] * learned().detector.scale.spread[channel], 3*spread[channel], why.readings)
