"""Row 2: the network between daemon and broker is cut, half-open, slow; also when the daemon starts."""

import threading
from pathlib import Path

from tests.brokers import wait_until
from tests.faults.broker import await_reconnect
from tests.faults.course import DEVICES, Course
from tests.faults.rig import PATIENCE, Figures, Rig, check_books

KEEPALIVE = 1  # second after which a half-open connection is noticed
SLOW = 20_000  # bytes a second: some 200 readings


def run(folder: Path, *, long: bool = False) -> Figures:
    """Each in turn while readings come, then check the books."""
    rounds, ticks = (10, 2000) if long else (1, 200)
    count, faults = ticks * DEVICES, 3 * rounds
    with Rig(folder, {"keepalive": KEEPALIVE}, linked=True) as rig:
        rig.link.hold()
        rig.daemon.launch()
        await_failure(rig, 2)
        rig.link.flow(SLOW)
        rig.daemon.await_ready()
        rig.link.flow()
        feed = rig.feed(Course(count), 1000)
        for fault in range(0, faults, 3):
            reconnects = fault // 3 * 2
            feed.release(count * (fault + 1) // faults)
            rig.link.cut()
            await_reconnect(rig, reconnects + 1)

            feed.release(count * (fault + 2) // faults)
            failures = len(rig.daemon.said("not connected"))
            rig.link.hold()
            await_failure(rig, failures + 1)
            rig.link.flow()
            await_reconnect(rig, reconnects + 2)

            feed.release(count * (fault + 3) // faults)
            rig.link.flow(SLOW)
            threading.Event().wait(2 * KEEPALIVE)
            rig.link.flow()
        feed.finish()
        rig.end()
        figures = check_books(rig, feed.course)
        return {
            "times cut, half-open and slow": rounds,
            "failed dials": len(rig.daemon.said("not connected")),
        } | figures


def await_failure(rig: Rig, times: int) -> None:
    """Wait until the daemon has noticed so many times that it is not connected."""
    wait_until(lambda: len(rig.daemon.said("not connected")) >= times, PATIENCE, "the daemon notices")
