import csv
from pathlib import Path

import _quantization
import foem
import pytest


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foem, "TOKENS", (64, 96))
    monkeypatch.setattr(foem, "FEW", [64, 96])
    monkeypatch.setattr(_quantization, "HELD_OUT_INPUTS", 64)
    monkeypatch.setattr("sys.argv", ["foem.py", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)])
    foem.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == foem.METHODS.keys()
    errors = {method: float(row[foem.label("calibration", 3, foem.FEW[0])]) for method, row in rows.items()}
    assert len(set(errors.values())) == len(errors), "two methods do the same"
    assert errors["GPTQ"] == min(errors.values())
    assert {path.name for path in tmp_path.iterdir()} == {"foem.png", "report.md", "runs.csv", "summary.csv"}
    assert "- [" in (tmp_path / "report.md").read_text()
