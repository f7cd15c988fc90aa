"""Learning: what is learned forecasts, holds over saving, and refuses what does not fit."""

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sentinel import trainer
from sentinel.adapters.models import load_model, model_path, save_model
from sentinel.errors import ModelError, TrainingError
from sentinel.model import archive, features, learn
from sentinel.model.cells import State
from sentinel.model.forecaster import Forecaster
from sentinel.model.learn import Series
from sentinel.model.scale import counters, learned_run, longest_runs
from sentinel.model.score import Detector, Scorer
from sentinel.model.slabs import Slabs
from sentinel.records import Channel, Floats, ModelSpec
from sentinel.stream.align import Batch
from sentinel.stream.pipeline import ProfileStream, series_of
from sentinel.trainer import Job, merged
from tests import fleets

SMALL = ModelSpec(hidden=8, horizons=(1, 4))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "STEPS", 60)
    monkeypatch.setattr(learn, "STAGE_STEPS", 10)


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


def test_what_goes_one_way_all_through_is_named_unless_it_is_a_counter() -> None:
    def trip(seed: int) -> Floats:
        values, time = fleets.healthy(400, seed), np.arange(400.0)
        values[:, 1] += time * (1 if seed else -1)
        values[:, 2] = np.cumsum(np.random.default_rng(seed).integers(0, 5, 400))
        return values

    done = learn.learn([series(trip(i), f"d{i}") for i in range(2)], channels(3), SMALL, seed=1, declared=True)
    assert done.moving == ("c1",)


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
    with pytest.raises(TrainingError, match="no device has two ticks"):
        learn.learn([series(fleets.healthy(1))], channels(3), SMALL, seed=1, declared=False)


def learned(given: list[Series], *, declared: bool = False, spec: ModelSpec = SMALL) -> learn.Learned:
    return learn.learn(given, channels(given[0].values.shape[1]), spec, seed=1, declared=declared)


@pytest.mark.parametrize("declared", [False, True])
def test_of_long_series_the_newest_ticks_are_learned_from_and_a_quarter_of_them_held_out(
    monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    monkeypatch.setattr(learn, "MOST_ROWS", 300)
    monkeypatch.setattr(learn, "STEPS", 4)
    values = fleets.healthy(4200)
    values[:2200] += 1000.0
    done = learned([series(values[:, :1])], declared=declared)
    assert done.detector.scale.location[0] == pytest.approx(5.0, abs=0.5)
    assert math.isfinite(done.losses[1])


def test_one_long_series_beside_many_short_ones_stays_small() -> None:
    given = [series(np.zeros((50_000, 2)))] + [series(np.zeros((100, 2)), f"d{i}") for i in range(200)]
    cut = learn._newest(given, declared=False)
    assert len(cut) * max(map(len, cut)) <= learn.MOST_ROWS
    assert [len(s) for s in cut[1:]] == [100] * 200
    assert len(learn._newest(given[:1], declared=False)[0]) == 50_000


def test_validation_leaves_out_what_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "STEPS", 1)
    monkeypatch.setattr(learn, "MORE_STEPS", 0)
    given = [series(fleets.healthy(300, i), f"d{i}") for i in range(2)]
    champion = learned(given).detector
    again = [learn.learn(given, channels(3), SMALL, seed=s, declared=False, start=champion) for s in (2, 3)]
    first = again[0].losses[0]
    assert math.isfinite(first)
    np.testing.assert_allclose([done.losses for done in again], first, rtol=1e-5)


def test_series_without_held_out_ticks_are_not_validated_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "STEPS", 2)
    short = [series(fleets.healthy(20, i), f"s{i}") for i in range(200)]
    late = int(torch.randperm(201, generator=torch.Generator().manual_seed(1))[100])  # far down in the order of choice
    first, _ = learned([*short[:late], series(fleets.healthy(400), "long"), *short[late:]]).losses
    assert first != 0.0
    assert math.isfinite(first)


def test_held_out_ticks_without_a_value_do_not_stop_the_training() -> None:
    values = fleets.healthy(400)
    values[300:] = np.nan
    done = learned([series(values)])
    assert all(math.isnan(loss) for loss in done.losses)
    untrained = -0.5
    assert (done.detector.forecaster.weights["log_sigma"][0] != untrained).all()


