"""One recurrent step over a batch of devices, on the weights of `torch.nn.LSTM` or `torch.nn.GRU`.

Axes: B rows in the batch, one device each; I inputs; H hidden units; L layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Cell = Literal["lstm", "gru"]


@dataclass(frozen=True, slots=True)
class State:
    """Recurrent state of B devices, one row each. Never modified; a step makes a new one.

    Attributes:
        h: hidden state, (L, B, H).
        c: cell state, (L, B, H); for a GRU it is carried along untouched.
    """

    h: Tensor
    c: Tensor


class Recurrence:
    """Stacked cells. Holds weights only: whose state it is, is the caller's business."""

    def __init__(self, cell: Cell, layers: int, weights: Mapping[str, Tensor]) -> None:
        """Take the weights under the names that `torch.nn.LSTM` and `torch.nn.GRU` give them."""
        self.cell: Cell = cell
        self.layers = layers
        # Transposed once, so that each step is a plain row-major product.
        self._layers = [
            (
                weights[f"weight_ih_l{k}"].t().contiguous(),
                weights[f"weight_hh_l{k}"].t().contiguous(),
                weights[f"bias_ih_l{k}"],
                weights[f"bias_hh_l{k}"],
            )
            for k in range(layers)
        ]

    def step(self, x: Tensor, state: State) -> State:
        """Advance B devices by one tick.

        Args:
            x: inputs, (B, I).
            state: as of the tick before.

        Returns:
            The state after this tick; its top layer, `h[-1]`, is the output.

        Source: LSTM with forget gate, Gers, Schmidhuber and Cummins 2000; GRU, Cho et al. 2014
        (reset gate after the product, as `torch.nn.GRU`); gate order as in torch.
        """
        step = _lstm if self.cell == "lstm" else _gru
        hs, cs = [], []
        for k, weights in enumerate(self._layers):
            h, c = step(x, state.h[k], state.c[k], *weights)
            hs.append(h)
            cs.append(c)
            x = h
        return State(torch.stack(hs), torch.stack(cs))


def _lstm(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    gates = torch.addmm(b_ih, x, w_ih) + torch.addmm(b_hh, h, w_hh)
    i, f, g, o = gates.chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    from_x, from_h = torch.addmm(b_ih, x, w_ih), torch.addmm(b_hh, h, w_hh)
    rx, zx, nx = from_x.chunk(3, dim=1)
    rh, zh, nh = from_h.chunk(3, dim=1)
    z = torch.sigmoid(zx + zh)
    n = torch.tanh(nx + torch.sigmoid(rx + rh) * nh)
    return (1 - z) * n + z * h, c
