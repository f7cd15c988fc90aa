"""The recurrent step against torch's own layers on the same weights."""

import pytest
import torch

from sentinel.model.cells import Cell, Recurrence, State

L, B, H, INPUTS, T = 2, 16, 8, 5, 7


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))],
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_steps_equal_torchs_own_layer_on_the_same_weights(cell: Cell, device: str) -> None:
    torch.manual_seed(0)
    layer = (torch.nn.LSTM if cell == "lstm" else torch.nn.GRU)(INPUTS, H, L).to(device)
    ours = Recurrence(cell, L, dict(layer.named_parameters()))
    x = torch.randn(T, B, INPUTS, device=device)
    state = State(torch.randn(L, B, H, device=device), torch.randn(L, B, H, device=device))
    with torch.no_grad():
        expected, _ = layer(x, (state.h, state.c) if cell == "lstm" else state.h)
        for t in range(T):
            state = ours.step(x[t], state)
            torch.testing.assert_close(state.h[-1], expected[t], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_step_leaves_its_arguments_as_they_were(cell: Cell) -> None:
    layer = (torch.nn.LSTM if cell == "lstm" else torch.nn.GRU)(INPUTS, H, L)
    ours = Recurrence(cell, L, dict(layer.named_parameters()))
    x, state = torch.randn(B, INPUTS), State(torch.randn(L, B, H), torch.randn(L, B, H))
    before = x.clone(), state.h.clone(), state.c.clone()
    with torch.no_grad():
        ours.step(x, state)
    assert torch.equal(before[0], x)
    assert torch.equal(before[1], state.h)
    assert torch.equal(before[2], state.c)
