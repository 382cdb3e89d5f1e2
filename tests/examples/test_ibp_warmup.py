import csv
from pathlib import Path

import ibp_warmup
import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_weights.data import Digits


class Few(Digits):
    """Epochs of two batches; all other digits are one batch of the test."""

    def __init__(self, seed: int, **_: int) -> None:
        super().__init__(batch_size=64, test_size=1669, seed=seed)

    def test_dataloader(self) -> list[tuple[torch.Tensor, ...]]:
        return [tuple(map(torch.cat, zip(*super().test_dataloader(), strict=True)))]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ibp_warmup, "Digits", Few)


@pytest.mark.usefixtures("quick")
def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--seeds", "1", "--shorten", "13", "--long", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["ibp_warmup.py", "--workers", "1", *options])
    monkeypatch.setattr(ibp_warmup, "LONGER", {"ramp 5": (5, 40)})
    monkeypatch.setattr(ibp_warmup, "RADII", (0.0, ibp_warmup.MAX_EPS))
    ibp_warmup.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == ibp_warmup.methods(longer=True).keys()
    assert len(rows) == len(ibp_warmup.PARTS) + 2 + len(ibp_warmup.COMPARED)
    assert all(float(row["error"]) <= float(row["verified_error"]) for row in rows.values())
    assert {path.name for path in tmp_path.iterdir()} == {"ibp_warmup.png", "report.md", "runs.csv", "summary.csv"}
    report = (tmp_path / "report.md").read_text()
    assert all(
        part in report for part in ("without BatchNorm", "without the initialisation", "without the regularisers")
    )


@pytest.mark.usefixtures("quick")
def test_verified_error_grows_with_the_radius_from_the_error() -> None:
    seed_everything(2, verbose=False)
    found = ibp_warmup.train_one(ibp_warmup.methods(longer=False)[ibp_warmup.FULL], seed=2, shorten=13)
    values = [found[f"verified_error_{eps:g}"] for eps in ibp_warmup.RADII]
    assert values == sorted(values)
    assert values[0] == found["error"]
    assert values[-1] == found["verified_error"]
    assert 0 <= values[0] <= 100
