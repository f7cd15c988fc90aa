"""The store: a directory that holds what must outlive the process.

journal.sqlite   every input of the stream, in order
snapshot.sqlite  the states as of one position of the journal
models/          {profile}/{version}/
meta             client id and seed
lock             held while a daemon uses the store
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

from sentinel.adapters.store.journal import DeviceReader, Durability, Journal, JournalReader, Turn
from sentinel.adapters.store.memory import MemoryJournal, MemoryStore
from sentinel.adapters.store.snapshot import (
    Key,
    Row,
    Snapshot,
    SnapshotImage,
    SnapshotReport,
    SnapshotWriter,
)
from sentinel.errors import StoreError

__all__ = [
    "AnyReader",
    "AnyStore",
    "DeviceReader",
    "Durability",
    "Journal",
    "JournalReader",
    "Key",
    "MemoryStore",
    "Row",
    "Snapshot",
    "SnapshotImage",
    "SnapshotReport",
    "SnapshotWriter",
    "Store",
    "Turn",
    "open_device_reader",
    "open_reader",
    "open_snapshot",
]

META_SCHEMA = 1


class Store:
    """The store at `path`, created if missing, locked until closed.

    Attributes:
        client_id: MQTT client id, random, kept for the store's life.
        seed: seed of all randomness, likewise.
        journal, snapshot: of one reactor; another thread may call `snapshot.save` (SnapshotWriter).
        models: directory of model directories, `{profile}/{version}`.
    """

    def __init__(self, path: Path, durability: Durability = "journal") -> None:
        """Raises StoreError, with reason and remedy, if the store cannot be used."""
        self.path = path
        self.models = path / "models"
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is in it is as confidential as the readings
            self.models.mkdir(exist_ok=True)
            self._lock = _lock(path / "lock")
        except OSError as error:
            raise StoreError(
                f"store {path} cannot be used ({error.strerror or error}): "
                "check [store] path, the room on its disk and that this user may write there"
            ) from error
        try:
            self.client_id, self.seed = _meta(path)
            self.snapshot = Snapshot(path / "snapshot.sqlite")
            image = self.snapshot.load()
            self.journal = Journal(path / "journal.sqlite", durability, after=image.position if image else 0)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Release everything. Wait for a SnapshotWriter first. Safe to call twice."""
        if self._lock < 0:
            return
        self.journal.close()
        self.snapshot.close()
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


AnyStore = Store | MemoryStore
AnyReader = JournalReader | MemoryJournal


def open_reader(path: Path) -> JournalReader:
    """The journal of the store at `path`, to read while a daemon writes it. Raises StoreError."""
    return JournalReader(path / "journal.sqlite")


def open_device_reader(path: Path, profile: str, device: str) -> DeviceReader:
    """As `open_reader`, but of one device alone. Raises StoreError."""
    return DeviceReader(path / "journal.sqlite", profile, device)


def open_snapshot(path: Path) -> Snapshot:
    """The snapshot of the store at `path`, to load while a daemon writes it. Raises StoreError."""
    return Snapshot(path / "snapshot.sqlite", read_only=True)


def _lock(file: Path) -> int:
    """Lock for as long as the returned descriptor is open; the file names who holds it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise StoreError(
            f"store {file.parent} is in use by process {holder}: stop it, or give this one another [store] path"
        ) from error
    except OSError:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _meta(path: Path) -> tuple[str, int]:
    """Client id and seed, made and written once."""
    file = path / "meta"
    remedy = "restore it from a backup, or move the store away to start anew"
    try:
        meta = json.loads(file.read_bytes())
        if meta["schema"] > META_SCHEMA:
            raise StoreError(f"{file} was written by a newer release; upgrade sentinel or choose another [store] path")
        return str(meta["client_id"]), int(meta["seed"])
    except FileNotFoundError:
        if (path / "journal.sqlite").exists():
            raise StoreError(f"{file} is missing from a store in use; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file} cannot be read ({error}); {remedy}") from error
    client_id, seed = f"sentinel-{secrets.token_hex(6)}", secrets.randbits(63)
    draft = path / "meta.draft"
    try:
        with draft.open("w") as stream:
            json.dump({"schema": META_SCHEMA, "client_id": client_id, "seed": seed}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except OSError as error:
        raise StoreError(f"{file} cannot be written ({error.strerror}); check the disk and its permissions") from error
    return client_id, seed
