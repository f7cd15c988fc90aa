"""The store: what was committed comes back, whole and in order, on disk and in the twin alike."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sentinel.adapters.store import (
    AnyStore,
    Key,
    MemoryStore,
    Row,
    Snapshot,
    SnapshotReport,
    SnapshotWriter,
    Store,
    Turn,
    journal,
    open_reader,
    open_snapshot,
)
from sentinel.adapters.store.journal import decode, encode
from sentinel.adapters.store.memory import MemoryDisk
from sentinel.errors import StoreError, Unavailable
from sentinel.records import (
    Announcement,
    Birth,
    Channel,
    Command,
    Configuration,
    Death,
    Entry,
    EventTime,
    Heard,
    ModelSpec,
    Naming,
    ProfileSpec,
    Promotion,
    Readings,
    Timer,
)
from sentinel.settings import StoreSettings
from tests.disks import no_room

FOREVER = float("inf")
SPEC = ProfileSpec(
    "pump",
    "plant/{device}",
    channels=(Channel("pressure", ("p", "0"), "bar", min=0.0, max=16.0), Channel("flow", direction="above")),
    time=EventTime(("ts",), "ms"),
    device_path=("id",),
    naming=Naming(("n",), ("v",), "."),
    silence_after=FOREVER,
    model=ModelSpec(horizons=(1, 8, 64), weights="device"),
)


def readings(count: int = 3, profile: str = "pump", channels: tuple[str, ...] = ("pressure", "flow")) -> Readings:
    values = np.arange(count * len(channels), dtype=np.float64).reshape(count, len(channels))
    values[0, 0] = np.nan
    return Readings(
        profile=profile,
        channels=channels,
        device=[f"site/{profile}-{row % 2}" for row in range(count)],
        time=1.7e9 + np.arange(count) / 3,
        values=values,
        message=np.arange(count, dtype=np.int64),
    )


def assert_same(entry: Entry, other: Entry) -> None:
    """Equal, values and times bit for bit; message indexes are not kept."""
    if not isinstance(entry, Readings):
        assert entry == other
        return
    assert isinstance(other, Readings)
    assert (entry.profile, entry.channels, list(entry.device)) == (other.profile, other.channels, list(other.device))
    assert entry.time.tobytes() == other.time.tobytes()
    assert entry.values.tobytes() == other.values.tobytes()
    assert entry.values.shape == other.values.shape
    assert other.values.flags.writeable
    assert other.message.tolist() == [0] * len(entry)


def seqs(turns: Iterable[Turn]) -> list[int]:
    return [turn.seq for turn in turns]


def ended(writer: SnapshotWriter) -> SnapshotReport:
    assert writer.report is not None
    return writer.report


def older(path: Path) -> None:
    """A store whose journal is of the first release's form."""
    Store(path).close()
    (path / "journal.sqlite").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "SCHEMA", dataclasses.replace(journal.SCHEMA, migrations=()))
        with Store(path) as store:
            store.journal.append([readings(), Promotion("pump", "a")], 1.0)


class World(Protocol):
    """One disk: opens the store on it, and breaks it."""

    def open(self) -> AnyStore: ...

    def broken(self) -> AbstractContextManager[None]:
        """Within the block every write fails as a full disk does."""
        ...


class MemoryWorld:
    def __init__(self) -> None:
        self.disk = MemoryDisk()

    def open(self) -> AnyStore:
        return MemoryStore(self.disk)

    @contextmanager
    def broken(self) -> Iterator[None]:
        self.disk.full = True
        yield
        self.disk.full = False


class DiskWorld:
    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> AnyStore:
        return Store(self.path)

    def broken(self) -> AbstractContextManager[None]:
        return no_room()


