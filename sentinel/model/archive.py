"""A detector as plain tensors and a manifest, and back: what a model file holds. Does no I/O."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sentinel.errors import ModelError
from sentinel.model import features
from sentinel.model.calibrate import ShiftReference
from sentinel.model.forecaster import Forecaster, weight_shapes
from sentinel.model.scale import ProfileScale
from sentinel.model.score import Detector
from sentinel.model.slabs import Layout
from sentinel.records import ModelSpec

FORMAT = 5
_WEIGHT = "weight."
_MAY_BE_INFINITE = ("prior", "longest_run")  # what is not known yet; a channel that may stand still


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


def check(manifest: Mapping[str, Any], others: Collection[str] = ()) -> None:
    """Whether the tensors that a manifest names are a detector's, in shape and dtype: before any of them is read.

    Args:
        others: tensors that are not the detector's and may be there too.

    Raises:
        ModelError: another format, a field that no release wrote, a tensor too many, missing, or of another form.
    """
    wanted = _Plan.of(manifest).forms(shift="shift.centre" in manifest["tensors"])
    _compare(manifest["tensors"], wanted, others)


def unpack(tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> Detector:
    """Undo `pack`.

    Raises:
        ModelError: as `check`, or a tensor holds what no training gives.
    """
    plan = _Plan.of(manifest)
    wanted = plan.forms(shift="shift.centre" in tensors)
    forms = {
        name: {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)} for name, t in tensors.items()
    }
    _compare(forms, wanted, [name for name in forms if name not in wanted])
    for name in wanted:
        finite = bool(torch.isfinite(tensors[name]).all())
        if (not finite and name not in _MAY_BE_INFINITE) or (
            name == "scale.spread" and not bool((tensors[name] > 0).all())
        ):
            raise ModelError(f"model tensor {name} holds what no training gives (not finite, or no scale); train anew")
    weights = {name: tensors[_WEIGHT + name] for name in plan.weights()}
    shift = None
    if "shift.centre" in tensors:
        shift = ShiftReference(
            tensors["shift.centre"].numpy(),
            tensors["shift.precision"].numpy(),
            tensors["shift.most"].numpy(),
            plan.shift_values_only,
        )
    return Detector(
        channels=plan.channels,
        scale=ProfileScale(
            tensors["scale.location"].numpy(),
            tensors["scale.spread"].numpy(),
            tensors["scale.counter"].numpy().astype(np.bool_),
        ),
        forecaster=Forecaster(plan.spec, len(plan.channels), plan.calendar, plan.bins, weights),
        prior=tensors["prior"].numpy(),
        spread_of_locations=tensors["spread_of_locations"].numpy(),
        interval=plan.interval,
        longest_run=tensors["longest_run"].numpy(),
        declared=plan.declared,
        shift=shift,
        networks=plan.networks,
        learned_until=plan.learned_until,
        version=str(manifest.get("version", "")),
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a manifest says of a detector, each field within the bounds of the settings."""

    spec: ModelSpec
    channels: tuple[str, ...]
    networks: tuple[str, ...]
    learned_until: tuple[float, ...]
    calendar: bool
    bins: int
    interval: float
    declared: bool
    shift_values_only: bool

    @staticmethod
    def of(manifest: Mapping[str, Any]) -> "_Plan":
        if manifest.get("format") != FORMAT:
            msg = f"model format {str(manifest.get('format'))[:40]} is not of this release ({FORMAT}); train anew"
            raise ModelError(msg)

        def field(fits: Callable[[Any], bool], *path: str) -> Any:
            value: Any = manifest
            for name in path:
                value = value.get(name) if isinstance(value, Mapping) else None
            if not fits(value):
                raise ModelError(f"the model's manifest has a bad {'.'.join(path)}: {str(value)[:40]}; train anew")
            return value

        def one_of(*choices: object) -> Callable[[Any], bool]:
            return lambda value: isinstance(value, type(choices[0])) and value in choices

        def whole(low: int, high: int) -> Callable[[Any], bool]:
            return lambda value: type(value) is int and low <= value <= high

        def names(low: int, high: int) -> Callable[[Any], bool]:
            return lambda value: (
                isinstance(value, list | tuple)
                and low <= len(value) <= high
                and all(isinstance(name, str) for name in value)
                and len(set(value)) == len(value)
            )

        truth = one_of(True, False)
        spec = ModelSpec(
            cell=field(one_of("lstm", "gru"), "model", "cell"),
            layers=field(whole(1, 8), "model", "layers"),
            hidden=field(whole(1, 1024), "model", "hidden"),
            dropout=field(lambda value: _is_number(value) and 0 <= value < 1, "model", "dropout"),
            horizons=tuple(field(_are_horizons, "model", "horizons")),
            weights=field(one_of("shared", "device"), "model", "weights"),
        )
        networks = tuple(field(names(0, 1 << 24), "networks"))
        return _Plan(
            spec=spec,
            channels=tuple(field(names(1, 1024), "channels")),
            networks=networks,
            learned_until=tuple(
                field(
                    lambda value: (
                        isinstance(value, list | tuple)
                        and len(value) == len(networks)
                        and all(_is_number(time) for time in value)
                    ),
                    "learned_until",
                )
            ),
            calendar=field(truth, "calendar"),
            bins=field(whole(0, features.MOST_BINS), "bins"),
            interval=float(field(lambda value: _is_number(value) and value > 0, "interval")),
            declared=field(truth, "declared"),
            shift_values_only=field(truth, "shift_values_only"),
        )

    def weights(self) -> dict[str, tuple[int, ...]]:
        return weight_shapes(self.spec, len(self.channels), self.calendar, self.bins)

    def forms(self, *, shift: bool) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """Dtype and shape of every tensor; None: any length."""
        f, count = len(self.channels), 1 + len(self.networks)
        found: dict[str, tuple[str, tuple[int | None, ...]]] = {
            _WEIGHT + name: ("float32", (count, *shape)) for name, shape in self.weights().items()
        }
        found |= {
            "prior": ("float32", (Layout(self.spec, f, self.bins).width,)),
            "spread_of_locations": ("float32", (f,)),
            "scale.location": ("float64", (f,)),
            "scale.spread": ("float64", (f,)),
            "scale.counter": ("uint8", (f,)),
            "longest_run": ("float64", (f,)),
        }
        if shift:
            found |= {
                "shift.centre": ("float32", (None, 2, f)),
                "shift.precision": ("float32", (None, 2, f, f)),
                "shift.most": ("float32", (None, 2)),
            }
        return found


def _compare(
    told: Mapping[str, Any], wanted: Mapping[str, tuple[str, tuple[int | None, ...]]], others: Collection[str]
) -> None:
    if extra := sorted(name for name in told if name not in wanted and name not in others):
        raise ModelError(f"model tensor {extra[0][:80]}: no release writes it; train anew")
    rows = None
    for name, (dtype, shape) in wanted.items():
        form = told.get(name)
        found = form["shape"] if form is not None and form["dtype"] == dtype else None
        rows = found[0] if found and shape[0] is None and rows is None else rows
        if found != [rows if length is None else length for length in shape]:
            said = "nothing" if form is None else f"{form['dtype']} {str(form['shape'])[:80]}"
            raise ModelError(f"model tensor {name}: expected {dtype} {list(shape)}, found {said}; train anew")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_horizons(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(type(ticks) is int and 1 <= ticks <= 1024 for ticks in value)
        and list(value) == sorted(set(value))
        and math.lcm(32, *value) < 1 << 22
    )
