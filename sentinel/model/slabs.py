"""The devices' memory: one contiguous record a device, and two rings.

Axes: N device slots, B rows in a batch, F channels, H hidden units, L layers, P horizons, K heads.

Slot 0 is nobody: batches are padded with it to a multiple of 16 rows, because a BLAS product depends on the
batch size in the last bits unless it is such a multiple.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sentinel.model.forecaster import head_count
from sentinel.records import ModelSpec

PAD = 16
RING = 32  # error ring: the longest window, 30, fits
STREAMS = 4
MEMORIES = 2


@dataclass(frozen=True)
class Layout:
    """Where each field of a record lies.

    Fields: h, c state; m, s location and spread in the profile's units; last, mean features' memory;
    lo, hi historical range and v1, v2, varied the kind of channel, on the device's linear scale; sums window sums of
    errors in quanta; calibration mean and variance of each stream in two memories; n ticks calibrated on, by head;
    shift_y, shift_e slow means for the shift statistic; warm_sum for a new device's location; then single numbers:
    tick (position in the rings), since (ticks since the state began), warm, raised (b of the budget's controller),
    floor (least threshold), frozen, group (row of the shift reference).
    """

    spec: ModelSpec
    channels: int
    heads: int = field(init=False)
    period: int = field(init=False)
    offsets: tuple[int, ...] = field(init=False)
    depth: int = field(init=False)
    fields: dict[str, tuple[int, tuple[int, ...]]] = field(init=False)
    width: int = field(init=False)

    def __post_init__(self) -> None:
        spec, f = self.spec, self.channels
        heads = head_count(spec, f)
        shapes: dict[str, tuple[int, ...]] = {"h": (spec.layers, spec.hidden)}
        if spec.cell == "lstm":
            shapes["c"] = (spec.layers, spec.hidden)
        shapes |= dict.fromkeys(("m", "s", "last", "mean", "lo", "hi", "v1", "v2", "varied"), (f,))
        shapes |= dict.fromkeys(("shift_y", "shift_e", "warm_sum"), (f,))
        shapes |= {"sums": (STREAMS, heads * f), "calibration": (MEMORIES, 2, STREAMS, heads * f), "n": (heads,)}
        shapes |= dict.fromkeys(("tick", "since", "warm", "raised", "floor", "frozen", "group"), ())
        fields, at = {}, 0
        for name, shape in shapes.items():
            fields[name] = (at, shape)
            at += math.prod(shape)
        offsets = tuple(sum(spec.horizons[:p]) for p in range(len(spec.horizons)))
        put = object.__setattr__
        put(self, "heads", heads)
        put(self, "fields", fields)
        put(self, "width", at)
        put(self, "offsets", offsets)
        put(self, "depth", sum(spec.horizons))
        put(self, "period", math.lcm(RING, *spec.horizons))

    def view(self, records: Tensor, name: str) -> Tensor:
        """One field of records (B, width) as a view, (B, …)."""
        at, shape = self.fields[name]
        if not shape:
            return records[:, at]
        part = records[:, at : at + math.prod(shape)]
        return part if len(shape) == 1 else part.view(len(part), *shape)


class Slabs:
    """The memory of N devices: `records` (N, width), `ahead` (N, depth, F), `errors` (N, RING, K F).

    `ahead` holds forecasts yet to be judged: that for tick t at horizon h lies at offset(h) + t mod h.
    `errors` holds the last RING errors in quanta (int16).
    """

    def __init__(self, layout: Layout, device: torch.device, capacity: int = 0) -> None:
        self.layout = layout
        self.device = device
        self.records = torch.zeros(capacity, layout.width, device=device)
        self.ahead = torch.zeros(capacity, layout.depth, layout.channels, device=device)
        self.errors = torch.zeros(capacity, RING, layout.heads * layout.channels, dtype=torch.int16, device=device)

    def __len__(self) -> int:
        return len(self.records)

    def resize(self, capacity: int) -> None:
        """Grow to `capacity` slots; what is there stays."""
        for name in ("records", "ahead", "errors"):
            old: Tensor = getattr(self, name)
            new = torch.zeros(capacity, *old.shape[1:], dtype=old.dtype, device=old.device)
            new[: len(old)] = old
            setattr(self, name, new)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of some devices' memory, each (B, …)."""
        return self.records[rows], self.ahead[rows], self.errors[rows]

    def put(self, rows: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> None:
        """Set some devices' memory, as `take` gave it."""
        self.records[rows], self.ahead[rows], self.errors[rows] = (part.to(self.device) for part in parts)
