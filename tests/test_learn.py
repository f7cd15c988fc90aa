"""Learning: what is learned forecasts, holds over saving, and refuses what does not fit."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sentinel.adapters.models import load_model, model_path, save_model
from sentinel.errors import ModelError
from sentinel.model import archive, learn
from sentinel.model.learn import Series
from sentinel.records import Channel, Floats, ModelSpec
from sentinel.stream.align import Batch
from sentinel.stream.pipeline import ProfileStream, series_of
from sentinel.trainer import Job, merged
from tests import fleets

SMALL = ModelSpec(hidden=8, horizons=(1, 4))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "STEPS", 60)


def series(values: Floats, device: str = "d", start: float = fleets.START) -> Series:
    return Series(device, start + np.arange(len(values), dtype=np.float64), values)


def channels(count: int) -> list[Channel]:
    return [Channel(f"c{i}") for i in range(count)]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_loss_on_held_out_ticks_falls(cell: str) -> None:
    before, after = fleets.learned(cell=cell).losses
    assert after < before - 0.3


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    given = [series(fleets.healthy(200, i), f"d{i}") for i in range(2)]

    def weights(seed: int) -> torch.Tensor:
        done = learn.learn(given, channels(3), SMALL, seed=seed, declared=False)
        return torch.cat([w.flatten() for w in done.detector.forecaster.weights.values()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_learning_leaves_the_random_state_of_others_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    learn.learn([series(fleets.healthy(100))], channels(3), SMALL, seed=1, declared=False)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "values",
    [
        np.full((120, 1), 7.0),
        np.full((120, 2), np.nan) + np.array([np.nan, 0.0]),
        np.tile([[0.0], [1.0]], (60, 1)),
        np.arange(120.0)[:, None] * 5,
        np.hstack([fleets.healthy(120)] * 4),
        np.where(np.random.default_rng(0).random((120, 3)) < 0.5, np.nan, fleets.healthy(120)),
        fleets.healthy(120) * 1e12,
        fleets.healthy(120) * 1e-12,
        fleets.healthy(2),
    ],
    ids=["constant", "missing", "binary", "counter", "duplicates", "holes", "huge", "tiny", "two ticks"],
)
@pytest.mark.parametrize("declared", [False, True])
def test_odd_channels_give_finite_models_and_a_normal_tick_is_no_anomaly(values: Floats, declared: bool) -> None:
    names = channels(values.shape[1])
    done = learn.learn([series(values)], names, SMALL, seed=1, declared=declared)
    for name, weight in done.detector.forecaster.weights.items():
        assert torch.isfinite(weight).all(), name
    spec = fleets.spec(channels=tuple(names), model=SMALL)
    stream = ProfileStream(spec)
    stream.adopt(done.detector, done.devices, done.memory)
    for t in range(60):
        row = values[t % len(values)]
        if np.isnan(row).all():
            continue
        batch = dataclasses.replace(
            fleets.readings(["d"], np.array([fleets.START + 1000 + t]), row[None]),
            channels=tuple(channel.name for channel in names),
        )
        outcome, _ = stream.absorb(batch, fleets.START)
        assert "prediction" not in outcome.anomalies or len(values) < 200


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(ValueError, match="no device has two ticks"):
        learn.learn([series(fleets.healthy(1))], channels(3), SMALL, seed=1, declared=False)


def test_a_saved_detector_is_the_same_when_loaded_and_its_hash_is_its_version(tmp_path: Path) -> None:
    detector = fleets.learned(declared=True).detector
    tensors, manifest = archive.pack(detector)
    version = save_model(tmp_path, "pump", tensors, manifest)
    loaded = archive.unpack(*load_model(model_path(tmp_path, "pump", version)))
    assert loaded.version == version
    assert loaded.channels == detector.channels
    again, _ = archive.pack(loaded)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(again[name].nan_to_num(), tensor.nan_to_num()), name


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "format"])
def test_a_damaged_model_is_refused_with_the_reason(damage: str) -> None:
    tensors, manifest = archive.pack(fleets.learned().detector)
    name = "weight.head_weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][:-1]
    elif damage == "nan":
        tensors[name] = tensors[name] * math.nan
    else:
        manifest["format"] = 99
    with pytest.raises(ModelError, match="train anew"):
        archive.unpack(tensors, manifest)


def test_a_job_survives_its_way_to_the_trainer() -> None:
    job = Job("state", fleets.spec(alert_budget=1e-6), 7, None)
    assert Job.load(job.dump()) == job


def test_ticks_of_a_device_become_one_series_in_their_order() -> None:
    one = Batch(np.array([1, 2]), np.array([1.0, 1.0]), np.array([[1.0], [2.0]]), np.array([0, 1]))
    two = Batch(np.array([2, 1]), np.array([2.0, 3.0]), np.array([[3.0, 9.0], [4.0, 9.0]]), np.array([0, 1]))
    first, second = series_of([one, two], ["", "a", "b"], 2)
    assert (first.device, first.time.tolist()) == ("a", [1.0, 3.0])
    np.testing.assert_array_equal(second.values, [[2.0, np.nan], [3.0, 9.0]])


def test_small_turns_are_merged_and_lose_nothing() -> None:
    from sentinel.adapters.store import Turn

    turns = [Turn(i, float(i), (fleets.readings([f"d{i}"], np.array([float(i)]), np.ones((1, 3))),)) for i in range(10)]
    ((readings, now),) = merged(turns, skip=3)
    assert readings.device == [f"d{i}" for i in range(3, 10)]
    assert now == 9.0