@pytest.mark.parametrize("where", ["training", "validation", "weights"])
def test_a_training_that_diverges_is_refused(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(learn, "STEPS", 50)
    if where == "training":
        real = learn._loss
        monkeypatch.setattr(learn, "_loss", lambda *given: (real(*given)[0] * math.inf, *real(*given)[1:]))
    elif where == "validation":
        monkeypatch.setattr(learn, "_validate", lambda *_: math.nan)
    else:
        monkeypatch.setattr(learn._Network, "weights", lambda *_: {"head_bias": torch.tensor([0.0, math.nan])})
    with pytest.raises(TrainingError, match=r"training diverged at step \d+ of 50.*train again"):
        learned([series(fleets.healthy(300))])


class TestCounters:
    growing = np.arange(200.0)[:, None]

    def test_one_odd_series_does_not_decide_for_the_others(self) -> None:
        odd = np.sin(self.growing)
        assert counters([self.growing] * 9 + [odd]).tolist() == [True]
        assert counters([self.growing] * 8 + [odd] * 2).tolist() == [False]

    def test_series_with_few_values_have_no_say(self) -> None:
        few = np.tile([[3.0], [1.0]], (100, 1))
        assert counters([self.growing, few, few[:10], np.full((50, 1), np.nan)]).tolist() == [True]
        assert counters([few]).tolist() == [False]

    def test_rare_restarts_are_tolerated_and_drops_are_not(self) -> None:
        restarted = np.concatenate([self.growing, self.growing[:100]])
        assert counters([restarted]).tolist() == [True]
        assert counters([np.concatenate([restarted, restarted])]).tolist() == [False]
        assert counters([np.concatenate([self.growing, self.growing + 150])]).tolist() == [False]
        assert counters([np.concatenate([self.growing - 100, self.growing - 100])]).tolist() == [False]

    def test_a_tick_without_a_value_is_bridged_as_it_is_live(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(learn, "STEPS", 0)
        rng = np.random.default_rng(0)
        values = np.cumsum(rng.integers(1, 9, (300, 2)).astype(np.float64), axis=0)
        values[rng.random((300, 2)) < 0.3] = np.nan
        given = series(values)
        given.time[150:] += 1e6  # a new state: the last value stays known
        stack = learn._Stack.of([given], declared=False, alike=True)
        last = np.full((1, 2), np.nan)
        for t, row in enumerate(values):
            live = stack.scale.scaled(row[None], last)
            np.testing.assert_allclose(stack.x[t, :1], live)
            last = np.where(np.isnan(row), last, row)


def test_the_longest_run_is_known_unless_most_long_series_say_nothing() -> None:
    rng = np.random.default_rng(0)
    moving = rng.normal(size=(200, 1))
    moving[50:57] = 1.0
    resting, short = np.zeros((200, 1)), np.zeros((20, 1))
    assert longest_runs([moving, resting, short, short]).tolist() == [7.0]
    assert longest_runs([moving, resting, resting]).tolist() == [math.inf]
    assert longest_runs([rng.normal(size=(20, 1))]).tolist() == [1.0]


def test_a_slow_device_of_a_fast_fleet_keeps_its_state() -> None:
    fast = [series(fleets.healthy(300, i), f"d{i}") for i in range(3)]
    slow = Series("slow", fleets.START + np.arange(0.0, 30 * 3600.0, 3600.0), fleets.healthy(30))
    stack = learn._Stack.of([*fast, slow], declared=False, alike=True)
    assert stack.interval == 1.0
    assert stack.fresh.sum(0).tolist() == [1, 1, 1, 1]


def test_forecasts_are_not_judged_by_ticks_of_another_state() -> None:
    fresh = torch.tensor([[True, True], [False, False], [True, False], [False, False]])
    assert learn._until(fresh).T.tolist() == [[2, 2, 4, 4], [4, 4, 4, 4]]


@pytest.mark.parametrize(
    ("interval", "calendar", "bins"),
    [(1.0, False, 0), (3600.0, True, 24), (300.0, True, features.MOST_BINS)],
    ids=["no calendar", "hourly", "every five minutes"],
)
def test_training_sees_what_the_live_network_sees(
    monkeypatch: pytest.MonkeyPatch, interval: float, calendar: bool, bins: int
) -> None:
    """Inputs of each tick, bit by bit; with holes, a gap, an uneven clock, and a daily profile where there are days."""
    monkeypatch.setattr(learn, "STEPS", 1)
    ticks = int(3 * features.DAY / interval) if calendar else 80
    rng = np.random.default_rng(0)
    values = np.where(rng.random((ticks, 3)) < 0.2, np.nan, fleets.healthy(ticks))
    late = 0.3 * rng.random(ticks) * (rng.random(ticks) < 0.2)
    time = fleets.START + interval * (np.arange(ticks) + late)
    time[ticks // 2 :] += 100 * interval
    given = Series("d", time, values)
    stack = learn._Stack.of([given], declared=False, alike=True)
    assert (stack.calendar, stack.bins) == (calendar, bins)
    assert stack.fresh.sum() == 2, "the gap begins a new state"
    detector = dataclasses.replace(learned([given]).detector, spread_of_locations=np.zeros(3, dtype=np.float32))
    scorer, slabs = Scorer(detector, {}, 1.0, None), Slabs(detector.layout, torch.device("cpu"), 2)
    scorer.begin(slabs, np.arange(2))
    for name, of in (("m", stack.m), ("s", stack.s), ("interval", stack.usual)):
        slabs.view(name)[1] = of[0]
    seen: list[torch.Tensor] = []
    step = scorer.forecaster.step

    def watched(inputs: torch.Tensor, state: State, network: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        seen.append(inputs[0])
        return step(inputs, state, network)

    monkeypatch.setattr(scorer.forecaster, "step", watched)
    for t in range(ticks):
        scorer.observe(slabs, np.array([1]), stack.x[t], stack.dt[t], stack.time[t], stack.fresh[t])
    inputs = learn._Ticks.of(stack, np.array([0])).inputs[:, 0]
    assert inputs.shape == (ticks, features.width(3, calendar, bins))
    np.testing.assert_array_equal(torch.stack(seen).numpy(), inputs.numpy())
    assert (inputs.std(0) > 0).all() or not calendar, "no input is idle"


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


def change(manifest: dict[str, Any], path: str, value: object) -> None:
    *tables, name = path.split(".")
    for table in tables:
        manifest = manifest[table]
    manifest[name] = value


HOSTILE_FIELDS: list[tuple[str, object]] = [
    ("model", None),
    ("model", []),
    ("model.cell", "os.system"),
    ("model.cell", ["lstm"]),
    ("model.layers", 10**9),
    ("model.hidden", 0),
    ("model.hidden", 1 << 40),
    ("model.hidden", True),
    ("model.hidden", "8"),
    ("model.dropout", float("inf")),
    ("model.horizons", []),
    ("model.horizons", [8, 1]),
    ("model.horizons", [1, 10**18]),
    ("model.horizons", [1021, 1023, 1024]),
    ("model.weights", "other"),
    ("channels", []),
    ("channels", "pressure"),
    ("channels", ["a", "a", "b"]),
    ("channels", [1, 2, 3]),
    ("networks", None),
    ("learned_until", [1.0]),
    ("calendar", 1),
    ("calendar", None),
    ("bins", -1),
    ("bins", 10**9),
    ("interval", 0),
    ("interval", float("nan")),
    ("interval", "1"),
    ("declared", "yes"),
    ("shift_values_only", None),
]


@pytest.mark.parametrize(("path", "value"), HOSTILE_FIELDS)
def test_a_manifest_that_no_training_wrote_is_refused_with_the_field(path: str, value: object) -> None:
    tensors, manifest = archive.pack(fleets.learned(declared=True).detector)
    manifest = copy.deepcopy(manifest)
    change(manifest, path, value)
    with pytest.raises(ModelError, match=rf"bad {path}.*train anew"):
        archive.unpack(tensors, manifest)


HOSTILE_TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "weights of another dtype": lambda t: t.update({"weight.head_bias": t["weight.head_bias"].double()}),
    "integers for numbers": lambda t: t.update({"prior": t["prior"].nan_to_num().to(torch.int64)}),
    "a weight of NaN": lambda t: t["weight.cross_y"].fill_(math.nan),
    "a weight without bound": lambda t: t["weight.weight_hh_l0"].view(-1)[3].fill_(math.inf),
    "a location of NaN": lambda t: t["scale.location"][1].fill_(math.nan),
    "a spread of 0": lambda t: t["scale.spread"][0].zero_(),
    "a negative spread": lambda t: t["scale.spread"][0].fill_(-1),
    "a shift that is not finite": lambda t: t["shift.precision"][0].fill_(math.inf),
    "a shift of two lengths": lambda t: t.update({"shift.most": t["shift.most"][:-1]}),
    "a shift without its rest": lambda t: t.pop("shift.precision"),
    "rank": lambda t: t.update({"longest_run": t["longest_run"][:, None]}),
}


@pytest.mark.parametrize("damage", HOSTILE_TENSORS)
def test_tensors_that_no_training_wrote_are_refused(damage: str) -> None:
    tensors, manifest = archive.pack(fleets.learned(declared=True).detector)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    HOSTILE_TENSORS[damage](tensors)
    with pytest.raises(ModelError, match=r"model tensor .*train anew"):
        archive.unpack(tensors, manifest)


def test_shapes_are_checked_from_the_manifest_alone_before_any_weight_is_read(tmp_path: Path) -> None:
    tensors, manifest = archive.pack(fleets.learned(declared=True).detector)
    larger = manifest | {"model": manifest["model"] | {"hidden": 1024}}
    rows = {"devices.rows": torch.zeros((2, 3), dtype=torch.uint8)}
    devices: dict[str, Any] = {
        "devices": ["a", "b"],
        "table_channels": [],
        "pending": [],
        "position": 0,
        "trained": 0.0,
    }
    saved = {
        "sizes": save_model(tmp_path, "pump", tensors | rows, larger | devices),
        "code": save_model(tmp_path, "pump", tensors | rows | {"code": torch.ones(3)}, manifest | devices),
        "devices": save_model(tmp_path, "pump", tensors | rows, manifest | devices | {"devices": ["a"]}),
        "pending": save_model(tmp_path, "pump", tensors | rows, manifest | devices | {"pending": None}),
    }
    told = {
        "sizes": r"model tensor weight\.weight_ih_l0: expected float32 \[1, 4096, 13\], found float32 \[1, 32, 13\]",
        "code": "model tensor code: no release writes it",
        "devices": "does not say which devices",
        "pending": "does not say which devices",
    }
    for fault, version in saved.items():
        (model_path(tmp_path, "pump", version) / "weights.safetensors").unlink()
        with pytest.raises(ModelError, match=told[fault]):
            trainer.load(tmp_path, "pump", version)


class TestNetworkOfItsOwn:
    """`weights = "device"`: a network for each device besides the profile's."""

    spec = dataclasses.replace(SMALL, weights="device")

    @pytest.fixture(autouse=True)
    def few_fine_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(learn, "FINE_STEPS", 60)

    def learn(self, ticks: dict[str, int], start: Detector | None = None) -> Detector:
        given = [series(fleets.healthy(n, i, 3) * (1 + i), name) for i, (name, n) in enumerate(ticks.items())]
        return learn.learn(given, channels(3), self.spec, seed=1, declared=False, start=start).detector

    def weights(self, detector: Detector, device: str | None) -> torch.Tensor:
        at = 0 if device is None else 1 + detector.networks.index(device)
        return torch.cat([value[at].flatten() for value in detector.forecaster.weights.values()])

    def test_every_device_has_one_that_differs_from_the_profiles_and_the_others(self) -> None:
        made = self.learn({"a": 300, "b": 250})
        assert (made.networks, made.learned_until) == (("a", "b"), (fleets.START + 299, fleets.START + 249))
        each = [self.weights(made, device) for device in (None, "a", "b")]
        for at in range(3):
            assert not torch.equal(each[at], each[at - 1])

    def test_it_learns_on_once_its_device_has_a_tenth_more_ticks_and_no_other_is_touched(self) -> None:
        first = self.learn({"a": 300, "b": 250})
        again = self.learn({"a": 600, "b": 274}, first)
        assert again.learned_until == (fleets.START + 599, fleets.START + 249)
        assert not torch.equal(self.weights(again, "a"), self.weights(first, "a"))
        assert torch.equal(self.weights(again, "b"), self.weights(first, "b"))
        third = self.learn({"a": 659, "b": 500}, again)
        assert third.learned_until == (fleets.START + 599, fleets.START + 499)
        assert torch.equal(self.weights(third, "a"), self.weights(again, "a"))
        assert not torch.equal(self.weights(third, "b"), self.weights(again, "b"))

    def test_it_learns_on_from_a_full_window_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(learn, "MOST_TICKS", 250)
        first = self.learn({"a": 300})
        assert torch.equal(self.weights(self.learn({"a": 320}, first), "a"), self.weights(first, "a"))
        again = self.learn({"a": 400}, first)
        assert again.learned_until == (fleets.START + 399,)
        assert not torch.equal(self.weights(again, "a"), self.weights(first, "a"))

    def test_one_that_does_not_gain_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.learn({"a": 300, "b": 250})
        monkeypatch.setattr(learn, "MORE_RATE", 3.0)
        again = self.learn({"a": 600, "b": 600}, first)
        for device in (None, "a", "b"):
            assert torch.equal(self.weights(again, device), self.weights(first, device))

    def test_a_device_that_comes_later_gets_its_own_from_the_profiles(self) -> None:
        first = self.learn({"a": 300, "b": 250})
        again = self.learn({"a": 300, "b": 250, "c": 200}, first)
        assert again.networks == ("a", "b", "c")
        assert torch.equal(self.weights(again, "a"), self.weights(first, "a"))
        assert not torch.equal(self.weights(again, "c"), self.weights(again, None))

    def test_a_new_device_runs_the_profiles_and_a_known_one_its_own(self) -> None:
        done = fleets.learned(weights="device")
        detector = done.detector
        profiles = {name: value[:1] for name, value in detector.forecaster.weights.items()}
        own = detector.forecaster
        shared = dataclasses.replace(
            detector,
            forecaster=Forecaster(own.spec, own.channels, own.calendar, own.bins, profiles),
            networks=(),
            learned_until=(),
        )
        outcomes = []
        for which in (detector, shared):
            stream = ProfileStream(fleets.spec())
            stream.keep_ticks = True
            memory = done.memory
            if which is shared:  # its only network is the profile's
                stream.adopt(shared)
            else:
                stream.adopt(detector, done.devices, memory)
            names = ["d1", "new"]
            expected = []
            for t in range(40):
                rows = np.stack([fleets.healthy(40, 1, 9)[t], fleets.healthy(40, 11, 9)[t]])
                outcome, _ = stream.absorb(fleets.readings(names, np.full(2, fleets.START + t), rows), 0.0)
                scored = outcome.ticks[0].scored
                assert scored is not None
                expected.append(scored.forecast)
                assert scored.network.tolist() == ([2, 0] if which is detector else [0, 0])
            outcomes.append(np.array(expected)[20:])
        np.testing.assert_allclose(outcomes[0][:, 1], outcomes[1][:, 1], rtol=1e-4, atol=1e-5)
        assert np.abs(outcomes[0][:, 0] - outcomes[1][:, 0]).max() > 0.01

    def test_it_survives_being_saved(self) -> None:
        detector = fleets.learned(weights="device").detector
        loaded = archive.unpack(*archive.pack(detector))
        assert (loaded.networks, loaded.learned_until) == (detector.networks, detector.learned_until)
        for device in (None, *detector.networks):
            assert torch.equal(self.weights(loaded, device), self.weights(detector, device))

    def test_a_device_of_few_ticks_among_others_stops_no_learning(self) -> None:
        made = self.learn({"a": 300, "b": 3})
        assert made.networks == ("a", "b")
        assert torch.isfinite(self.weights(made, "b")).all()


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


class TestPlace:
    """Where a device lies, once it has learned from 600 ticks: in the channels' units."""

    def places(self, before: int, after: int, moved: float) -> tuple[Floats, Floats, Floats]:
        """Location as learned first and after it has learned on, and its spread; it moves by so many spreads between."""
        values = fleets.healthy(after)
        values[before:] += moved * fleets.healthy(before).std(0)
        first = learned([series(values[:before])])

        def place(done: learn.Learned, name: str) -> Floats:
            scale, at = done.detector.scale, done.detector.layout.view(done.memory[1], name)[0].astype(np.float64)
            out: Floats = at * scale.spread + (scale.location if name == "m" else 0.0)
            return out

        m, s, ticks = (first.detector.layout.view(first.memory[1], name)[0] for name in ("m", "s", "placed"))
        again = learn.learn(
            [series(values)],
            channels(3),
            SMALL,
            seed=1,
            declared=False,
            start=first.detector,
            placed={"d": (m, s)} if ticks >= learn.PLACED_ON else {},
        )
        return place(first, "m"), place(again, "m"), place(first, "s")

    def test_it_stays_while_the_device_moves_within_reach(self) -> None:
        first, again, _ = self.places(900, 1800, 3.0)
        np.testing.assert_allclose(again, first, rtol=1e-5)

    def test_fewer_ticks_have_not_fixed_it(self) -> None:
        first, again, spread = self.places(200, 600, 3.0)
        assert (again - first > spread).all()

    def test_a_device_that_has_left_for_good_is_placed_anew(self) -> None:
        first, again, spread = self.places(900, 2000, 30.0)
        assert (again - first > 20 * spread).all()


def test_a_run_that_was_an_alert_is_not_learned_as_healthy() -> None:
    before = np.array([5.0, 5.0, 40.0, np.inf])
    assert learned_run(before, np.array([29.0, 30.0, 159.0, 7.0])).tolist() == [29.0, 5.0, 159.0, 7.0]
    assert learned_run(before, np.array([2.0, np.inf, np.inf, np.inf])).tolist() == [5.0, 5.0, 40.0, np.inf]
