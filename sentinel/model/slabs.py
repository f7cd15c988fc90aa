"""The devices' memory: one contiguous record a device, rings, the daily profile, and the recurrent state.

Axes: N device slots, B rows in a batch, F channels, H hidden units, L layers, P horizons, K heads, D bins of a day.

Slot 0 is nobody: batches of the network are padded with it to a multiple of 16 rows, because a BLAS product depends
on the batch size in the last bits unless it is such a multiple.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sentinel.model.forecaster import head_count
from sentinel.records import ModelSpec

RING = 32  # error ring: the longest window, 30, fits
STREAMS = 4
MEMORIES = 2
FIELDS = (
    "m",  # location and spread, in the profile's units
    "s",
    "last",  # the features' memory: last seen value, slow mean
    "mean",
    "lo",  # historical range, on the device's linear scale
    "hi",
    "v1",  # the first two values seen, and whether there was a third
    "v2",
    "varied",
    "accepted",  # what is normal, in thresholds, at least 1: of each channel, of the three highest, of the shift
    "peak",  # the same, of what came while the last alert was open
    "shift",  # slow means of values and far errors
    "centre",  # what they are when all is well
    "sums",  # window sums of errors, in quanta
    "calibration",  # mean and variance of each stream, in two memories
    "pending",  # sum and sum of squares of each stream over the ticks that are still to be calibrated on
    "n",  # ticks calibrated on, by head
    "waiting",  # ticks in `pending`, by head
    "tick",  # position in the rings
    "since",  # ticks since the state began
    "warm",  # ticks that told where a new device lies, at most `kernel.PLACED`
    "placed",  # ticks that gave it the place which it keeps, at most 600; 0: the profile's
    "tail",  # of the device's own surprise: see `kernel.note_tail`
    "raised",  # b of the budget's controller
    "frozen",  # statistics were declared
    "alarmed",  # share of the recent ticks that were flagged
    "group",  # row of the shift reference
    "network",  # row of the weights
    "interval",  # usual seconds between ticks
    "refractory",  # ticks between the starts of alerts
)

Array = npt.NDArray[Any]
Memory = tuple[Array, ...]
"""What `Slabs.take` gives: a row a device in each."""


@dataclass(frozen=True)
class Layout:
    """Where each field of a record lies, and how large the rings are.

    Attributes:
        bins: of the daily profile, D; 0: there is none.
    """

    spec: ModelSpec
    channels: int
    bins: int = 0
    heads: int = field(init=False)
    period: int = field(init=False)
    offsets: tuple[int, ...] = field(init=False)
    depth: int = field(init=False)
    fields: dict[str, tuple[int, tuple[int, ...]]] = field(init=False)
    width: int = field(init=False)

    def __post_init__(self) -> None:
        spec, f = self.spec, self.channels
        heads = head_count(spec, f)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(FIELDS[: FIELDS.index("accepted")], (f,))
        shapes |= {
            "accepted": (f + 2,),
            "peak": (f + 2,),
            "shift": (2, f),
            "centre": (2, f),
            "sums": (STREAMS, heads * f),
        }
        shapes |= {"calibration": (MEMORIES, 2, STREAMS, heads * f), "pending": (2, STREAMS, heads * f)}
        shapes |= {"n": (heads,), "waiting": (heads,)}
        shapes |= dict.fromkeys(FIELDS[FIELDS.index("tick") :], ()) | {"tail": (6,)}
        fields, at = {}, 0
        for name in FIELDS:
            fields[name] = (at, shapes[name])
            at += math.prod(shapes[name])
        put = object.__setattr__
        put(self, "heads", heads)
        put(self, "fields", fields)
        put(self, "width", at)
        put(self, "offsets", tuple(sum(spec.horizons[:p]) for p in range(len(spec.horizons))))
        put(self, "depth", sum(spec.horizons))
        put(self, "period", math.lcm(RING, *spec.horizons))

    def view(self, records: Array, name: str) -> Array:
        """One field of records (B, width) as a view, (B, …)."""
        at, shape = self.fields[name]
        if not shape:
            return records[:, at]
        return records[:, at : at + math.prod(shape)].reshape(len(records), *shape)

    @property
    def states(self) -> tuple[int, int, int]:
        """Shape of a device's recurrent state: h and, for an LSTM, c."""
        return (2 if self.spec.cell == "lstm" else 1, self.spec.layers, self.spec.hidden)


class Slabs:
    """The memory of N devices.

    Attributes:
        state: h and, for an LSTM, c, (N, 2 or 1, L, H), on the network's device.
        records: (N, width).
        ahead: forecasts yet to be judged, (N, depth, F): that for tick t at horizon h lies at offset(h) + t mod h.
        errors: the last RING errors in quanta (int16), (N, RING, K F).
        daily: each time of day's usual value, and yesterday's, (N, D, 2, F).
        visits: times that each time of day was seen, at most 255, (N, D, F).
    """

    PARTS = ("records", "ahead", "errors", "daily", "visits")

    def __init__(self, layout: Layout, device: torch.device, capacity: int = 0) -> None:
        self.layout = layout
        self.device = device
        f, days = layout.channels, layout.bins
        self.state = torch.zeros(capacity, *layout.states, device=device)
        self.records: npt.NDArray[np.float32] = np.zeros((capacity, layout.width), np.float32)
        self.ahead: npt.NDArray[np.float32] = np.zeros((capacity, layout.depth, f), np.float32)
        self.errors: npt.NDArray[np.int16] = np.zeros((capacity, RING, layout.heads * f), np.int16)
        self.daily: npt.NDArray[np.float32] = np.zeros((capacity, days, 2, f), np.float32)
        self.visits: npt.NDArray[np.uint8] = np.zeros((capacity, days, f), np.uint8)

    def __len__(self) -> int:
        return len(self.records)

    def resize(self, capacity: int) -> None:
        """Grow to `capacity` slots; what is there stays."""
        state = torch.zeros(capacity, *self.layout.states, device=self.device)
        state[: len(self)] = self.state
        self.state = state
        for name in self.PARTS:
            old: Array = getattr(self, name)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def view(self, name: str) -> Array:
        """One field of all records, as a view."""
        return self.layout.view(self.records, name)

    def take(self, rows: Array) -> Memory:
        """Copies of some devices' memory, the state first."""
        state = self.state[torch.from_numpy(np.asarray(rows))].cpu().numpy()
        return (state, *(getattr(self, name)[rows] for name in self.PARTS))

    def put(self, rows: Array, parts: Memory) -> None:
        """Set some devices' memory, as `take` gave it."""
        state = torch.from_numpy(np.ascontiguousarray(parts[0])).to(self.device)
        self.state[torch.from_numpy(np.asarray(rows)).to(self.device)] = state
        for name, part in zip(self.PARTS, parts[1:], strict=True):
            getattr(self, name)[rows] = part

    def blank(self, rows: Array) -> None:
        """Forget all but the records of some devices."""
        self.state[torch.from_numpy(np.asarray(rows)).to(self.device)] = 0.0
        for name in self.PARTS[1:]:
            getattr(self, name)[rows] = 0
