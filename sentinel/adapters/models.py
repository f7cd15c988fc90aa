"""Models on disk: `{root}/{profile}/{version}/` with `weights.safetensors` and `manifest.json`.

The version is a hash of the content, so a directory never changes once it is there. Nothing is
ever unpickled, and everything is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sentinel.errors import ModelError

SCHEMA = 1
WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
MANIFEST_LIMIT_BYTES = 64 << 20
OWN_KEYS = ("schema", "version", "tensors", "weights_sha256", "weights_bytes")
REMEDY = "copy it again from where it came, or train anew"


@dataclass(frozen=True, slots=True)
class SavedModel:
    """One model on disk. `saved`: wall-clock time at which it was written."""

    profile: str
    version: str
    path: Path
    saved: float


def model_path(root: Path, profile: str, version: str) -> Path:
    """Where that version lies. The profile's name is percent-encoded where a file name cannot hold it."""
    return root / _folder(profile) / version


def save_model(
    root: Path, profile: str, tensors: Mapping[str, Tensor | np.ndarray[Any, Any]], manifest: Mapping[str, Any]
) -> str:
    """Write a model and return its version, 12 hex digits; all of it is on disk, or nothing.

    The same tensors and manifest give the same version, and are then written once. Blocks on the
    disk. Raises ModelError if the manifest cannot be JSON, uses a reserved key, or the disk fails.
    """
    if reserved := [key for key in OWN_KEYS if key in manifest]:
        raise ModelError(f"the manifest's {', '.join(reserved)} are set by save_model; leave them out")
    plain = {name: torch.as_tensor(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}
    weights = save(dict(sorted(plain.items())))
    content = dict(manifest) | {
        "schema": SCHEMA,
        "tensors": {name: _form(tensor) for name, tensor in sorted(plain.items())},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "weights_bytes": len(weights),
    }
    try:
        version = _version(content)
        text = json.dumps(content | {"version": version}, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the manifest of a model of {profile!r} cannot be JSON: {error}") from error
    target = model_path(root, profile, version)
    try:
        _write(target, weights, text.encode())
    except OSError as error:
        raise ModelError(
            f"{target} cannot be written ({error.strerror}); check the disk and its permissions"
        ) from error
    return version


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the manifest of the model directory `path`.

    The manifest is as given to save_model, with `version`, `schema`, `tensors` and hashes added.
    Raises ModelError, which names the file and the remedy, if anything is missing, of another
    release, or not what was written.
    """
    manifest = _read_manifest(path / MANIFEST)
    file = path / WEIGHTS
    try:
        if file.stat().st_size != manifest["weights_bytes"]:
            raise ModelError(f"{file} has {file.stat().st_size} bytes, not {manifest['weights_bytes']}; {REMEDY}")
        weights = file.read_bytes()
        if hashlib.sha256(weights).hexdigest() != manifest["weights_sha256"]:
            raise ModelError(f"{file} is not what its manifest describes (hash differs); {REMEDY}")
        tensors = load(weights)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read ({error}); {REMEDY}") from error
    forms = {name: _form(tensor) for name, tensor in tensors.items()}
    if forms != manifest["tensors"]:
        wrong = sorted(name for name in forms | manifest["tensors"] if forms.get(name) != manifest["tensors"].get(name))
        raise ModelError(f"{file} does not fit its manifest in {', '.join(wrong[:5])}; {REMEDY}")
    return tensors, manifest


def list_models(root: Path, profile: str) -> list[SavedModel]:
    """The models of a profile, newest first; directories without a manifest are passed over."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in (root / _folder(profile)).iterdir():
            with suppress(FileNotFoundError, NotADirectoryError):
                if not path.name.startswith("."):
                    found.append(SavedModel(profile, path.name, path, (path / MANIFEST).stat().st_mtime))
    return sorted(found, key=lambda model: (model.saved, model.version), reverse=True)


def retire_models(root: Path, profile: str, keep: int, named: Collection[str] = ()) -> list[str]:
    """Delete all but the newest `keep` models and those `named`; returns the versions deleted.

    Raises ModelError if the disk refuses.
    """
    gone = [model for model in list_models(root, profile)[keep:] if model.version not in named]
    for model in gone:
        try:
            bin_ = Path(tempfile.mkdtemp(prefix=".retired-", dir=model.path.parent))
            model.path.replace(bin_ / model.version)
            shutil.rmtree(bin_)
        except OSError as error:
            raise ModelError(f"{model.path} cannot be deleted ({error.strerror}); check its permissions") from error
    return [model.version for model in gone]


def _folder(profile: str) -> str:
    name = quote(profile, safe="")
    return name.replace(".", "%2E", 1) if name.startswith(".") else name


def _form(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _version(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _write(target: Path, weights: bytes, manifest: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
    try:
        draft.chmod(0o755)
        for name, body in ((WEIGHTS, weights), (MANIFEST, manifest)):
            with (draft / name).open("wb") as stream:
                stream.write(body)
                stream.flush()
                os.fsync(stream.fileno())
        _sync(draft)
        if (target / MANIFEST).exists():
            os.utime(target / MANIFEST)
        else:
            draft.replace(target)
            _sync(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MANIFEST_LIMIT_BYTES:
            raise ModelError(f"{file} is larger than a manifest can be; {REMEDY}")
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({error}); {REMEDY}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise ModelError(f"{file} is not a model's manifest; {REMEDY}")
    if manifest["schema"] > SCHEMA:
        raise ModelError(f"{file} was written by a newer release (schema {manifest['schema']}); upgrade sentinel")
    try:
        version = _version({key: value for key, value in manifest.items() if key != "version"})
    except ValueError as error:
        raise ModelError(f"{file} holds a number that is not JSON's ({error}); {REMEDY}") from error
    if manifest.get("version") != version or not all(key in manifest for key in OWN_KEYS):
        raise ModelError(f"{file} was changed after it was written (its hash differs); {REMEDY}")
    return manifest
