"""`sentinel demo`: a broker, a simulated plant with faults, and the daemon, in one command."""

from __future__ import annotations

import importlib.util
import queue
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sentinel.commands._json import write_json
from sentinel.commands._parts import HOST, PUMPS, RATE, ROOMS, await_port, child, free_port, tail
from sentinel.commands._terminal import say, show_table
from sentinel.errors import DataError, Unavailable
from sentinel.logs import printable
from sentinel.simulate import FAULT_KINDS, PUMP, ROOM, Fault, Firing, Tally, tally

HTTP_PORT = 9108
LEARN_AFTER = 250  # ticks
_SETTLE = 8.0  # seconds from the last device that scores to the first fault
_LAST_FAULT = 22.0  # seconds before the end in which no fault starts
_POLL = 0.25
_SHOWN = 12  # alerts in the live view
_SAY_EVERY = 15.0  # seconds between lines of how far it has learned, where no live view is
_FIRST = "learning how each device behaves; faults follow in one to one and a half minutes"
_STARTS = "the daemon starts; the first time it compiles its arithmetic, up to 20 s"
_WORDLESS = ("storm", "system")  # alerts that are not about one device

Item = tuple[str, dict[str, object], float]


@dataclass(slots=True)
class Scene:
    """What the demo knows so far; what the view draws and the summary counts. Times are wall clock.

    Attributes:
        stages, shares: what each profile is at, and how much of that is done.
    """

    began: float
    page: str
    total: int = PUMPS + ROOMS
    states: dict[str, int] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    scoring_at: float | None = None
    faults: list[Fault] = field(default_factory=list)
    firings: list[Firing] = field(default_factory=list)
    open: dict[str, str] = field(default_factory=dict)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_SHOWN))
    known: set[str] = field(default_factory=set)

    def take(self, kind: str, body: dict[str, object], now: float) -> str | None:
        """Note a fault, an alert's transition or the daemon's status; returns the line that tells of it, if one does."""
        clock = self.clock(now)
        if kind == "status":
            profiles: Any = body.get("profiles", {})
            self.stages = {name: profile["stage"] for name, profile in profiles.items()}
            self.shares = {name: profile["progress"] for name, profile in profiles.items()}
            return None
        if kind == "fault":
            fault = Fault(**body)  # type: ignore[arg-type]  # written by our own plant, as asdict(Fault)
            self.faults.append(fault)
            where = f"{fault.device}: {fault.channel}" if fault.channel else fault.device
            return f"{clock}  fault     {fault.kind.replace('_', ' ')} on {where}"
        identity, state = str(body.get("id")), body.get("state")
        message = f"{body.get('message')}"
        if state == "firing" and identity not in self.known:
            self.known.add(identity)
            if body.get("kind") not in _WORDLESS:
                self.firings.append(Firing(str(body.get("profile")), str(body.get("device")), now))
            self.open[identity] = message
            return f"{clock}  ALERT     {message}"
        if state == "resolved" and self.open.pop(identity, None) is not None:
            return f"{clock}  resolved  {message if body.get('kind') in _WORDLESS else body.get('device')}"
        return None

    def clock(self, now: float) -> str:
        """A moment as lines begin with it."""
        return f"{now - self.began:6.1f} s"

    def learning(self) -> str:
        """How far each profile has learned, in words."""
        shares = {
            name: f" {share:.0%}".replace("%", " %") if 0 < share < 1 else "" for name, share in self.shares.items()
        }
        return ", ".join(f"{name} {stage}{shares[name]}" for name, stage in self.stages.items())

    def count(self) -> Tally:
        """The tally as of now."""
        return tally(self.faults, self.firings, now=time.time())


