"""Models on disk: `{root}/{profile}/{version}/` with `weights.safetensors` and `manifest.json`.

The version is a hash of the content, so a directory never changes once it is there. Nothing is
ever unpickled, and everything is checked before it is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
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
HEADER_LIMIT_BYTES = 16 << 20
VERSION = re.compile(r"[0-9a-f]{12}")
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8", "I64": "int64"}
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
    """Where that version lies. The profile's name is percent-encoded where a file name cannot hold it.

    Raises:
        ModelError: the version is no name of ours, which might lead elsewhere.
    """
    if not VERSION.fullmatch(version):
        raise ModelError(
            f"{version[:80]!r} is no version of a model (12 hex digits); `sentinel models` lists those there are"
        )
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


def load_model(
    path: Path, check: Callable[[Mapping[str, Any]], None] = lambda manifest: None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the manifest of the model directory `path`.

    The manifest is as given to save_model, with `version`, `schema`, `tensors` and hashes added. No file is trusted: the
    manifest is looked at first, then whether the weights' header says the same, and only then are weights read.

    Args:
        check: looks at the manifest, names, dtypes and shapes of the `tensors` included, before the weights are read.

    Raises:
        ModelError: with the file and the remedy: anything is missing, of another release, or not what was written.
    """
    manifest = _read_manifest(path / MANIFEST)
    if path.name != manifest["version"]:
        raise ModelError(f"{path} is not named as its version {manifest['version']}; rename it back, or train anew")
    check(manifest)
    file = path / WEIGHTS
    try:
        with _open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != manifest["weights_bytes"]:
                raise ModelError(f"{file} has {size} bytes, not {manifest['weights_bytes']}; {REMEDY}")
            _compare(file, _header(stream, size), manifest["tensors"])
            stream.seek(0)
            weights = stream.read(size)
        if hashlib.sha256(weights).hexdigest() != manifest["weights_sha256"]:
            raise ModelError(f"{file} is not what its manifest describes (hash differs); {REMEDY}")
        tensors = load(weights)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({str(error)[:200]}); {REMEDY}") from error
    _compare(file, {name: _form(tensor) for name, tensor in tensors.items()}, manifest["tensors"])
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


def _compare(file: Path, forms: dict[str, Any], told: dict[str, Any]) -> None:
    wrong = sorted(name for name in forms | told if forms.get(name) != told.get(name))
    if wrong:
        raise ModelError(f"{file} does not fit its manifest in {', '.join(wrong[:5])[:200]}; {REMEDY}")


def _open_regular(file: Path) -> BinaryIO:
    """Open for reading; a pipe or a device, which might never end, is an OSError."""
    stream = open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115, PTH123 - the caller's `with`
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "not a regular file")
    return stream


def _header(stream: BinaryIO, size: int) -> dict[str, Any]:
    """Forms of the tensors that a safetensors file of `size` bytes says it holds. Raises ValueError."""
    length = int.from_bytes(stream.read(8), "little")
    if length > min(HEADER_LIMIT_BYTES, size - 8):
        raise ValueError(f"its header would have {length} bytes")
    header = json.loads(stream.read(length))
    return {
        name: isinstance(of, dict) and {"dtype": DTYPES.get(str(of.get("dtype"))), "shape": of.get("shape")}
        for name, of in (header.items() if isinstance(header, dict) else ())
        if name != "__metadata__"
    }


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
        with _open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MANIFEST_LIMIT_BYTES:
                raise ModelError(f"{file} is larger than a manifest can be; {REMEDY}")
            manifest = json.loads(stream.read(size))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({error}); {REMEDY}") from error
    if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int:
        raise ModelError(f"{file} is not a model's manifest; {REMEDY}")
    if manifest["schema"] > SCHEMA:
        raise ModelError(f"{file} was written by a newer release (schema {manifest['schema']}); upgrade sentinel")
    try:
        version = _version({key: value for key, value in manifest.items() if key != "version"})
    except ValueError as error:
        raise ModelError(f"{file} holds a number that is not JSON's ({error}); {REMEDY}") from error
    if manifest.get("version") != version or not all(key in manifest for key in OWN_KEYS):
        raise ModelError(f"{file} was changed after it was written (its hash differs); {REMEDY}")
    tensors = manifest["tensors"]
    if (
        type(manifest["weights_bytes"]) is not int
        or not isinstance(tensors, dict)
        or not all(isinstance(form, dict) and form.keys() == {"dtype", "shape"} for form in tensors.values())
        or not all(isinstance(form["dtype"], str) and isinstance(form["shape"], list) for form in tensors.values())
    ):
        raise ModelError(f"{file} does not say what the weights are; {REMEDY}")
    return manifest
