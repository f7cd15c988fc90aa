"""`sentinel models`: the models in the store, and which of them runs."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from sentinel import trainer
from sentinel.adapters.models import SavedModel, list_models, load_model
from sentinel.adapters.store import open_snapshot
from sentinel.commands._json import write_json
from sentinel.commands._terminal import show_table
from sentinel.errors import ModelError
from sentinel.settings import load_settings

_COLUMNS = ("profile", "version", "trained", "cell", "channels", "devices", "learned", "runs")


def models(*, config: Path, json_file: Path | None) -> int:
    """List each profile's models, newest first. A daemon may run meanwhile.

    Raises:
        StoreError: the snapshot cannot be read.
    """
    settings = load_settings(config)
    root = settings.store.path / "models"
    running = _running(settings.store.path)
    rows = [
        _described(model, running.get(name), newest=at == 0)
        for name in settings.profiles
        for at, model in enumerate(list_models(root, name))
    ]
    if json_file is not None:
        write_json(json_file, {"models": rows})
    if not rows:
        print(
            f"no models in {root} yet: `sentinel train` makes one, and so does `sentinel run` when it has learned enough"
        )
        return 0
    _print(rows)
    return 0


def _running(store: Path) -> dict[str, str | None]:
    """Version that each profile of the newest snapshot runs."""
    if not (store / "snapshot.sqlite").exists():
        return {}
    with closing(open_snapshot(store)) as snapshot:
        image = snapshot.load()
    if image is None:
        return {}
    return {name: data["model"] for name, data in orjson.loads(image.meta)["profiles"].items()}


def _described(model: SavedModel, running: str | None, *, newest: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "profile": model.profile,
        "version": model.version,
        "path": str(model.path),
        "trained": model.saved,
        "runs": model.version == running,
    }
    try:
        _, manifest = load_model(model.path, trainer.check)
        position = int(manifest["position"])
        row |= {
            "trained": float(manifest["trained"]),
            "cell": str(manifest["model"]["cell"]),
            "layers": int(manifest["model"]["layers"]),
            "hidden": int(manifest["model"]["hidden"]),
            "horizons": list(manifest["model"]["horizons"]),
            "channels": list(manifest["channels"]),
            "devices": len(manifest["devices"]),
            "declared": bool(manifest["declared"]),
            "position": position,
            # As the daemon decides when it starts: what `sentinel train` left is taken up if it is the newest.
            "next_start": newest and not row["runs"] and position == 0,
        }
    except (ModelError, KeyError, TypeError, ValueError) as error:
        row["problem"] = str(error) if isinstance(error, ModelError) else f"{model.path}: its manifest lacks {error}"
    return row


def _print(rows: list[dict[str, Any]]) -> None:
    show_table(_COLUMNS, map(_cells, rows), styles=["bold" if row["runs"] else "" for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    when = datetime.fromtimestamp(row["trained"], UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    begin = [row["profile"], row["version"], when]
    if "problem" in row:
        return [*begin, "–", "–", "–", "–", f"cannot be used: {row['problem']}"]
    cell = f"{row['cell']} {row['layers']}×{row['hidden']}"
    channels = row["channels"]
    named = ", ".join(channels[:4]) + (f" and {len(channels) - 4} more" if len(channels) > 4 else "")
    learned = "from a recording" if row["declared"] else "live"
    if row["position"]:
        learned += f", to position {row['position']:,}"
    runs = "yes" if row["runs"] else "from the next start" if row["next_start"] else "no"
    return [*begin, cell, named, f"{row['devices']:,}", learned, runs]
