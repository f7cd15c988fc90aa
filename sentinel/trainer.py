"""The learning process: reads the journal, learns a profile, catches up with what came meanwhile, saves, ends.

Runs at the lowest priority with one thread, and ends when its parent does, however that ends. Started by the service
with a `Job` as JSON on standard input; writes one JSON object a line to standard output:
{"stage": …, "share": …} while it works, then {"version": …} or {"kept": …, "reason": …}.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sentinel.adapters.models import load_model, model_path, save_model
from sentinel.adapters.store import JournalReader, Turn, open_reader
from sentinel.errors import DataError, ModelError, SentinelError
from sentinel.model import archive
from sentinel.model.learn import Apart, Learned, anew, learn
from sentinel.model.score import Detector
from sentinel.records import Channel, Floats, Ints, ProfileSpec, Readings
from sentinel.stream.alerts import quantity
from sentinel.stream.align import Batch
from sentinel.stream.maintenance import DATED, UNDATED, local
from sentinel.stream.pipeline import ProfileStream, series_of

ENTRY = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: be killed when the parent ends, kill -9 of it included
if os.getppid() != int(sys.argv[1]):
    os._exit(1)  # it ended before that
from sentinel import trainer
sys.exit(trainer.main())
"""
NICE = 19
MOST_READINGS = 2_000_000  # newest readings that one training takes from the journal
LEAST_TICKS = 60  # that a device must have learned from for its network to be worth it
CATCH_UPS, CAUGHT_UP = 8, 100  # rounds at most, turns behind that the service makes up itself
MERGED_ROWS = 8192
_ROWS = "devices.rows"

Loaded = tuple[Detector, dict[str, Any], dict[str, torch.Tensor]]
"""Detector, manifest and tensors of a saved model."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to learn.

    Attributes:
        store: directory of the store.
        seed: of all randomness.
        champion: version to beat; None: there is none yet.
        declared: the user vouches that what is learned from is normal.
        after, upto: learn from what came after this position of the journal, and up to that one; None: its end.
    """

    store: str
    spec: ProfileSpec
    seed: int
    champion: str | None = None
    declared: bool = False
    after: int = 0
    upto: int | None = None

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def load(text: str) -> "Job":
        """Undo `dump`."""
        raw = json.loads(text)
        return Job(**(raw | {"spec": ProfileSpec.load(raw["spec"])}))


def run(job: Job, tell: Callable[[str, float], None]) -> dict[str, Any]:
    """Learn, catch up, save.

    Returns:
        {"version", "position", "ticks", "device_seconds", "loss_before", "loss", "apart", "moving"} or, where the
        champion stays, {"kept", "reason"}.

    Raises:
        DataError: there is too little to learn from.
    """
    models = Path(job.store) / "models"
    with open_reader(Path(job.store)) as journal:
        stream = ProfileStream(job.spec)
        stream.keep_ticks = True
        upto = journal.last() if job.upto is None else job.upto
        count = journal.readings_count(job.spec.name, job.after) - journal.readings_count(job.spec.name, upto)
        batches: list[Batch] = []
        taken = 0
        for part in _read(journal, stream, job.after, upto, max(count - MOST_READINGS, 0)):
            batches += part
            taken += sum(map(len, part))
            tell("reading", min(taken / max(min(count, MOST_READINGS), 1), 1.0))
        position = upto
        series = series_of(batches, stream.table.ids, len(stream.channels))
        if job.declared and (most := max(map(len, series), default=0)) < LEAST_TICKS:
            raise DataError(
                f"the journal in {job.store} holds {count} readings of profile {job.spec.name} to learn from, "
                f"{most} ticks of one device at most, and {LEAST_TICKS} are needed: let `sentinel run` collect more, "
                "give an earlier --since or a later --until, or train on recordings"
            )
        champion = load(models, job.spec.name, job.champion) if job.champion else None
        given = {channel.name: channel for channel in stream.spec.channels or ()}
        kept = champion[1]["apart"] if champion and not job.declared else []
        learned = learn(
            series,
            [given.get(name, Channel(name)) for name in stream.channels],
            job.spec.model,
            seed=job.seed,
            declared=job.declared,
            start=champion[0] if champion else None,
            placed=shadow(job.spec, *champion).placed() if champion else None,
            left_out=[tuple(one["left_out"]) for one in kept if one["left_out"]],
            progress=tell,
        )
        before, after = learned.losses
        if not learned.better:
            return {"kept": job.champion, "reason": f"loss {after:.3f} after, {before:.3f} before"}
        adopt(stream, learned)
        stream.keep_ticks = False
        for attempt in range(CATCH_UPS):
            tell("catching up", attempt / CATCH_UPS)
            began, position = position, journal.last()
            for _ in _read(journal, stream, began, position):
                pass
            if position - began < CAUGHT_UP:
                break
        if champion is None and stream.slabs is not None:
            stream.slabs.view("raised")[:] = 0.0  # nobody was told of what alarmed while it caught up
        version = save(models, stream, learned.detector, position, [*kept, *noted(learned, job.spec)])
        ticks = sum(len(s) for s in series)
        seconds = sum(covered(s.time, learned.detector.interval) for s in series)
        losses = {"loss_before": finite(before), "loss": finite(after)}
        facts = {
            "version": version,
            "position": position,
            "ticks": ticks,
            "device_seconds": round(seconds, 1),
            **losses,
        }
        return facts | {"apart": told_apart(learned, job.spec), "moving": list(learned.moving)}


