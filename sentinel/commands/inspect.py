"""`sentinel inspect`: what the gates and cells of one device's network did over its last readings.

Computed from the store by running the device's journal again; a daemon may run meanwhile.

Axes: T ticks, L layers, H hidden units.
"""

import math
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor

from sentinel import trainer, turns
from sentinel.adapters.store import DeviceReader, Turn, open_device_reader, open_snapshot
from sentinel.commands._heatmap import write_heatmap
from sentinel.commands._json import write_json
from sentinel.commands._profile import profile_spec
from sentinel.commands._progress import progress_bar
from sentinel.commands._terminal import say, show_table, sparkline
from sentinel.errors import DataError, ModelError
from sentinel.model.cells import State
from sentinel.model.forecaster import Forecaster
from sentinel.model.score import SATURATED
from sentinel.records import Configuration, Floats, ProfileSpec
from sentinel.settings import load_settings
from sentinel.stream.pipeline import Pipeline, ProfileStream

MOST_REPLAYED = 20_000  # turns of the device; what is older has long left the state. A second takes about a thousand
CLOSED, OPEN = 0.05, 0.95  # gates beyond are saturated
DIGITS = 5
ARITHMETIC = 1e-5  # difference that another machine or library may make


@dataclass(frozen=True, slots=True)
class Step:
    """One tick as the network took it; `before` and `inputs` are its first row's."""

    time: float
    score: float
    values: dict[str, float]
    version: str
    forecaster: Forecaster
    inputs: Tensor
    before: State
    network: Tensor | None


class _Watched(Forecaster):
    """A forecaster that remembers what it is given."""

    def __init__(self, of: Forecaster) -> None:
        self.__dict__.update(of.__dict__)
        self.given: list[tuple[Tensor, State, Tensor | None]] = []

    def step(self, inputs: Tensor, state: State, network: Tensor | None = None) -> tuple[Tensor, State]:
        self.given.append((inputs.clone(), state, network))
        return super().step(inputs, state, network)


def inspect(
    *, device: str, config: Path, profile: str, last: int, json_file: Path | None = None, out: Path | None = None
) -> int:
    """Tell what gates and cells did in the device's last `last` ticks: a summary, numbers, a heat map.

    Raises:
        StoreError: the store cannot be read.
        DataError: it holds no such device, no model or no readings of it; a file cannot be written.
        ConfigError: there is no such profile.
    """
    settings = load_settings(config)
    spec = profile_spec(settings, config, profile)
    torch.set_num_threads(1)
    result = look(settings.store.path, spec, device, last)
    if json_file is not None:
        write_json(json_file, result, indent=False)
    if out is not None:
        write_heatmap(out, result, checked(result))
    _print(result)
    if out is not None:
        say(f"written: {out}")
    return 0


def look(store: Path, spec: ProfileSpec, device: str, last: int) -> dict[str, Any]:
    """What `inspect` tells, as plain data and arrays."""
    run = _Run(store, spec, device, last)
    with closing(run.journal), progress_bar() as tell:
        run.take(tell)
    return run.result()


