"""Row 4: readings come at twice the rate that the daemon takes, for longer than a keepalive."""

import time
from pathlib import Path

from tests.brokers import wait_until
from tests.faults.course import DEVICES, Course
from tests.faults.rig import PATIENCE, Figures, Rig, journalled

KEEPALIVE = 2  # seconds; mosquitto counts whole ones
TRIAL = 20_000  # readings from which the daemon's rate is found
IN_FLIGHT = 5000  # publishes without the broker's word
GROWTH = 200.0  # MB; a turn's messages and what they become are far below
LAG = "sentinel_ingest_lag_seconds"


def run(folder: Path, *, long: bool = False, seconds: float | None = None) -> Figures:
    """At QoS 1 and at QoS 0."""
    seconds = seconds or (180.0 if long else 3.0)
    return {
        f"QoS {qos}, {name}": figure
        for qos in (1, 0)
        for name, figure in flood(folder / str(qos), qos, seconds).items()
    }


def flood(folder: Path, qos: int, seconds: float) -> Figures:
    """Memory stays bounded, the lag is told, the connection lives, nothing acknowledged is lost, and it catches up."""
    with Rig(folder, {"keepalive": KEEPALIVE}) as rig:
        daemon = rig.daemon
        daemon.start()
        trial = rig.feed(Course(TRIAL, start=time.time() - 1, interval=DEVICES / TRIAL, faulty=0), 1e6, qos, IN_FLIGHT)
        began = time.monotonic()
        trial.finish()
        await_all(rig, TRIAL)
        taken = TRIAL / (time.monotonic() - began)
        rate = 2 * taken
        before = rss = daemon.rss()
        course = Course(int(rate * seconds), interval=DEVICES / rate, faulty=0)
        feed, lag = rig.feed(course, rate, qos, IN_FLIGHT), 0.0
        course.start, began = time.time(), time.monotonic()
        feed.release()
        while feed.acknowledged < course.count:
            rss, lag = max(rss, daemon.rss()), max(lag, daemon.metric(LAG))
        published = time.monotonic() - began
        backlog = course.count + TRIAL - daemon.messages()
        feed.finish()
        await_all(rig, TRIAL + course.count)
        caught_up = time.monotonic() - began - published
        rss = max(rss, daemon.rss())
        reconnects = daemon.metric("sentinel_broker_reconnects_total")
        rig.end()
        counts = journalled(daemon.store, course)
        lost, dropped = int((counts == 0).sum()), rig.watcher.dropped()
        assert reconnects == 0, daemon.said("not connected")
        assert rss - before < GROWTH, f"memory grew from {before:.0f} to {rss:.0f} MB"
        assert lag > 0, "no lag is told"
        assert lost == (0 if qos else dropped), f"{lost} readings are lost, the broker dropped {dropped}"
        return {
            "taken a second": round(taken),
            "published a second": round(course.count / published),
            "for s": round(published),
            "backlog": backlog,
            "caught up in s": round(caught_up, 1),
            "lag up to s": round(lag, 1),
            "lost": lost,
            "dropped by the broker": dropped,
            "RSS MB": f"{before:.0f} to {rss:.0f}",
        }


def await_all(rig: Rig, count: int) -> None:
    """Wait until so many messages were counted by the daemon, or dropped by the broker."""
    wait_until(lambda: rig.daemon.messages() + rig.watcher.dropped() >= count, 5 * PATIENCE, "all is taken")
