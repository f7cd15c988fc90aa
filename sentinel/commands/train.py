"""`sentinel train`: learn a profile's model from what the user vouches for: recordings, or the store's journal."""

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
from sentinel.commands._terminal import device_time, plural, say, show_facts
from sentinel.records import ProfileSpec
from sentinel.settings import load_settings
from sentinel.settings.values import show_budget
from sentinel.stream.alerts import duration


def train(
    *,
    data: list[Path],
    from_journal: bool = False,
    since: float | None = None,
    until: float | None = None,
    config: Path,
    profile: str,
    label_column: str | None,
    seed: int,
    json_file: Path | None,
) -> int:
    """Train on `data`, or what the journal took from `since` to before `until`, and save the model.

    A daemon takes it up when it starts.

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
            done = trainer.run(_job(store, spec, since, until, seed), tell)
            version, ticks, losses = done["version"], done["ticks"], [done["loss_before"], done["loss"]]
            seconds, apart, moving = done["device_seconds"], done["apart"], done["moving"]
        else:
            run = Backtest(spec, read_tables(data, label_column=label_column), tell)
            learned = run.learn_all(Plan(declared=True, seed=seed))
            apart, moving = trainer.told_apart(learned, spec), list(learned.moving)
            version = trainer.save(store / "models", run.stream, learned.detector, 0, trainer.noted(learned, spec))
            seconds = run.covered()
            ticks, losses = int(run.stream.table.ticks.sum()), [trainer.finite(loss) for loss in learned.losses]
    detector, manifest, _ = trainer.load(store / "models", profile, version)
    result = {
        "version": version,
        "path": str(store / "models" / profile / version),
        "devices": len(manifest["devices"]),
        "ticks": ticks,
        "device_seconds": seconds,
        "channels": list(detector.channels),
        "interval_seconds": detector.interval,
        "loss_before": losses[0],
        "loss_after": losses[1],
        "apart": apart,
        "moving": moving,
    }
    if json_file is not None:
        write_json(json_file, result)
    say(f"model {version} of profile {profile}")
    show_facts(_facts(result), indent="  ")
    say(*(f"note: {sentence}; if it was a fault, leave it out" for sentence in apart))
    if moving:
        say(
            f"note: {' and '.join(moving)} went one way all through it. Where they go next is not in it, and will be "
            "flagged: leave out channels that wander, such as positions, or record a whole cycle."
        )
    say(*_shortcoming(seconds, spec.alert_budget), "`sentinel run` uses it from its next start")
    return 0


def _facts(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "learned from",
        f"{result['ticks']:,} ticks of {plural(result['devices'], 'device')}, {device_time(result['device_seconds'])}",
    )
    yield "interval", duration(result["interval_seconds"])
    yield "channels", ", ".join(result["channels"])
    before, after = result["loss_before"], result["loss_after"]
    if before is not None and after is not None:
        yield "loss held out", f"{before:.3f} before, {after:.3f} after"
    yield "saved in", result["path"]


def _shortcoming(seconds: float, budget: float) -> Iterator[str]:
    """What so many device-seconds cannot tell of a budget, in alerts per device and second."""
    if seconds * budget < 1.0 and budget:
        yield (
            f'note: {device_time(seconds)} cannot show what is normal but rare. alert_budget = "{show_budget(budget)}" '
            f"allows one alert in {device_time(1 / budget)}; they can tell one in {device_time(seconds)}."
        )
        yield "Expect more alarms at first; train again on a longer recording: of at least one cycle of what is normal."


def _job(store: Path, spec: ProfileSpec, since: float | None, until: float | None, seed: int) -> trainer.Job:
    """Learn from what the journal took between two times of receipt; None: from its beginning, to its end."""
    with open_reader(store) as journal:

        def before(time: float) -> int:
            """Position before the first turn of that time or later."""
            return next((turn.seq - 1 for turn in journal.read(profile=spec.name, since=time)), journal.last())

        after, upto = 0 if since is None else before(since), None if until is None else before(until)
    return trainer.Job(str(store), spec, seed, declared=True, after=after, upto=upto)
