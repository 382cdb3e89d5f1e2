"""Statistics of batch normalisations for patched weights, under a Trainer."""

import importlib
from functools import partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from lightning_weights.callbacks import RWSPatch
from lightning_weights.modules import patched
from tests.callbacks.rws_cases import images, make_module, save_signatures
from tests.helpers.tasks import make_trainer
from tests.helpers.tiny import ROOTS
from tests.modules.signature_cases import SmallResNet, bits, same_bits, signature_of

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|LeafSpec|GPU|logging interval|returned `?None).*")


@pytest.fixture
def files(tmp_path):
    """Return a function that saves signatures of a network and gives their paths."""
    return partial(save_signatures, tmp_path)


@pytest.mark.parametrize("fit", [True, False])
def test_statistics_are_reestimated_on_training_data(files, fit):
    network = SmallResNet()
    before = bits(network)
    module = make_module(network)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    module.train_dataloader = lambda: DataLoader(images(), batch_size=4)
    patch = RWSPatch(files(network), bn="reestimate", bn_batches=2)
    trainer = make_trainer([patch], max_epochs=1)
    trainer.fit(module) if fit else trainer.validate(module)
    if not fit:
        assert same_bits(network, before)
    network.load_state_dict(before)
    with torch.no_grad(), patched(network.eval(), signature_of(SmallResNet(), 0, 16)) as controller:
        controller.reestimate(module.train_dataloader(), 2)
        expected = [network(x) for x, _ in module.val_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(module.seen["validate"], expected, strict=True))


class Busy(Callback):
    """Lets the training loader look as if its workers served one pass at a time."""

    def on_validation_start(self, trainer, pl_module) -> None:
        trainer.train_dataloader.__dict__["persistent_workers"] = True


def test_statistics_without_training_data_or_with_busy_workers(files):
    network = SmallResNet()
    path, before = files(network), bits(network)
    root = importlib.import_module(ROOTS[0]).LightningModule
    module = make_module(network, train_dataloader=root.train_dataloader)
    with pytest.raises(MisconfigurationException, match="train_dataloader"):
        make_trainer([RWSPatch(path, bn="reestimate")]).validate(module)
    assert same_bits(network, before)
    loader = DataLoader(images(), batch_size=4)
    with pytest.raises(ValueError, match=r"persistent workers.*give a data module"):
        make_trainer([Busy(), RWSPatch(path, bn="reestimate")], max_epochs=1).fit(make_module(SmallResNet()), loader)


def test_statistics_are_those_of_the_whole_modules_forward(files):
    network = SmallResNet()
    module = make_module(network, forward=lambda self, x: self.net(3 * x - 1))
    module.train_dataloader = lambda: DataLoader(images(), batch_size=4)
    make_trainer([RWSPatch(files(network), bn="reestimate", network="net")]).test(module)
    with torch.no_grad(), patched(network, signature_of(SmallResNet(), 0, 16)) as controller:
        controller.reestimate([3 * x - 1 for x, _ in module.train_dataloader()])
        expected = [module.eval()(x) for x, _ in module.val_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(module.seen["test"], expected, strict=True))
