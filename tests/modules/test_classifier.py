"""The classifier in a Trainer, from Python and from LightningCLI."""

import copy
import pickle
from functools import partial

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningCLI, ReduceLROnPlateau
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from lightning_weights.data import PermutedDigits
from lightning_weights.modules import MLP, Classifier
from lightning_weights.optimizers.classp import CLASSP

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def trainer(tmp_path, **arguments):
    return Trainer(**{**QUIET, "max_steps": 3, "default_root_dir": tmp_path, "limit_val_batches": 2, **arguments})


def small(**arguments):
    torch.manual_seed(0)
    return Classifier(MLP(hidden=(8,)), **arguments)


class Outputs(Callback):
    """Keep what the validation steps return, per loader."""

    def __init__(self):
        self.seen = {}

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen.setdefault(dataloader_idx, []).append(outputs)


def test_logged_values_match_sklearn_per_loader(tmp_path):
    outputs, model = Outputs(), small()
    run = trainer(tmp_path, callbacks=[outputs], limit_val_batches=None)
    # 70 images: the last batch is smaller, so a mean of batch means would be wrong
    data = PermutedDigits(num_tasks=3, test_size=70, batch_size=32)
    run.validate(model, data, verbose=False)
    for index, loader in enumerate(data.val_dataloader()):
        images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
        logits = model(images).detach()
        logged = {name: run.callback_metrics[f"val/{name}/dataloader_idx_{index}"] for name in ("loss", "accuracy")}
        assert logged["accuracy"].item() == pytest.approx(accuracy_score(labels, logits.argmax(1)))
        assert logged["loss"].item() == pytest.approx(log_loss(labels, logits.double().softmax(1)), rel=1e-5)
        returned = outputs.seen[index]
        assert len(returned) == 3
        assert set(returned[0]) == {"loss", "preds", "target"}
        torch.testing.assert_close(torch.cat([output["preds"] for output in returned]), logits)
        assert torch.equal(torch.cat([output["target"] for output in returned]), labels)


def test_names_of_the_logged_values(tmp_path):
    run, data = trainer(tmp_path, max_steps=-1, max_epochs=1, limit_train_batches=2), PermutedDigits(num_tasks=1)
    run.fit(small(), data)
    assert set(run.callback_metrics) == {"train/loss", "val/loss", "val/accuracy"}
    run.test(small(), data, verbose=False)
    assert set(run.callback_metrics) == {"test/loss", "test/accuracy"}


def test_training_equals_a_plain_loop(tmp_path):
    model, plain = small(optimizer=partial(torch.optim.SGD, lr=0.05)), small().network
    trainer(tmp_path, max_steps=5).fit(model, PermutedDigits())
    data = PermutedDigits()
    data.setup()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    for _, (images, labels) in zip(range(5), data.train_dataloader(), strict=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    for ours, theirs in zip(model.network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_default_optimizer():
    optimizer = small().configure_optimizers()
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_schedulers(tmp_path):
    step = small(lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5))
    run = trainer(tmp_path, max_steps=-1, max_epochs=2, limit_train_batches=1)
    run.fit(step, PermutedDigits(num_tasks=1))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 4)
    plateau = small(lr_scheduler=partial(ReduceLROnPlateau, monitor="val/loss"))
    assert plateau.configure_optimizers()["lr_scheduler"]["monitor"] == "val/loss"


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_loss_can_be_replaced():
    x, y = torch.rand(4, 64), torch.arange(4)
    model = small(loss=nn.CrossEntropyLoss(label_smoothing=0.5))
    expected = nn.functional.cross_entropy(model(x), y, label_smoothing=0.5)
    assert torch.equal(model.training_step((x, y), 0), expected)


