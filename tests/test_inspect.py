"""`sentinel inspect` on stores that the daemon wrote: the numbers are the network's own, the page works in a browser."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sentinel import trainer
from sentinel.adapters.store import Store
from sentinel.commands.inspect import inspect
from sentinel.errors import DataError
from sentinel.model.cells import GATES, Cell, Recurrence, State
from sentinel.records import Promotion
from tests import fleets
from tests.browsers import Browser
from tests.test_devices import CONFIG, Plant
from tests.test_report import Page

NASTY = "p<b>\x1b[31m[red]"
TICKS, MORE = 120, 40


def plant_of(folder: Path, more: str = "") -> Plant:
    made = Plant(folder)
    made.config.write_text(CONFIG + more)
    return made


def ran(plant: Plant, device: str = "d0") -> None:
    """TICKS in many turns, and a snapshot."""
    plant.start()
    for begin in range(0, TICKS, 10):
        plant.run(**{device: fleets.healthy(TICKS, 0, 7)[begin : begin + 10], "d1": fleets.healthy(10, 1, begin)})
    plant.stop()


def go_on(plant: Plant) -> None:
    """MORE in a daemon that stays."""
    plant.start()
    plant.run(d0=fleets.healthy(MORE, 0, 8), d1=fleets.healthy(MORE, 1, 8))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    made = plant_of(tmp_path_factory.mktemp("plant"))
    made.train()
    ran(made)
    return made


@pytest.fixture
def plant(stopped: Plant, tmp_path: Path) -> Iterator[Plant]:
    """Its devices go on while they are looked into."""
    made = plant_of(tmp_path)
    shutil.copytree(stopped.settings.store.path, made.settings.store.path)
    made.now = stopped.now
    go_on(made)
    yield made
    made.stop()


def asked(plant: Plant, device: str = "d0", last: int = 100, **more: Any) -> Any:
    out = plant.folder / "inside.json"
    assert inspect(device=device, config=plant.config, profile="pump", last=last, json_file=out, **more) == 0
    return json.loads(out.read_bytes())


def live_state(plant: Plant, device: str = "d0") -> Any:
    assert plant.service is not None
    stream = plant.service.pipeline.profiles["pump"]
    assert stream.slabs is not None
    return stream.slabs.state[stream.table.slot_of[device]].numpy()


class TestNumbers:
    def test_the_recomputed_state_is_the_stored_one_and_the_last_is_the_running_daemons(self, plant: Plant) -> None:
        told = asked(plant)
        assert told["check"] == {"position": told["check"]["position"], "largest_difference": 0.0, "because": ""}
        h, c = live_state(plant)
        np.testing.assert_array_equal(np.array(told["state"]["h"], np.float32), h)
        np.testing.assert_array_equal(np.array(told["state"]["c"], np.float32), c)

    def test_cells_and_hidden_units_follow_from_the_gates(self, plant: Plant) -> None:
        (layer,) = asked(plant)["layers"]
        i, f, g, o, c, h = (np.array(layer[name]) for name in (*GATES["lstm"], "cell", "hidden"))
        assert c.shape == (100, 8)
        np.testing.assert_allclose(c[1:], f[1:] * c[:-1] + i[1:] * g[1:], atol=1e-4)
        np.testing.assert_allclose(h, o * np.tanh(c), atol=1e-4)

    def test_values_times_and_scores_stand_beside_them(self, plant: Plant) -> None:
        told = asked(plant)
        assert told["ticks"] == len(told["time"]) == len(told["score"]) == 100
        assert (np.diff(told["time"]) == 1).all()
        np.testing.assert_allclose(told["values"]["flow"][-MORE:], fleets.healthy(MORE, 0, 8)[:, 1])

    def test_it_is_the_same_once_the_daemon_has_stopped(self, plant: Plant) -> None:
        running = asked(plant)
        plant.stop()
        stopped = asked(plant)
        assert stopped["check"]["largest_difference"] == 0.0
        assert (stopped["layers"], stopped["state"]) == (running["layers"], running["state"])

    def test_a_promotion_in_between_is_met(self, plant: Plant) -> None:
        plant.stop()
        version = plant.train(declared=True)
        plant.start()
        plant.run(d0=fleets.healthy(MORE, 0, 9))
        told = asked(plant)
        assert set(told["models"][-MORE:]) == {version} != set(told["models"][:10])
        assert told["check"]["largest_difference"] == 0.0
        np.testing.assert_array_equal(np.array(told["state"]["h"], np.float32), live_state(plant)[0])

    def test_what_was_trimmed_from_the_journal_explains_a_difference(self, plant: Plant) -> None:
        plant.stop()
        with Store(plant.settings.store.path) as store:
            promoted = next(t.seq for t in store.journal.read() if any(isinstance(e, Promotion) for e in t.entries))
            assert store.journal.trim(0, 1e9, plant.now, promoted + 6)
        told = asked(plant)
        assert "turns were trimmed" in told["check"]["because"]
        assert 0 < told["check"]["largest_difference"] < 0.5
        plant.start()
        plant.run(d0=fleets.healthy(5, 0, 9))
        told = asked(plant)  # from the snapshot on, all is as it was
        np.testing.assert_array_equal(np.array(told["state"]["h"], np.float32), live_state(plant)[0])

    def test_saturated_gates_and_cells_are_counted(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        plant = plant_of(tmp_path)
        learned = fleets.learned()
        weights = dict(learned.detector.forecaster.weights)
        weights["bias_ih_l0"] = torch.tensor([9.0] * 16 + [3.0] * 8 + [-9.0] * 8).repeat(1, 1)
        stream = fleets.running(plant.settings.specs()[0], learned)
        detector = learned.detector
        object.__setattr__(detector.forecaster, "weights", weights)
        try:
            trainer.save(plant.settings.store.path / "models", stream, detector, 0)
        finally:
            fleets.learned.cache_clear()
        ran(plant)
        (shares,) = asked(plant)["saturation"]
        assert shares["forget"]["open"] == shares["output"]["closed"] == 1.0
        assert shares["cell"]["saturated"] > 0.9
        assert "% of cells |c| > 8" in capsys.readouterr().out

    @pytest.mark.parametrize("cell", ["gru", "lstm"])
    def test_several_layers_and_a_gru_have_their_own_gates(self, cell: Cell) -> None:
        torch.manual_seed(0)
        of = (torch.nn.LSTM if cell == "lstm" else torch.nn.GRU)(5, 4, 2)
        network = Recurrence(cell, 2, {name: weight.detach()[None] for name, weight in of.named_parameters()})
        x, state = torch.randn(16, 5), State(torch.randn(2, 16, 4), torch.randn(2, 16, 4))
        gates, after = network.look(x, state)
        assert [tuple(layer) for layer in gates] == [GATES[cell]] * 2
        stepped = network.step(x, state)
        assert torch.equal(after.h, stepped.h)
        assert torch.equal(after.c, stepped.c)
        for k, layer in enumerate(gates):
            if cell == "gru":
                update = layer["update"]
                torch.testing.assert_close(after.h[k], (1 - update) * layer["candidate"] + update * state.h[k])
            else:
                torch.testing.assert_close(
                    after.c[k], layer["forget"] * state.c[k] + layer["input"] * layer["candidate"]
                )

    def test_a_gru_is_looked_into_as_well(self, tmp_path: Path) -> None:
        plant = plant_of(tmp_path)
        plant.config.write_text(CONFIG.replace("hidden = 8", 'cell = "gru", hidden = 8'))
        learned = fleets.learned(cell="gru")
        trainer.save(
            plant.settings.store.path / "models",
            fleets.running(plant.settings.specs()[0], learned),
            learned.detector,
            0,
        )
        ran(plant)
        go_on(plant)
        told = asked(plant)
        assert list(told["layers"][0]) == [*GATES["gru"], "hidden"]
        assert told["check"]["largest_difference"] == 0.0
        np.testing.assert_array_equal(np.array(told["state"]["h"], np.float32), live_state(plant)[0])
        plant.stop()


class TestRefusals:
    def test_an_unknown_device_is_named(self, plant: Plant) -> None:
        with pytest.raises(DataError, match=r"no device 'd7' of profile pump in the store"):
            asked(plant, "d7")

    def test_a_profile_without_a_model_says_so(self, tmp_path: Path) -> None:
        plant = plant_of(tmp_path)
        plant.start()
        plant.run(d0=fleets.healthy(5))
        plant.stop()
        with pytest.raises(DataError, match="has no model yet"):
            asked(plant)

    def test_before_the_first_snapshot_it_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no snapshot in .* yet"):
            asked(plant_of(tmp_path))


class TestPage:
    def test_names_stay_text(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        plant = plant_of(tmp_path)
        plant.train()
        ran(plant, NASTY)
        asked(plant, NASTY, out=tmp_path / "inside.html")
        page = Page(tmp_path / "inside.html")
        assert f"Inside {NASTY}" in page.text
        assert "b" not in page.tags
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "p<b>\\x1b[31m[red] of profile pump" in out

    def test_it_holds_the_numbers_and_loads_nothing(self, plant: Plant, tmp_path: Path) -> None:
        told = asked(plant, out=tmp_path / "inside.html")
        page = Page(tmp_path / "inside.html")
        cells = np.frombuffer(base64.b64decode(page.data["layers"][0]["cell"]), "<f4").reshape(100, 8)
        np.testing.assert_allclose(cells, told["layers"][0]["cell"], atol=1e-6)
        assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "onclick", "onload"}

    def test_in_a_browser_it_draws_sorts_and_tells_without_an_error(
        self,
        browser: Browser,
        plant: Plant,
        tmp_path: Path,
    ) -> None:
        told = asked(plant, out=tmp_path / "inside.html")
        browser.open(tmp_path / "inside.html")
        assert browser.run("return document.querySelectorAll('#maps canvas').length") == 1 + 3 + 2 + 6
        browser.run(
            "const c = document.querySelectorAll('#maps canvas')[5]; const r = c.getBoundingClientRect();"
            "c.dispatchEvent(new PointerEvent('pointermove', {clientX: r.right - 2, clientY: r.top + 2}))"
        )
        tip = browser.run("return document.getElementById('tip').textContent")
        for said in ("unit ", "score", "forget gate", "cell candidate", "hidden"):
            assert said in tip
        browser.run(
            "const s = document.getElementById('order'); s.value = 'number'; s.dispatchEvent(new Event('change'));"
            "document.querySelectorAll('#maps canvas')[5].dispatchEvent(new PointerEvent('pointerleave'));"
            "document.getElementById('maps').focus()"
        )
        browser.press("\ue012")  # left arrow
        said = browser.run("return document.getElementById('said').textContent")
        place, value = said.rsplit(" ", 1)
        assert place.endswith("unit 0: cell")
        assert float(value) == pytest.approx(told["layers"][0]["cell"][-2][0], abs=1e-3)
        assert browser.problems() == []
