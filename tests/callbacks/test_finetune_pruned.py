"""FinetunePruned in a fit of its own: masks stand still, pruned weights stay zero, the rest trains as usual."""

import copy

import pytest
import torch
from torch import nn

from lightning_weights.callbacks import FinetunePruned, ScorePruning
from lightning_weights.modules import ScoreMask, make_pruning_permanent
from tests.helpers.small_nets import classifier, loader
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker|val_d).*"
)

OPTIMIZERS = {
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda params: torch.optim.AdamW(params, lr=0.01),
}


def fit(model, callbacks, epochs=2):
    torch.manual_seed(1)
    make_trainer(callbacks, max_epochs=epochs).fit(model, loader())


def pruned():
    model = classifier(hidden=(16, 12))
    fit(model, [ScorePruning(0.3)], epochs=1)
    return model


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_stay_zero_and_scores_keep_every_bit(optimizer):
    model = pruned()
    before = copy.deepcopy(dict(model.named_parameters()))
    model.optimizer = OPTIMIZERS[optimizer]
    fit(model, [FinetunePruned()], epochs=3)
    for name, mask in [(name, part) for name, part in model.named_modules() if isinstance(part, ScoreMask)]:
        original = model.get_submodule(name.rpartition(".")[0]).original
        assert torch.equal(mask.scores, before[f"{name}.scores"])
        assert not original[~mask.mask].any()
        assert (original != before[f"{name.rpartition('.')[0]}.original"])[mask.mask].all()
    assert not torch.equal(model.network.head.bias, before["network.head.bias"])


def test_it_trains_as_a_plain_network_would_whose_gradients_are_masked():
    model = pruned()
    plain = make_pruning_permanent(copy.deepcopy(model.network)).train()
    holes = [layer.weight == 0 for layer in plain.modules() if isinstance(layer, nn.Linear)]
    fit(model, [FinetunePruned()], epochs=1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    for x, y in loader():
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        weights = [layer.weight for layer in plain.modules() if isinstance(layer, nn.Linear)]
        for weight, hole in zip(weights, holes, strict=True):
            weight.grad[hole] = 0.0
        optimizer.step()
    for name, value in make_pruning_permanent(model.network).state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name])


def test_without_masks_there_is_nothing_to_train():
    with pytest.raises(ValueError, match=r"FinetunePruned found no score masks .* ScorePruning\(\.\.\.\)\.attach"):
        fit(classifier(), [FinetunePruned()])
    model = classifier()
    ScorePruning(0.3).attach(model)
    with pytest.raises(ValueError, match=r"masks that keep every weight: .* ScorePruning\(\.\.\.\)\.prune"):
        fit(model, [FinetunePruned()])
