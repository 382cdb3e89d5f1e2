"""Two trainings from one start: alike but for the data, and the best robust epoch."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_weights.callbacks import ExactResume
from lightning_weights.data import Corrupted, Digits
from lightning_weights.modules import VGG, Classifier, extract_rws
from lightning_weights.runners import SignatureTrainer
from lightning_weights.runners.signature import _KeepBest

OPTIONS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
OPTIONS |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "limit_train_batches": 3, "max_epochs": 3}
NOISE = {"corruption": "gaussian_noise", "strength": {"gaussian_noise": 0.5}}


class Watch(Callback):
    """Notes what training sees and what validation finds; copies write into the same lists."""

    labels, inputs, scores, weights = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.inputs.append(batch[0])
        self.labels.append(batch[1])

    def on_validation_end(self, trainer, pl_module):
        self.scores.append(float(trainer.callback_metrics["val/accuracy"]))
        self.weights.append(copy.deepcopy(pl_module.state_dict()))


@pytest.fixture
def watch(monkeypatch):
    for name in ("labels", "inputs", "scores", "weights"):
        monkeypatch.setattr(Watch, name, [])
    return Watch()


def network():
    torch.manual_seed(5)
    return Classifier(VGG(in_channels=1, stages=[[4], [6]]))


def digits():
    return Digits(batch_size=50, as_images=True, validation_size=100)


def trained(watch=None, **options):
    callbacks = [] if watch is None else [watch]
    module, data = network(), digits()
    return SignatureTrainer({**OPTIONS, "callbacks": callbacks}, module, data, **NOISE, **options).run(), module


def test_both_see_the_same_images_in_the_same_order(watch):
    trained(watch)
    half = len(watch.labels) // 2
    assert half == 9
    assert all(torch.equal(a, b) for a, b in zip(watch.labels[:half], watch.labels[half:], strict=True))
    changes = torch.cat(watch.inputs[half:]) - torch.cat(watch.inputs[:half])
    assert 0.2 < changes.std() < 0.5
    expected = Corrupted(digits(), **NOISE).train_dataloader().dataset.__getitems__(range(1197))[0]
    plain = digits().train_dataloader().dataset.__getitems__(range(1197))[0]
    for clean, corrupted in zip(watch.inputs[0], watch.inputs[half], strict=True):
        (place,) = (plain == clean).flatten(1).all(1).nonzero()[:, 0].tolist()
        assert torch.equal(corrupted, expected[place])


def test_weights_come_from_start_last_and_best_epoch(watch):
    networks, module = trained(watch)
    start = network().state_dict()
    for name, value in start.items():
        assert torch.equal(networks.pretrained[name], value)
        assert torch.equal(module.state_dict()[name], value)
        assert torch.equal(networks.standard[name], watch.weights[2][name])
    robust = watch.scores[3:]
    best = robust.index(max(robust))
    assert networks.score == robust[best]
    assert all(torch.equal(networks.robust[name], watch.weights[3 + best][name]) for name in start)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_best_depends_on_the_mode(mode):
    best, sign = _KeepBest("loss", mode), 1 if mode == "min" else -1
    network, kept = nn.Linear(1, 1), []
    for score in (float("nan"), 2.0 * sign, 1.0 * sign, float("nan"), 3.0 * sign, 1.0 * sign):
        trainer = SimpleNamespace(sanity_checking=False, callback_metrics={"loss": torch.tensor(score)})
        trainer.strategy = SimpleNamespace(broadcast=lambda value: value)
        with torch.no_grad():
            network.weight.fill_(len(kept))
        best.on_validation_end(trainer, network)
        kept.append(best.weights["weight"].item() if best.weights else None)
    assert kept == [None, 1, 2, 2, 2, 2]
    assert best.score == sign


def test_a_run_is_repeatable_and_gives_a_signature():
    (one, _), (two, _) = trained(), trained()
    for left, right in zip(one[:3], two[:3], strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)
    signature = extract_rws(*one[:3], corruption="gaussian_noise", severity=5)
    assert signature.name == "gaussian_noise-5"
    other = SignatureTrainer(OPTIONS, network(), digits(), **NOISE, seed=1).run()
    assert torch.equal(other.standard["network.head.weight"], one.standard["network.head.weight"])
    assert not torch.equal(other.robust["network.head.weight"], one.robust["network.head.weight"])


def test_files_and_checkpoints(tmp_path):
    networks, module = trained(folder=str(tmp_path))
    for name, weights in zip(networks._fields, networks[:3], strict=False):
        found = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"]
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], weights[key]) for key in found)
    with torch.no_grad():
        module.network.head.weight.zero_()
    data, start = digits(), str(tmp_path / "pretrained.ckpt")
    again = SignatureTrainer(OPTIONS, module, data, **NOISE, ckpt_path=start).run()
    assert torch.equal(again.robust["network.head.weight"], networks.robust["network.head.weight"])
    assert not module.network.head.weight.any()


class Kill(Callback):
    """Ends the program at the beginning of an epoch, counted over both trainings."""

    left = 0

    def on_train_epoch_start(self, trainer, pl_module):
        type(self).left -= 1
        if self.left == 0:
            raise Killed


class Killed(Exception):
    """As a signal would."""


def run_in(folder, epochs_to_live, **options):
    Kill.left = epochs_to_live
    given = {**OPTIONS, "limit_train_batches": 2, "max_epochs": 2, "callbacks": [Kill(), ExactResume()]}
    arguments = {**NOISE, "folder": str(folder), **options}
    return SignatureTrainer(given, network(), digits(), **arguments).run()


def test_a_run_that_was_killed_goes_on(tmp_path):
    expected = run_in(tmp_path / "whole", 0)
    for end in (2, 2, 2):  # in the middle of the standard training, at the robust one's beginning, and in its middle
        with pytest.raises(Killed):
            run_in(tmp_path / "killed", end)
    found = run_in(tmp_path / "killed", 0)
    assert Kill.left == -1
    for resumed in (found, run_in(tmp_path / "killed", 1)):  # there is nothing left to train
        assert resumed.score == expected.score
        for one, other in zip(resumed[:3], expected[:3], strict=True):
            assert all(torch.equal(one[name], other[name]) for name in other)
    with pytest.raises(ValueError, match=r"was begun with other settings: seed, severity\. Give another folder"):
        run_in(tmp_path / "killed", 0, seed=1, severity=3)


def test_what_is_not_logged_is_told():
    with pytest.raises(ValueError, match=r"monitor is 'val/f1', which validation does not log; .*'val/accuracy'"):
        trained(monitor="val/f1")


def test_no_validation_is_told():
    with pytest.raises(ValueError, match="validation has never given a number"):
        SignatureTrainer({**OPTIONS, "limit_val_batches": 0}, network(), digits(), **NOISE).run()


REFUSED = {
    "seed": ({"seed": -1}, "seed is -1"),
    "mode": ({"mode": "largest"}, "mode is 'largest'"),
    "corruption": ({"corruption": "rain"}, "corruption is 'rain'"),
    "severity": ({"severity": 9}, "severity is 9"),
    "options": ({"corrupted_options": {"parts": ["all"]}}, "an entry of parts is 'all'"),
    "spawn": ({"trainer_kwargs": {"strategy": "ddp_spawn"}}, "strategy is 'ddp_spawn', whose processes end"),
    "barebones": ({"trainer_kwargs": {"barebones": True}}, "trainer_kwargs has barebones=True"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(arguments, message):
    given = {"trainer_kwargs": OPTIONS, "module": Classifier(nn.Identity()), "datamodule": digits(), **NOISE}
    with pytest.raises(ValueError, match=message):
        SignatureTrainer(**{**given, "strength": None, **arguments})
