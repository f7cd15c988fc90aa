"""Row 3: SIGTERM in full flow, SIGHUP with a good and a bad configuration, storms of duplicates and of old readings."""

import random
import signal
from pathlib import Path

from sentinel.commands._publisher import Publisher
from sentinel.settings import MqttSettings
from tests.brokers import wait_until
from tests.faults.course import DEVICES, Course
from tests.faults.rig import PATIENCE, Figures, Rig, check_books


def run(folder: Path, *, long: bool = False) -> Figures:
    """All of it again and again while readings come, then check the books."""
    times, ticks = (20, 2000) if long else (2, 200)
    count, pick = ticks * DEVICES, random.Random(3)
    with Rig(folder) as rig:
        daemon = rig.daemon
        daemon.start()
        feed = rig.feed(Course(count), 2000)
        storm = 0
        for time in range(1, times + 1):
            feed.release(count * time // times)
            daemon.configure(silence_after="1h" if time % 2 else "2h")
            hang_up(rig, "reloaded")
            daemon.configure(learn='sometimes"\nnonsense = "1')
            hang_up(rig, "reload refused; the old configuration goes on")
            daemon.configure(learn="never")
            wait_until(lambda: feed.acknowledged >= count * time // times, PATIENCE)  # noqa: B023 - called at once
            again = pick.choices(range(feed.acknowledged), k=2000)
            with Publisher(MqttSettings(host="127.0.0.1", port=rig.broker.port)) as publisher:
                publisher.publish((feed.course.topic(n), feed.course.payload(n)) for n in again)
                publisher.drain()
            storm += len(again)
            feed.release(count * time // times + count // times // 2)
            assert daemon.stop() == 0
            daemon.start()
        feed.finish()
        rig.end()
        figures = check_books(rig, feed.course)
        return {"SIGTERM": times, "SIGHUP": 2 * times, "old readings sent again": storm} | figures


def hang_up(rig: Rig, answer: str) -> None:
    """SIGHUP, and wait for the daemon's word."""
    before = len(rig.daemon.said(answer))
    rig.daemon.signal(signal.SIGHUP)
    wait_until(lambda: len(rig.daemon.said(answer)) > before, PATIENCE, answer)
