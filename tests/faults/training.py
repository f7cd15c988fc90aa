"""Row 6: the learning process is killed, runs out of memory, or makes weights that are no numbers."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from sentinel import trainer
from sentinel.errors import ModelError
from sentinel.model.learn import learn
from sentinel.settings import load_settings
from tests.brokers import wait_until
from tests.faults.course import DEVICES, Course
from tests.faults.rig import Figures, Rig

SLOW = 600.0  # seconds that a training may take on a busy machine
LEARN_AFTER = 100
MEMORY = 64 << 20  # bytes of address space left to a training: too few to go on


def run(folder: Path, *, long: bool = False) -> Figures:
    """A champion is learned; then trainings fail in each way, and it goes on and says so."""
    course = Course(DEVICES * 2000, faulty=0)
    with Rig(folder, {"learn": "online", "more": f"learn_after = {LEARN_AFTER}"}, model=False) as rig:
        daemon = rig.daemon
        daemon.start()
        feed = rig.feed(course, 5000)
        feed.release(DEVICES * LEARN_AFTER)
        wait_until(lambda: daemon.said("promoted"), SLOW, "a first model is promoted")
        champion = str(daemon.said("promoted")[-1]["version"])

        def fail(how: str, upto: int) -> str:
            failures = len(daemon.said("learning failed"))
            feed.release(DEVICES * upto)
            child = await_training(rig)
            if how == "killed":
                os.kill(child, signal.SIGKILL)
            else:
                subprocess.run(["prlimit", "--pid", str(child), f"--as={MEMORY}"], check=True)
            wait_until(lambda: len(daemon.said("learning failed")) > failures, SLOW, f"the training fails: {how}")
            assert running(rig) == champion
            scored = daemon.metric('sentinel_ticks_total{profile="pump"}')
            feed.release(DEVICES * (upto + 5))
            wait_until(lambda: daemon.metric('sentinel_ticks_total{profile="pump"}') > scored, SLOW, "it goes on")
            return str(daemon.said("learning failed")[-1]["reason"])

        killed, starved = fail("killed", 300), fail("out of memory", 400)
        refused = poisoned(rig)
        rig.await_quiet()
        daemon.kill()
    return {"killed": killed, "out of memory": starved, "no numbers": refused, "champion": champion}


def await_training(rig: Rig) -> int:
    """Wait until the daemon has a learning process that reads; its id."""
    assert rig.daemon.process is not None
    children = Path(f"/proc/{rig.daemon.process.pid}/task/{rig.daemon.process.pid}/children")
    wait_until(lambda: children.read_text().split(), SLOW, "a training starts")
    return int(children.read_text().split()[0])


def running(rig: Rig) -> str:
    """Version of the model that the daemon says it runs."""
    series = [name for name in rig.daemon.metrics() if name.startswith("sentinel_model_info")]
    return series[0].split('version="')[1].split('"')[0]


def poisoned(rig: Rig) -> str:
    """Learn from the daemon's journal and make the weights NaN: the model is not saved, or refused when loaded."""
    spec = load_settings(rig.daemon.folder / "sentinel.toml").specs()[0]
    store = rig.daemon.store

    def spoil(*args: object, **options: object) -> object:
        learned = learn(*args, **options)  # type: ignore[arg-type]
        for weight in learned.detector.forecaster.weights.values():
            weight.fill_(torch.nan)
        return learned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sentinel.trainer.learn", spoil)
        try:
            made = trainer.run(trainer.Job(str(store), spec, 1, None), trainer.Tell())
            trainer.load(store / "models", spec.name, made["version"])
        except ModelError as error:
            return str(error)
    raise AssertionError("a model without numbers was saved and would be run")
