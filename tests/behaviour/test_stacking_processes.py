"""Two processes that share rows: each row is written once, and folds are those of one process."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import CollectOOF
from lightning_weights.modules import MLP, Regressor
from lightning_weights.runners import KFoldRunner
from tests.helpers.battery import NOISE, differing, flat
from tests.helpers.tasks import make_trainer
from tests.helpers.two_processes import run_on_two

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.slow]

X = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))  # not to be divided by 2: one is served twice
DATA = TensorDataset(X, X.sum(dim=1))


def make() -> Regressor:
    return Regressor(MLP(3, (4,), num_classes=1))


def results(folder: Path, strategy: Any = "auto", devices: int = 1) -> dict[str, Any]:
    """Return predictions of a validation, of predict and of two folds, without training and with it."""
    torch.manual_seed(0)
    module, found = make(), {}
    for stage in ("validate", "predict"):
        callback = CollectOOF(str(folder / f"{stage}.pt"), stage=stage)
        trainer = make_trainer([callback], strategy=copy.deepcopy(strategy), devices=devices)
        getattr(trainer, stage)(module, DataLoader(DATA, batch_size=2))
        found[stage] = vars(callback.result)
    quiet = {"barebones": True, "accelerator": "cpu", "strategy": strategy, "devices": devices}
    for epochs, folds in ((0, 2), (1, 2)):
        trainer = {**quiet, "max_epochs": epochs}
        runner = KFoldRunner(make, DataLoader(DATA, batch_size=2), trainer, str(folder / f"{epochs}"), folds, test=None)
        found[f"{epochs} epochs"] = vars(runner.run().oof)
    return flat(found)


def scenarios(rank: int, folder: Path) -> dict[str, Any]:
    """Run on two processes."""
    return results(folder / "two", DDPStrategy(), 2)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """Return what each of the two processes found."""
    return run_on_two(scenarios, tmp_path_factory.mktemp("processes"))


def test_both_processes_have_all_rows_once(ranks, tmp_path):
    first, second = ranks
    assert not differing(first, second)
    single = results(tmp_path)
    for name in ("validate", "predict", "0 epochs", "1 epochs"):
        assert torch.equal(first[f".{name}.indices"], torch.arange(11))
    trained = [name for name in single if "1 epochs" in name]  # in batches that two processes share out differently
    assert not differing(*({k: v for k, v in part.items() if k not in trained} for part in (first, single)), 1e-6)
    assert torch.equal(first[".1 epochs.targets"], DATA.tensors[1])
