"""What a journalled turn does to the stream: at a daemon's restart, and in a backtest from its journal alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sentinel import trainer
from sentinel.adapters.store import AnyReader, Turn
from sentinel.errors import ModelError
from sentinel.records import (
    Announcement,
    Birth,
    Command,
    Configuration,
    Death,
    Entry,
    Heard,
    Promotion,
    Readings,
    Timer,
)
from sentinel.stream.pipeline import Outcome, Pipeline, ProfileStream


@dataclass(frozen=True, slots=True)
class Applied:
    """One entry, as one stream took it.

    Attributes:
        loaded: of a promotion, the model that the stream runs from here on.
        refused: why the stream did not take it; "": it did.
    """

    entry: Entry
    stream: ProfileStream
    outcome: Outcome
    loaded: trainer.Loaded | None = None
    refused: str = ""


def apply(turn: Turn, pipeline: Pipeline, journal: AnyReader, models: Path) -> Iterator[Applied]:
    """Let a pipeline take a turn's entries, one after the other; those of profiles that it does not have are left."""
    for entry in turn.entries:
        if isinstance(entry, Timer):
            for stream in pipeline.profiles.values():
                stream.listening_since = entry.listening_since
                if stream.timer_due(turn.now):
                    yield Applied(entry, stream, stream.timer(turn.now))
        elif (found := pipeline.profiles.get(entry.profile)) is not None:
            yield _apply(entry, turn, found, journal, models)


def _apply(
    entry: Readings | Command | Promotion | Announcement | Configuration | Birth | Death | Heard,
    turn: Turn,
    stream: ProfileStream,
    journal: AnyReader,
    models: Path,
) -> Applied:
    match entry:
        case Readings():
            return Applied(entry, stream, stream.absorb(entry, turn.now)[0])
        case Command():
            return Applied(entry, stream, stream.command(entry, turn.now))
        case Birth() | Death():
            stream.edges.take(entry)
            return Applied(entry, stream, stream.presence(entry, turn.now))
        case Heard():
            stream.edges.take(entry)
        case Announcement(device=device):
            stream.announce(device, turn.now)
        case Configuration(spec=spec) if stream.takes(spec):
            stream.respec(spec)
        case Configuration():
            return Applied(entry, stream, Outcome(), refused="other topics, channels or another model")
        case Promotion(profile=profile, version=version):
            try:
                loaded = trainer.load(models, profile, version)
                run_model(stream, loaded, journal, turn.seq - 1)
            except ModelError as error:
                return Applied(entry, stream, Outcome(), refused=str(error))
            return Applied(entry, stream, Outcome(), loaded)
    return Applied(entry, stream, Outcome())


def run_model(stream: ProfileStream, loaded: trainer.Loaded, journal: AnyReader, upto: int) -> None:
    """Let a stream run a saved model, its devices brought up to the journal's position `upto` (0: as they were saved).

    Raises:
        ModelError: its devices do not fit.
    """
    detector, manifest, tensors = loaded
    ready = trainer.shadow(stream.spec, detector, manifest, tensors)
    if manifest["position"] and upto:
        for readings, then in trainer.merged(journal.read(manifest["position"], upto, stream.spec.name)):
            ready.absorb(readings, then)
    trainer.take_over(stream, ready)
