"""`sentinel train`: learn a profile's model from what the user vouches for: recordings, or the store's journal."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sentinel import trainer
from sentinel.adapters.store import open_reader
from sentinel.adapters.tables import read_tables
from sentinel.backtest import Backtest, Plan
from sentinel.commands._json import write_json
from sentinel.commands._profile import profile_spec
from sentinel.commands._progress import progress_bar
from sentinel.commands._terminal import say, show_facts
from sentinel.records import ProfileSpec
from sentinel.settings import load_settings
from sentinel.stream.alerts import duration


def train(
    *,
    data: list[Path],
    from_journal: bool = False,
    since: float | None = None,
    config: Path,
    profile: str,
    label_column: str | None,
    seed: int,
    json_file: Path | None,
) -> int:
    """Train on `data`, or the journal's last `since` seconds, and save the model; a daemon takes it up when it starts.

    Raises:
        TrainingError: it diverged, or there was too little to learn from.
        DataError, StoreError, ModelError, ConfigError: what was given cannot be used.
    """
    settings = load_settings(config)
    spec = profile_spec(settings, config, profile)
    torch.set_num_threads(1)
    store = settings.store.path
    with progress_bar() as tell:
        if from_journal:
            done = trainer.run(_job(store, spec, since, seed), tell)
            version, ticks, losses = done["version"], done["ticks"], [done["loss_before"], done["loss"]]
        else:
            run = Backtest(spec, read_tables(data, label_column=label_column), tell)
            learned = run.learn_all(Plan(declared=True, seed=seed))
            version = trainer.save(store / "models", run.stream, learned.detector, 0)
            ticks, losses = int(run.stream.table.ticks.sum()), [trainer.finite(loss) for loss in learned.losses]
    detector, manifest, _ = trainer.load(store / "models", profile, version)
    result = {
        "version": version,
        "path": str(store / "models" / profile / version),
        "devices": len(manifest["devices"]),
        "ticks": ticks,
        "channels": list(detector.channels),
        "interval_seconds": detector.interval,
        "loss_before": losses[0],
        "loss_after": losses[1],
    }
    if json_file is not None:
        write_json(json_file, result)
    say(f"model {version} of profile {profile}")
    show_facts(_facts(result), indent="  ")
    say("`sentinel run` uses it from its next start")
    return 0


def _facts(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "learned from", f"{result['ticks']:,} ticks of {result['devices']:,} device{'s' * (result['devices'] != 1)}"
    yield "interval", duration(result["interval_seconds"])
    yield "channels", ", ".join(result["channels"])
    before, after = result["loss_before"], result["loss_after"]
    if before is not None and after is not None:
        yield "loss held out", f"{before:.3f} before, {after:.3f} after"
    yield "saved in", result["path"]


def _job(store: Path, spec: ProfileSpec, since: float | None, seed: int) -> trainer.Job:
    """Learn from the journal's last `since` seconds of receipt; None: from all of it."""
    after = 0
    if since is not None:
        with open_reader(store) as journal:
            turns = journal.read(profile=spec.name, since=time.time() - since)
            after = next((turn.seq - 1 for turn in turns), journal.last())
    return trainer.Job(str(store), spec, seed, declared=True, after=after)
