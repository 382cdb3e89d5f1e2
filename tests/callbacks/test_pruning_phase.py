"""What the phases of pruning share: modes that they leave behind, and gradients that they drop."""

import warnings

import pytest
import torch
from torch import nn

from lightning_weights.callbacks import FinetunePruned, ScorePruning
from lightning_weights.callbacks._pruning_phase import drop_gradients
from lightning_weights.errors import LightningWeightsWarning
from tests.helpers.small_nets import classifier, loader
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker|val_d|eval mode).*"
)


def fit(model, callbacks, epochs=2, ckpt=None, **options):
    trainer = make_trainer(callbacks, max_epochs=epochs, **options)
    torch.manual_seed(1)
    trainer.fit(model, loader(), ckpt_path=ckpt)
    return trainer


def test_an_interrupted_phase_gives_batch_norm_its_mode_back():
    model = classifier()

    def training_step(batch, batch_idx):
        raise OSError("disk full")

    model.training_step = training_step
    with pytest.raises(OSError, match="disk full"):
        fit(model, [ScorePruning(0.5, train_bn=False)])
    assert all(part.training for part in model.modules())


def test_networks_in_evaluation_mode_are_warned_of():
    model = classifier()
    fit(model, [ScorePruning(0.5)])
    for callbacks in ([ScorePruning(0.5)], [FinetunePruned()]):
        model.eval()
        with pytest.warns(LightningWeightsWarning, match=r"network\.body\.2, network\.body\.6 is in evaluation mode"):
            fit(model, callbacks)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=LightningWeightsWarning)
        fit(classifier(), [FinetunePruned(1), ScorePruning(0.5, train_bn=False)])


def test_gradients_of_other_optimizers_stay():
    model = classifier()
    ScorePruning(0.5).attach(model)
    head, body = model.network.head, model.network.body
    first, second = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (body, head))
    nn.functional.cross_entropy(model(torch.ones(4, 4)), torch.tensor([0, 1, 2, 0])).backward()
    drop_gradients(first, [body[1].bias, head.bias])
    assert body[1].bias.grad is None
    assert head.bias.grad is not None
    drop_gradients(second, [head.bias])
    assert head.bias.grad is None
