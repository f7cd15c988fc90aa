"""Row 2: the broker is restarted, by SIGTERM and by kill -9."""

import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sentinel.records import Bools
from tests.brokers import Link, wait_until
from tests.faults.course import DEVICES, Course
from tests.faults.rig import PATIENCE, Figures, Rig, check_books, journalled

FLOW = 2.0  # seconds in which the readings of one restart are published
RECONNECTS = "sentinel_broker_reconnects_total"
_READING = re.compile(rb'plant/(d\d+)/telemetry..\{"ts":(\d+\.\d+)', re.DOTALL)


def run(folder: Path, *, long: bool = False) -> Figures:
    """Both."""
    restarts, kills, ticks = (50, 20, 2000) if long else (3, 2, 200)
    return restarted(folder / "restarted", restarts, ticks * DEVICES) | killed(
        folder / "killed", kills, ticks * DEVICES
    )


def restarted(folder: Path, restarts: int, count: int) -> Figures:
    """By SIGTERM it saves its queues: nothing is lost."""
    with Rig(folder) as rig:
        rig.daemon.start()
        course = interrupted(rig, count, restarts, rig.broker.stop)
        return {"restarts": restarts} | check_books(rig, course)


def killed(folder: Path, kills: int, count: int) -> Figures:
    """By kill -9 it loses what it acknowledged since its last save; what it had handed on is not lost."""
    with Rig(folder, broker=["autosave_interval 1"], linked=True) as rig:
        rig.daemon.start()
        course = interrupted(rig, count, kills, rig.broker.kill)
        kept, handed_on = journalled(rig.daemon.store, course) > 0, relayed(rig.link, course)
        assert not (handed_on & ~kept).any(), "readings that reached the daemon are not in the journal"
        return {
            "kills": kills,
            "acknowledged by the broker": count,
            "lost by the broker": int((~handed_on).sum()),
            "lost by the daemon": int((handed_on & ~kept).sum()),
        }


def interrupted(rig: Rig, count: int, times: int, end: Callable[[], None]) -> Course:
    """Feed a course of so many readings, while the broker ends so many times and is started again."""
    feed = rig.feed(Course(count), count / times / FLOW)
    for turn in range(1, times + 1):
        feed.release(count * turn // times)
        threading.Event().wait(FLOW / 2)
        end()
        rig.broker.start()
        await_reconnect(rig, turn)
    feed.finish()
    rig.end()
    return feed.course


def await_reconnect(rig: Rig, times: int) -> None:
    """Wait until the daemon has connected again so many times, and is subscribed."""
    wait_until(lambda: rig.daemon.metric(RECONNECTS) >= times, PATIENCE, "the daemon connects again")
    rig.daemon.await_ready()


def relayed(link: Link, course: Course) -> Bools:
    """Which of a course's readings passed a link on their way from the broker."""
    seen = np.zeros(course.count, dtype=np.bool_)
    for stream in link.downstream:
        for device, time in _READING.findall(bytes(stream)):
            seen[course.number(device.decode(), float(time))] = True
    return seen
