"""Row 1: kill -9 of the daemon at random moments, start-up and catching up included."""

import random
import threading
from pathlib import Path

from tests.faults.course import DEVICES, Course
from tests.faults.rig import Figures, Rig, check_books

LONGEST_LIFE = 6.0  # seconds from the launch to the kill, at most; a start takes two to four
FLOW = 4.0  # seconds in which the readings of one life are published


def run(folder: Path, *, long: bool = False) -> Figures:
    """Kill it again and again while readings come, then check the books."""
    kills, ticks = (100, 10_000) if long else (5, 200)
    count, pick = ticks * DEVICES, random.Random(1)
    with Rig(folder) as rig:
        rig.daemon.start()
        feed = rig.feed(Course(count), count / kills / FLOW)
        ready = 0
        for kill in range(1, kills + 1):
            feed.release(count * kill // kills)
            threading.Event().wait(pick.uniform(0, LONGEST_LIFE))  # the random moment
            ready += rig.daemon.get("/readyz")[0] == 200
            rig.daemon.kill()
            rig.daemon.launch()
        feed.finish()
        rig.end()
        return {"kills": kills, "of them when ready": ready} | check_books(rig, feed.course)
