import csv
from pathlib import Path

import pytest
import torch
import tscnc

from lightning_weights.modules import MLP


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches per epoch."""
    monkeypatch.setattr(tscnc, "TEST_IMAGES", 1597)
    monkeypatch.setattr(tscnc, "ATTACK_STEPS", 2)


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    options = ["--seeds", "1", "--epochs", "1", "--pruning-epochs", "1", "--batch", "100", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["tscnc.py", "--workers", "1", *options])
    tscnc.main()
    with (tmp_path / "runs.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == tscnc.TRAINING.keys()
    shared = [rows[tscnc.MAGNITUDE], rows[tscnc.FINETUNED], rows[tscnc.SCORES]]
    assert len({row["clean_dense"] for row in shared}) == 1, "the dense phase is the same"
    assert shared[0]["log_kappa_at_0.9"] == shared[0]["log_kappa_0.1"], "magnitudes choose at once"
    assert len({row["kappa_head"] for row in rows.values()}) == len(rows) - 2
    assert all(
        float(row[f"robust_{keep:g}"]) <= float(row[f"clean_{keep:g}"]) for row in rows.values() for keep in tscnc.KEEPS
    )
    assert {path.name for path in tmp_path.iterdir()} == {"tscnc.png", "report.md", "runs.csv", "summary.csv"}


def test_magnitude_pruning_keeps_the_largest_weights_of_a_copy() -> None:
    torch.manual_seed(0)
    network = MLP(64, (8,), 10)
    pruned = tscnc.pruned(network, 0.1)
    weight, left = network.head.weight.detach(), pruned.head.weight.detach()
    assert int(left.count_nonzero()) == 80 - int(0.9 * 80)
    assert left.abs()[left != 0].min() >= weight.abs()[left == 0].max()
    assert weight.all()


def test_singular_layers_count_as_much_as_stated() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.diag(torch.tensor([100.0, 1.0])))
        network[1].weight.copy_(torch.ones(2, 2))
    assert tscnc.log_kappa(network) == pytest.approx((2 + 8) / 2)
