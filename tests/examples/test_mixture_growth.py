import csv
from pathlib import Path

import _growing_networks
import mixture_growth
import pytest
import torch
from torch import nn

from lightning_weights.modules import PooledConvNet1d, mixturize, set_mode

pytestmark = pytest.mark.filterwarnings("ignore")
SAMPLES = 500  # four steps an epoch


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--seeds", "1", "--epochs", "1", "--grown-epochs", "1", "--samples", str(SAMPLES), "--workers", "1"]
    for extra in ("growth, scaled 0.1", "growth, none", "growth, copy"):
        monkeypatch.delitem(mixture_growth.METHODS, extra)
    monkeypatch.setattr("sys.argv", ["mixture_growth.py", *options, "--out", str(tmp_path)])
    mixture_growth.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(mixture_growth.METHODS)
    files = {".weights", "mixture_growth.png", "report.md", "runs.csv", "summary.csv"}
    assert {path.name for path in tmp_path.iterdir()} == files
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "growth, orthogonal: at least 1 point more than Net2Wider" in report
    assert "| accuracy | at growth | epoch 1 | growth, ms |" in report


def test_all_contestants_try_the_same_rates() -> None:
    for name, axes in mixture_growth.GRID.items():
        assert axes["lr"] == mixture_growth.AXES["lr"]
        assert ("grown_lr" in axes) is (name not in {"half width", *mixture_growth.WHOLE})
        assert all(mixture_growth.METHODS[name][axis] in values for axis, values in axes.items())


def test_operations_are_those_of_the_layers() -> None:
    length, half, kernel = 40, 4, 3
    body = 2 * half * half * kernel * (length + 2 * length // 2 + length // 4)
    stem, head = 2 * half * 5 * length, 2 * half * 10
    plain = 100 * (2 * stem + 3 * body + 3 * head)  # nobody asks for a gradient to signals
    assert _growing_networks.operations(PooledConvNet1d(width=half)) == pytest.approx(plain / 1e9)
    network = mixturize(PooledConvNet1d(width=2 * half), num_templates=3)
    weights = half * 5 + 4 * half * half * kernel + 10 * half
    mixed = plain + 6 * 3 * weights  # products and sums, forward, to templates and to coefficients
    assert _growing_networks.operations(network) == pytest.approx(mixed / 1e9)
    set_mode(network, "grown")
    whole = _growing_networks.operations(PooledConvNet1d(width=2 * half))
    weights = 2 * half * 5 + 4 * 4 * half * half * kernel + 10 * 2 * half
    assert _growing_networks.operations(network) == pytest.approx(whole + 6 * 3 * weights / 1e9)


def trained(width: int) -> PooledConvNet1d:
    """Return a network whose norms have seen something."""
    torch.manual_seed(0)
    network = PooledConvNet1d(width=width)
    for norm in network.body:
        if isinstance(norm, nn.BatchNorm1d):
            for values in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return network.eval()


def test_net2wider_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_growing_networks, "NOISE", 0.0)
    half, full = trained(4), PooledConvNet1d(width=8).eval()
    _growing_networks.widen(half, full)
    x = torch.randn(3, 1, 40)
    torch.testing.assert_close(full(x), half(x), atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(_growing_networks, "NOISE", 0.01)
    _growing_networks.widen(half, full)
    assert 0 < (full(x) - half(x)).abs().max() < half(x).std()
    assert torch.equal(full.body[0].weight[:4], half.body[0].weight)


def test_padding_keeps_what_is_there_and_leaves_the_rest() -> None:
    half, full = trained(4), PooledConvNet1d(width=8)
    before = {name: value.clone() for name, value in full.state_dict().items()}
    _growing_networks.pad(half, full)
    for name, old in half.state_dict().items():
        new = full.state_dict()[name]
        place = tuple(slice(size) for size in old.shape)
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(new[place], old)
        rest = torch.ones_like(new, dtype=torch.bool)
        rest[place] = False
        assert torch.equal(new[rest], before[name][rest])


def test_both_members_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"init": "zero", "lr": 0.1, "grown_lr": 0.02}
    plan = mixture_growth.Plan(width=4, epochs=1, grown=1, samples=SAMPLES)
    first = mixture_growth.grow(settings, 3, tmp_path, plan)
    (path,) = tmp_path.iterdir()
    kept = path.stat().st_mtime_ns
    again = mixture_growth.grow(settings, 3, tmp_path, plan)
    assert path.stat().st_mtime_ns == kept
    assert again["path"] == first["path"]
    assert len(first["path"]) == 2
    assert first["growth_seconds"] > 0
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == 1
    assert state["callbacks"]["MixtureGrowth"]["phase"] == 1
