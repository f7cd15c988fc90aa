"""`sentinel train`: learn a profile's model from recordings that the user vouches for."""

from pathlib import Path

import orjson
import torch
from rich.console import Console

from sentinel import trainer
from sentinel.adapters.tables import read_tables
from sentinel.backtest import Backtest, Plan
from sentinel.commands._profile import profile_spec
from sentinel.commands._progress import progress_bar
from sentinel.settings import load_settings


def train(
    *, data: list[Path], config: Path, profile: str, label_column: str | None, seed: int, json_file: Path | None
) -> int:
    """Train on `data` and save the model into the store; a daemon takes it up when it starts."""
    settings = load_settings(config)
    spec = profile_spec(settings, config, profile)
    torch.set_num_threads(1)
    recordings = read_tables(data, label_column=label_column)
    with progress_bar() as tell:
        run = Backtest(spec, recordings, tell)
        learned = run.learn_all(Plan(declared=True, seed=seed))
    models = settings.store.path / "models"
    version = trainer.save(models, run.stream, learned.detector, 0)
    before, after = learned.losses
    result = {
        "version": version,
        "path": str(models / profile / version),
        "devices": len(learned.devices),
        "ticks": int(run.stream.table.ticks.sum()),
        "channels": list(learned.detector.channels),
        "interval_seconds": learned.detector.interval,
        "loss_before": trainer.finite(before),
        "loss_after": trainer.finite(after),
    }
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    Console().print(
        f"model {version} of profile {profile}: {result['devices']} devices, {result['ticks']} ticks, "
        f"channels {', '.join(learned.detector.channels)}\nsaved in {result['path']}; `sentinel run` uses it from its next start",
        highlight=False,
        soft_wrap=True,
    )
    return 0
