"""The command `quantize`: a config that trains a network also quantizes it."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from lightning_weights.__main__ import main
from lightning_weights.cli import run
from tests.helpers.battery import NOISE

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.filterwarnings("ignore:.*fewer calibration tokens.*")]

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-weights"])


def quick(name: str) -> str:
    """Write a shipped config that calibrates with few samples and measures with few, and return its path."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    config["trainer"] |= {"max_epochs": 1, "limit_test_batches": 2, "limit_train_batches": 4, "logger": False}
    config["trainer"]["check_val_every_n_epoch"] = 1
    for callback in config["trainer"]["callbacks"]:
        if "num_samples" in callback.get("init_args", {}):
            callback["init_args"]["num_samples"] = 64
    Path("given.yaml").write_text(yaml.safe_dump(config))
    return "given.yaml"


def test_what_a_config_has_trained_is_quantized_and_starting_again_goes_on():
    path = quick("rescomp")
    run(["fit", "--config", path])
    (checkpoint,) = Path().rglob("trained*.ckpt")
    command = ["quantize", "--config", path, "--ckpt_path", str(checkpoint), "--folder", "there"]
    first = run(command)
    report = json.loads(Path("there/report.json").read_text())
    assert {"before", "after", "layers"} <= report.keys()
    assert yaml.safe_load(Path("there/config.yaml").read_text())["folder"] == "there"
    assert first.runner.callback.done
    trained, state = torch.load(checkpoint, weights_only=True)["state_dict"], first.model.state_dict()
    kept = [key for key, value in state.items() if key in trained and torch.equal(value, trained[key])]
    assert any("bias" in key for key in kept)
    # what is shown may change: results do not
    again = run([*command, "--compare", "false"])
    assert all(torch.equal(value, state[key]) for key, value in again.model.state_dict().items())


def test_help(capsys):
    with pytest.raises(SystemExit):
        main(["quantize", "--help"])
    text = capsys.readouterr().out
    assert "Quantizes a trained network, and evaluates it before and after." in text
    for argument in ("--folder", "--ckpt_path", "--compare"):
        assert argument in text
