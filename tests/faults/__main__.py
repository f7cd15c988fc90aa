"""Run rows of the fault suite: `python -m tests.faults NAME [--long]`, or `all`; one line of figures a row."""

import argparse
import importlib
import logging
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sentinel.logs import configure_logs

ROWS = ("kill", "broker", "network", "signals", "clocks", "overload", "disk", "training", "hostile", "soak")


def main() -> int:
    """Run them; 0 if every one held."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("name", choices=(*ROWS, "all"))
    parser.add_argument("--long", action="store_true", help="in full length")
    parser.add_argument("--seconds", type=float, help="of overload and soak, instead of their usual lengths")
    arguments = parser.parse_args()
    configure_logs(level=logging.CRITICAL)  # of what runs in this process
    options = {"long": arguments.long} | ({"seconds": arguments.seconds} if arguments.seconds else {})
    failed = 0
    for name in ROWS if arguments.name == "all" else (arguments.name,):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            try:
                figures = importlib.import_module(f"tests.faults.{name}").run(Path(place), **options)
            except (AssertionError, pytest.fail.Exception) as error:
                failed += 1
                line = f"FAILED: {error}"
                for log in sorted(Path(place).rglob("*.log")):
                    print(f"== {log.relative_to(place)}", *log.read_text(errors="replace").splitlines()[-15:], sep="\n")
            except pytest.skip.Exception as error:
                line = f"skipped: {error}"
            else:
                line = ", ".join(f"{key} {value}" for key, value in figures.items())
        print(f"{name} ({time.monotonic() - began:.0f} s): {line}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
