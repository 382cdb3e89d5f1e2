"""PONITA's settings at full size: the paper's numbers, and a short run on tiny data."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_weights.cli import run
from tests.helpers.battery import NOISE
from tests.helpers.fake_molecules import write_qm9, write_rmd17

pytestmark = pytest.mark.filterwarnings(NOISE)

CONFIGS = Path(__file__).parents[2] / "configs"
COMMON = {"degree": 3, "widening": 4, "scale": None, "lr": 5e-4, "clip": 0.5, "ema": 0.99, "pooling": "sum"}
NO_DATA = {"lambda": None, "data": (None, None, None)}
PAPER = {
    "rmd17": {
        **{"O": 20, "C": 128, "B": 256, "layers": 5, "readouts": True, "epochs": 5000, "warmup": 100, "batch": 5},
        **{"decay": 1e-16, "lambda": 500.0, "turned": ["pos", "forces"], "data": ("aspirin", 0, "meV")},
    },
    "qm9": {
        **{"O": 16, "C": 256, "B": 256, "layers": 9, "readouts": False, "epochs": 1000, "warmup": 10, "batch": 96},
        **{"decay": 1e-10, "turned": ["pos"], **NO_DATA},
    },
    "nbody": {
        **{"O": 16, "C": 128, "B": 256, "layers": 5, "readouts": True, "epochs": 10000, "warmup": 10, "batch": 100},
        **{"decay": 1e-10, "turned": ["pos", "vec", "y"], **NO_DATA},
        **{"lr": 1e-3, "scale": 1e-6, "ema": None, "pooling": "none"},
    },
    "qm9_generation": {
        **{"O": 12, "C": 256, "B": 256, "layers": 9, "readouts": False, "epochs": 1000, "warmup": 0, "batch": 96},
        **{"decay": 1e-12, "turned": ["pos"], "pooling": "none", **NO_DATA},
    },
}


def values(name):
    """Return the hyper-parameters of a config as the paper's table lists them."""
    config = yaml.safe_load((CONFIGS / f"ponita_{name}.yaml").read_text())
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    network, adam = model["network"]["init_args"], model["optimizer"]["init_args"]
    callbacks = {entry["class_path"].split(".")[-1]: entry.get("init_args") for entry in trainer["callbacks"]}
    schedule = model["lr_scheduler"]["init_args"]
    assert schedule.get("max_epochs", schedule.get("T_max")) == trainer["max_epochs"]
    assert model["optimizer"]["class_path"] == f"torch.optim.Adam{'W' * (name == 'qm9_generation')}"
    return {
        "O": network["num_orientations"],
        "C": network["hidden_dim"],
        "B": network["basis_dim"],
        "layers": network["num_layers"],
        "readouts": network["multiple_readouts"],
        "degree": network["degree"],
        "widening": network["widening_factor"],
        "scale": network["layer_scale"],
        "pooling": network["pooling"],
        "epochs": trainer["max_epochs"],
        "warmup": schedule.get("warmup_epochs", 0),
        "clip": trainer["gradient_clip_val"],
        "batch": data["batch_size"],
        "lr": adam["lr"],
        "decay": adam["weight_decay"],
        "ema": callbacks.get("EMAWeightAveraging", {}).get("decay"),
        "turned": callbacks["RotateBatch"]["fields"],
        "lambda": model.get("lambda_force"),
        "data": (data.get("molecule"), data.get("split"), data.get("unit")),
    }


@pytest.mark.parametrize("name", PAPER)
def test_numbers_are_the_papers(name):
    assert values(name) == COMMON | PAPER[name]


def test_noise_is_that_of_the_authors_later_code():
    model = yaml.safe_load((CONFIGS / "ponita_qm9_generation.yaml").read_text())["model"]["init_args"]
    noise = {"sigma_data": 1.0, "noise_mean": -1.2, "noise_std": 1.2, "sigma_max": 1.0, "steps": 40, "churn": 10.0}
    assert {key: model[key] for key in noise} == noise
    assert model["type_scale"] == 4.0


def test_particles_are_as_many_and_as_late_as_in_the_paper():
    data = yaml.safe_load((CONFIGS / "ponita_nbody.yaml").read_text())["data"]
    assert (data["class_path"], data["init_args"]["train_size"]) == ("lightning_weights.data.NBody", 3000)
    assert not {"bodies", "input_steps", "horizon", "dt", "max_force"} & data["init_args"].keys()


@pytest.mark.parametrize("name", PAPER)
def test_training_runs_on_files_of_the_format(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "rmd17":
        write_rmd17(tmp_path, "aspirin")
        options = {"data.split": 1}
    elif name == "nbody":
        options = {f"data.{part}_size": 6 for part in ("train", "val", "test")}
        options |= {"data.batch_size": 2, "data.input_steps": 5, "data.horizon": 5}
        options["trainer.check_val_every_n_epoch"] = 1
    else:
        write_qm9(tmp_path, molecules=120)
        options = {"data.train_size": 100, "data.val_size": 10, "data.batch_size": 20}
    options |= {
        "data.folder": tmp_path,
        "model.network.hidden_dim": 4,
        "model.network.basis_dim": 4,
        "model.network.num_layers": 1,
        "model.network.num_orientations": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.limit_train_batches": 3,
        "trainer.limit_val_batches": 1,
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
    }
    config = CONFIGS / f"ponita_{name}.yaml"
    trainer = run(["fit", "--config", str(config), *(f"--{key}={value}" for key, value in options.items())]).trainer
    assert trainer.global_step == 3
    monitored = trainer.callback_metrics[trainer.checkpoint_callback.monitor]
    assert torch.isfinite(monitored)
    assert Path(trainer.checkpoint_callback.best_model_path).is_file()
