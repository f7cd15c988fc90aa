"""What a shell completes: profiles of the configuration and devices of its store. Never an error, and nothing printed."""

import tomllib
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

MOST = 200  # suggestions


def profiles(config: Path | None, begun: str) -> list[str]:
    """Names of the profiles in `config` that begin so."""
    with suppress(Exception):
        given = tomllib.loads(Path(config or "").read_text("utf-8"))
        return sorted(name for name in given["profiles"] if name.startswith(begun))
    return []


def devices(config: Path | None, profile: str | None, begun: str) -> list[str]:
    """Devices in the newest snapshot of the store of `config` that begin so, at most MOST; of one profile if given."""
    from sentinel.adapters.store import open_snapshot
    from sentinel.settings import load_settings

    with suppress(Exception), closing(open_snapshot(load_settings(Path(config or "")).store.path)) as snapshot:
        image = snapshot.load()
        rows = image.rows if image is not None else iter(())
        known = (device for name, device, _ in rows if profile in (None, name) and device.startswith(begun))
        return list(islice((device for device in known if device.isprintable()), MOST))
    return []
