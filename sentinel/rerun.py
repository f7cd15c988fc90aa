"""The daemon's own past, run again: a profile's journal through the code that a restart replays it with.

Axes: T ticks, F channels.
"""

from pathlib import Path

import numpy as np

from sentinel import trainer, turns
from sentinel.adapters.store import AnyReader
from sentinel.backtest import TERMS, Judged, Progress, Result
from sentinel.errors import DataError, ModelError
from sentinel.records import Configuration, ProfileSpec, Promotion, Transition
from sentinel.stream.pipeline import Outcome, Pipeline, ProfileStream


class Rerun:
    """One profile's journal, from its beginning to where it is now; a row a tick, in the order in which they came.

    Args:
        spec: as configured today; the journal says what was in force then.
        models: directory of the store's models.
        running: model that the profile ran when the newest snapshot was taken; None: none.

    Attributes:
        notes: what a reader of the result must know.
    """

    def __init__(
        self,
        spec: ProfileSpec,
        journal: AnyReader,
        models: Path,
        running: str | None = None,
        progress: Progress = lambda _what, _share: None,
    ) -> None:
        self.notes: list[str] = []
        self._name = spec.name
        self._journal, self._models, self._progress = journal, models, progress
        self._pipeline = Pipeline([spec])
        self._stream.keep_ticks = True
        self._first, self._upto = journal.first(), journal.last()
        most = journal.readings_count(spec.name)  # a reading is at most one tick
        if not most:
            raise DataError(
                f"the journal holds no reading of profile {spec.name}; let `sentinel run` collect some first"
            )
        self._channels: list[str] = []
        self._index: dict[str, int] = {}
        self._count = 0
        self._values, self._expected, self._low, self._high = (np.empty((most, 0)) for _ in range(4))
        self._device, self._terms = np.zeros(most, dtype=np.int64), np.empty((most, len(TERMS)), dtype=np.float32)
        self._time, self._score, self._p_value = (np.full(most, np.nan) for _ in range(3))
        self._anomaly, self._learned = (np.zeros(most, dtype=np.bool_) for _ in range(2))
        self._moved: list[tuple[Transition, int]] = []
        self._running = running

    @property
    def _stream(self) -> ProfileStream:
        return self._pipeline.profiles[self._name]

    def run(self) -> Result:
        """Take all turns.

        Raises:
            StoreError, Unavailable: the journal cannot be read.
        """
        if self._first > 1:
            self._begin_late()
        for turn in self._journal.read(upto=self._upto):
            for done in turns.apply(turn, self._pipeline, self._journal, self._models):
                if isinstance(done.entry, Configuration) and done.refused:
                    self._reshape(done.entry.spec)
                elif isinstance(done.entry, Promotion):
                    self._promoted(done)
                self._note(done.outcome)
            self._progress("replaying", (turn.seq - self._first + 1) / (self._upto - self._first + 1))
        result, order = self._result(), np.arange(self._count)
        for transition, row in self._moved:
            result.note(transition, row)
        result.close(self._stream, order, order)
        return result

    def _begin_late(self) -> None:
        """The journal's beginning is gone: so are the states that its first turns found."""
        gone = f"the journal's first {self._first - 1:,} turns were trimmed: states begin anew after them"
        promotions = self._journal.promotions(self._name)
        if promotions:
            self.notes.append(f"{gone}, and ticks before model {promotions[0].version} have no score")
        elif self._running is None:
            self.notes.append(gone)
        else:
            try:
                loaded = trainer.load(self._models, self._name, self._running)
                turns.run_model(self._stream, loaded, self._journal, 0)
            except ModelError as error:
                self.notes.append(f"{gone}, and none has a score: {error}")
            else:
                self.notes.append(f"{gone}, with model {self._running} as it was saved")

    def _promoted(self, done: turns.Applied) -> None:
        assert isinstance(done.entry, Promotion)
        version = done.entry.version
        if done.loaded is None:
            self.notes.append(f"the promotion of model {version} is passed over: {done.refused}")
        elif 0 < done.loaded[1]["position"] < self._first - 1:
            self.notes.append(f"model {version} is not brought up to its promotion: turns before it were trimmed")

    def _reshape(self, spec: ProfileSpec) -> None:
        """Settings that need a new stream: go on as the restart did that brought them."""
        old, fresh = self._stream, ProfileStream(spec)
        fresh.keep_ticks, fresh.listening_since = True, old.listening_since
        self._pipeline.profiles[self._name] = fresh
        data, slots = old.export(), np.array(list(old.table), dtype=np.int64)
        try:
            if data["model"]:
                turns.run_model(fresh, trainer.load(self._models, self._name, data["model"]), self._journal, 0)
        except ModelError as error:
            self.notes.append(f"states begin anew with the settings of a restart: {error}")
        else:
            rows = [(old.table.ids[slot], row) for slot, row in zip(slots, old.rows(slots), strict=True)]
            fresh.restore(data, fresh.detector, rows)

    def _note(self, outcome: Outcome) -> None:
        began = self._count
        rows_of: dict[tuple[str, float], int] = {}
        if outcome.ticks:
            self._widen()
        for ticks in outcome.ticks:
            batch, judged = ticks.batch, Judged.of(self._stream, ticks, self._channels)
            rows = slice(self._count, self._count + len(batch))
            self._count = rows.stop
            names = [self._stream.table.ids[slot] for slot in batch.slots.tolist()]
            self._device[rows] = [self._index.setdefault(name, len(self._index)) for name in names]
            self._time[rows] = batch.time
            columns = [self._channels.index(name) for name in self._stream.channels[: batch.values.shape[1]]]
            self._values[rows, columns] = batch.values
            self._score[rows], self._p_value[rows], self._terms[rows] = judged.score, judged.p_value, judged.terms
            self._expected[rows], self._low[rows], self._high[rows] = judged.band
            self._anomaly[rows], self._learned[rows] = judged.anomaly, ticks.scored is None
            rows_of |= dict(
                zip(zip(names, batch.time.tolist(), strict=True), range(rows.start, rows.stop), strict=True)
            )
        for transition in outcome.transitions:
            alert = transition.alert
            self._moved.append((transition, rows_of.get((alert.device, alert.updated), began)))

    def _widen(self) -> None:
        """Make room for channels that the stream has come to know."""
        new = [name for name in self._stream.channels if name not in self._channels]
        if new:
            self._channels += new
            self._values, self._expected, self._low, self._high = (
                np.pad(part, ((0, 0), (0, len(new))), constant_values=np.nan)
                for part in (self._values, self._expected, self._low, self._high)
            )

    def _result(self) -> Result:
        detector, count = self._stream.detector, self._count
        return Result(
            channels=tuple(self._channels),
            device=self._device[:count],
            devices=list(self._index),
            time=self._time[:count],
            values=self._values[:count],
            label=None,
            learned=self._learned[:count],
            score=self._score[:count],
            p_value=self._p_value[:count],
            anomaly=self._anomaly[:count],
            expected=self._expected[:count],
            low=self._low[:count],
            high=self._high[:count],
            interval=detector.interval if detector is not None else 1.0,
            budget=self._stream.spec.alert_budget,
            terms=self._terms[:count] if not self._learned[:count].all() else None,
        )
