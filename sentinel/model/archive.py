"""A detector as plain tensors and a manifest, and back: what a model file holds. Does no I/O."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sentinel.errors import ModelError
from sentinel.model.calibrate import ShiftReference
from sentinel.model.forecaster import Forecaster, weight_shapes
from sentinel.model.scale import ProfileScale
from sentinel.model.score import Detector
from sentinel.model.slabs import Layout
from sentinel.records import ModelSpec

FORMAT = 4
_WEIGHT = "weight."


def pack(detector: Detector) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and manifest of a detector."""
    scale = detector.scale
    tensors = {_WEIGHT + name: weight for name, weight in detector.forecaster.weights.items()}
    tensors |= {
        "prior": torch.from_numpy(detector.prior),
        "spread_of_locations": torch.from_numpy(detector.spread_of_locations),
        "scale.location": torch.from_numpy(scale.location),
        "scale.spread": torch.from_numpy(scale.spread),
        "scale.counter": torch.from_numpy(scale.counter.astype(np.uint8)),
        "longest_run": torch.from_numpy(detector.longest_run),
    }
    if detector.shift is not None:
        tensors |= {
            "shift.centre": torch.from_numpy(detector.shift.centre),
            "shift.precision": torch.from_numpy(detector.shift.precision),
            "shift.most": torch.from_numpy(detector.shift.most),
        }
    manifest = {
        "format": FORMAT,
        "model": asdict(detector.spec),
        "channels": list(detector.channels),
        "calendar": detector.forecaster.calendar,
        "bins": detector.forecaster.bins,
        "networks": list(detector.networks),
        "learned_until": list(detector.learned_until),
        "interval": detector.interval,
        "declared": detector.declared,
        "shift_values_only": detector.shift is not None and detector.shift.values_only,
    }
    return tensors, manifest


def unpack(tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> Detector:
    """Undo `pack`.

    Raises:
        ModelError: a tensor is missing, of the wrong shape, or not finite; another format.
    """
    if manifest.get("format") != FORMAT:
        msg = f"model format {manifest.get('format')!r} is not of this release ({FORMAT}); train anew"
        raise ModelError(msg)
    raw = dict(manifest["model"])
    spec = ModelSpec(**(raw | {"horizons": tuple(raw["horizons"])}))
    channels = tuple(manifest["channels"])
    networks, calendar, bins = tuple(manifest["networks"]), manifest["calendar"], manifest["bins"]
    f, count = len(channels), 1 + len(networks)
    shapes: dict[str, tuple[int, ...]] = {
        _WEIGHT + name: (count, *shape) for name, shape in weight_shapes(spec, f, calendar, bins).items()
    }
    shapes |= {"prior": (Layout(spec, f, bins).width,)}
    shapes |= dict.fromkeys(
        ("spread_of_locations", "scale.location", "scale.spread", "scale.counter", "longest_run"), (f,)
    )
    for name, shape in shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            msg = f"model tensor {name}: expected shape {shape}, found {found}; train anew"
            raise ModelError(msg)
        if name.startswith(_WEIGHT) and not bool(torch.isfinite(tensors[name]).all()):
            msg = f"model tensor {name} is not finite; train anew"
            raise ModelError(msg)
    weights = {name.removeprefix(_WEIGHT): tensor for name, tensor in tensors.items() if name.startswith(_WEIGHT)}
    shift = None
    if "shift.centre" in tensors:
        shift = ShiftReference(
            tensors["shift.centre"].numpy(),
            tensors["shift.precision"].numpy(),
            tensors["shift.most"].numpy(),
            bool(manifest["shift_values_only"]),
        )
    return Detector(
        channels=channels,
        scale=ProfileScale(
            tensors["scale.location"].numpy(),
            tensors["scale.spread"].numpy(),
            tensors["scale.counter"].numpy().astype(np.bool_),
        ),
        forecaster=Forecaster(spec, f, calendar, bins, weights),
        prior=tensors["prior"].numpy(),
        spread_of_locations=tensors["spread_of_locations"].numpy(),
        interval=float(manifest["interval"]),
        longest_run=tensors["longest_run"].numpy(),
        declared=bool(manifest["declared"]),
        shift=shift,
        networks=networks,
        learned_until=tuple(manifest["learned_until"]),
        version=str(manifest.get("version", "")),
    )
