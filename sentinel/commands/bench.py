"""`sentinel bench`: what this machine makes of the model step, a device's memory and a journal commit."""

import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sentinel.adapters.store import Journal
from sentinel.commands._json import write_json
from sentinel.model import features
from sentinel.model.calibrate import WEEK
from sentinel.model.cells import Recurrence, State
from sentinel.model.forecaster import Forecaster, weight_shapes
from sentinel.model.kernel import PLACED
from sentinel.model.scale import ProfileScale
from sentinel.model.score import Detector, Scorer
from sentinel.model.slabs import Layout, Slabs
from sentinel.records import ModelSpec, Readings
from sentinel.stream.devices import DeviceTable

CHANNELS, HIDDEN = 4, 32
BATCHES = (1, 16, 64, 256, 1024)
WIDTHS, WIDE_BATCHES = (1, 8, 38), (256, 1024)  # channels
COMMITS = (1, 100, 1000)  # readings
DEVICES = 8192  # in the slabs that batches are taken from
EACH = 1.5  # seconds a figure
LEAST_ROUNDS = 5


def bench(*, json_file: Path | None) -> int:
    """Measure and print; one thread, on the CPU. Takes about 25 s."""
    torch.set_num_threads(1)
    spec = ModelSpec(hidden=HIDDEN, horizons=(1, 64))
    detector = _detector(spec)
    result = {
        "machine": {"cpu": _cpu(), "python": platform.python_version(), "torch": torch.__version__},
        "shape": {"channels": CHANNELS, "hidden": HIDDEN, "layers": 1, "horizons": [1, 64]},
        "score_and_step": [_observe(detector, batch) for batch in BATCHES],
        "by_channels": [
            {"channels": width} | _observe(_detector(spec, width), batch) for width in WIDTHS for batch in WIDE_BATCHES
        ],
        "recurrent_step": _recurrent_step(detector, max(BATCHES)),
        "bytes_per_device": [_memory(horizons) for horizons in ((1,), (1, 64))],
        "journal_commit": _journal(),
    }
    if json_file is not None:
        write_json(json_file, result)
    _print(result)
    return 0


def _detector(spec: ModelSpec, channels: int = CHANNELS) -> Detector:
    """Random weights, and devices in the middle of their life: every part of the step has work to do."""
    generator = torch.Generator().manual_seed(0)
    shapes = weight_shapes(spec, channels, calendar=False, bins=0)
    weights = {name: 0.1 * torch.randn(1, *shape, generator=generator) for name, shape in shapes.items()}
    layout = Layout(spec, channels)
    prior = np.zeros((1, layout.width), dtype=np.float32)
    middle = {"s": 1.0, "lo": -9.0, "hi": 9.0, "varied": 1.0, "n": 1000.0, "since": 1000.0, "warm": PLACED}
    middle |= {"accepted": 1.0, "interval": 1.0}
    for name, value in middle.items():
        layout.view(prior, name)[...] = value
    ones = np.ones(channels)
    return Detector(
        channels=tuple(f"c{at}" for at in range(channels)),
        scale=ProfileScale(0 * ones, ones, np.zeros(channels, dtype=np.bool_)),
        forecaster=Forecaster(spec, channels, calendar=False, bins=0, weights=weights),
        prior=prior[0],
        spread_of_locations=np.zeros(channels, dtype=np.float32),
        interval=1.0,
        longest_run=ones,
        declared=False,
    )


def _observe(detector: Detector, batch: int) -> dict[str, Any]:
    scorer = Scorer(detector, {}, 1 / WEEK, None)
    slabs = Slabs(detector.layout, torch.device("cpu"), DEVICES)
    scorer.begin(slabs, np.arange(DEVICES))
    random = np.random.default_rng(0)
    slots = [random.permutation(np.arange(1, DEVICES))[:batch] for _ in range(16)]
    values = random.standard_normal((16, batch, len(detector.channels)))
    dt, none = np.ones(batch), np.zeros(batch, dtype=np.bool_)

    def one(turn: int) -> None:
        scorer.observe(slabs, slots[turn % 16], values[turn % 16], dt, dt * turn, none)

    return {"batch": batch} | _timed(one, batch)


def _recurrent_step(detector: Detector, batch: int) -> dict[str, Any]:
    cells = Recurrence("lstm", 1, detector.forecaster.weights)
    x = torch.randn(batch, features.width(CHANNELS, calendar=False, bins=0))
    state = State(torch.zeros(1, batch, HIDDEN), torch.zeros(1, batch, HIDDEN))
    return {"batch": batch} | _timed(lambda _: cells.step(x, state), batch)


