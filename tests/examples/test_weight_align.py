import csv
from pathlib import Path

import pytest
import torch
import weight_align
from _incremental_baselines import BalancedHoldout, BiasLayers, accuracies
from lightning.pytorch import seed_everything

from lightning_weights.data import Digits, ExemplarMemory


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--seeds", "1", "--epochs", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["weight_align.py", "--workers", "1", *options])
    weight_align.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == weight_align.METHODS.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"weight_align.png", "report.md", "runs.csv", "summary.csv"}
    assert "same network before and after" in (tmp_path / "report.md").read_text()


def test_methods_that_do_not_align_leave_the_network_as_it_was() -> None:
    seed_everything(1, verbose=False)
    plain = weight_align.train_one(weight_align.METHODS["KD"], 1, "digits", 1)
    seed_everything(1, verbose=False)
    aligned = weight_align.train_one(weight_align.METHODS["KD + aligning"], 1, "digits", 1)
    assert plain["gain_all"] == pytest.approx(0.0, abs=1e-9)
    # the first step has no old classes, and the second is aligned at its end only
    assert (plain["seen_after_0"], plain["gamma_1"]) == (aligned["seen_after_0"], aligned["gamma_1"])
    assert plain["gamma_2"] != aligned["gamma_2"]


def test_bias_layers_change_their_group_alone() -> None:
    layers, logits = BiasLayers(), torch.randn(3, 6)
    assert torch.equal(layers(logits), logits)
    layers.groups = [(2, 4, torch.tensor([2.0, 0.5]))]
    expected = logits.clone()
    expected[:, 2:4] = 2 * logits[:, 2:4] + 0.5
    assert torch.equal(layers(logits), expected)


def test_held_out_samples_are_balanced_and_not_trained_on() -> None:
    data = BalancedHoldout(Digits(), [2, 2], ExemplarMemory(40))
    (x, y), (held_x, _) = data.split()
    assert (len(held_x), len(x)) == (0, len(data.new_samples()[0]))
    data.nearest, data.module = [], None
    data.memory.add(*data.new_samples(), features=data.new_samples()[0].flatten(1))
    data.step = 1
    (x, y), (held_x, held_y) = data.split()
    assert held_y.bincount().tolist() == [2, 2, 2, 2]
    assert y.bincount().tolist()[:2] == [18, 18]
    assert len(y) + len(held_y) == 40 + len(data.new_samples()[1])
    trained = {tuple(row.flatten().tolist()) for row in x}
    assert not any(tuple(row.flatten().tolist()) in trained for row in held_x)


def test_accuracies_by_hand() -> None:
    found = accuracies(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 2]), num_old=1)
    assert found == {"all": 75.0, "old": 50.0, "new": 100.0}
