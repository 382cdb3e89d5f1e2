"""Any network, trained on numbers."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.modules import MLP, Regressor
from tests.helpers.battery import NOISE
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(NOISE, "ignore:.*(self.trainer|val_dataloader).*")

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = 50 + 10 * X[:, 0]


def test_losses_are_in_units_of_the_standard_deviation_and_errors_in_those_of_the_targets():
    module = Regressor(MLP(3, (4,), num_classes=1), mean=50.0, std=10.0)
    loader, trainer = DataLoader(TensorDataset(X, Y), batch_size=6), make_trainer([])
    mse = (module(X)[:, 0] - Y).square().mean().item()
    outputs = module.validation_step((X, Y), 0)
    assert torch.equal(outputs["preds"], module(X))
    assert torch.equal(outputs["target"].flatten(), Y)
    assert module.training_step((X, Y), 0).item() == pytest.approx(mse / 100, rel=1e-5)
    for stage, evaluate in (("val", trainer.validate), ("test", trainer.test)):
        (found,) = evaluate(module, loader, verbose=False)
        assert found[f"{stage}/mse"] == pytest.approx(mse, rel=1e-5)
        assert found[f"{stage}/loss"] == pytest.approx(mse / 100, rel=1e-5)
    assert torch.equal(torch.cat(trainer.predict(module, loader)), torch.cat([module(part) for part in X.split(6)]))


def test_it_learns_a_line():
    module = Regressor(nn.Linear(3, 1), 50.0, 10.0, lambda params: torch.optim.Adam(params, lr=0.1))
    make_trainer([], max_epochs=60).fit(module, DataLoader(TensorDataset(X, Y), batch_size=20))
    assert (module(X)[:, 0] - Y).abs().max() < 1.0
    assert isinstance(Regressor(nn.Linear(3, 1)).configure_optimizers(), torch.optim.Adam)


def test_several_outputs_and_wrong_ones():
    assert Regressor(nn.Linear(3, 2)).training_step((X, torch.zeros(20, 2)), 0).shape == ()
    with pytest.raises(ValueError, match=r"predictions of shape \(20, 2\) for targets of shape \(20,\)"):
        Regressor(nn.Linear(3, 2)).training_step((X, Y), 0)
    for arguments, told in (({"std": 0.0}, "std is 0.0"), ({"mean": float("nan")}, "mean is nan")):
        with pytest.raises(ValueError, match=told):
            Regressor(nn.Linear(3, 1), **arguments)
