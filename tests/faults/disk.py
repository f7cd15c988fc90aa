"""Row 5: the store's disk is full, its directory is removed, or may not be read any more."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.brokers import wait_until
from tests.faults.course import DEVICES, Course, save_model
from tests.faults.rig import PATIENCE, Figures, Rig, check_books, journalled

SIZE = 24 << 20  # of the store's file system, bytes
COUNT = 200 * DEVICES
AWAY, BACK = "journal is away; not reading until it is back", "journal is back"


def run(folder: Path, *, long: bool = False) -> Figures:
    """All three."""
    times, ticks = (20, 2000) if long else (1, 200)
    count = ticks * DEVICES
    return (
        full(folder / "full", times, count)
        | removed(folder / "removed", count)
        | forbidden(folder / "forbidden", count)
    )


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A file system of its own at `place`; skips the test where it may not be made."""
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def full(folder: Path, times: int = 1, count: int = COUNT) -> Figures:
    """The daemon says so, reads no more until there is room, and loses nothing."""
    with small_disk(folder / "state"), Rig(folder) as rig:
        rig.daemon.start()
        feed = rig.feed(Course(count), 3000)
        filler = folder / "state" / "filler"
        alone = 0
        for time in range(1, times + 1):
            gone, back = (partial(said_more, rig, words, len(rig.daemon.said(words))) for words in (AWAY, BACK))
            fill(filler)
            feed.release(count * time // times)
            wait_until(gone, PATIENCE, AWAY)
            status, body = rig.daemon.get("/readyz")
            assert (status == 503 and "full" in body) or back()
            wait_until(partial(tells_or, back, rig), PATIENCE, "the status says so")
            alone += back()  # SQLite found room in the pages that it had
            filler.unlink()
            wait_until(back, PATIENCE, BACK)
        feed.finish()
        rig.end()
        return {"times full": times, "of which over by themselves": alone} | check_books(rig, feed.course)


def said_more(rig: Rig, words: str, times: int) -> bool:
    """Whether the daemon has said something more often."""
    return len(rig.daemon.said(words)) > times


def tells_or(back: Callable[[], bool], rig: Rig) -> bool:
    """Whether the status tells that the journal is away, or it is back already."""
    return back() or rig.watcher.states()[-1:] == ["degraded"]


def fill(file: Path) -> None:
    """Take all the room that is left."""
    with file.open("wb", buffering=0) as out:
        for block in (1 << 20, 1 << 12):
            try:
                while True:
                    out.write(bytes(block))
            except OSError:
                pass


def removed(folder: Path, count: int = COUNT) -> Figures:
    """The daemon ends with the reason, and acknowledges nothing that is not in a journal that can be found."""
    with Rig(folder, {"mqtt": 'client_id = "faults"'}) as rig:  # else a new store has a new id, and another queue
        rig.daemon.start()
        feed = rig.feed(Course(count), 1000)
        feed.release(count // 2)
        wait_until(lambda: feed.acknowledged == count // 2, PATIENCE)
        rig.await_quiet()
        shutil.rmtree(rig.daemon.store)
        feed.finish()
        assert rig.daemon.await_end() == 1
        assert "was removed" in rig.daemon.log
        save_model(rig.daemon.store)
        rig.daemon.start()
        rig.end()
        kept = journalled(rig.daemon.store, feed.course)
        assert (kept[count // 2 :] > 0).all(), "readings that came after the store was removed are lost"
        return {"lost after the removal": int((kept[count // 2 :] == 0).sum())}


def forbidden(folder: Path, count: int = COUNT) -> Figures:
    """What is open goes on; the next start is refused with the reason; with the right given back it goes on."""
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("needs to be root and setpriv, to run the daemon without root's right to open every file")
    bound = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    with Rig(folder) as rig:
        rig.daemon.launch(*bound)
        rig.daemon.await_ready()
        feed = rig.feed(Course(count), 1000)
        feed.release(count // 2)
        rig.daemon.store.chmod(0)
        wait_until(lambda: feed.acknowledged == count // 2, PATIENCE)
        rig.await_quiet()
        rig.daemon.kill()
        rig.daemon.launch(*bound)
        assert rig.daemon.await_end() == 1
        assert "check [store] path" in rig.daemon.log
        rig.daemon.store.chmod(0o700)
        rig.daemon.launch(*bound)
        feed.finish()
        rig.end()
        return {"and where forbidden": check_books(rig, feed.course)["lost"]}
