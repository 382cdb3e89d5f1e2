"""When the head is clipped and aligned, what is refused, and what a checkpoint knows about it."""

import csv
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import WeightAligning
from lightning_weights.errors import LightningWeightsWarning
from tests.helpers.battery import NOISE
from tests.helpers.tiny import ROOTS

pytestmark = pytest.mark.filterwarnings(NOISE)


class _Net:
    """Three old classes and two new ones; batches show the new ones far more often."""

    def __init__(self, bias: bool = False, relu: bool = True, **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU() if relu else nn.Tanh())
        self.head = nn.Linear(8, 5, bias=bias)
        vars(self).update(attributes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def net(root: str = ROOTS[0], **options: Any) -> Any:
    return type("Net", (_Net, importlib.import_module(root).LightningModule), {})(**options)


def batches() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    y = torch.tensor([0, 3, 4, 3, 1, 4, 3, 4, 2, 3, 4, 4]).repeat(4)
    x = nn.functional.one_hot(y % 4, 4) * 2.0 + torch.randn(len(y), 4, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=6)  # eight batches


def fit(callbacks: list[Any], module: Any = None, root: str = ROOTS[0], ckpt: Any = None, **options: Any) -> Any:
    options = {"max_epochs": 3, "logger": False, "accelerator": "cpu", "devices": 1, **options}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = importlib.import_module(root).Trainer(callbacks=callbacks, **quiet, **options)
    module = net(root) if module is None else module
    trainer.fit(module, batches(), ckpt_path=ckpt, weights_only=True)
    return trainer


class Watch(Callback):
    """Keeps the head as it is after every batch, and as it is just before the callbacks after this one end the fit."""

    def __init__(self) -> None:
        self.smallest: list[float] = []
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.smallest.append(pl_module.head.weight.min().item())
        self.steps.append(trainer.global_step)

    def on_train_end(self, trainer, pl_module):
        self.weight = pl_module.head.weight.detach().clone()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("root", ROOTS)
def test_no_weight_is_negative_after_any_step(root, accumulate):
    watch = Watch()
    fit([WeightAligning(num_old=3), watch], root=root, accumulate_grad_batches=accumulate)
    after = [low for low, step in zip(watch.smallest, watch.steps, strict=True) if step]
    assert len(after) == 24 - (accumulate - 1)
    assert min(after) >= 0.0
    unclipped = Watch()
    fit([WeightAligning(num_old=3, clip=False), unclipped], root=root)
    assert min(unclipped.smallest) < 0.0


@pytest.mark.parametrize("root", ROOTS)
def test_new_rows_get_the_mean_norm_of_the_old_ones(root):
    watch, aligning, module = Watch(), WeightAligning(num_old=3), net(root)
    fit([watch, aligning], module, root)
    before, after = watch.weight.double(), module.head.weight.detach().double()
    norms = before.norm(dim=1)
    gamma = (norms[:3].mean() / norms[3:].mean()).item()
    assert aligning.gammas == [pytest.approx(gamma, rel=1e-9)]
    assert gamma < 1
    assert torch.equal(after[:3], before[:3])
    torch.testing.assert_close(after[3:], gamma * before[3:], rtol=1e-6, atol=0)
    assert after.norm(dim=1)[3:].mean().item() == pytest.approx(norms[:3].mean().item(), rel=1e-6)


def test_decisions_flip_from_new_to_old_only():
    watch, module = Watch(), net()
    fit([watch, WeightAligning(num_old=3)], module)
    with torch.no_grad():
        features = module.body(torch.randn(2000, 4) * 2)
        before, after = features @ watch.weight.T, module.head(features)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    old, new = before.argmax(1), after.argmax(1)
    flipped = old != new
    assert flipped.any()
    assert (old[flipped] >= 3).all()
    assert (new[flipped] < 3).all()
    assert torch.equal(before[:, 3:].argmax(1), after[:, 3:].argmax(1))


def test_a_fit_without_old_classes_is_clipped_only():
    watch, aligning, module = Watch(), WeightAligning(), net(num_old=0)
    fit([watch, aligning], module)
    assert torch.equal(watch.weight, module.head.weight)
    assert watch.weight.min() >= 0
    assert aligning.gammas == []


@pytest.mark.parametrize("where", ["constructor", "module", "layer"])
def test_where_the_number_of_old_classes_comes_from(where):
    module = net()
    if where != "constructor":
        (module if where == "module" else module.head).num_old = 3
    aligning = WeightAligning(num_old=3 if where == "constructor" else None)
    fit([aligning], module)
    assert (aligning.old_classes, len(aligning.gammas)) == (3, 1)


def test_without_aligning_nobody_needs_to_know_it():
    watch, module = Watch(), net()
    fit([watch, WeightAligning(align=False)], module)
    assert torch.equal(watch.weight, module.head.weight)


def test_a_bias_takes_part_if_it_is_included():
    module, watch = net(bias=True), Watch()
    kept = {}
    watch.on_train_end = lambda trainer, module: kept.update(bias=module.head.bias.detach().clone())
    fit([watch, (aligning := WeightAligning(num_old=3, include_bias=True))], module)
    assert kept["bias"].min() >= 0
    assert torch.equal(module.head.bias[:3], kept["bias"][:3])
    torch.testing.assert_close(module.head.bias[3:], kept["bias"][3:] * aligning.gammas[0])
    with pytest.warns(LightningWeightsWarning, match="has a bias, which is neither clipped nor aligned"):
        fit([WeightAligning(num_old=3)], net(bias=True))


def test_negative_features_are_warned_about_when_clipping(recwarn):
    with pytest.warns(LightningWeightsWarning, match="end the backbone with a ReLU, or use clip=False"):
        fit([WeightAligning(num_old=3)], net(relu=False))
    recwarn.clear()
    fit([WeightAligning(num_old=3, clip=False)], net(relu=False))
    module = net()
    fit([WeightAligning(num_old=3)], module)
    assert not [warning for warning in recwarn if warning.category is LightningWeightsWarning]
    assert not module.head._forward_pre_hooks, "the module is left as it was"


def test_features_given_by_name_are_looked_at():
    class ByName(_Net):
        def forward(self, x):
            return self.head(input=self.body(x))

    module = type("Net", (ByName, importlib.import_module(ROOTS[0]).LightningModule), {})(relu=False)
    with pytest.warns(LightningWeightsWarning, match="end the backbone with a ReLU"):
        fit([WeightAligning(num_old=3)], module)


def test_a_fit_that_fails_leaves_no_hook_behind():
    class Fails(_Net):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError

    module = type("Net", (Fails, importlib.import_module(ROOTS[0]).LightningModule), {})()
    aligning = WeightAligning(num_old=3)
    with pytest.raises(ArithmeticError):
        fit([aligning], module)
    assert not module.head._forward_pre_hooks
    aligning._watch = module.head.register_forward_pre_hook(print)  # as a fit leaves it that nobody told of its end
    aligning.setup(None, module, "fit")
    assert not module.head._forward_pre_hooks


def test_weights_that_another_layer_has_too_are_refused():
    module = net()
    module.embedding = nn.Embedding(5, 8)
    module.embedding.weight = module.head.weight
    before = module.head.weight.detach().clone()
    with pytest.raises(ValueError, match="'head' shares its weights with 'embedding', which would change too"):
        fit([WeightAligning(num_old=3)], module)
    assert torch.equal(module.head.weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifier": "fc"}, r"classifier is 'fc', .* is not there; layers that can be aligned: body.0, head"),
        ({"classifier": "body.1"}, r"is a ReLU, without a plain 2-d weight; layers that can be aligned: body.0, head"),
        ({"num_old": 5}, r"num_old is 5, but 'head' has 5 outputs: nothing to align; allowed are 1 to 4"),
        ({"num_old": None}, r"neither Net nor its layer 'head' has a num_old"),
    ],
)
def test_what_cannot_be_aligned_is_refused_before_training(options, message):
    module = net()
    before = module.head.weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        fit([WeightAligning(**{"num_old": 3, **options})], module)
    assert torch.equal(module.head.weight, before)


