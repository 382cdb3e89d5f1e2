"""Rescaling convolutions on the first batch of a fit."""

import importlib

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from lightning_weights.callbacks import CalibrateOnFirstBatch, ExactResume
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import Ponita
from tests.helpers.battery import NOISE, SaveAt, differing, outcome
from tests.helpers.tasks import make_trainer
from tests.helpers.tiny import ROOTS

pytestmark = pytest.mark.filterwarnings(NOISE)


class _Energy:
    """Trains on energies and forces, as a user's module would."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.network = Ponita(1, hidden_dim=4, num_layers=2, num_orientations=4, pooling="sum", random_grid="off")
        self.scales = []

    def training_step(self, batch, batch_idx):
        if not batch_idx:
            for block in self.network.blocks:
                block.conv.register_forward_hook(self._note)
        pos = batch["pos"][0].requires_grad_()
        energy = self.network(torch.ones(len(pos), 1), pos).scalars.sum()
        (force,) = torch.autograd.grad(energy, pos, create_graph=True)
        return force.square().sum() + energy.square()

    def _note(self, layer, inputs, output):
        if len(self.scales) < 2:
            self.scales.append(float(((output - layer.bias).std() / inputs[0].std()).detach()))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def module(root=ROOTS[0]):
    return type("Energy", (_Energy, importlib.import_module(root).LightningModule), {})()


def data():
    generator = torch.Generator().manual_seed(0)
    return DataLoader([{"pos": torch.randn(4, 3, generator=generator)} for _ in range(4)])


def fit(pl_module, *callbacks, root=ROOTS[0], ckpt=None, **options):
    torch.manual_seed(2)
    trainer = make_trainer([CalibrateOnFirstBatch(), ExactResume(), *callbacks], root, **{"max_epochs": 2, **options})
    trainer.fit(pl_module, data(), ckpt_path=ckpt)
    return trainer


@pytest.mark.parametrize("root", ROOTS)
def test_the_first_step_uses_calibrated_layers(root):
    pl_module = module(root)
    trainer = fit(pl_module, root=root)
    assert trainer.callbacks[0].state_dict() == {"layers": 2}
    assert pl_module.scales == pytest.approx([1.0, 1.0], rel=1e-5)
    assert all(bool(block.conv.calibrated) for block in pl_module.network.blocks)
    assert all(not block.conv._forward_pre_hooks for block in pl_module.network.blocks)


@pytest.mark.parametrize("root", ROOTS)
def test_a_resumed_fit_does_not_calibrate_again(root, tmp_path, monkeypatch):
    path = tmp_path / "middle.ckpt"
    straight = outcome(fit(module(root), SaveAt("on_train_batch_end", 6, path), root=root))
    monkeypatch.setattr("lightning_weights.modules.ponita.separable_fiber_conv._scale", lambda *_: 1e9)
    resumed = outcome(fit(module(root), root=root, ckpt=path))
    assert not differing(straight, resumed)


def test_layers_that_were_trained_without_calibration_stay(tmp_path):
    pl_module, trainer = module(), make_trainer([SaveAt("on_train_batch_end", 1, tmp_path / "1.ckpt")], max_steps=1)
    trainer.fit(pl_module, data())
    with pytest.warns(LightningWeightsWarning, match="trained for 1 steps without calibration"):
        resumed = fit(module(), ckpt=tmp_path / "1.ckpt", max_steps=2, max_epochs=-1)
    assert resumed.callbacks[0].state_dict() == {"layers": 0}


def test_what_was_calibrated_before_stays():
    pl_module = module()
    pl_module.network.calibrate(torch.ones(4, 1), torch.randn(4, 3))
    before = pl_module.network.blocks[0].conv.kernel.weight.clone()
    fit(pl_module, max_steps=1, max_epochs=-1)
    torch.testing.assert_close(pl_module.network.blocks[0].conv.kernel.weight, before, rtol=0, atol=3e-3)


def test_a_failing_first_batch_leaves_no_hooks():
    pl_module = module()
    pl_module.training_step = lambda batch, batch_idx: (_ for _ in ()).throw(KeyError("stop"))
    with pytest.raises(KeyError, match="stop"):
        fit(pl_module)
    assert all(not block.conv._forward_pre_hooks for block in pl_module.network.blocks)


def test_nothing_to_calibrate():
    pl_module = module()
    pl_module.network = nn.Linear(3, 1)
    with pytest.raises(MisconfigurationException, match="found no SeparableFiberConv in Energy"):
        fit(pl_module)
