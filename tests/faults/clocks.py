"""Row 3: the machine's clock jumps, and a device's clock is a day ahead; in one process, on a clock of the test's own."""

from pathlib import Path

import numpy as np
import orjson

from sentinel.adapters.mqtt.memory import MemoryBroker
from sentinel.adapters.store import Store
from sentinel.service import Service
from sentinel.settings import load_settings
from tests import fleets
from tests.faults.course import DEVICES, Course, save_model
from tests.faults.rig import CONFIG, TIMELESS, USUAL, Figures

DAY = 86400.0
SILENCE = 30.0  # seconds; less than from jump to jump
JUMPS = (DAY, -DAY, 3600.0, -3600.0, 400.0, -400.0, 10 * DAY, -10 * DAY)
AHEAD = 23  # the device whose clock is ahead for some readings
NEVER = 22  # the device that stops half way


def run(folder: Path, *, long: bool = False) -> Figures:
    """With jumps and without, states, scores and alerts are the same, and only who fell silent is said to be."""
    ticks = 2000 if long else 400
    steady, jumped = _serve(folder / "steady", ticks, ()), _serve(folder / "jumped", ticks, JUMPS)
    assert steady[0] == jumped[0], "states differ"
    assert steady[1] == jumped[1], f"alerts differ: {steady[1] ^ jumped[1]}"
    silent = {device for _, _, kind, device in jumped[1] if kind == "silence"}
    assert silent == {f"d{NEVER}"}, silent
    assert jumped[2], "the device whose clock was ahead is not scored again"
    return {"jumps": len(JUMPS), "readings": ticks * DEVICES, "alerts": len(jumped[1]), "silent": ", ".join(silent)}


def _serve(
    folder: Path, ticks: int, jumps: tuple[float, ...]
) -> tuple[dict[str, list[bytes]], set[tuple[str, int, str, str]], bool]:
    """A reading a device and second: rows without times of receipt, transitions, whether the ahead one is in step."""
    folder.mkdir()
    given = {**USUAL, "broker": 1, "http": 0, "silence_after": f"{SILENCE:g}s"}
    (folder / "sentinel.toml").write_text(CONFIG.format(**given))
    settings = load_settings(folder / "sentinel.toml")
    save_model(settings.store.path)
    broker, now, off = MemoryBroker(), fleets.START, 0.0
    store = Store(settings.store.path)
    service = Service(settings, broker=broker, store=store, clock=lambda: now + off, steady=lambda: now)
    service.restore()
    service.start()
    events = broker.subscribe_from_outside("sentinel/events/#")
    course = Course(ticks * DEVICES)
    times = np.linspace(0, ticks, len(jumps) + 2).astype(int)[1:-1].tolist()
    try:
        for tick in range(ticks):
            now += 1.0
            off += jumps[times.index(tick)] if tick in times else 0.0
            service.turn(0.0)  # the clock is set between two readings
            for device in range(DEVICES):
                if device == NEVER and tick >= ticks // 8:
                    continue
                reading = orjson.loads(course.payload(tick * DEVICES + device))
                if device == AHEAD and ticks // 2 <= tick < ticks // 2 + 5:
                    reading["ts"] += DAY
                broker.publish_from_outside(f"plant/d{device}/telemetry", orjson.dumps(reading))
            while service.turn(0.0):
                pass
        table = service.pipeline.profiles["pump"].table
        rows = {
            device: [getattr(table, name)[slot].tobytes() for name in TIMELESS]
            for device, slot in table.slot_of.items()
        }
        back = float(table.last_time[table.slot_of[f"d{AHEAD}"]]) == fleets.START + ticks - 1
        said = [orjson.loads(event.payload) for event in events.got]
        # The name of a silence is of its time of receipt.
        alerts = {("" if e["kind"] == "silence" else e["id"], e["seq"], e["kind"], e["device"]) for e in said}
        return rows, alerts, back
    finally:
        service.shutdown()