def demo(seconds: float | None, json_file: Path | None, seed: int) -> None:
    """Run broker, plant and daemon on this machine for `seconds` (None: until interrupted), then sum up.

    Raises DataError when the broker's library is missing, Unavailable when a part of it stops or nothing was
    scored in `seconds`. Nothing of it outlives this process, however that ends.
    """
    if importlib.util.find_spec("amqtt") is None:
        raise DataError("the demo's broker is not installed: pip install 'sentinel[demo]'")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: clean up and sum up
    console = Console()
    began = time.time()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sentinel-demo-")))
        port, http = free_port(0), free_port(HTTP_PORT)
        scene = Scene(began, f"http://{HOST}:{http}/")
        items: queue.Queue[Item] = queue.Queue()
        log = folder / "daemon.log"
        (folder / "sentinel.toml").write_text(config(port, http, folder / "state"), encoding="utf-8")

        broker = stack.enter_context(child("broker", str(port), log=folder / "broker.log"))
        await_port(broker, port, folder / "broker.log")
        stack.enter_context(_subscribed(port, items))
        daemon = stack.enter_context(child("daemon", str(folder / "sentinel.toml"), log=log))
        plant = stack.enter_context(child("plant", str(port), str(seed), log=folder / "plant.log", pipes=True))
        threading.Thread(target=_read_faults, args=(plant, items), daemon=True).start()
        children = {"broker": broker, "daemon": daemon, "plant": plant}
        with suppress(KeyboardInterrupt), _view(console, scene) as show:
            _watch(scene, children, folder, items, seconds, show)
    _summarise(scene)
    if json_file:
        write_json(json_file, summary(scene))
    if seconds is not None and scene.scoring_at is None:
        raise Unavailable(f"no device was scored within {seconds:g} s")


def _watch(
    scene: Scene,
    children: dict[str, subprocess.Popen[bytes]],
    folder: Path,
    items: queue.Queue[Item],
    seconds: float | None,
    show: Callable[[str | None], None],
) -> None:
    """Pass news to `show` until time is up; ask the plant for faults once all devices are scored."""
    asked, polled = False, 0.0
    while seconds is None or time.time() - scene.began < seconds:
        with suppress(queue.Empty):
            show(scene.take(*items.get(timeout=_POLL)))
        now = time.time()
        if now - polled < 1.0:
            continue
        polled = now
        for name, process in children.items():
            if process.poll() is not None:
                raise Unavailable(f"the demo's {name} stopped:\n{tail(folder / f'{name}.log')}")
        scene.states = device_states(_get(f"{scene.page}metrics"))
        if scene.scoring_at is None and scene.states.get("scoring", 0) >= scene.total:
            scene.scoring_at = now
            show(f"{scene.clock(now)}  all {scene.total} devices are scored; faults follow")
        if not asked and scene.scoring_at is not None and now - scene.scoring_at >= _SETTLE:
            asked = True
            stop = scene.began + seconds - _LAST_FAULT if seconds is not None else 0.0
            _ask(children["plant"], stop)
        show(None)


def _ask(plant: subprocess.Popen[bytes], stop: float) -> None:
    if plant.stdin is not None:
        plant.stdin.write(b"%r\n" % stop)
        plant.stdin.flush()


def config(port: int, http: int, state: Path) -> str:
    """The demo's configuration file."""
    lines = [
        f'mqtt = {{ host = "{HOST}", port = {port} }}',
        f'http = {{ host = "{HOST}", port = {http} }}',
        f"store = {{ path = {orjson.dumps(str(state)).decode()} }}",
    ]
    for machine in (PUMP, ROOM):
        lines += [
            f"[profiles.{machine.name}]",
            f'topic = "{machine.template}"',
            'time = { path = "ts", unit = "s" }',
            "channels = [",
            *(f'  {{ name = "{q.name}", path = "{q.name}", unit = "{q.unit}" }},' for q in machine.quantities),
            "]",
            'silence_after = "3s"',
            f"learn_after = {LEARN_AFTER}",
            'learn = "once"',
        ]
    return "\n".join(lines) + "\n"


def device_states(metrics: str) -> dict[str, int]:
    """Devices by state, over all profiles, from the text of /metrics."""
    states: dict[str, int] = {}
    for labels, value in re.findall(r"^sentinel_devices\{([^}]*)\} (\S+)$", metrics, re.MULTILINE):
        if match := re.search(r'state="(\w+)"', labels):
            states[match[1]] = states.get(match[1], 0) + int(float(value))
    return states


