"""The paper's settings for data sets that a user brings: the numbers, and a short run on files of that format."""

from pathlib import Path

import pytest
import yaml

from lightning_weights.cli import run
from tests.helpers.battery import NOISE
from tests.helpers.fake_files import write_cifar10, write_mnist, write_tiny_image_net

pytestmark = pytest.mark.filterwarnings(NOISE)

CONFIGS = Path(__file__).parents[2] / "configs"
WRITERS = {"mnist": write_mnist, "cifar10": write_cifar10, "tinyimagenet": write_tiny_image_net}


def values(name):
    """Return the hyper-parameters of a config as the paper's table lists them."""
    config = yaml.safe_load((CONFIGS / f"ibp_warmup_{name}.yaml").read_text())
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    schedule, loss = model["schedule"]["init_args"], model["loss"]["init_args"]
    return {
        "eps": schedule["max_eps"],
        "batch": data["batch_size"] * trainer.get("accumulate_grad_batches", 1),
        "parts": trainer.get("accumulate_grad_batches", 1),
        "epochs": trainer["max_epochs"],
        "ramp": (schedule["start_epoch"], schedule["ramp_epochs"]),
        "drops": (*model["lr_milestones"], model["lr_gamma"]),
        "lambda": loss["reg_lambda"],
        "mean": model.get("mean"),
        "std": model.get("std"),
        "crop": data.get("crop_padding"),
        "common": (model["lr"], loss["tol"], trainer["gradient_clip_val"], config["seed_everything"]),
    }


COMMON = {"common": (5e-4, 0.5, 10.0, 100)}
PAPER = {
    "mnist": {
        **{"eps": 0.4, "batch": 256, "parts": 1, "epochs": 70, "ramp": (1, 20), "drops": (50, 60, 0.2)},
        **{"lambda": 0.5, "mean": None, "std": None, "crop": None},
    },
    "cifar10": {
        **{"eps": 0.03137, "batch": 128, "parts": 1, "epochs": 160, "ramp": (2, 80), "drops": (120, 140, 0.2)},
        **{"lambda": 0.5, "mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010], "crop": 2},
    },
    "tinyimagenet": {
        **{"eps": 0.00392, "batch": 128, "parts": 2, "epochs": 80, "ramp": (2, 20), "drops": (61, 71, 0.2)},
        **{"lambda": 0.2, "mean": [0.4802, 0.4481, 0.3975], "std": [0.2302, 0.2265, 0.2262], "crop": 4},
    },
}


@pytest.mark.parametrize("name", PAPER)
def test_numbers_are_the_papers(name):
    assert values(name) == PAPER[name] | COMMON


@pytest.mark.parametrize("name", PAPER)
def test_training_runs_on_files_of_the_format(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    WRITERS[name](tmp_path)
    options = {
        "data.folder": tmp_path,
        "data.batch_size": 3,
        "model.net.width": 2,
        "model.net.linear_size": 4,
        "model.schedule.start_epoch": 1,
        "model.schedule.ramp_epochs": 1,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 2,
        "trainer.limit_train_batches": 2,
        "trainer.limit_val_batches": 1,
        "trainer.logger": "false",
        "trainer.enable_checkpointing": "false",
        "trainer.enable_progress_bar": "false",
    }
    config = CONFIGS / f"ibp_warmup_{name}.yaml"
    trainer = run(["fit", "--config", str(config), *(f"--{key}={value}" for key, value in options.items())]).trainer
    assert trainer.global_step == 2 * 2 // trainer.accumulate_grad_batches
    assert 0 <= trainer.callback_metrics["val/verified_error"] <= 1
