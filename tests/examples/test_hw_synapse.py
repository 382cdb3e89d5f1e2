import csv
from copy import copy
from pathlib import Path

import hw_synapse
import pytest
import torch

from lightning_weights.data import Digits


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hw_synapse, "RATES", (0.2,))
    monkeypatch.setattr(hw_synapse, "NUS", (0, 2))
    monkeypatch.setattr(hw_synapse, "BATCH", 400)
    options = ["--seeds", "1", "--epochs", "1", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["hw_synapse.py", *options])
    hw_synapse.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == hw_synapse.METHODS.keys()
    names = {"hw_synapse.png", "report.md", "runs.csv", "summary.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert "unidirectional against the others at ν = 2" in (tmp_path / "report.md").read_text()


def test_methods_start_with_the_same_weights_and_train_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hw_synapse, "BATCH", 300)
    device = {"nu_ltp": 5}
    found = {name: hw_synapse.train_network(s, 0.2, device, 0, 1) for name, s in hw_synapse.METHODS.items()}
    assert found[hw_synapse.FLOAT]["pulses"] == 0
    pulses = {name: run["pulses"] for name, run in found.items() if name != hw_synapse.FLOAT}
    assert all(number > 0 for number in pulses.values())
    assert pulses[hw_synapse.BOTH] > 1.5 * pulses[hw_synapse.ONE_WAY]  # two devices get each pulse
    ways = (hw_synapse.FLOAT, hw_synapse.SINGLE, hw_synapse.BOTH, hw_synapse.ONE_WAY)
    still = [hw_synapse.train_network(hw_synapse.METHODS[way], 0.0, device, 0, 1)["accuracy"] for way in ways]
    assert still == pytest.approx([still[0]] * 4, abs=1e-3)


def test_runs_see_the_same_images_in_the_same_order() -> None:
    orders = [next(iter(copy(hw_synapse.loaded(50, 3)).train_dataloader()))[1].tolist() for _ in range(2)]
    assert orders[0] == orders[1] == next(iter(Digits(batch_size=50, seed=3).train_dataloader()))[1].tolist()
    assert orders[0] != next(iter(hw_synapse.loaded(50, 4).train_dataloader()))[1].tolist()


def test_the_table_is_steep_down_and_flat_up() -> None:
    device = hw_synapse.made({"kind": "table"})
    ends = torch.tensor([0.0, 1.0])
    assert device.pulses == hw_synapse.STATES
    assert device.pulse(ends, 128).tolist() == [1.0, 1.0]
    half = device.pulse(ends, 16)[0], 1 - device.pulse(ends, 16, up=False)[1]
    assert (round(half[0].item(), 3), round(half[1].item(), 3)) == (0.338, 0.468)
