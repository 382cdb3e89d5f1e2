from pathlib import Path

import pytest
from _files import read_runs
from _grid import tune


def test_best_setting_of_every_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def train_one(settings: dict[str, float], seed: int) -> dict[str, float]:
        seen.append(seed)
        return {"accuracy": -abs(settings["lr"] - 0.2) - settings.get("strength", 0.0) + seed}

    grid = {"A": {"lr": [0.1, 0.2, 0.4]}, "B": {"lr": [0.2, 0.3], "strength": [1.0, 2.0, 3.0]}}
    winners = tune(grid, (100, 102), train_one, tmp_path, best="accuracy")
    assert winners == {"A": {"lr": 0.2}, "B": {"lr": 0.2, "strength": 1.0}}
    assert seen == [100] * 9 + [102] * 9
    assert len(read_runs(tmp_path / "grid" / "runs.csv")) == 18
    assert len((tmp_path / "grid.csv").read_text().splitlines()) == 10
    printed = capsys.readouterr().out.splitlines()
    assert "\"A\": {'lr': 0.2},  # 101.0" in printed
    assert any(line.endswith("at an end of the grid in lr and strength") for line in printed)
