import pytest
import torch
from _baselines import SI
from _harness import quiet_trainer
from _probes import UpdatedShare, numbers_kept
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.modules import MLP, Classifier


@pytest.mark.parametrize(("optimizer", "kept"), [("SGD", 0.0), ("Adagrad", 1.0), ("Adam", 2.0)])
def test_share_and_memory_of_optimizers(optimizer: str, kept: float) -> None:
    network = MLP(3, (), 2)
    network.head.weight.register_hook(lambda gradient: gradient * torch.tensor([1.0, 1.0, 0.0]))
    model = Classifier(network, 2, optimizer=lambda params: getattr(torch.optim, optimizer)(params, lr=0.1))
    share = UpdatedShare()
    data = TensorDataset(torch.randn(25, 3), torch.randint(2, (25,)))
    trainer = quiet_trainer(max_epochs=1, callbacks=[share])
    trainer.fit(model, DataLoader(data))
    assert len(share.shares) == 3
    assert share.mean() == pytest.approx(6 / 8)  # four of six weights, and both biases
    assert numbers_kept(trainer.optimizers[0]) == kept


def test_memory_of_callbacks_counts() -> None:
    model, si = Classifier(MLP(3, (), 2), 2), SI(strength=1.0, epochs_per_task=1)
    data = TensorDataset(torch.randn(4, 3), torch.randint(2, (4,)))
    trainer = quiet_trainer(max_epochs=1, callbacks=[si])
    trainer.fit(model, DataLoader(data))
    assert numbers_kept(trainer.optimizers[0], [si]) == 3.0
