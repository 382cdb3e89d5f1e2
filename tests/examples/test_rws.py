import csv
from pathlib import Path

import _rws_rows
import _rws_training
import pytest
import rws
import torch
from _files import Run
from _harness import Results
from _rws_letters import FONTS, LETTERS, VARIANTS, letters
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore")


def few(data: str) -> _rws_training.Task:
    """Return a few samples of every class, noise in the shape of the data."""
    shape = (1, 40) if data == "mnist1d" else (1, 16, 16)
    found = []
    for seed, count in enumerate((60, 20, 40)):
        x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
        found.append(_rws_training.Part(x, torch.arange(count) % 10))
    return _rws_training.Task(*found)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_rws_training, _rws_rows):
        monkeypatch.setattr(module, "parts", few)
    for data in ("digits", "letters", "mnist1d"):
        monkeypatch.setitem(_rws_training.STRENGTHS, data, {"gaussian_blur": 4.0, "contrast": 0.15})


@pytest.mark.parametrize("setting", ["letters-vgg", "mnist1d-resnet"])
def test_script_measures_every_row(setting: str, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--seeds", "1", "--workers", "1", "--epochs", "2", "--pretraining", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["rws.py", "--settings", setting, *arguments])
    rws.main()
    with (tmp_path / setting / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert (_rws_rows.ALL_NORMS in rows) == setting.endswith("resnet")
    assert {_rws_rows.CLEAN, _rws_rows.FEW, _rws_rows.PACKED, _rws_rows.WRONG, _rws_rows.SUM} <= rows.keys()
    assert all(0 <= float(row["corrupted"]) <= 100 for row in rows.values())
    assert "every bit is restored" in (tmp_path / setting / "report.md").read_text()
    assert "[x] every bit is restored" in (tmp_path / setting / "report.md").read_text()
    assert (tmp_path / "rws.png").stat().st_size > 10_000


def test_dead_networks_are_counted_and_measured(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def lifeless(data: str, kind: str) -> nn.Module:
        net = _rws_training.network(data, kind)
        for name, value in net.named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(value, -10.0)
        return net

    monkeypatch.setattr(_rws_rows, "network", lifeless)
    found = _rws_rows.train_one({"setting": "digits-vgg", "pretraining": 1, "epochs": 1, "lr": 0.1}, 0)
    assert found["facts|dead"] == 6  # of two tasks: clean, and robust against two corruptions
    assert found["facts|restored"] == 1
    rows = (_rws_rows.CLEAN, _rws_rows.FEW, _rws_rows.SUM, _rws_rows.PUBLISHED, _rws_rows.ALL_MOVED)
    assert [_rws_rows.mean_of(found, row) for row in rows] == pytest.approx([20.0] * len(rows))


def test_letters_are_those_of_other_fonts_in_the_test() -> None:
    x, y, test_x, test_y = letters()
    assert x.shape[1:] == test_x.shape[1:] == (1, 16, 16)
    assert 0 <= float(x.min()) < 0.1 < 0.9 < float(x.max()) <= 1
    for labels in (y, test_y):
        assert len(set(labels.bincount(minlength=10).tolist())) == 1
    assert len(x) + len(test_x) == len(FONTS) * len(LETTERS) * VARIANTS
    assert torch.equal(test_x, letters()[2])


def made_up(**changes: float) -> Results:
    rows = {_rws_rows.CLEAN: 70.0, _rws_rows.FEW: 80.0, _rws_rows.ALL: 85.0, _rws_rows.WRONG: 69.0}
    rows |= {_rws_rows.PACKED: 79.5, **changes}
    runs = []
    for seed in (0, 1, 2):
        for row, value in rows.items():
            runs.append(Run(row, seed, "", {"corrupted": value + seed, "clean": 95.0}))
        for scale in _rws_rows.SCALES:
            runs.append(Run(_rws_rows.scale_row(scale), seed, "", {_rws_rows.BLUR: 60 + 10 * scale}))
        runs.append(Run("facts", seed, "", {"restored": 1.0}))
    return Results(runs)


def test_every_criterion_can_fail() -> None:
    assert all(held for _, held in rws.judge(made_up()))
    for row, value, index in ((_rws_rows.FEW, 69.0, 0), (_rws_rows.ALL, 69.0, 1), (_rws_rows.WRONG, 79.0, 2)):
        assert not rws.judge(made_up(**{row: value}))[index][1]
    assert not rws.judge(made_up(**{_rws_rows.PACKED: 78.0}))[3][1]


def test_both_trainings_see_one_order_and_the_best_is_kept() -> None:
    task, seen = few("digits"), []

    def change(x: torch.Tensor, first: int) -> torch.Tensor:
        seen.append(first)
        return x

    torch.manual_seed(0)
    start = _rws_training.network("digits", "vgg")
    before = start.state_dict()["head.weight"].clone()
    options = {"epochs": 1, "lr": 0.05, "seed": 3}
    plain = _rws_training.train(start, task, **options)
    changed = _rws_training.train(start, task, **options, change=change)
    assert seen == [_rws_training.SEEN, 0]
    assert torch.equal(start.state_dict()["head.weight"], before)
    for name, value in plain.state_dict().items():
        assert torch.equal(changed.state_dict()[name], value)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(plain.state_dict()["head.weight"], before)


def test_residual_networks_take_images_and_signals() -> None:
    for data, shape in (("digits", (2, 1, 16, 16)), ("mnist1d", (2, 1, 40))):
        net = _rws_training.network(data, "resnet")
        assert net(torch.rand(shape)).shape == (2, 10)
        assert any(isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)) for part in net.modules())
