"""One recurrent step over a batch of devices, on the weights of `torch.nn.LSTM` or `torch.nn.GRU`.

Axes: B rows in the batch, one device each; I inputs; H hidden units; L layers; G networks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

PAD = 16  # multiple that a product's rows and columns must be for no row's last bits to depend on its place
Cell = Literal["lstm", "gru"]
GATES: dict[Cell, tuple[str, ...]] = {  # in torch's order
    "lstm": ("input", "forget", "candidate", "output"),
    "gru": ("reset", "update", "candidate"),
}


Parts = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class State:
    """Recurrent state of B devices, one row each. Never modified; a step makes a new one.

    Attributes:
        h: hidden state, (L, B, H).
        c: cell state, (L, B, H); for a GRU it is carried along untouched.
    """

    h: Tensor
    c: Tensor


class Linear:
    """G affine maps of one shape; each row goes through the one that its device has."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Take weight (G, out, in) and bias (G, out)."""
        # Transposed once, so that each step is a plain row-major product.
        self.weight = weight.transpose(1, 2).contiguous()
        self.bias = bias
        self._out = weight.shape[1]
        # With 6 or 10 outputs a BLAS gives a row other last bits at another place in the batch; with 16 it does not.
        self._only = (pad(self.bias[0], (0, -self._out % PAD)), pad(self.weight[0], (0, -self._out % PAD)))

    def __call__(self, x: Tensor, network: Tensor | None) -> Tensor:
        """From x (B, in) to (B, out); `network` (B,) int64, None: there is but one."""
        if network is None:
            bias, weight = self._only
            return torch.addmm(bias, x, weight)[:, : self._out].contiguous()
        bias, weight = self.bias.index_select(0, network), self.weight.index_select(0, network)
        return torch.baddbmm(bias.unsqueeze(1), x.unsqueeze(1), weight).squeeze(1)


class Recurrence:
    """Stacked cells. Holds weights only: whose state it is, is the caller's business."""

    def __init__(self, cell: Cell, layers: int, weights: Mapping[str, Tensor]) -> None:
        """Take the weights under the names that `torch.nn.LSTM` and `torch.nn.GRU` give them, each (G, …)."""
        self.cell: Cell = cell
        self.layers = layers
        self._layers = [
            tuple(Linear(weights[f"weight_{part}_l{k}"], weights[f"bias_{part}_l{k}"]) for part in ("ih", "hh"))
            for k in range(layers)
        ]

    def step(self, x: Tensor, state: State, network: Tensor | None = None) -> State:
        """Advance B devices by one tick.

        Args:
            x: inputs, (B, I).
            state: as of the tick before.
            network: whose weights, (B,) int64; None: there is but one.

        Returns:
            The state after this tick; its top layer, `h[-1]`, is the output.

        Source: LSTM with forget gate, Gers, Schmidhuber and Cummins 2000; GRU, Cho et al. 2014
        (reset gate after the product, as `torch.nn.GRU`); gate order as in torch.
        """
        _, h, c = zip(*self._pass(x, state, network), strict=True)
        return State(torch.stack(h), torch.stack(c))

    def look(self, x: Tensor, state: State, network: Tensor | None = None) -> tuple[list[dict[str, Tensor]], State]:
        """As `step`, and what the gates did in it: for each layer, (B, H) by the names in `GATES`."""
        gates, h, c = zip(*self._pass(x, state, network), strict=True)
        return [dict(zip(GATES[self.cell], each, strict=True)) for each in gates], State(torch.stack(h), torch.stack(c))

    def _pass(self, x: Tensor, state: State, network: Tensor | None) -> Iterator[tuple[Parts, Tensor, Tensor]]:
        """Gates, h and c of each layer after this tick."""
        step = _lstm if self.cell == "lstm" else _gru
        for k, (from_x, from_h) in enumerate(self._layers):
            gates, h, c = step(from_x(x, network), from_h(state.h[k], network), state.h[k], state.c[k])
            yield gates, h, c
            x = h


def _lstm(from_x: Tensor, from_h: Tensor, _h: Tensor, c: Tensor) -> tuple[Parts, Tensor, Tensor]:
    i, f, g, o = (from_x + from_h).chunk(4, dim=1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + i * g
    return (i, f, g, o), o * torch.tanh(c), c


def _gru(from_x: Tensor, from_h: Tensor, h: Tensor, c: Tensor) -> tuple[Parts, Tensor, Tensor]:
    rx, zx, nx = from_x.chunk(3, dim=1)
    rh, zh, nh = from_h.chunk(3, dim=1)
    r, z = torch.sigmoid(rx + rh), torch.sigmoid(zx + zh)
    n = torch.tanh(nx + r * nh)
    return (r, z, n), (1 - z) * n + z * h, c
