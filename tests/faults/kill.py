"""Row 1: kill -9 of the daemon at random moments, start-up and catching up included."""

import random
import threading
from pathlib import Path

from tests.faults.course import DEVICES, Course
from tests.faults.rig import Figures, Rig, check_books

STARTING = 0.3  # share of the kills that come while it starts
LONGEST_LIFE = 2.0  # seconds from the launch, or from when it is ready, to the kill, at most
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
            if pick.random() > STARTING:
                rig.daemon.await_ready()
                ready += 1
            threading.Event().wait(pick.uniform(0, LONGEST_LIFE))  # the random moment
            rig.daemon.kill()
            rig.daemon.launch()
        feed.finish()
        rig.end()
        return {"kills": kills, "of them when ready": ready} | check_books(rig, feed.course)