def _timed(one: Callable[[int], object], count: int) -> dict[str, float]:
    """Median and best time of `one`, in microseconds, for a batch and for each of its `count` readings."""
    for turn in range(3):
        one(turn)
    took: list[float] = []
    end = time.perf_counter() + EACH
    while time.perf_counter() < end or len(took) < LEAST_ROUNDS:
        began = time.perf_counter()
        one(len(took))
        took.append(time.perf_counter() - began)
    median, best = 1e6 * statistics.median(took), 1e6 * min(took)
    return {
        "batch_us": median,
        "reading_us": median / count,
        "best_reading_us": best / count,
        "readings_per_second": 1e6 * count / median,
    }


def _memory(horizons: tuple[int, ...]) -> dict[str, Any]:
    """What one more device takes, in bytes, at F = 4, H = 32, one layer, shared weights."""
    layout = Layout(ModelSpec(hidden=HIDDEN, horizons=horizons), CHANNELS)
    slabs = Slabs(layout, torch.device("cpu"), 1)
    parts = {name: int(getattr(slabs, name).nbytes) for name in ("state", "records", "ahead", "errors")}
    table = DeviceTable(CHANNELS, DEVICES)
    table.slots([f"plant-1/pump-{number:06}" for number in range(DEVICES)])
    flags = table.dirty.itemsize + table.used.itemsize + np.dtype(np.float64).itemsize  # and the last score
    parts["table"] = table.width(table.channels) + flags
    index = sys.getsizeof(table.slot_of) + sys.getsizeof(table.ids) + sum(map(sys.getsizeof, table.ids))
    parts["ids"] = round(index / DEVICES) + sys.getsizeof(DEVICES)
    return {"horizons": list(horizons)} | parts | {"total": sum(parts.values())}


def _journal() -> dict[str, Any]:
    """Commits as the daemon makes them, on the disk of the working directory: there its store is by default."""
    random = np.random.default_rng(0)
    try:
        folder = tempfile.TemporaryDirectory(prefix=".sentinel-bench-", dir=Path.cwd())
    except OSError:
        folder = tempfile.TemporaryDirectory(prefix="sentinel-bench-")
    out: dict[str, Any] = {"folder": str(Path(folder.name).parent), "synchronous": "FULL", "commits": []}
    with folder as name:
        journal = Journal(Path(name) / "journal.sqlite", "journal")
        for count in COMMITS:
            ids = [f"plant-1/pump-{number:06}" for number in range(count)]
            channels = tuple(f"c{at}" for at in range(CHANNELS))
            values = random.standard_normal((count, CHANNELS))
            entry = Readings(
                "bench", channels, ids, np.arange(1.7e9, 1.7e9 + count), values, np.zeros(count, dtype=np.int64)
            )
            took: list[float] = []
            end = time.perf_counter() + EACH
            while time.perf_counter() < end or len(took) < LEAST_ROUNDS:
                began = time.perf_counter()
                journal.append([entry], 1.7e9)
                took.append(1e3 * (time.perf_counter() - began))
            p99 = float(np.percentile(took, 99))
            out["commits"].append({"readings": count, "median_ms": statistics.median(took), "p99_ms": p99})
        journal.close()
    return out


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _print(result: dict[str, Any]) -> None:
    console = Console()
    shape = f"F = {CHANNELS}, H = {HIDDEN}, 1 layer"
    print(f"{result['machine']['cpu']}; one thread; torch {result['machine']['torch']}\n")
    print(f"Score and step, {shape}, horizons 1 and 64; medians")
    table = _table("batch", "µs a batch", "µs a reading", "at best", "readings/s")
    step = result["recurrent_step"]
    for row, name in [*((row, "") for row in result["score_and_step"]), (step, " (recurrent step alone)")]:
        table.add_row(
            f"{row['batch']:,}{name}",
            f"{row['batch_us']:,.0f}",
            f"{row['reading_us']:,.2f}",
            f"{row['best_reading_us']:,.2f}",
            f"{row['readings_per_second']:,.0f}",
        )
    console.print(table)
    print(f"\nThe same by channels, H = {HIDDEN}; µs a reading")
    table = _table("channels", *(f"batch {batch:,}" for batch in WIDE_BATCHES))
    for width in WIDTHS:
        rows = [row for row in result["by_channels"] if row["channels"] == width]
        table.add_row(str(width), *(f"{row['reading_us']:,.2f}" for row in rows))
    console.print(table)
    print(f"\nBytes a device, {shape}, shared weights")
    names = ("state", "records", "ahead", "errors", "table", "ids", "total")
    table = _table("horizons", *names)
    for row in result["bytes_per_device"]:
        table.add_row(", ".join(map(str, row["horizons"])), *(f"{row[name]:,}" for name in names))
    console.print(table)
    print(f"\nJournal commit, synchronous = FULL, in {result['journal_commit']['folder']}")
    table = _table("readings", "ms, median", "ms, p99")
    for row in result["journal_commit"]["commits"]:
        table.add_row(f"{row['readings']:,}", f"{row['median_ms']:.2f}", f"{row['p99_ms']:.2f}")
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None)
    for name in columns:
        table.add_column(name, justify="right")
    return table