def covered(times: Floats, interval: float) -> float:
    """Seconds that one device's ticks cover, (T,) in any order; long gaps left out."""
    steps = np.diff(np.sort(times))
    return float(steps[~anew(steps, interval)].sum())


def told_apart(learned: Learned, spec: ProfileSpec) -> list[str]:
    """In words what stood apart from all else that was learned from, and what became of it."""
    units = {channel.name: channel.unit for channel in spec.channels or ()}
    become = "learned as normal, for you declared them" if learned.detector.declared else "not learned"

    def told(one: Apart) -> str:
        unit, away = units.get(one.channel, ""), abs(one.value - one.usual)
        since = f"time {one.since:g}"
        if DATED < one.since < UNDATED:
            since = f"{local(one.since, spec.timezone):%Y-%m-%d %H:%M:%S %Z}"
        return (
            f"{one.device}: {one.channel} {quantity(one.value, unit, away)} (usually {quantity(one.usual, unit, away)}) at {since} "
            f"was unlike all else; {one.ticks} readings of about then were {become}"
        )

    return [told(one) for one in learned.apart]


def adopt(stream: ProfileStream, learned: Learned) -> None:
    """Let a stream run what was learned, each device with its memory."""
    stream.adopt(learned.detector, learned.devices, learned.memory)


def noted(learned: Learned, spec: ProfileSpec) -> list[dict[str, Any]]:
    """`told_apart` for a manifest, with what was left out of learning: device, and event times [from, to]; null: nothing."""
    declared = learned.detector.declared
    return [
        {"told": told, "left_out": None if declared else list(one.stretch)}
        for one, told in zip(learned.apart, told_apart(learned, spec), strict=True)
    ]


def save(
    models: Path, stream: ProfileStream, detector: Detector, position: int, apart: Sequence[dict[str, Any]] = ()
) -> str:
    """Write a detector with the stream's devices as of a journal position; returns the version.

    Args:
        apart: `noted`.
    """
    slots = np.array(list(stream.table), dtype=np.int64)
    tensors, manifest = archive.pack(detector)
    rows = stream.rows(slots)
    tensors[_ROWS] = torch.from_numpy(np.frombuffer(b"".join(rows), dtype=np.uint8).copy().reshape(len(rows), -1))
    export = stream.export()
    manifest |= {
        "profile": stream.spec.name,
        "position": position,
        "trained": time.time(),
        "devices": [stream.table.ids[slot] for slot in slots],
        "table_channels": export["channels"],
        "pending": export["pending"],
        "apart": list(apart),
    }
    return save_model(models, stream.spec.name, tensors, manifest)


def load(models: Path, profile: str, version: str) -> Loaded:
    """Detector, manifest and tensors of a saved model.

    Raises:
        ModelError: it is missing, damaged, or not of this release.
    """
    tensors, manifest = load_model(model_path(models, profile, version), check)
    return archive.unpack(tensors, manifest), manifest, tensors