class _Run:
    """The device's past, run again."""

    def __init__(self, store: Path, spec: ProfileSpec, device: str, last: int) -> None:
        self._spec, self._device, self._models = spec, device, store / "models"
        self._pipeline = Pipeline([spec])
        self._stream.keep_ticks = True
        self._steps: deque[Step] = deque(maxlen=last)
        self._wanted = last
        self._check: dict[str, Any] | None = None
        self._cut: list[str] = []  # why the states that the run begins with are not those of then
        self.notes: list[str] = []
        if not (store / "snapshot.sqlite").exists():
            raise DataError(f"no snapshot in {store} yet: `sentinel run` writes the first one a minute after its start")
        self._position, self._data, self._row = self._snapshot(store)
        self.journal: DeviceReader = open_device_reader(store, spec.name, device)

    @property
    def _stream(self) -> ProfileStream:
        return self._pipeline.profiles[self._spec.name]

    def _snapshot(self, store: Path) -> tuple[int, dict[str, Any] | None, bytes | None]:
        """Position, the profile's part, and the device's row."""
        with closing(open_snapshot(store)) as snapshot:
            image = snapshot.load()
            if image is None:
                return 0, None, None
            rows = (row for profile, one, row in image.rows if (profile, one) == (self._spec.name, self._device))
            return image.position, orjson.loads(image.meta)["profiles"].get(self._spec.name), next(rows, None)

    def take(self, tell: Any) -> None:
        """Run what the journal holds: up to the snapshot, which it is held against, and on from that."""
        end = self.journal.last()
        held = deque(self.journal.read(upto=min(self._position, end)), maxlen=MOST_REPLAYED + 1)
        self._begin(held)
        for at, turn in enumerate(held):
            self._turn(turn)
            tell("replaying", (at + 1) / len(held))
        self._compare()
        for turn in self.journal.read(self._position, end):
            self._turn(turn)

    def _begin(self, held: deque[Turn]) -> None:
        """Say what of the past is missing, and take the saved model where its promotion is."""
        first = self.journal.first()
        if gone := (first or self._position + 1) - 1:
            self._cut.append(f"the journal's first {gone:,} turns were trimmed")
        if len(held) > MOST_REPLAYED:
            held.popleft()
            self._cut.append(f"only the device's last {MOST_REPLAYED:,} turns are run again")
        running = self._data["model"] if self._data else None
        promoted = any(getattr(entry, "version", None) for turn in held for entry in turn.entries)
        if self._cut and running and not promoted:
            try:
                turns.run_model(self._stream, trainer.load(self._models, self._spec.name, running), self.journal, 0)
            except ModelError as error:
                self.notes.append(str(error))

    def _turn(self, turn: Turn) -> None:
        watched = self._watch()
        for done in turns.apply(turn, self._pipeline, self.journal, self._models):
            if isinstance(done.entry, Configuration) and done.refused:
                self._cut.append(f"settings changed ({done.refused})")
            stream, slot = self._stream, self._stream.table.slot_of.get(self._device)
            ticks = [ticks for ticks in done.outcome.ticks if ticks.scored is not None]
            given = watched.given if watched is not None else []
            alive = slot is not None and stream.slabs is not None and bool(stream.slabs.state[slot].any())
            for each, (inputs, before, network) in zip(ticks, given, strict=True) if alive else ():
                assert each.scored is not None and watched is not None  # noqa: PT018 - for the type checker
                values = dict(zip(stream.channels, each.batch.values[0].tolist(), strict=False))
                at, score = float(each.batch.time[0]), float(each.scored.score[0])
                version = stream.detector.version if stream.detector else ""
                self._steps.append(Step(at, score, values, version, watched, inputs, before, network))
            watched = self._watch()

    def _watch(self) -> _Watched | None:
        scorer = self._stream.scorer
        if scorer is None:
            return None
        scorer.forecaster = watched = _Watched(scorer.forecaster)
        return watched

    def _compare(self) -> None:
        """Hold the states that came out against those that the snapshot holds, and go on with the latter."""
        data, row = self._data, self._row
        if data is None or row is None or not data["model"]:
            return
        kept = ProfileStream(self._spec)
        kept.keep_ticks = True
        own: dict[str, Any] = {"alerts": {"open": {}, "started": {}, "recent": []}, "awaited": []}
        own["pending"] = [waiting for waiting in data["pending"] if waiting[0] == self._device]
        try:
            detector = trainer.load(self._models, self._spec.name, data["model"])[0]
            kept.restore(data | own, detector, [(self._device, row)])
        except (ModelError, ValueError) as error:
            self.notes.append(f"the snapshot's state of the device cannot be used: {error}")
            return
        stored, computed = (self._state(stream) for stream in (kept, self._stream))
        difference = None
        if stored is not None and computed is not None and stored.shape == computed.shape:
            difference = float(np.abs(stored - computed).max())
        self._check = {"position": self._position, "largest_difference": difference, "because": "; ".join(self._cut)}
        self._pipeline.profiles[self._spec.name] = kept

    def _state(self, stream: ProfileStream) -> Floats | None:
        """h and, for an LSTM, c, (2 or 1, L, H)."""
        slot = stream.table.slot_of.get(self._device)
        if slot is None or stream.slabs is None:
            return None
        return stream.slabs.state[slot].cpu().numpy().astype(np.float64)

    def result(self) -> dict[str, Any]:
        """All that was found."""
        if not self._steps:
            raise DataError(self._nothing())
        if len(self._steps) < self._wanted:
            self.notes.append(f"{len(self._steps):,} ticks with a state are held, {self._wanted:,} were asked for")
        newest = self._steps[-1]
        spec = newest.forecaster.spec
        steps = [step for step in self._steps if step.forecaster.spec == spec]
        looks = [_look(step) for step in steps]
        state = looks[-1][1]
        layers = [
            {name: np.stack([gates[k][name] for gates, _ in looks]) for name in looks[0][0][k]}
            | ({"cell": np.stack([after.c[k, 0].numpy() for _, after in looks])} if spec.cell == "lstm" else {})
            | {"hidden": np.stack([after.h[k, 0].numpy() for _, after in looks])}
            for k in range(spec.layers)
        ]
        return {
            "profile": self._spec.name,
            "device": self._device,
            "as_of": time.time(),
            "model": newest.version,
            "cell": spec.cell,
            "ticks": len(steps),
            "limits": {"cell": SATURATED, "closed": CLOSED, "open": OPEN},
            "saturation": [{name: _share(name, part) for name, part in layer.items()} for layer in layers],
            "check": self._check,
            "notes": self.notes,
            "units": {channel.name: channel.unit for channel in self._spec.channels or ()},
            "state": {"h": state.h[:, 0].numpy()} | ({"c": state.c[:, 0].numpy()} if spec.cell == "lstm" else {}),
            "models": [step.version for step in steps],
            "time": [step.time for step in steps],
            "score": [None if math.isnan(step.score) else round(step.score, 4) for step in steps],
            "values": {
                name: [_number(step.values.get(name, math.nan)) for step in steps] for name in self._stream.channels
            },
            "layers": [{name: np.round(part, DIGITS) for name, part in layer.items()} for layer in layers],
        }

    def _nothing(self) -> str:
        name, known = self._spec.name, self._device in self._stream.table.slot_of
        if not known and self._row is None:
            return f"no device {self._device!r} of profile {name} in the store; `sentinel devices` lists all"
        if self._stream.detector is None:
            return f"profile {name} has no model yet, so its devices have no state to look into"
        return f"the journal holds no tick of {self._device!r} that the network of profile {name} took"


