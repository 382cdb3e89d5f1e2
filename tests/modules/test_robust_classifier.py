"""The LightningModule around TRADES: logs, evaluation under attack, checkpoints."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.functional.attacks import pgd_attack
from lightning_weights.modules import MLP, RobustClassifier, TradesLoss

SILENT = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def loader():
    x = torch.rand(32, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0.5).long()), batch_size=16)


def model(**options):
    torch.manual_seed(0)
    network = nn.Sequential(MLP(8, (16,), 2, dropout=0.1))
    adversary = TradesLoss(epsilon=0.05, step_size=0.02, steps=2)
    return RobustClassifier(network, 2, adversary, **options)


def test_trains_and_logs_both_accuracies(tmp_path):
    robust = model(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    trainer = Trainer(max_epochs=30, default_root_dir=tmp_path, **SILENT)
    trainer.fit(robust, loader(), loader())
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged.keys() == {"train/loss", "val/loss", "val/accuracy", "val/adversarial_accuracy"}
    assert logged["val/accuracy"] > 0.8
    assert 0.3 < logged["val/adversarial_accuracy"] <= logged["val/accuracy"]
    assert robust.training
    path = tmp_path / "robust.ckpt"
    trainer.save_checkpoint(path)
    loaded = RobustClassifier.load_from_checkpoint(path, network=nn.Sequential(MLP(8, (16,), 2)), weights_only=True)
    assert loaded.hparams == {"num_classes": 2, "attack_steps": 10, "attack_restarts": 1}
    x = next(iter(loader()))[0]
    assert torch.equal(loaded.eval()(x), robust.eval()(x))


def test_adversarial_accuracy_is_that_of_the_attack(tmp_path):
    robust = model(attack_steps=4, attack_restarts=2)
    (logged,) = Trainer(default_root_dir=tmp_path, **SILENT).test(robust, loader(), verbose=False)
    robust.eval()
    right, attacked_right, losses = 0, 0, []
    for x, y in loader():
        attacked = pgd_attack(
            robust.network,
            x,
            y,
            epsilon=0.05,
            step_size=0.0125,
            steps=4,
            restarts=2,
            generator=torch.Generator().manual_seed(0),
        )
        right += (robust(x).argmax(1) == y).sum().item()
        attacked_right += (robust(attacked).argmax(1) == y).sum().item()
        losses.append(nn.functional.cross_entropy(robust(x), y).item())
    assert logged["test/accuracy"] == pytest.approx(right / 32)
    assert logged["test/adversarial_accuracy"] == pytest.approx(attacked_right / 32)
    assert logged["test/loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_default_optimizer_decays_nothing():
    optimizer = model().configure_optimizers()
    assert (optimizer.defaults["weight_decay"], optimizer.defaults["nesterov"]) == (0, True)


def test_bounds_per_channel_reach_the_evaluation():
    lists = {"epsilon": [0.1, 0.2], "step_size": [0.05, 0.1], "clip_min": [-1.0, -2.0], "clip_max": [1.0, 2.0]}
    robust = RobustClassifier(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), 2, TradesLoss(**lists, steps=1))
    seen = []
    robust.log_dict = lambda values, **_: seen.append(values)
    x = torch.zeros(3, 2, 4)
    assert robust.validation_step((x, torch.tensor([0, 1, 0])), 0)["preds"].shape == (3, 2)
    assert math.isfinite(seen[0]["val/adversarial_accuracy"])


@pytest.mark.parametrize(("argument", "value"), [("num_classes", 1), ("attack_steps", -1), ("attack_restarts", 0)])
def test_bad_input(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value}"):
        RobustClassifier(nn.Linear(2, 2), **{argument: value})