@pytest.mark.parametrize(("name", "value"), [("num_old", 0), ("num_old", 1.5), ("classifier", ""), ("classifier", 3)])
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        WeightAligning(**{name: value})


def test_a_dead_head_is_named():
    class Dies(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            pl_module.head.weight.data[3:] = -1.0

    with pytest.raises(ValueError, match=r"new classes, 3 to 4, have a mean norm of 0.0.* lower it"):
        fit([Dies(), WeightAligning(num_old=3)])


def test_a_finished_run_is_not_aligned_again_and_a_continued_one_is(tmp_path):
    aligning, module = WeightAligning(num_old=3), net()
    fit([aligning], module).save_checkpoint(tmp_path / "finished")
    weight = module.head.weight.detach().clone()

    again, resumed = WeightAligning(num_old=3), net()
    trainer = fit([again], resumed, ckpt=tmp_path / "finished")
    again.finish(trainer, resumed)
    assert torch.equal(resumed.head.weight, weight)
    assert again.gammas == aligning.gammas

    further = WeightAligning()  # the checkpoint knows how many classes are old
    fit([further], net(num_old=3), ckpt=tmp_path / "finished", max_epochs=4)
    assert further.gammas[:1] == aligning.gammas
    assert len(further.gammas) == 2


class SaveLast(Callback):
    def __init__(self, path: Any) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


def test_a_run_that_ended_before_the_alignment_is_finished_later(tmp_path):
    straight, module = WeightAligning(num_old=3), net()
    fit([straight, SaveLast(tmp_path / "last")], module)
    late, resumed = WeightAligning(num_old=3), net()
    trainer = fit([late], resumed, ckpt=tmp_path / "last")
    late.finish(trainer, resumed)
    assert torch.equal(resumed.head.weight, module.head.weight)
    assert late.gammas == straight.gammas


def test_a_checkpoint_is_aligned_in_its_file(tmp_path):
    aligning, module, path = WeightAligning(num_old=3), net(), tmp_path / "last"
    fit([aligning, SaveLast(path)], module)
    assert WeightAligning().align_checkpoint(path) == aligning.gammas[0]
    checkpoint = torch.load(path, weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["head.weight"], module.head.weight)
    assert checkpoint["callbacks"][aligning.state_key] == aligning.state_dict()
    assert [file.name for file in tmp_path.iterdir()] == ["last"]
    resumed, other = net(), WeightAligning(num_old=3)
    other.finish(fit([other], resumed, ckpt=path), resumed)
    assert torch.equal(resumed.head.weight, module.head.weight)


def test_a_checkpoint_without_the_classifier_or_its_old_classes_is_refused(tmp_path):
    path = tmp_path / "plain"
    fit([SaveLast(path)])
    with pytest.raises(ValueError, match=r"'fc', but the matrices in .* are: body.0.weight, head.weight"):
        WeightAligning("fc", num_old=3).align_checkpoint(path)
    with pytest.raises(ValueError, match="was trained without this callback; give num_old"):
        WeightAligning().align_checkpoint(path)
    assert WeightAligning(num_old=3).align_checkpoint(path) != 1.0


def test_norms_and_gamma_are_logged(tmp_path):
    aligning = WeightAligning(num_old=3)
    trainer = fit([aligning], logger=CSVLogger(tmp_path), log_every_n_steps=4)
    with Path(trainer.logger.log_dir, "metrics.csv").open() as file:
        logged = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert len(logged) == 24 / 4 + 1
    last, aligned = logged[-2:]
    assert last["weights/weight_align/gamma"] == pytest.approx(aligning.gammas[0])
    assert aligned["weights/weight_align/gamma"] == aligning.gammas[0]
    assert aligned["weights/weight_align/norm_new"] == pytest.approx(aligned["weights/weight_align/norm_old"])
