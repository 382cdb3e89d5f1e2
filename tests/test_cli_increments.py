"""The command `increments`: a config drives the runner, and starting it again goes on."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_weights.__main__ import main
from lightning_weights.cli import run
from tests.helpers.battery import NOISE
from tests.helpers.commands import keep_commands

pytestmark = pytest.mark.filterwarnings(NOISE)

CONFIG = Path(__file__).parents[1] / "configs" / "weight_align.yaml"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-weights"])
    keep_commands(monkeypatch, "fit", "increments")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder in which the config was trained into `there`, and what the command line made."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["lightning-weights"])
        return folder, run(["increments", "--config", quick(), "--folder", "there"])


@pytest.fixture
def first(trained):
    """What the command line made that has trained a copy of everything in this folder."""
    shutil.copytree(trained[0], ".", dirs_exist_ok=True)
    return trained[1]


def quick(**changes: Any) -> str:
    """Write the shipped config with one epoch and two groups, and return its path."""
    config = yaml.safe_load(CONFIG.read_text())
    config["trainer"] |= {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "limit_val_batches": 1}
    config["trainer"]["check_val_every_n_epoch"] = 1
    config["data"]["init_args"]["increments"] = [2, 2]
    Path("given.yaml").write_text(yaml.safe_dump({**config, **changes}))
    return "given.yaml"


def test_a_config_trains_all_groups_and_starting_again_trains_nothing(first, monkeypatch, caplog):
    results = json.loads(Path("there/results.json").read_text())
    assert results["accuracy"] == first.runner.results.accuracy
    assert len(results["accuracy"]) == 2
    assert first.model.increments == [2, 2]
    assert results["gamma"][1] > 0, "the callbacks of the config took part"
    assert yaml.safe_load(Path("there/config.yaml").read_text())["folder"] == "there"
    monkeypatch.setattr("lightning.pytorch.Trainer._run", pytest.fail)
    lightning = logging.getLogger("lightning.pytorch")
    lightning.addHandler(caplog.handler)  # its records don't reach the root logger
    # how much is shown may change: results do not
    again = run(["increments", "--config", "given.yaml", "--folder", "there", "--trainer.log_every_n_steps", "7"])
    lightning.removeHandler(caplog.handler)
    assert "the run in there is finished already; step 1: accuracy" in caplog.text
    assert again.runner.results == first.runner.results
    assert torch.equal(again.model.head.weight, first.model.head.weight)


@pytest.mark.usefixtures("first")
def test_other_settings_are_refused_before_anything_is_trained_or_written(monkeypatch):
    before = {file: file.read_bytes() for file in Path("there").rglob("*") if file.is_file()}
    monkeypatch.setattr("lightning.pytorch.Trainer._run", pytest.fail)
    changed = ["--model.init_args.lr", "0.5", "--seed_everything", "3"]
    with pytest.raises(ValueError, match="the run in there was begun with other settings") as caught:
        run(["increments", "--config", "given.yaml", "--folder", "there", *changed])
    assert "seed_everything was 0 and is 3; model.init_args.lr was 0.05 and is 0.5. Go on" in str(caught.value)
    assert {file: file.read_bytes() for file in Path("there").rglob("*") if file.is_file()} == before


def test_without_a_folder_nothing_is_written():
    cli = run(["increments", "--config", quick(), "--folder", "null"])
    assert len(cli.runner.results.accuracy) == 2
    assert [file.name for file in Path().iterdir()] == ["given.yaml"]


def test_the_saved_config_repeats_the_run(first):
    again = run(["increments", "--config", "there/config.yaml", "--folder", "elsewhere"])
    assert again.runner.results == first.runner.results


def test_fit_trains_the_first_group_alone():
    cli = run(["fit", "--config", quick()])
    assert (cli.model.increments, cli.model.head.out_features) == ([2], 2)
    assert cli.model.head.weight.min() >= 0


def test_the_config_survives_being_printed_and_read(capsys):
    with pytest.raises(SystemExit):
        main(["increments", "--config", str(CONFIG), "--print_config"])
    printed = capsys.readouterr().out
    Path("printed.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        main(["increments", "--config", "printed.yaml", "--print_config"])
    assert capsys.readouterr().out == printed
    assert yaml.safe_load(printed)["folder"] == "results/increments"


def test_help_describes_the_folder_and_lists_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["increments", "--help"])
    assert "Folder of the run." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Trains on groups of classes one after another" in text


def test_one_optimizer_for_all_groups_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["increments", "--config", quick(optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}})])
    assert "optimizer" in capsys.readouterr().err
