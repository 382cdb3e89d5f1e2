import csv
from pathlib import Path

import classp
import pytest
from lightning.pytorch import seed_everything

from lightning_weights.data import PermutedDigits


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--seeds", "1", "--tasks", "2", "--epochs", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["classp.py", "--workers", "1", *options])
    quick = {"batch_size": 100, "test_size": 1500}
    monkeypatch.setattr(classp, "PermutedDigits", lambda tasks, seed, **_: PermutedDigits(tasks, seed=seed, **quick))
    classp.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == classp.TUNED.keys() == classp.GRID.keys()
    kept = {"SGD": 0, "Adam": 2, "Adagrad": 1, "EWC": 2, "SI": 3}
    assert {method: float(row["state"]) for method, row in rows.items()} == {m: kept.get(m, 1) for m in rows}
    assert {path.name for path in tmp_path.iterdir()} == {"classp.png", "report.md", "runs.csv", "summary.csv"}
    assert "after task 1" in (tmp_path / "report.md").read_text()


def test_first_task_of_the_phases_is_plain_sgd() -> None:
    outcomes = []
    for method in ("SGD", classp.OURS):
        seed_everything(2, verbose=False)
        outcomes.append(classp.train_one({"method": method, "lr": 0.1}, seed=2, tasks=2, epochs=1))
    sgd, ours = outcomes
    assert sgd["task_0_after_0"] == ours["task_0_after_0"]
    assert sgd["task_1_after_1"] != ours["task_1_after_1"]