def test_wrong_number_of_classes_is_named():
    for wrong in (1, 2.5, "3", None):
        with pytest.raises(ValueError, match=rf"^num_classes is {wrong!r}; allowed is a whole number in \[2, inf\)$"):
            Classifier(MLP(), num_classes=wrong)
    with pytest.raises(ValueError, match=r"`preds.shape\[1\]` should be equal to number of classes"):
        Classifier(MLP(num_classes=3)).validation_step((torch.rand(2, 64), torch.tensor([0, 1])), 0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(duplicate):
    model, x = small(), torch.rand(2, 64)
    assert torch.equal(duplicate(model)(x), model(x))


def test_checkpoint_holds_plain_values_and_loads(tmp_path):
    model, run = small(num_classes=10), trainer(tmp_path)
    run.fit(model, PermutedDigits())
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"] == {"num_classes": 10}
    loaded = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", network=MLP(hidden=(8,)))
    for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Run LightningCLI in subclass mode on a small model, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    # the CLI warns about arguments on the command line of pytest
    monkeypatch.setattr("sys.argv", ["cli"])

    def run(*arguments, command="fit", optimizer=None):
        config = {
            "seed_everything": 0,
            "trainer": {**QUIET, "max_steps": 3, "limit_val_batches": 1, "limit_test_batches": 1},
            "model": {
                "class_path": "lightning_weights.modules.Classifier",
                "init_args": {"network": {"class_path": "lightning_weights.modules.MLP", "init_args": {"hidden": [8]}}},
            },
            "data": {"class_path": "lightning_weights.data.PermutedDigits", "init_args": {"num_tasks": 2}},
        }
        if optimizer:
            config["model"]["init_args"]["optimizer"] = optimizer
        (tmp_path / "given.yaml").write_text(yaml.safe_dump(config))
        return LightningCLI(
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            args=[command, "--config", "given.yaml", *arguments],
        )

    return run


def defaults_but(optimizer, lr):
    """Return the optimizer's own defaults with another learning rate."""
    group = optimizer([nn.Parameter(torch.zeros(1))], lr=lr).param_groups[0]
    return {name: value for name, value in group.items() if name != "params"}


ROUTES = {
    "model, in yaml": {
        "optimizer": {"class_path": "lightning_weights.optimizers.classp.CLASSP", "init_args": {"lr": 0.05}}
    },
    "model, by short name": {"arguments": ["--model.optimizer=CLASSP", "--model.optimizer.lr=0.05"]},
    "top level": {"arguments": ["--optimizer=CLASSP", "--optimizer.lr=0.05"]},
    "top level wins": {
        "arguments": ["--optimizer=CLASSP", "--optimizer.lr=0.05"],
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.3}},
    },
}


@pytest.mark.filterwarnings("ignore:`Classifier.configure_optimizers` will be overridden")
@pytest.mark.parametrize("route", ROUTES)
def test_optimizer_from_the_command_line(cli, route):
    result = cli(*ROUTES[route].get("arguments", []), optimizer=ROUTES[route].get("optimizer"))
    (optimizer,) = result.trainer.optimizers
    assert isinstance(optimizer, CLASSP)
    group = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    # everything but the learning rate stays as the optimizer has it: nothing leaks in from another optimizer
    assert group == defaults_but(CLASSP, lr=0.05)
    assert result.trainer.global_step == 3


def test_scheduler_from_the_command_line(cli):
    result = cli("--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=4", "--model.loss=CrossEntropyLoss")
    (config,) = result.trainer.lr_scheduler_configs
    assert config.scheduler.step_size == 4
    assert config.interval == "epoch"
    assert type(result.trainer.optimizers[0]) is torch.optim.SGD


def test_checkpoint_from_the_command_line_is_tested(cli):
    path = cli("--model.optimizer=CLASSP").trainer.checkpoint_callback.best_model_path
    result = cli("--ckpt_path", path, command="test")
    trained = torch.load(path, weights_only=True)["state_dict"]
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, trained[name])
    assert "test/accuracy/dataloader_idx_1" in result.trainer.callback_metrics


@pytest.mark.parametrize("argument", ["model.depth", "model.network.depth", "data.depth"])
def test_wrong_argument_is_named(cli, capsys, argument):
    with pytest.raises(SystemExit):
        cli(f"--{argument}=3")
    assert "depth" in capsys.readouterr().err


def test_printed_config_is_read_back_unchanged(cli, capsys, tmp_path):
    printed = []
    for arguments in (["--model.optimizer=CLASSP"], ["--config", "printed.yaml"]):
        with pytest.raises(SystemExit):
            cli(*arguments, "--print_config")
        printed.append(capsys.readouterr().out)
        (tmp_path / "printed.yaml").write_text(printed[0])
    assert "lightning_weights" in printed[0]
    assert printed[0] == printed[1]
