"""A β for every layer, chosen on held-out data."""

import copy

import pytest
import torch
from torch import nn

from lightning_weights.functional.column_solver import FOEMConfig
from lightning_weights.modules import QuantizedLinear, quantize, sweep_beta
from tests.helpers.blocks import token_batches, transformer

CONFIG = FOEMConfig(bits=3, group_size=8)
BETAS = [0.0, 0.1, 0.3]

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer calibration tokens.*")


def test_every_layer_gets_the_beta_with_the_smallest_held_out_error():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8))
    mixing = torch.randn(32, 32)
    calibration, held_out = torch.randn(24, 32) @ mixing, torch.randn(400, 32) @ mixing
    found = copy.deepcopy(network)
    sweep = sweep_beta(found, [calibration], BETAS, [held_out], CONFIG, progress=False)
    errors = {}
    for beta in BETAS:
        single = copy.deepcopy(network)
        quantize(single, [calibration], FOEMConfig(bits=3, group_size=8, beta=beta), targets="0", progress=False)
        outputs = [held_out @ net[0].weight.detach().T for net in (network, single)]
        errors[beta] = float((outputs[1] - outputs[0]).square().sum() / outputs[0].square().sum())
        if beta == sweep.betas["0"]:
            assert torch.equal(single[0].weight, found[0].weight)
    assert sweep.errors["0"] == pytest.approx(errors, rel=1e-4)
    for name, beta in sweep.betas.items():
        assert beta == min(sweep.errors[name], key=sweep.errors[name].get)
    assert sweep.betas["0"] > 0.0, "with few tokens the pull helps on others"
    assert [row.name for row in sweep.report.layers] == ["0", "2"]
    assert sweep.report.layers[0].tokens == 24


def test_layers_that_share_inputs_share_a_beta_and_one_beta_is_foem():
    network, batches = transformer(), token_batches()
    swept, plain = copy.deepcopy(network), copy.deepcopy(network)
    sweep = sweep_beta(swept, batches[:3], [0.1], batches[3:], CONFIG, blocks="layers", export="packed", progress=False)
    quantize(plain, batches[:3], CONFIG, blocks="layers", export="packed", progress=False)
    assert isinstance(swept.layers[0].q, QuantizedLinear)
    assert all(torch.equal(a, b) for a, b in zip(swept.state_dict().values(), plain.state_dict().values(), strict=True))
    assert sweep.errors["layers.0.q"] == sweep.errors["layers.0.k"]
    assert set(sweep.betas.values()) == {0.1}


@pytest.mark.parametrize(
    ("betas", "holdout", "message"),
    [
        ([], token_batches(1), "betas is empty"),
        ([0.1], [], "holdout is empty"),
        ([2.0], token_batches(1), "beta is 2.0"),
    ],
)
def test_wrong_arguments(betas, holdout, message):
    with pytest.raises(ValueError, match=message):
        sweep_beta(transformer(), token_batches(), betas, holdout, CONFIG, progress=False)


def test_grouped_convolutions_are_refused():
    with pytest.raises(ValueError, match="0 are convolutions with groups"):
        sweep_beta(nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)), [torch.ones(1, 4, 8)], [0.1], [torch.ones(1, 4, 8)])