class StoreSuite:
    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        raise NotImplementedError

    @pytest.fixture
    def store(self, world: World) -> Iterator[AnyStore]:
        with world.open() as store:
            yield store

    def test_client_id_and_seed_are_random_and_outlive_the_process(self, world: World) -> None:
        with world.open() as first:
            kept = first.client_id, first.seed
        with world.open() as second:
            assert (second.client_id, second.seed) == kept
        assert kept[0].startswith("sentinel-")
        assert kept[1] > 0

    def test_a_second_store_on_the_same_disk_is_refused_until_the_first_is_closed(self, world: World) -> None:
        with world.open(), pytest.raises(StoreError, match="in use"):
            world.open()
        world.open().close()

    def test_an_empty_journal_has_no_turns(self, store: AnyStore) -> None:
        assert store.journal.last() == 0
        assert list(store.journal.read()) == []
        assert store.journal.readings_count("pump") == 0

    def test_every_kind_of_entry_comes_back_in_order_with_its_turn(self, world: World) -> None:
        turns: list[list[Entry]] = [
            [readings(5), Command("shelve", "pump", "site/pump-1", 60.0), readings(2, "room", ("°C", "co2\n,"))],
            [Timer()],
            [Promotion("pump", "0123456789ab")],
            [Announcement("pump", "site/pump-1"), Configuration(SPEC), Configuration(ProfileSpec("room"))],
            [
                Birth("plc", "g/é", "g/é", (("bdSeq", None, 8), ("°C", 2**64 - 1, 10)), 3),
                readings(2, "plc"),
                Death("plc", "g/é", ("g/é", "g/é/d")),
                Heard("plc", {"g/é": 255, "g/x/d": None}),
            ],
        ]
        with world.open() as store:
            assert [store.journal.append(turn, 100.5 + at) for at, turn in enumerate(turns)] == [1, 2, 3, 4, 5]
        with world.open() as store:
            found = list(store.journal.read())
        assert [(turn.seq, turn.now) for turn in found] == [(1, 100.5), (2, 101.5), (3, 102.5), (4, 103.5), (5, 104.5)]
        for turn, entries in zip(found, turns, strict=True):
            for entry, other in zip(entries, turn.entries, strict=True):
                assert_same(entry, other)

    def test_what_the_caller_changes_after_append_is_not_in_the_journal(self, store: AnyStore) -> None:
        entry = readings()
        store.journal.append([entry], 1.0)
        entry.values[:] = -1.0
        assert_same(readings(), next(store.journal.read()).entries[0])

    def test_a_turn_without_entries_is_no_turn(self, store: AnyStore) -> None:
        store.journal.append([Timer()], 1.0)
        assert store.journal.append([], 2.0) == 1
        assert seqs(store.journal.read()) == [1]

    def test_read_is_bounded_by_sequence_time_and_profile(self, store: AnyStore) -> None:
        for seq in range(1, 201):
            store.journal.append([readings(profile="pump" if seq % 2 else "room")], float(seq))
        store.journal.append([Timer(), Command("forget", "pump", "d")], 201.0)
        assert seqs(store.journal.read(after=150, upto=160)) == list(range(151, 161))
        assert seqs(store.journal.read(since=199.0)) == [199, 200, 201]
        assert seqs(store.journal.read(profile="room", after=190)) == [192, 194, 196, 198, 200]
        assert list(store.journal.read(profile="pump", after=200)) == [
            Turn(201, 201.0, (Command("forget", "pump", "d"),))
        ]
        assert list(store.journal.read(profile="none")) == []

    def test_a_turn_larger_than_a_page_of_rows_is_one_turn(self, store: AnyStore) -> None:
        store.journal.append([Command("acknowledge", "pump", str(at)) for at in range(500)], 1.0)
        store.journal.append([Timer()], 2.0)
        assert [len(turn.entries) for turn in store.journal.read()] == [500, 1]

    def test_turns_appended_while_reading_do_not_disturb(self, store: AnyStore) -> None:
        for seq in range(100):
            store.journal.append([readings()], float(seq))
        found = []
        for turn in store.journal.read(upto=100):
            found.append(turn.seq)
            store.journal.append([readings()], 1000.0)
        assert found == list(range(1, 101))

    def test_readings_are_counted_by_profile(self, store: AnyStore) -> None:
        store.journal.append([readings(3), readings(4, "room")], 1.0)
        assert store.journal.readings_count("pump") == 3
        store.journal.append([readings(5)], 2.0)
        assert store.journal.readings_count("pump") == 8
        assert store.journal.readings_count("room") == 4
        assert [store.journal.readings_count("pump", after) for after in (0, 1, 2)] == [8, 5, 0]

    def test_the_oldest_turn_and_the_promotions_held_are_told(self, store: AnyStore) -> None:
        assert (store.journal.first(), store.journal.promotions("pump")) == (0, [])
        for version in "abc":
            store.journal.append([Promotion("pump", version), readings(), Promotion("room", "x")], 1.0)
        assert store.journal.first() == 1
        assert store.journal.promotions("pump") == [Promotion("pump", version) for version in "abc"]
        while store.journal.trim(max_bytes=0, max_age=0.0, now=1e9, keep_after=2):
            pass
        assert store.journal.first() == 3
        assert store.journal.promotions("pump") == [Promotion("pump", "c")]

    def test_trim_deletes_the_oldest_by_age_and_counts_follow(self, store: AnyStore) -> None:
        for seq in range(1, 21):
            store.journal.append([readings(2)], float(seq))
        assert store.journal.readings_count("pump") == 40
        while store.journal.trim(max_bytes=FOREVER, max_age=10.0, now=20.0, keep_after=20):
            pass
        assert seqs(store.journal.read()) == list(range(10, 21))
        assert store.journal.readings_count("pump") == 22

    def test_trim_deletes_the_oldest_by_size(self, store: AnyStore) -> None:
        for seq in range(1, 101):
            store.journal.append([readings(1000)], float(seq))
        limit = store.journal.bytes() // 2
        while store.journal.trim(max_bytes=limit, max_age=FOREVER, now=100.0, keep_after=100):
            pass
        held = seqs(store.journal.read())
        assert held[-1] == 100
        assert 40 <= len(held) <= 50
        assert store.journal.bytes() <= limit * 1.05

    def test_trim_never_deletes_what_is_still_needed_nor_the_newest(self, world: World) -> None:
        with world.open() as store:
            for seq in range(1, 11):
                store.journal.append([readings()], float(seq))
            while store.journal.trim(max_bytes=0, max_age=0.0, now=1e9, keep_after=4):
                pass
            assert seqs(store.journal.read()) == [5, 6, 7, 8, 9, 10]
            while store.journal.trim(max_bytes=0, max_age=0.0, now=1e9, keep_after=10):
                pass
            assert seqs(store.journal.read()) == [10]
        with world.open() as store:
            assert store.journal.append([Timer()], 1.0) == 11

    def test_a_full_disk_is_unavailable_and_the_journal_goes_on_afterwards(self, world: World) -> None:
        with world.open() as store:
            store.journal.append([readings()], 1.0)
            with world.broken(), pytest.raises(Unavailable):
                store.journal.append([readings(1000, channels=("new", "channels"))], 2.0)
            assert store.journal.last() == 1
            assert store.journal.readings_count("pump") == 3
            assert store.journal.append([readings(1000, channels=("new", "channels"))], 3.0) == 2
        with world.open() as store:
            assert [(turn.seq, turn.now) for turn in store.journal.read()] == [(1, 1.0), (2, 3.0)]

    def test_a_new_store_has_no_snapshot(self, store: AnyStore) -> None:
        assert store.snapshot.load() is None

    def test_a_snapshot_comes_back_after_a_restart(self, world: World) -> None:
        rows = [("pump", "a/1", b"\x00\xff"), ("pump", "ü\n\x00", b""), ("room", "a/1", b"x" * 100_000)]
        with world.open() as store:
            store.snapshot.save(7, 123.5, b"meta", rows)
        with world.open() as store:
            image = store.snapshot.load()
            assert image is not None
            assert (image.position, image.now, image.meta) == (7, 123.5, b"meta")
            assert sorted(image.rows) == sorted(rows)

    def test_a_later_snapshot_changes_only_the_rows_it_names(self, store: AnyStore) -> None:
        store.snapshot.save(1, 1.0, b"1", [("p", str(device), b"old") for device in range(1000)])
        store.snapshot.save(2, 2.0, b"2", [("p", "5", b"new"), ("p", "x", b"add")], [("p", "6"), ("q", "7")])
        image = store.snapshot.load()
        assert image is not None
        assert (image.position, image.meta) == (2, b"2")
        rows = {device: row for _, device, row in image.rows}
        assert len(rows) == 1000
        assert (rows["5"], rows["7"], rows["x"]) == (b"new", b"old", b"add")
        assert "6" not in rows

    def test_a_failed_snapshot_leaves_the_one_before(self, world: World) -> None:
        with world.open() as store:
            store.snapshot.save(1, 1.0, b"1", [("p", "d", b"1")])
            with world.broken(), pytest.raises(Unavailable):
                store.snapshot.save(2, 2.0, b"2", [("p", str(device), bytes(1000)) for device in range(100)])
            image = store.snapshot.load()
            assert image is not None
            assert (image.position, list(image.rows)) == (1, [("p", "d", b"1")])

    def test_turns_after_a_snapshot_have_later_numbers_even_where_the_journal_was_lost(self, world: World) -> None:
        with world.open() as store:
            store.snapshot.save(41, 1.0, b"", [])
        with world.open() as store:
            assert store.journal.append([Timer()], 2.0) == 42

    def test_the_writer_writes_in_the_background_and_reports(self, store: AnyStore) -> None:
        writer = SnapshotWriter(store.snapshot, saved=0.0)
        assert writer.submit(3, 10.0, b"m", [("p", "d", b"1")])
        assert writer.wait(10.0)
        report = ended(writer)
        assert (report.position, report.rows, report.error) == (3, 1, None)
        assert writer.age(12.5) == 2.5
        image = store.snapshot.load()
        assert image is not None
        assert image.position == 3

    def test_rows_that_no_memory_was_left_for_come_with_the_next(
        self, store: AnyStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer = SnapshotWriter(store.snapshot, saved=0.0)

        def fail(*_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(store.snapshot, "save", fail)
            writer.submit(1, 1.0, b"", [("p", "a", b"1")])
            writer.wait()
        assert ended(writer).error == "MemoryError()"
        writer.submit(2, 2.0, b"", [])
        writer.wait()
        image = store.snapshot.load()
        assert image is not None
        assert list(image.rows) == [("p", "a", b"1")]

    def test_rows_of_a_failed_snapshot_come_with_the_next(self, world: World) -> None:
        with world.open() as store:
            writer = SnapshotWriter(store.snapshot, saved=0.0)
            writer.submit(1, 1.0, b"", [("p", "a", b"1"), ("p", "gone", b"1"), ("p", "back", b"1")])
            writer.wait()
            with world.broken():
                gone = [("p", "gone"), ("p", "back")]
                writer.submit(2, 2.0, b"", [("p", "a", b"2"), ("p", "b", bytes(20_000))], gone)
                writer.wait()
            assert ended(writer).error
            assert writer.age(3.0) == 2.0
            writer.submit(3, 3.0, b"", [("p", "b", b"3"), ("p", "back", b"3")])
            writer.wait()
            assert ended(writer).error is None
            image = store.snapshot.load()
            assert image is not None
            assert sorted(image.rows) == [("p", "a", b"2"), ("p", "b", b"3"), ("p", "back", b"3")]


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        return MemoryWorld()


class TestStore(StoreSuite):
    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        return DiskWorld(tmp_path / "state")


class Held:
    """A snapshot whose save waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def save(self, position: int, now: float, meta: bytes, rows: Iterable[Row], deleted: Iterable[Key] = ()) -> None:
        assert self.go.wait(10.0)


def test_the_writer_takes_one_snapshot_at_a_time() -> None:
    held = Held()
    writer = SnapshotWriter(held, saved=0.0)
    assert writer.submit(1, 1.0, b"", [])
    assert writer.busy
    assert not writer.submit(2, 2.0, b"", [])
    assert writer.report is None
    assert not writer.wait(0.01)
    held.go.set()
    assert writer.wait(10.0)
    assert writer.submit(3, 3.0, b"", [])
    assert writer.wait(10.0)
    assert ended(writer).position == 3


@given(
    device=st.lists(st.text(max_size=300), max_size=8),
    channels=st.integers(0, 5),
    data=st.data(),
)
def test_readings_survive_encoding_bit_for_bit(device: list[str], channels: int, data: st.DataObject) -> None:
    floats = st.floats(width=64)
    original = Readings(
        profile="p",
        channels=tuple(map(str, range(channels))),
        device=device,
        time=data.draw(hnp.arrays(np.float64, len(device), elements=floats)),
        values=data.draw(hnp.arrays(np.float64, (len(device), channels), elements=floats)),
        message=np.arange(len(device), dtype=np.int64),
    )
    assert_same(original, decode(encode(original, 3), "p", lambda layout: original.channels))


def test_many_devices_need_a_wide_index() -> None:
    device = [f"d{row % 70_000}" for row in range(140_000)]
    zeros = np.zeros((140_000, 1))
    original = Readings("p", ("v",), device, zeros[:, 0], zeros, np.zeros(140_000, np.int64))
    assert_same(original, decode(encode(original, 1), "p", lambda layout: ("v",)))


def test_a_thousand_readings_of_four_channels_take_at_most_60_bytes_each() -> None:
    device = [f"site-{row % 7}/pump-{row:04d}" for row in range(1000)]
    block = Readings("p", ("a", "b", "c", "d"), device, np.zeros(1000), np.zeros((1000, 4)), np.zeros(1000, np.int64))
    assert len(encode(block, 1)) <= 60_000


def test_by_default_the_journal_holds_at_least_ten_million_readings_of_four_channels(tmp_path: Path) -> None:
    """Each in a turn of its own, as slow fleets send them, and with ids of 40 characters."""
    usual, turns = StoreSettings(), 5000
    with Store(tmp_path, durability="none") as store:
        for at in range(turns):
            device = f"site-{at % 7}/building-{at % 11:02}/pump-{at % 97:018}"
            block = Readings(
                "pump", ("a", "b", "c", "d"), [device], np.full(1, at), np.ones((1, 4)), np.zeros(1, np.int64)
            )
            store.journal.append([block], float(at))
        each = store.journal.bytes() / turns
    assert 1e7 * each < usual.max_bytes
    assert usual.max_age >= 86400.0 * 30


class TestFiles:
    """What lies on disk: refused with reason and remedy where it is not ours."""

    def test_a_store_held_by_another_process_is_refused_with_its_pid(self, tmp_path: Path) -> None:
        code = (
            "import sys, pathlib; from sentinel.adapters.store import Store\n"
            "store = Store(pathlib.Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            assert other.stdin is not None
            assert other.stdout.readline() == "open\n"
            with pytest.raises(StoreError, match=rf"in use by process {other.pid}\b"):
                Store(tmp_path)
            other.stdin.close()
            assert other.wait(10.0) == 0
        Store(tmp_path).close()

    def test_a_killed_process_leaves_its_turns_and_no_lock(self, tmp_path: Path) -> None:
        code = (
            "import sys, os, signal, pathlib; from sentinel.adapters.store import Store\n"
            "from sentinel.records import Promotion\n"
            "store = Store(pathlib.Path(sys.argv[1]))\n"
            "for seq in range(50): store.journal.append([Promotion('p', str(seq))], float(seq))\n"
            "store.snapshot.save(9, 1.0, b'', [('p', 'd', b'row')])\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", code, tmp_path], check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
        with Store(tmp_path) as store:
            assert [turn.entries for turn in store.journal.read()] == [(Promotion("p", str(at)),) for at in range(50)]
            image = store.snapshot.load()
            assert image is not None
            assert list(image.rows) == [("p", "d", b"row")]

    def test_another_process_reads_while_the_journal_is_written(self, tmp_path: Path) -> None:
        with Store(tmp_path) as store, open_reader(tmp_path) as reader:
            assert list(reader.read()) == []
            for seq in range(1, 301):
                store.journal.append([readings(channels=(f"c{seq % 3}",))], float(seq))
                assert reader.last() == seq
            assert seqs(reader.read(after=100)) == list(range(101, 301))
            assert reader.readings_count("pump") == 900
            store.snapshot.save(1, 1.0, b"", [("p", "d", b"1")])
            snapshot = open_snapshot(tmp_path)
            image = snapshot.load()
            assert image is not None
            store.snapshot.save(2, 2.0, b"", [("p", "d", b"2")])
            assert list(image.rows) == [("p", "d", b"1")]
            snapshot.close()

    @pytest.mark.parametrize("again", [False, True], ids=["removed", "replaced"])
    def test_a_journal_that_is_no_longer_there_is_not_written_on(self, tmp_path: Path, again: bool) -> None:
        with Store(tmp_path) as store:
            store.journal.append([readings()], 1.0)
            file = tmp_path / "journal.sqlite"
            file.rename(tmp_path / "elsewhere")
            if again:
                file.touch()
            with pytest.raises(StoreError, match="removed or replaced"):
                store.journal.append([readings()], 2.0)

    def test_the_file_shrinks_when_much_was_deleted(self, tmp_path: Path) -> None:
        with Store(tmp_path, durability="none") as store:
            for seq in range(300):
                store.journal.append([readings(4000)], float(seq))
            for _ in range(1000):
                store.journal.trim(max_bytes=1 << 20, max_age=FOREVER, now=0.0, keep_after=300)
            assert len(list(store.journal.read())) < 20
        assert (tmp_path / "journal.sqlite").stat().st_size < 20 << 20

    @pytest.mark.parametrize("name", ["journal.sqlite", "snapshot.sqlite"])
    def test_a_file_that_is_not_a_database_is_refused(self, tmp_path: Path, name: str) -> None:
        Store(tmp_path).close()
        (tmp_path / name).write_bytes(b"not a database, " * 100)
        with pytest.raises(StoreError, match=rf"{name}.*not a database; move it away"):
            Store(tmp_path)

    @pytest.mark.parametrize("name", ["journal.sqlite", "snapshot.sqlite"])
    def test_another_programs_database_is_refused(self, tmp_path: Path, name: str) -> None:
        Store(tmp_path).close()
        (tmp_path / name).unlink()
        foreign = sqlite3.connect(tmp_path / name)
        foreign.execute("CREATE TABLE theirs (x)")
        foreign.close()
        with pytest.raises(StoreError, match="belongs to another program"):
            Store(tmp_path)
        (tmp_path / name).unlink()
        Store(tmp_path).close()

    @pytest.mark.parametrize("name", ["journal.sqlite", "snapshot.sqlite"])
    def test_a_newer_releases_file_is_refused(self, tmp_path: Path, name: str) -> None:
        Store(tmp_path).close()
        newer = sqlite3.connect(tmp_path / name)
        newer.execute("PRAGMA user_version = 99")
        newer.close()
        with pytest.raises(StoreError, match=r"newer release \(schema 99.*upgrade"):
            Store(tmp_path)

    def test_an_older_releases_journal_is_brought_up_to_this_one_with_all_that_it_holds(self, tmp_path: Path) -> None:
        older(tmp_path)
        with pytest.raises(StoreError, match="older release; start `sentinel run` once"):
            open_reader(tmp_path)
        with Store(tmp_path) as store:
            (turn,) = store.journal.read()
            assert_same(readings(), turn.entries[0])
            assert store.journal.promotions("pump") == [Promotion("pump", "a")]
            assert store.journal.append([Promotion("pump", "b")], 2.0) == 2
        file = sqlite3.connect(tmp_path / "journal.sqlite")
        assert file.execute("PRAGMA user_version").fetchone() == (journal.SCHEMA.version,)
        plan = file.execute("EXPLAIN QUERY PLAN SELECT body FROM entries WHERE kind = 'promotion' AND profile = 'pump'")
        assert "promotions" in plan.fetchone()[-1]
        new = Store(tmp_path / "new")
        made = sqlite3.connect(tmp_path / "new" / "journal.sqlite")
        schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
        assert file.execute(schema).fetchall() == made.execute(schema).fetchall(), "as if it were new"
        for connection in (file, made, new):
            connection.close()

    def test_a_migration_that_fails_leaves_the_file_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        older(tmp_path)
        halfway = (*journal.SCHEMA.migrations, "CREATE TABLE more (x); INSERT INTO nowhere VALUES (1)")
        with monkeypatch.context() as patch:
            patch.setattr(journal, "SCHEMA", dataclasses.replace(journal.SCHEMA, migrations=halfway))
            with pytest.raises(StoreError, match="nowhere"):
                Store(tmp_path)
        file = sqlite3.connect(tmp_path / "journal.sqlite")
        assert file.execute("PRAGMA user_version").fetchone() == (1,)
        assert not file.execute("SELECT 1 FROM sqlite_master WHERE name IN ('more', 'promotions')").fetchall()
        file.close()
        Store(tmp_path).close()

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
    def test_of_a_write_ahead_log_that_was_cut_off_what_is_whole_is_held(self, tmp_path: Path, share: float) -> None:
        code = (
            "import sys, os, signal, pathlib; from sentinel.adapters.store import Store\n"
            "from sentinel.records import Promotion\n"
            "store = Store(pathlib.Path(sys.argv[1]))\n"
            "for seq in range(50): store.journal.append([Promotion('p', str(seq))], float(seq))\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", code, tmp_path], check=False, timeout=60)
        log = tmp_path / "journal.sqlite-wal"
        os.truncate(log, int(share * log.stat().st_size))
        with Store(tmp_path) as store:
            held = [turn.entries for turn in store.journal.read()]
            assert held == [(Promotion("p", str(at)),) for at in range(len(held))]
            assert abs(len(held) - share * 50) <= 5
            assert store.journal.append([Timer()], 99.0) == len(held) + 1

    def test_an_entry_that_cannot_be_read_is_damage(self, tmp_path: Path) -> None:
        for kind, body in (("readings", b"\x01" + b"?" * 39), ("command", b'{"x": 1}'), ("timer", b"\xff")):
            with Store(tmp_path) as store:
                store.journal.append([Timer()], 1.0)
                store.journal._connection.execute("UPDATE entries SET kind = ?, body = ?", (kind, body))
                with pytest.raises(StoreError, match="it is damaged; restore it from a backup or move"):
                    list(store.journal.read())

    def test_readings_that_name_a_device_that_is_not_there_are_damage(self, tmp_path: Path) -> None:
        with Store(tmp_path) as store:
            store.journal.append([dataclasses.replace(readings(3), device=["a", "b", "a"])], 1.0)
            ((body,),) = store.journal._query("SELECT body FROM entries")
            at = struct.calcsize("<4B4I")
            assert body[at : at + 3] == b"\0\1\0"
            store.journal._connection.execute("UPDATE entries SET body = ?", (body[:at] + b"\7" + body[at + 1 :],))
            with pytest.raises(StoreError, match="it is damaged"):
                list(store.journal.read())

    def test_a_damaged_journal_is_refused(self, tmp_path: Path) -> None:
        with Store(tmp_path) as store:
            for seq in range(100):
                store.journal.append([readings(100)], float(seq))
        file = tmp_path / "journal.sqlite"
        body = bytearray(file.read_bytes())
        body[4096:] = b"\xa5" * (len(body) - 4096)
        file.write_bytes(bytes(body))
        with pytest.raises(StoreError, match="damaged"), Store(tmp_path) as store:
            list(store.journal.read())

    def test_a_store_that_lost_its_identity_is_refused(self, tmp_path: Path) -> None:
        Store(tmp_path).close()
        (tmp_path / "meta").unlink()
        with pytest.raises(StoreError, match="meta is missing"):
            Store(tmp_path)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1, "client_id": "x", "seed": "y"}'])
    def test_a_damaged_identity_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "meta").write_text(text)
        with pytest.raises(StoreError, match="meta cannot be read"):
            Store(tmp_path)

    def test_a_path_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "state").write_text("")
        with pytest.raises(StoreError, match=r"check \[store\] path"):
            Store(tmp_path / "state")

    def test_a_reader_without_a_store_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="check that it exists"):
            open_reader(tmp_path)
        Snapshot(tmp_path / "snapshot.sqlite").close()

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user without rights")
    @pytest.mark.parametrize("locked", [".", "lock", "journal.sqlite", "snapshot.sqlite"])
    def test_no_permission_is_refused_with_the_remedy(self, locked: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            Store(path).close()
            for item in (path, *path.iterdir()):
                item.chmod(0o777)
            (path / locked).chmod(0o555)
            os.seteuid(65534)
            try:
                with pytest.raises(StoreError, match=r"check.* this user may write"):
                    Store(path)
            finally:
                os.seteuid(0)
