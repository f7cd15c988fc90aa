"""Row 8: a steady 5 000 messages a second; memory, descriptors, threads and the write-ahead log, and their slopes."""

import threading
import time
from pathlib import Path

import numpy as np

from tests.faults.course import DEVICES, Course
from tests.faults.rig import Figures, Rig, journalled

RATE = 5000.0  # messages a second
WAL_LIMIT = 96.0  # MB: what the store keeps of it, and what a checkpoint may wait for
NAMES = ("RSS MB", "descriptors", "threads", "WAL MB")


def run(folder: Path, *, long: bool = False, seconds: float | None = None) -> Figures:
    """Publish, look once a second, and fit a line through the second half of it."""
    seconds = seconds or (1800.0 if long else 20.0)
    with Rig(folder, {"snapshot_interval": "10s"}) as rig:
        daemon = rig.daemon
        daemon.start()
        course = Course(int(RATE * seconds), interval=DEVICES / RATE, faulty=0)
        feed = rig.feed(course, RATE)
        began = time.monotonic()
        feed.release()
        seen: list[tuple[float, ...]] = []
        while feed.acknowledged < course.count:
            wal = daemon.store / "journal.sqlite-wal"
            size = wal.stat().st_size / 2**20 if wal.exists() else 0.0
            at = time.monotonic() - began
            seen.append((at, daemon.rss(), daemon.descriptors(), daemon.threads(), size))
            threading.Event().wait(1.0)
        lasted = time.monotonic() - began
        feed.finish()
        rig.end()
        assert (journalled(daemon.store, course) > 0).all()
    half = np.array(seen)[len(seen) // 2 :]
    slopes = np.polyfit(half[:, 0] / 60, half[:, 1:], 1)[0]
    assert half[:, 4].max() < WAL_LIMIT
    assert np.ptp(half[:, 2]) < 20, "descriptors come and go, a few"
    assert np.ptp(half[:, 3]) < 20, "and so do threads"
    figures: Figures = {"messages": course.count, "a second": round(course.count / lasted), "for s": round(lasted)}
    for at, name in enumerate(NAMES):
        figures[name] = f"{half[0, at + 1]:.4g} to {half[-1, at + 1]:.4g} ({slopes[at]:+.3g} a minute)"
    return figures
