"""The command `stack`: a config gives models of several seeds, their stack, and what an ensemble is made of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_weights.__main__ import main
from lightning_weights.cli import run
from lightning_weights.data import OutOfFold
from lightning_weights.modules import StackingEnsemble
from tests.helpers.battery import NOISE

pytestmark = pytest.mark.filterwarnings(NOISE)

CONFIG = Path(__file__).parents[1] / "configs" / "regularized_stacking.yaml"
STACK = {
    "class_path": "lightning_weights.modules.RegularizedStacking",
    "init_args": {"learners": ["ridge"], "n_folds": 3, "tau_corr": 1.0},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-weights"])


def quick() -> str:
    """Write the shipped config with less of everything, and return its path."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["trainer"] |= {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    config["data"]["init_args"] = {"num_rows": 90, "test_rows": 20}
    Path("given.yaml").write_text(yaml.safe_dump(config))
    return "given.yaml"


def test_a_config_gives_models_their_stack_and_an_ensemble(monkeypatch):
    options = {"n_folds": 2, "seeds": [0, 1], "folder": "there", "stacking": STACK}
    Path("stack.yaml").write_text(yaml.safe_dump({**yaml.safe_load(Path(quick()).read_text()), **options}))
    first = run(["stack", "--config", "stack.yaml"])
    report = json.loads(Path("there/report.json").read_text())
    assert report["rmse"].keys() == report["test_rmse"].keys() == {"seed 0", "seed 1", "mean of the models", "stack"}
    assert first.runner.fitted.learners == ["ridge"]
    assert not Path("results").exists(), "folds do not write the file of a fit"
    ensemble = StackingEnsemble(report["members"], "there/stack.safetensors", template=first.model)
    x, y = first.datamodule.test_dataloader().dataset.tensors
    found = ensemble(x)
    assert (found - y).square().mean().sqrt().item() == pytest.approx(report["test_rmse"]["stack"], rel=1e-5)
    weights = [member[0].network.head.weight for member in ensemble.members]
    assert not any(torch.equal(weight, weights[0]) for weight in weights[1:])
    monkeypatch.setattr("lightning.pytorch.Trainer._run", pytest.fail)
    assert run(["stack", "--config", "there/config.yaml"]).runner.run() == report


def test_what_is_refused_leaves_no_settings_behind():
    with pytest.raises(ValueError, match=r"seeds is \[0\]"):
        run(["stack", "--config", quick(), "--seeds", "[0]", "--folder", "there"])
    assert not Path("there").exists()


def test_fit_writes_what_the_network_predicts():
    run(["fit", "--config", quick()])
    found = OutOfFold.load("results/regularized_stacking/validation.pt")
    assert found.predictions.shape == (20, 1)


def test_help_describes_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["stack", "--help"])
    text = capsys.readouterr().out
    assert "Trains with several seeds, once per fold" in text
    for argument in ("--folder", "--seeds", "--n_folds", "--stacking"):
        assert argument in text