def _look(step: Step) -> tuple[list[dict[str, Floats]], State]:
    with torch.inference_mode():
        gates, after = step.forecaster.look(step.inputs, step.before, step.network)
    return [{name: part[0].numpy() for name, part in layer.items()} for layer in gates], after


def _share(name: str, part: Floats) -> dict[str, float]:
    """Mean and the shares that are saturated, of all units and ticks."""
    out = {"mean": float(part.mean())}
    if name == "cell":
        return out | {"saturated": float((np.abs(part) > SATURATED).mean())}
    if name in ("hidden", "candidate"):
        return out
    return out | {"closed": float((part < CLOSED).mean()), "open": float((part > OPEN).mean())}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def checked(result: dict[str, Any]) -> str:
    """What the comparison with the stored state came to, in words."""
    check = result["check"]
    if check is None:
        return "no snapshot holds a state of this device yet: nothing to compare with"
    difference, because = check["largest_difference"], check["because"]
    if difference == 0:
        return f"recomputed h and c equal the stored state at journal position {check['position']:,}, bit for bit"
    if difference is None:
        said = "h and c cannot be recomputed up to the snapshot"
    else:
        said = f"recomputed h and c differ from the stored state by at most {difference:.2g}"
    if because:
        return f"{said}: {because}; ticks before the snapshot are as far off"
    if difference is not None and difference <= ARITHMETIC:
        return f"{said}: the arithmetic of another machine or library"
    return f"{said}, and nothing explains it: say so to the developers"


def _print(result: dict[str, Any]) -> None:
    say(
        f"{result['device']} of profile {result['profile']}: {result['cell'].upper()}, model {result['model']}, "
        f"last {result['ticks']:,} ticks",
        checked(result),
        *(f"note: {note}" for note in result["notes"]),
    )
    several = len(result["layers"]) > 1
    for k, (layer, shares) in enumerate(zip(result["layers"], result["saturation"], strict=True)):
        columns = [f"layer {k + 1}" if several else "part", "mean", "saturated", "mean of the units over time"]
        rows = [
            [name, f"{shares[name]['mean']:.3f}", _said(shares[name]), sparkline(part.mean(axis=1))]
            for name, part in layer.items()
        ]
        show_table(columns, rows, right=("mean",))


def _said(share: dict[str, float]) -> str:
    words = {"saturated": f"of cells |c| > {SATURATED:g}", "closed": f"< {CLOSED}", "open": f"> {OPEN}"}
    return ", ".join(f"{share[name]:.1%} {text}" for name, text in words.items() if name in share) or "–"
