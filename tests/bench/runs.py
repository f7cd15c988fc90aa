"""What the benches that run the product share: seeds side by side, progress, figures over seeds."""

import argparse
import dataclasses
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")

SAY_EVERY = 10.0  # seconds


def over_seeds(run: Callable[[int], T], seeds: int, jobs: int) -> list[T]:
    """Run seeds 0, 1 … in as many processes at once, one thread each; results in order. `run` must be picklable."""
    if jobs == 1:
        torch.set_num_threads(1)
        return [run(seed) for seed in range(seeds)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        runs = {pool.submit(run, seed): seed for seed in range(seeds)}
        done = {runs[future]: future.result() for future in as_completed(runs)}
    return [done[seed] for seed in range(seeds)]


def arguments(doc: str | None, data: str, at_once: str) -> argparse.ArgumentParser:
    """Where the data lie and how many processes run at once, which every bench asks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"holds {data}")
    parser.add_argument("--jobs", type=int, default=1, help=f"{at_once} at once, a process each")
    return parser


def labelled_arguments(doc: str | None, data: str) -> argparse.ArgumentParser:
    """Those of the labelled benchmarks besides: where to write, how many seeds, which files."""
    parser = arguments(doc, data, "seeds")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--files", default="", metavar="SUBSTRING", help="only files whose name has it, for a quick look"
    )
    return parser


class Progress:
    """Says on standard error what is being done, every ten seconds at most."""

    def __init__(self, who: str) -> None:
        self.who = who
        self._began = time.monotonic()
        self._next = self._began

    def __call__(self, what: str, share: float) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + SAY_EVERY
            print(f"{self.who}: {what} {share:4.0%}, {now - self._began:.0f} s", file=sys.stderr, flush=True)


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN where there are too few."""
    mean = float(np.mean(values)) if values else math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def unlike(default: Any, used: Any) -> list[str]:
    """Fields of a dataclass that differ from its default, as "field = value (default)"; nested ones after a dot."""
    out = []
    for field in dataclasses.fields(default):
        before, now = getattr(default, field.name), getattr(used, field.name)
        if dataclasses.is_dataclass(before) and dataclasses.is_dataclass(now):
            out += [f"{field.name}.{line}" for line in unlike(before, now)]
        elif before != now:
            out.append(f"{field.name} = {now!r} ({before!r})")
    return out
