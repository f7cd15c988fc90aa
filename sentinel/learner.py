"""Starts the learning process of a profile when there is enough to learn from, and hears what it says."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import structlog

from sentinel import trainer
from sentinel.model.learn import next_learning
from sentinel.stream.pipeline import ProfileStream

FLEET_ENOUGH, FLEET_LEAST = 50, 4  # so many times `learn_after` in all are enough with a quarter of it a device
RETRY_LEARNING = 60.0  # seconds after a failure
MOST_APART = 10  # stretches of readings that the log tells one by one
SAY_EVERY = 30.0  # seconds, while it learns
SAY_SHARE = 0.25  # of what is needed, while it collects

log = structlog.get_logger("sentinel.learner")


class Learner:
    """Trains one profile in a process of its own, when there is enough to learn from.

    Attributes:
        stage: collecting, then what the process says that it does.
        progress: share of that stage, 0 to 1.
        gathered: readings over those that the first learning needs, 0 to 1.
        failure: why the last learning gave nothing; "": it did, or there was none.
        apart: `trainer.told_apart` of the model that runs.
    """

    def __init__(self, stream: ProfileStream, store: Path, seed: int) -> None:
        self.stream = stream
        self.stage = "collecting"
        self.progress = self.gathered = 0.0
        self.failure = ""
        self.apart: list[str] = []
        self._store = store
        self._seed = seed
        self._process: subprocess.Popen[bytes] | None = None
        self._next_at = 0.0  # ticks at which to learn next
        self._retry_at = 0.0
        self._began = self._said_at = 0.0
        self._collected = 0.0  # share that was told
        self._rest = b""
        self._said: dict[str, Any] = {}
        self._errors: IO[bytes] | None = None

    @property
    def busy(self) -> bool:
        return self._process is not None

    def scored_before(self, ticks: int) -> None:
        """A model runs that had learned from so many ticks."""
        self._next_at = next_learning(max(ticks, 1))

    def consider(self, now: float) -> None:
        """Start learning if it is time."""
        spec, table = self.stream.spec, self.stream.table
        if spec.learn == "never" or self.busy or self._retry_at - RETRY_LEARNING <= now < self._retry_at:
            return
        ticks = table.ticks[table.used]
        total = int(ticks.sum())
        if self.stream.detector is None:
            median = float(np.median(ticks)) if len(ticks) else 0.0
            fleet = min(total / (FLEET_ENOUGH * spec.learn_after), FLEET_LEAST * median / spec.learn_after)
            self.progress = self.gathered = min(max(median / spec.learn_after, fleet), 1.0)
            if self.gathered < 1.0:
                if total and self.gathered >= self._collected:
                    self._collected = (self.gathered // SAY_SHARE + 1) * SAY_SHARE
                    self._say("collecting", share=round(self.gathered, 2), ticks=total, devices=len(table))
                return
        elif spec.learn == "once" or self.stream.detector.declared or total < self._next_at:
            return  # what the user's recording says is normal stays so
        self._start(total, now)

    def _start(self, total: int, now: float) -> None:
        detector = self.stream.detector
        champion = detector.version if detector is not None else None
        job = trainer.Job(str(self._store), self.stream.spec, self._seed, champion)
        self._next_at = next_learning(total)
        self.stage, self.progress, self._rest, self._said = "starting", 0.0, b"", {}
        self._began = self._said_at = now
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_end`
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", trainer.ENTRY, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)
            self._process.stdin.write(job.dump().encode())
            self._process.stdin.close()
        except OSError as error:
            self.stop()
            self._failed(f"the learning process cannot start: {error}", now)
            return
        self._say("learning", ticks=total, devices=len(self.stream.table))

    def poll(self, now: float) -> str | None:
        """A version to promote, once there is one; None: not yet, or the champion stays."""
        process = self._process
        if process is None or process.stdout is None:
            return None
        code = process.poll()  # first: what it said before it ended is then all there
        stage = self.stage
        *lines, self._rest = (self._rest + _read_now(process.stdout.fileno())).split(b"\n")
        for line in lines:
            try:
                said = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(said, dict):
                self._said = said
                self.stage, self.progress = said.get("stage", self.stage), said.get("share", self.progress)
        if code is None:
            fresh = self.stage != stage and self.stream.detector is None
            if fresh or now - self._said_at >= SAY_EVERY:
                self._said_at = now
                self._say("learning", stage=self.stage, share=round(self.progress, 2))
            return None
        last_words = self._end()
        said = self._said
        if "version" in said:
            self.failure = ""
            apart, _ = said.pop("apart"), said.pop("moving")
            self._say("learned", **said, seconds=round(now - self._began, 1))
            for sentence in apart[:MOST_APART]:
                log.warning("stood apart while learning", profile=self.stream.spec.name, what=sentence)
            if more := len(apart[MOST_APART:]):
                log.warning("stood apart while learning", profile=self.stream.spec.name, what=f"{more} more")
            return str(said["version"])
        if "kept" in said:
            self._say("champion stays", reason=said["reason"], seconds=round(now - self._began, 1))
            return None
        self._failed(said.get("failed") or last_words or f"exit status {code}", now)
        return None

    def refused(self, reason: str, now: float) -> None:
        """What it learned cannot be used."""
        self._failed(f"model refused: {reason}", now)

    def _failed(self, reason: str, now: float) -> None:
        self.failure = reason
        self._retry_at, self._next_at = now + RETRY_LEARNING, 0.0
        log.error("learning failed", profile=self.stream.spec.name, reason=reason, retry_in=RETRY_LEARNING)

    def _say(self, event: str, **facts: object) -> None:
        log.info(event, profile=self.stream.spec.name, **facts)

    def _end(self) -> str:
        """Let go of the process; returns the last line that it wrote to standard error."""
        lines: list[str] = []
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        if self._errors is not None:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            self._errors.close()
        self._process = self._errors = None
        self.stage, self.progress = "collecting", self.gathered
        return lines[-1] if lines else ""

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._end()


def _read_now(descriptor: int) -> bytes:
    """What a descriptor that does not block holds."""
    parts = []
    try:
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts)
