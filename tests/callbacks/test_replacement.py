"""Which linear layers another may take the place of."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_weights.callbacks import BoneFinetuning, GradNormLoRP
from lightning_weights.errors import LightningWeightsWarning

METHODS = {
    "bone": lambda **names: BoneFinetuning(r=2, **names),
    "lowrank": lambda **names: GradNormLoRP(r=2, **names),
    "full": lambda **names: GradNormLoRP(mode="full", **names),
}
HIDDEN = ["linear1", "linear2"]


@pytest.fixture
def slow_path():
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "compute",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        parametrizations.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "parametrization", "pruned weight", "pruned bias"],
)
def test_computed_weights_are_refused_before_anything_changes(compute, method):
    network = nn.Sequential(nn.Linear(4, 4), compute(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="1 has a weight or bias that something else computes"):
        METHODS[method]().attach(network)
    assert type(network[0]) is nn.Linear
    assert all(param.requires_grad for param in network.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_an_encoder_reads_instead_of_calling_are_refused(method):
    with pytest.raises(ValueError, match=r"0.linear1 belongs to a TransformerEncoderLayer.*set_fastpath_enabled"):
        METHODS[method](target_modules=HIDDEN).attach(nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8)))


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_that_calls_its_layers_counts_what_they_learned(slow_path, method):
    torch.manual_seed(0)
    encoder, x = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), torch.randn(2, 3, 4)
    before = encoder.eval()(x)
    METHODS[method](target_modules=HIDDEN).attach(encoder)
    with torch.no_grad():
        for name, param in encoder.named_parameters():
            if name.endswith(("bone_block", "magnitude", "factor_i")):
                param.add_(0.5)
        evaluated, trained = encoder.eval()(x), encoder.train()(x)
    torch.testing.assert_close(evaluated, trained)
    assert not torch.allclose(evaluated, before, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_hooks_that_go_with_a_layer_are_told(method):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].register_forward_hook(lambda *arguments: None)
    with pytest.warns(LightningWeightsWarning, match="^1 had hooks"):
        METHODS[method]().attach(network)