def summary(scene: Scene) -> dict[str, object]:
    """What `--json` writes. `median_delay_seconds` is 0 when nothing was found."""
    count = scene.count()
    firsts = [firing.time for firing in scene.firings]
    return {
        "faults_injected": len(count.faults),
        "faults_found": count.found,
        "false_alarms": len(count.false_alarms),
        "median_delay_seconds": count.median_delay,
        "scoring_after_seconds": scene.scoring_at and scene.scoring_at - scene.began,
        "first_alert_after_seconds": min(firsts) - scene.began if firsts else None,
        "faults": [
            {**asdict(fault), "found": delay is not None, "delay_seconds": delay}
            for fault, delay in zip(count.faults, count.delays, strict=True)
        ],
        "false_alarm_list": [asdict(firing) for firing in count.false_alarms],
    }


def _summarise(scene: Scene) -> None:
    count = scene.count()
    rows = [[kind.replace("_", " "), *_row(part)] for kind in FAULT_KINDS if (part := count.of(kind)).faults]
    columns = ["fault", "injected", "found", "missed", "median delay"]
    show_table(columns, [*rows, ["all", *_row(count)]], title="Summary", right=columns[1:])
    say(f"false alarms: {len(count.false_alarms)}")


def _row(count: Tally) -> tuple[str, str, str, str]:
    injected = len(count.faults)
    delay = f"{count.median_delay:.1f} s" if count.found else "-"
    return str(injected), str(count.found), str(injected - count.found), delay


@contextmanager
def _view(console: Console, scene: Scene) -> Iterator[Callable[[str | None], None]]:
    """A live picture on a terminal, plain lines elsewhere."""
    if not console.is_interactive:
        say(f"page at {scene.page}; {scene.total} devices at {RATE:g} Hz; {_FIRST}")
        told, stages = scene.began, scene.stages

        def show(line: str | None) -> None:
            nonlocal told, stages
            now = time.time()
            if line:
                say(line)
            elif scene.scoring_at is None and (stages != scene.stages or now - told >= _SAY_EVERY):
                told, stages = now, scene.stages
                say(f"{scene.clock(now)}  learning  {scene.learning() or _STARTS}")

        yield show
        return
    with Live(_picture(scene), console=console, refresh_per_second=4) as live:

        def draw(line: str | None) -> None:
            if line:
                scene.lines.append(line)
            live.update(_picture(scene))

        yield draw


def _picture(scene: Scene) -> Group:
    count = scene.count()
    states = ", ".join(f"{number} {state}" for state, number in scene.states.items() if number) or "starting"
    head = Text(f"Sentinel demo {time.time() - scene.began:5.0f} s   devices: {states}", style="bold")
    where = Text(f"page: {scene.page}\n")
    if scene.lines or scene.scoring_at:
        body = Text("\n").join(Text(printable(line), style="red" if "ALERT" in line else "") for line in scene.lines)
    else:
        body = Text(f"{_FIRST}\n{scene.learning() or _STARTS}")
    foot = (
        f"\nfaults {len(count.faults)}   found {count.found}   false alarms {len(count.false_alarms)}"
        f"   firing now {len(scene.open)}"
    )
    return Group(head, where, body, Text(foot, style="bold"), Text("Ctrl-C ends with a summary", style="dim"))


def _read_faults(plant: subprocess.Popen[bytes], items: queue.Queue[Item]) -> None:
    if plant.stdout is not None:
        with suppress(ValueError):  # closed under us at the end
            for line in plant.stdout:
                items.put(("fault", orjson.loads(line), time.time()))


@contextmanager
def _subscribed(port: int, items: queue.Queue[Item]) -> Iterator[None]:
    """Put the daemon's events and status into `items` for as long as the block lasts."""

    def connected(client: mqtt.Client, *_: object) -> None:
        client.subscribe([("sentinel/events/#", 1), ("sentinel/status", 1)])

    def received(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        with suppress(orjson.JSONDecodeError):
            kind = "status" if message.topic == "sentinel/status" else "alert"
            items.put((kind, orjson.loads(message.payload), time.time()))

    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_connect, client.on_message = connected, received
    client.connect(HOST, port)
    client.loop_start()
    try:
        yield
    finally:
        client.disconnect()
        client.loop_stop()


def _get(url: str) -> str:
    with suppress(OSError), urllib.request.urlopen(url, timeout=1.0) as answer:  # noqa: S310 (our own)
        return str(answer.read().decode())
    return ""
