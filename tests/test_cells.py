"""The recurrent step, and each network among several, against torch's own layers on the same weights."""

import pytest
import torch
from torch import Tensor

from sentinel.model.cells import Cell, Linear, Recurrence, State
from sentinel.model.forecaster import Forecaster, weight_shapes
from sentinel.records import ModelSpec

L, B, H, INPUTS, T = 2, 16, 8, 5, 7
NETWORKS, CHANNELS = 5, 3


def layer_of(cell: Cell, seed: int = 0) -> torch.nn.LSTM | torch.nn.GRU:
    torch.manual_seed(seed)
    return (torch.nn.LSTM if cell == "lstm" else torch.nn.GRU)(INPUTS, H, L)


def stacked(layers: list[torch.nn.LSTM | torch.nn.GRU]) -> dict[str, Tensor]:
    return {
        name: torch.stack([dict(layer.named_parameters())[name] for layer in layers]) for name in weights(layers[0])
    }


def weights(layer: torch.nn.LSTM | torch.nn.GRU) -> dict[str, Tensor]:
    return dict(layer.named_parameters())


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))],
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_steps_equal_torchs_own_layer_on_the_same_weights(cell: Cell, device: str) -> None:
    layer = layer_of(cell).to(device)
    ours = Recurrence(cell, L, stacked([layer]))
    x = torch.randn(T, B, INPUTS, device=device)
    state = State(torch.randn(L, B, H, device=device), torch.randn(L, B, H, device=device))
    with torch.no_grad():
        expected, _ = layer(x, (state.h, state.c) if cell == "lstm" else state.h)
        for t in range(T):
            state = ours.step(x[t], state)
            torch.testing.assert_close(state.h[-1], expected[t], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("outputs", range(1, 34))
def test_a_rows_product_does_not_depend_on_its_place_in_the_batch(outputs: int) -> None:
    generator = torch.Generator().manual_seed(outputs)
    for inputs in (8, 11, 32):
        made = Linear(*(torch.randn(1, *shape, generator=generator) for shape in ((outputs, inputs), (outputs,))))
        x = torch.randn(B, inputs, generator=generator)
        expected = made(x, None)
        for by in range(1, B):
            assert torch.equal(made(x.roll(by, 0), None), expected.roll(by, 0))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_step_leaves_its_arguments_as_they_were(cell: Cell) -> None:
    ours = Recurrence(cell, L, stacked([layer_of(cell), layer_of(cell, 1)]))
    x, state = torch.randn(B, INPUTS), State(torch.randn(L, B, H), torch.randn(L, B, H))
    network = torch.arange(B) % 2
    before = x.clone(), state.h.clone(), state.c.clone(), network.clone()
    with torch.no_grad():
        ours.step(x, state, network)
    for was, now in zip(before, (x, state.h, state.c, network), strict=True):
        assert torch.equal(was, now)


class TestNetworks:
    """Several networks in one batch, a row through its own."""

    network = torch.tensor([0, 1, 2, 3, 4, 4, 0, 2, 2, 1, 3, 0, 4, 1, 2, 3])

    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_each_row_steps_as_torchs_own_layer_with_the_weights_of_its_network(self, cell: Cell) -> None:
        layers = [layer_of(cell, seed) for seed in range(NETWORKS)]
        ours = Recurrence(cell, L, stacked(layers))
        x = torch.randn(T, B, INPUTS)
        state = State(torch.randn(L, B, H), torch.randn(L, B, H))
        with torch.no_grad():
            expected = torch.empty(T, B, H)
            for row, at in enumerate(self.network.tolist()):
                begun = (state.h[:, row], state.c[:, row]) if cell == "lstm" else state.h[:, row]
                expected[:, row], _ = layers[at](x[:, row], begun)
            for t in range(T):
                state = ours.step(x[t], state, self.network)
                torch.testing.assert_close(state.h[-1], expected[t], atol=1e-6, rtol=1e-6)

    def forecaster(self) -> Forecaster:
        spec = ModelSpec(hidden=H, layers=L, horizons=(1, 4))
        generator = torch.Generator().manual_seed(3)
        shapes = weight_shapes(spec, CHANNELS, calendar=False, bins=0)
        made = {name: torch.randn(NETWORKS, *shape, generator=generator) / 3 for name, shape in shapes.items()}
        return Forecaster(spec, CHANNELS, calendar=False, bins=0, weights=made)

    def given(self) -> tuple[Tensor, Tensor, State]:
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(B, 4 * CHANNELS + 1, generator=generator)
        state = State(torch.randn(L, B, H, generator=generator), torch.randn(L, B, H, generator=generator))
        return x, torch.randn(B, CHANNELS, generator=generator), state

    def test_rows_of_a_batch_are_bit_equal_to_rows_one_by_one(self) -> None:
        """As they are run: a batch is padded to 16 rows, whoever is in them."""
        made, (x, y, state) = self.forecaster(), self.given()
        with torch.no_grad():
            ahead, after = made.step(x, state, self.network)
            cross = made.cross(y, state, self.network)
            for row in range(B):
                at, only = torch.zeros(B, dtype=torch.int64), torch.zeros(B, dtype=torch.int64)
                at[0], only[0] = row, self.network[row]
                keep = (torch.arange(B) == 0).float()
                alone = State(state.h[:, at] * keep[:, None], state.c[:, at] * keep[:, None])
                one, then = made.step(x[at] * keep[:, None], alone, only)
                assert torch.equal(one[0], ahead[row])
                assert torch.equal(then.h[:, 0], after.h[:, row])
                assert torch.equal(then.c[:, 0], after.c[:, row])
                assert torch.equal(made.cross(y[at] * keep[:, None], alone, only)[0], cross[row])

    def test_heads_and_the_cross_head_are_those_of_the_rows_network(self) -> None:
        made, (x, y, state) = self.forecaster(), self.given()
        for at in range(NETWORKS):
            single = {name: weight[at : at + 1] for name, weight in made.weights.items()}
            alone = Forecaster(made.spec, CHANNELS, calendar=False, bins=0, weights=single)
            rows = self.network == at
            with torch.no_grad():
                ahead, _ = made.step(x, state, self.network)
                torch.testing.assert_close(ahead[rows], alone.step(x, state)[0][rows], atol=1e-6, rtol=1e-5)
                cross = made.cross(y, state, self.network)
                torch.testing.assert_close(cross[rows], alone.cross(y, state)[rows], atol=1e-6, rtol=1e-5)
                # A channel is never told from itself.
                torch.testing.assert_close(
                    made.cross(y + torch.tensor([9.0, 0, 0]), state, self.network)[:, 0], cross[:, 0]
                )
