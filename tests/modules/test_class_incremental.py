"""A module whose classes arrive in groups: loss, frozen model, checkpoints and what it logs."""

import copy
from collections import UserList
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.modules import ClassIncrementalModule
from tests.helpers.battery import NOISE

pytestmark = pytest.mark.filterwarnings(NOISE)


def module(**options: Any) -> ClassIncrementalModule:
    backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
    return ClassIncrementalModule(backbone, 6, **{"lr": 0.05, "milestones": (), **options})


class Blobs(LightningDataModule):
    """Points around a corner per class; batches of one step's classes and one sample of each old one."""

    def __init__(self, num_old: int, num_new: int) -> None:
        super().__init__()
        self.num_old, self.num_new = num_old, num_new

    def loader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(self.num_old)
        y = torch.arange(24) % (self.num_old + self.num_new)
        x = nn.functional.one_hot(y % 4, 4) * 3.0 + torch.randn(24, 4, generator=generator)
        return DataLoader(TensorDataset(x, y), batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = loader


def fit(model: ClassIncrementalModule, num_old: int, num_new: int, ckpt: Any = None, **options: Any) -> Trainer:
    options = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "accelerator": "cpu", **options}
    trainer = Trainer(
        devices=1, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, **options
    )
    trainer.fit(model, datamodule=Blobs(num_old, num_new), ckpt_path=ckpt, weights_only=True)
    return trainer


def loss_in_float64(logits, teacher_logits, y, temperature, weight):
    logits, teacher_logits = logits.double(), teacher_logits.double()
    ce = -logits.log_softmax(1)[torch.arange(len(y)), y].mean()
    known = teacher_logits.shape[1]
    q = (logits[:, :known] / temperature).log_softmax(1)
    kd = -((teacher_logits / temperature).softmax(1) * q).sum(1).mean()
    return (1 - weight) * ce + weight * kd


@pytest.mark.parametrize(("kd_weight", "expected"), [("auto", 2 / 5), (0.7, 0.7), (0.0, 0.0)])
def test_the_loss_is_that_of_the_paper(kd_weight, expected):
    model = module(kd_weight=kd_weight, temperature=3.0)
    model.begin_step(2)
    model.backbone[0].weight.data += 1.0
    teacher = copy.deepcopy(nn.Sequential(model.backbone, model.head)).eval()
    model.begin_step(3)
    model.backbone[0].weight.data -= 0.5
    x, y = torch.randn(8, 4), torch.arange(8) % 5
    twin = copy.deepcopy(model)
    loss = model.training_step((x, y), 0)
    assert loss.item() == pytest.approx(loss_in_float64(twin(x), teacher(x), y, 3.0, expected).item(), rel=1e-6)


@pytest.mark.parametrize("kd_weight", ["auto", 0.5])
def test_the_first_step_is_cross_entropy_bit_for_bit(kd_weight):
    model = module(kd_weight=kd_weight)
    model.begin_step(3)
    twin = copy.deepcopy(model)
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    assert torch.equal(model.training_step((x, y), 0), nn.functional.cross_entropy(twin(x), y))


def test_the_frozen_model_stays_as_it_was():
    model = module()
    fit(model, 0, 2)
    model.begin_step(2)
    x = torch.randn(5, 4)
    with torch.no_grad():
        before, own = model._teacher[0](x), model.eval()(x)[:, :2]
    torch.testing.assert_close(before, own, rtol=1e-6, atol=1e-6)  # it is the model as the last step left it
    model.train()
    fit(model, 2, 2)
    teacher = model._teacher[0]
    assert torch.equal(teacher(x), before), "neither trained nor its running statistics moved"
    assert not any(param.requires_grad for param in teacher.parameters())
    assert not teacher.training
    mine = {id(param) for param in model.parameters()}
    assert not mine & {id(param) for param in teacher.parameters()}
    assert not any("teacher" in name for name in model.state_dict())


def test_growing_keeps_the_old_logits():
    model = module().eval()
    model.begin_step(2)
    x = torch.randn(5, 4)
    before = model(x)
    model.begin_step(3)
    torch.testing.assert_close(model(x)[:, :2], before, rtol=1e-6, atol=1e-6)
    assert (model.num_old, model.increments, model.head.out_features) == (2, [2, 3], 5)


