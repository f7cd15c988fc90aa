"""`sentinel bench`: what it measures, said and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sentinel.commands import bench as module
from sentinel.commands.bench import bench
from sentinel.errors import DataError
from sentinel.model.score import Scorer
from sentinel.model.slabs import Slabs
from sentinel.records import ModelSpec


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "EACH", 0.02)
    monkeypatch.setattr(module, "DEVICES", 2048)
    monkeypatch.chdir(tmp_path)


def test_every_figure_is_there_and_more_than_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(json_file=tmp_path / "bench.json") == 0
    result = json.loads((tmp_path / "bench.json").read_bytes())
    assert [row["batch"] for row in result["score_and_step"]] == [1, 16, 64, 256, 1024]
    assert [row["readings"] for row in result["journal_commit"]["commits"]] == [1, 100, 1000]
    assert [row["horizons"] for row in result["bytes_per_device"]] == [[1], [1, 64]]
    assert [(row["channels"], row["batch"]) for row in result["by_channels"]] == [
        (width, batch) for width in (1, 8, 38) for batch in (256, 1024)
    ]
    for row in (*result["score_and_step"], *result["by_channels"]):
        assert 0 < row["best_reading_us"] <= row["reading_us"]
        assert row["batch_us"] == pytest.approx(row["batch"] * row["reading_us"])
    assert all(row["p99_ms"] >= row["median_ms"] > 0 for row in result["journal_commit"]["commits"])
    out = capsys.readouterr().out
    for words in ("µs a reading", "by channels", "recurrent step alone", "Bytes a device", "synchronous = FULL"):
        assert words in out


def test_a_reading_in_a_large_batch_costs_a_fraction_of_one_alone(tmp_path: Path) -> None:
    bench(json_file=tmp_path / "bench.json")
    rows = json.loads((tmp_path / "bench.json").read_bytes())["score_and_step"]
    assert rows[-1]["best_reading_us"] < rows[0]["best_reading_us"] / 5


def test_what_is_measured_is_really_scored() -> None:
    detector = module._detector(ModelSpec(hidden=8, horizons=(1, 4)))
    scorer = Scorer(detector, {}, 1 / 604800, None)
    slabs = Slabs(detector.layout, torch.device("cpu"), 4)
    scorer.begin(slabs, np.arange(4))
    slots, dt = np.arange(1, 4), np.ones(3)
    scored = scorer.observe(slabs, slots, np.ones((3, 4)), dt, dt, dt > 1)
    assert np.isfinite(scored.score).all()


def test_the_parts_of_a_devices_memory_sum_up() -> None:
    near, far = module._memory((1,)), module._memory((1, 64))
    for row in (near, far):
        assert row["total"] == sum(row[name] for name in ("state", "records", "ahead", "errors", "table", "ids"))
    assert far["ahead"] - near["ahead"] == 64 * 4 * 4
    assert near["state"] == 2 * 32 * 4


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    bench(json_file=None)
    assert list(tmp_path.iterdir()) == []


def test_a_json_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        bench(json_file=tmp_path / "nowhere" / "bench.json")
