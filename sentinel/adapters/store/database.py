"""Opening SQLite files that are ours, and refusing those that are not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sentinel.errors import StoreError, Unavailable

WAL_LIMIT_BYTES = 64 << 20
DAMAGED = "it is damaged; restore it from a backup or move the store away to start anew"


@dataclass(frozen=True, slots=True)
class Schema:
    """One kind of file.

    Attributes:
        application_id: its mark.
        tables: statements that make one of version 1.
        page_size: in bytes.
        migrations: statements that make a file of each version one of the next, in order; a new file takes them all.
    """

    application_id: int
    tables: str
    page_size: int = 4096
    migrations: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        return 1 + len(self.migrations)


def connect(file: Path, schema: Schema, *, synchronous: str = "NORMAL", read_only: bool = False) -> sqlite3.Connection:
    """Open `file`, creating it unless `read_only`. Autocommit; one thread at a time.

    Raises StoreError, with the remedy, if the file is missing (read only), not a database, another
    program's, a newer release's, damaged, or may not be read or written.
    """
    try:
        uri = f"file:{quote(str(file.absolute()))}?mode={'ro' if read_only else 'rwc'}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0)
    except sqlite3.Error as error:
        raise _unusable(file, error) from error
    try:
        _prepare(connection, file, schema, read_only=read_only)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        if not read_only:
            connection.execute("BEGIN")  # where it may not be written, fail now and not at the first turn
            connection.execute(f"PRAGMA user_version = {schema.version}")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        connection.close()
        raise _unusable(file, error) from error
    except UnicodeDecodeError as error:  # in what SQLite says of a damaged schema
        connection.close()
        raise damaged(file, str(error)) from error
    except StoreError:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, file: Path) -> Iterator[None]:
    """Commit at the end of the block, or keep nothing of it. Errors of the disk come as `failure` says."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise failure(file, error) from error
    finally:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")


def failure(file: Path, error: sqlite3.Error) -> Exception:
    """What to raise for an error while `file` is in use: Unavailable where the disk may recover, else StoreError."""
    if isinstance(error, sqlite3.OperationalError):
        return Unavailable(f"{file}: {error}")
    if isinstance(error, sqlite3.ProgrammingError):
        return error
    return _unusable(file, error)


def damaged(file: Path, what: str) -> StoreError:
    """What to raise where `file` holds what was never written."""
    return StoreError(f"{file} cannot be used ({what}): {DAMAGED}")


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """The value of an integer pragma."""
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _prepare(connection: sqlite3.Connection, file: Path, schema: Schema, *, read_only: bool) -> None:
    """Make sure that our tables are there. Raises StoreError if the file is not ours."""
    found, version = pragma(connection, "application_id"), pragma(connection, "user_version")
    if found == 0 and version == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        if read_only:
            raise StoreError(f"{file} holds nothing yet; start `sentinel run` on this store first")
        _create(connection, schema)
    elif found != schema.application_id:
        raise StoreError(f"{file} belongs to another program; move it away or choose another [store] path")
    elif version > schema.version:
        raise StoreError(
            f"{file} was written by a newer release (schema {version}, this one knows {schema.version}); "
            "upgrade sentinel or choose another [store] path"
        )
    elif version < schema.version:
        if read_only:
            raise StoreError(
                f"{file} is of an older release; start `sentinel run` once, which brings it up to this one"
            )
        _write(connection, schema, ";".join(schema.migrations[version - 1 :]))


def _create(connection: sqlite3.Connection, schema: Schema) -> None:
    connection.execute(f"PRAGMA page_size = {schema.page_size}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    _write(connection, schema, ";".join((schema.tables, *schema.migrations)))


def _write(connection: sqlite3.Connection, schema: Schema, statements: str) -> None:
    """Make a file one of this release, in one transaction; what breaks it off leaves the file as it was."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in statements.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {schema.application_id}")
    connection.execute(f"PRAGMA user_version = {schema.version}")
    connection.execute("COMMIT")


def _unusable(file: Path, error: sqlite3.Error) -> StoreError:
    remedy = {
        "SQLITE_NOTADB": "it is not a database; move it away or choose another [store] path",
        "SQLITE_CORRUPT": DAMAGED,
        "SQLITE_CANTOPEN": "check that it exists and that this user may read and write its directory",
        "SQLITE_READONLY": "check that this user may write it and its directory",
        "SQLITE_FULL": "the disk is full; make room",
    }
    name = getattr(error, "sqlite_errorname", "") or ""
    advice = next((text for prefix, text in remedy.items() if name.startswith(prefix)), "check the disk")
    return StoreError(f"{file} cannot be used ({error}): {advice}")