def check(manifest: Mapping[str, Any]) -> None:
    """Raises ModelError: the manifest is not of this release, or does not say which devices were saved with the model."""
    archive.check(manifest, others=(_ROWS,))
    devices, rows = manifest.get("devices"), manifest["tensors"].get(_ROWS)
    if (
        not isinstance(devices, list)
        or not all(isinstance(device, str) for device in devices)
        or not isinstance(manifest.get("table_channels"), list)
        or not all(isinstance(channel, str) for channel in manifest["table_channels"])
        or not isinstance(manifest.get("pending"), list)
        or not isinstance(manifest.get("apart"), list)
        or not all(map(_says_apart, manifest["apart"]))
        or type(manifest.get("position")) is not int
        or not isinstance(manifest.get("trained"), int | float)
        or (rows is not None and (rows["dtype"] != "uint8" or len(rows["shape"]) != 2))
        or (rows["shape"][0] if rows is not None else 0) != len(devices)
    ):
        raise ModelError("the model's manifest does not say which devices it was saved with; train anew")


def _says_apart(one: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("told"), str):
        return False
    match one.get("left_out", ""):
        case None | [str(), float() | int(), float() | int()]:
            return True
    return False


def shadow(
    spec: ProfileSpec, detector: Detector, manifest: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> ProfileStream:
    """A stream as it was when the model was saved, to be brought up to date and taken over from."""
    stream = ProfileStream(spec)
    rows = tensors.get(_ROWS)
    blobs = [row.numpy().tobytes() for row in rows] if rows is not None else []
    data = {
        "channels": manifest["table_channels"],
        "pending": manifest["pending"] if stream.aligner is not None else [],
        "alerts": {"open": {}, "started": {}, "recent": []},
    }
    try:
        stream.restore(data, detector, zip(manifest["devices"], blobs, strict=True))
    except (ValueError, TypeError, LookupError) as error:
        msg = f"model {detector.version}: devices do not fit: {error}; train anew"
        raise ModelError(msg) from None
    return stream


def take_over(live: ProfileStream, ready: ProfileStream) -> None:
    """Promote: `live` runs the detector of `ready`, each device with the memory it has there."""
    if ready.detector is None or ready.slabs is None:
        return
    slots: Ints = np.array(list(ready.table), dtype=np.int64)
    live.adopt(ready.detector, [ready.table.ids[slot] for slot in slots], ready.slabs.take(slots))


def _read(journal: JournalReader, stream: ProfileStream, after: int, upto: int, skip: int = 0) -> Iterator[list[Batch]]:
    """Absorb a profile's readings between two positions, but for the oldest `skip`, part by part; the ticks of each."""
    for readings, now in merged(journal.read(after, upto, stream.spec.name), skip):
        outcome, _ = stream.absorb(readings, now)
        yield [ticks.batch for ticks in outcome.ticks]


def merged(turns: Iterable[Turn], skip: int = 0) -> Iterator[tuple[Readings, float]]:
    """A profile's readings of many turns, but for the oldest `skip`, in few large records.

    No score depends on how a stream is cut, and one step for many rows costs little more than one for one row.
    """
    held: list[Readings] = []
    now = 0.0
    for turn in turns:
        for entry in turn.entries:
            if not isinstance(entry, Readings):
                continue
            skip -= len(entry)
            if skip >= 0:
                continue
            if held and (held[0].channels != entry.channels or sum(map(len, held)) >= MERGED_ROWS):
                yield _joined(held), now
                held = []
            held.append(entry)
            now = turn.now
    if held:
        yield _joined(held), now


def _joined(parts: list[Readings]) -> Readings:
    return Readings(
        parts[0].profile,
        parts[0].channels,
        [device for part in parts for device in part.device],
        np.concatenate([part.time for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.message for part in parts]),
    )


def finite(loss: float) -> float | None:
    """None where nothing was held out."""
    return loss if math.isfinite(loss) else None


class Tell:
    """Writes progress to standard output, at most ten times a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, stage: str, share: float) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.1
            say({"stage": stage, "share": round(share, 3)})


def say(line: dict[str, Any]) -> None:
    """One line of the protocol."""
    print(json.dumps(line), flush=True)


def main() -> int:
    """Entry point of the process, by way of `ENTRY`."""
    os.nice(NICE)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        say(run(Job.load(sys.stdin.read()), Tell()))
    except (SentinelError, ValueError, RuntimeError, MemoryError, OSError) as error:
        say({"failed": f"{type(error).__name__}: {error}"})
        return 1
    return 0