def test_checkpoints_hold_head_and_frozen_model(tmp_path):
    model = module()
    fit(model, 0, 2)
    model.begin_step(3)
    trainer = fit(model, 2, 3)
    trainer.save_checkpoint(tmp_path / "ckpt")
    other = module()
    restored = ClassIncrementalModule.load_from_checkpoint(
        tmp_path / "ckpt", backbone=other.backbone, weights_only=True
    )
    assert (restored.increments, restored.head.out_features) == ([2, 3], 5)
    assert restored.hparams.temperature == 2.0
    x = torch.randn(5, 4)
    assert torch.equal(restored.eval()(x), model.eval()(x))
    assert torch.equal(restored._teacher[0](x), model._teacher[0](x))


def test_a_resumed_second_step_ends_in_the_same_bits(tmp_path):
    model = module()
    fit(model, 0, 2)
    model.begin_step(2)
    straight, half = copy.deepcopy(model), model
    fit(straight, 2, 2, max_epochs=4)
    fit(half, 2, 2, max_epochs=2).save_checkpoint(tmp_path / "ckpt")
    resumed = module()  # its head is empty, and there is no frozen model
    fit(resumed, 2, 2, ckpt=tmp_path / "ckpt", max_epochs=4)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_an_empty_head_begins_with_the_data_and_others_must_fit_it():
    model = module()
    fit(model, 0, 3)
    assert model.increments == [3]
    with pytest.raises(ValueError, match=r"3 outputs for 5 classes; call begin_step"):
        fit(model, 3, 2)
    empty = module()
    loader = Blobs(0, 2).loader()
    with pytest.raises(ValueError, match="0 outputs for 0 classes"):
        Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu").fit(empty, loader)


def test_labels_that_the_head_does_not_know_are_named():
    model = module()
    model.begin_step(2)
    with pytest.raises(ValueError, match="allowed are 0 to 1"):
        model.training_step((torch.randn(3, 4), torch.tensor([0, 1, 2])), 0)


def test_accuracies_of_old_and_new_classes_are_logged():
    model = module()
    first = fit(model, 0, 2).callback_metrics
    assert "val/accuracy" in first
    assert "val/accuracy_old" not in first
    model.begin_step(2)
    trainer = fit(model, 2, 2)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    x, y = Blobs(2, 2).loader().dataset.tensors
    with torch.no_grad():
        right = (model.eval()(x).argmax(1) == y).double()
    assert logged["val/accuracy"] == pytest.approx(right.mean().item())
    assert logged["val/accuracy_old"] == pytest.approx(right[y < 2].mean().item())
    assert logged["val/accuracy_new"] == pytest.approx(right[y >= 2].mean().item())
    assert logged["train/loss"] > 0
    (tested,) = trainer.test(model, datamodule=Blobs(2, 2), verbose=False)
    assert tested["test/accuracy_old"] == logged["val/accuracy_old"]


def test_every_fit_has_a_fresh_optimizer_and_schedule():
    model = module(milestones=UserList([1]), gamma=0.5, weight_decay=0.01, momentum=0.8)
    (optimizer,), (schedule,) = model.configure_optimizers()
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.05, 0.8, 0.01)
    assert dict(schedule.milestones) == {1: 1}
    assert model.hparams.milestones == [1]
    again = model.configure_optimizers()[0][0]
    assert again is not optimizer


def test_another_optimizer_and_scheduler_may_be_given():
    model = module(
        optimizer=lambda params: torch.optim.Adam(params, lr=0.3),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 7),
    )
    (optimizer,), (schedule,) = model.configure_optimizers()
    assert (type(optimizer), optimizer.defaults["lr"], schedule.step_size) == (torch.optim.Adam, 0.3, 7)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("kd_weight", 1.0), ("kd_weight", "some"), ("lr", -1.0), ("milestones", "ten")],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        module(**{name: value})
    with pytest.raises(ValueError, match="num_new is 0"):
        module().begin_step(0)
