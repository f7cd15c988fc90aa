"""Models on disk: what was saved comes back, and what is not as saved is refused."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from sentinel.adapters.models import list_models, load_model, model_path, retire_models, save_model
from sentinel.errors import ModelError

TENSORS: dict[str, Tensor] = {
    "weight_hh": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "spread": torch.tensor([1.0, 2.5], dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "half": torch.ones(2, dtype=torch.bfloat16),
}
MANIFEST: dict[str, Any] = {"cell": "lstm", "channels": ["Druck/°", "flow"], "loss": 0.25, "nested": {"a": [1, None]}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return model_path(tmp_path, "pump", save_model(tmp_path, "pump", TENSORS, MANIFEST))


def test_a_model_comes_back_as_it_was_saved(saved: Path) -> None:
    tensors, manifest = load_model(saved)
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert {key: manifest[key] for key in MANIFEST} == MANIFEST
    assert manifest["version"] == saved.name


def test_numpy_arrays_and_strided_tensors_are_taken(tmp_path: Path) -> None:
    given: dict[str, Tensor | np.ndarray[Any, Any]] = {"array": np.arange(3.0), "turned": TENSORS["weight_hh"].T}
    tensors, _ = load_model(model_path(tmp_path, "p", save_model(tmp_path, "p", given, {})))
    assert torch.equal(tensors["array"], torch.arange(3.0, dtype=torch.float64))
    assert torch.equal(tensors["turned"], TENSORS["weight_hh"].T)


def test_the_version_is_the_contents(tmp_path: Path) -> None:
    version = save_model(tmp_path, "pump", TENSORS, MANIFEST)
    assert len(version) == len(bytes.fromhex(version)) * 2 == 12
    assert save_model(tmp_path, "pump", dict(reversed(TENSORS.items())), dict(reversed(MANIFEST.items()))) == version
    assert save_model(tmp_path, "pump", TENSORS, MANIFEST | {"loss": 0.5}) != version
    assert save_model(tmp_path, "pump", TENSORS | {"spread": torch.ones(2)}, MANIFEST) != version
    assert len(list_models(tmp_path, "pump")) == 3


def test_no_draft_is_left_and_nothing_is_pickled(saved: Path) -> None:
    assert [item.name for item in saved.parent.iterdir()] == [saved.name]
    assert sorted(item.name for item in saved.iterdir()) == ["manifest.json", "weights.safetensors"]


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match="No space left"):
        save_model(tmp_path, "pump", TENSORS, MANIFEST)
    assert list((tmp_path / "pump").iterdir()) == []


@pytest.mark.parametrize("profile", ["../../etc", ".", "..", "a/b", "Pumpe Süd", ".hidden", "50%", "a.b"])
def test_any_profile_name_is_one_directory_below_the_root(tmp_path: Path, profile: str) -> None:
    root = tmp_path / "models"
    version = save_model(root, profile, TENSORS, {})
    assert model_path(root, profile, version).parent.parent == root
    assert [item.parent.parent for item in tmp_path.rglob(version)] == [root]
    assert [model.version for model in list_models(root, profile)] == [version]
    load_model(model_path(root, profile, version))


def test_models_are_listed_newest_first_and_old_ones_retired(tmp_path: Path) -> None:
    versions = []
    for age in range(5):
        versions.append(save_model(tmp_path, "pump", TENSORS, {"n": age}))
        os.utime(model_path(tmp_path, "pump", versions[-1]) / "manifest.json", (age, age))
    save_model(tmp_path, "room", TENSORS, {})
    newest_first = versions[::-1]
    assert [model.version for model in list_models(tmp_path, "pump")] == newest_first
    assert retire_models(tmp_path, "pump", keep=2, named={versions[0]}) == newest_first[2:4]
    assert [model.version for model in list_models(tmp_path, "pump")] == [*newest_first[:2], versions[0]]
    assert len(list((tmp_path / "pump").iterdir())) == 3
    assert len(list_models(tmp_path, "room")) == 1


def test_a_profile_without_models_has_none(tmp_path: Path) -> None:
    assert list_models(tmp_path, "pump") == []
    assert retire_models(tmp_path, "pump", keep=0) == []


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [({"loss": float("nan")}, "cannot be JSON"), ({"x": object()}, "cannot be JSON"), ({"version": "1"}, "leave them")],
)
def test_a_manifest_that_json_cannot_carry_is_refused(tmp_path: Path, manifest: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        save_model(tmp_path, "pump", TENSORS, manifest)


def edit(path: Path, **changes: object) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def flip(path: Path) -> None:
    body = bytearray((path / "weights.safetensors").read_bytes())
    body[-1] ^= 1
    (path / "weights.safetensors").write_bytes(bytes(body))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json cannot be read"),
    "no weights": (lambda path: (path / "weights.safetensors").unlink(), "weights.safetensors cannot be read"),
    "not JSON": (lambda path: (path / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    "deep JSON": (lambda path: (path / "manifest.json").write_text("[" * 100_000), "manifest.json cannot be read"),
    "an array": (lambda path: (path / "manifest.json").write_text("[]"), "not a model's manifest"),
    "newer": (lambda path: edit(path, schema=2), "newer release .*upgrade"),
    "edited": (lambda path: edit(path, cell="gru"), "changed after it was written"),
    "not a number": (lambda path: edit(path, loss=float("nan")), "not JSON's"),
    "cut": (lambda path: os.truncate(path / "weights.safetensors", 100), "has 100 bytes"),
    "flipped": (flip, "hash differs"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_refused_with_file_and_remedy(saved: Path, damage: str) -> None:
    change, complaint = DAMAGE[damage]
    change(saved)
    with pytest.raises(ModelError, match=complaint) as raised:
        load_model(saved)
    assert str(saved) in str(raised.value)
    assert "train anew" in str(raised.value) or "upgrade" in str(raised.value)


def test_weights_that_do_not_fit_the_manifest_are_refused(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save(TENSORS | {"spread": torch.ones(3, dtype=torch.float64)})
    monkeypatch.setattr("sentinel.adapters.models.save", lambda tensors: other)
    version = save_model(tmp_path, "pump", TENSORS, MANIFEST)
    with pytest.raises(ModelError, match="does not fit its manifest in spread"):
        load_model(model_path(tmp_path, "pump", version))


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(tmp_path / "none")


# --- a model that somebody made up, its hashes in order ---


def forge(root: Path, header: bytes, data: bytes = b"", **manifest: object) -> Path:
    """A model directory that agrees with itself: anybody can reckon a hash."""
    weights = len(header).to_bytes(8, "little") + header + data
    content = {"schema": 1, "tensors": {}, "weights_bytes": len(weights)} | manifest
    content["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = root / "pump" / version
    path.mkdir(parents=True)
    (path / "weights.safetensors").write_bytes(weights)
    (path / "manifest.json").write_text(json.dumps(content | {"version": version}))
    return path


ONE = {"a": {"dtype": "float32", "shape": [2]}}


@pytest.mark.parametrize(
    ("header", "data", "manifest", "complaint"),
    [
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8), {}, "does not fit its manifest in a"),
        (b'{"a":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}}', bytes(16), {"tensors": ONE}, "does not fit"),
        (b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}', bytes(12), {"tensors": ONE}, "does not fit"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}', bytes(8), {"tensors": ONE}, "cannot be read"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}', bytes(8), {"tensors": ONE}, "cannot be read"),
        (b'{"a":[]}', b"", {"tensors": ONE}, "does not fit"),
        (b"[]", b"", {"tensors": ONE}, "does not fit"),
        (b"{", b"", {}, "cannot be read"),
        (b"[" * 100_000, b"", {}, "cannot be read"),
        (b"\xff" * 10, b"", {}, "cannot be read"),
        (b"{}", b"", {"tensors": []}, "does not say what the weights are"),
        (b"{}", b"", {"tensors": {"a": 1}}, "does not say what the weights are"),
        (b"{}", b"", {"tensors": {"a": {"dtype": 1, "shape": []}}}, "does not say what the weights are"),
        (b"{}", b"", {"weights_bytes": "10"}, "does not say what the weights are"),
        (b"{}", b"", {"schema": True}, "not a model's manifest"),
    ],
)
def test_weights_that_lie_are_refused(
    tmp_path: Path, header: bytes, data: bytes, manifest: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ModelError, match=complaint):
        load_model(forge(tmp_path, header, data, **manifest))


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 50 << 20])
def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path: Path, length: int) -> None:
    path = forge(tmp_path, b"{}")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "weights.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    assert manifest["weights_bytes"] == 10
    tracemalloc.start()
    with pytest.raises(ModelError, match=f"its header would have {length} bytes"):
        load_model(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_weights_are_not_read_before_the_manifest_was_checked(saved: Path) -> None:
    (saved / "weights.safetensors").unlink()

    def check(manifest: Mapping[str, Any]) -> None:
        raise ModelError(f"not {sorted(manifest['tensors'])}")

    with pytest.raises(ModelError, match=r"not .*spread"):
        load_model(saved, check)


@pytest.mark.parametrize(
    "version",
    ["../../../etc", "..", ".", "", "/etc", "a/b", "0123456789ab/", "0123456789AB", "0123456789ab\n", "é" * 12],
)
def test_a_version_that_is_a_path_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(ModelError, match="is no version of a model"):
        model_path(tmp_path, "pump", version)


def test_a_manifest_that_names_another_version_than_its_directory_is_refused(saved: Path) -> None:
    moved = saved.rename(saved.with_name("0123456789ab"))
    with pytest.raises(ModelError, match=f"is not named as its version {saved.name}"):
        load_model(moved)


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_and_not_waited_for(saved: Path, name: str) -> None:
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(ModelError, match="not a regular file"):
        load_model(saved)
    (saved / name).unlink()
    (saved / name).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="not a regular file"):
        load_model(saved)
