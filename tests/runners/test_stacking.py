"""What a stack of seeds is refused, and its errors where rows are left out; the command line's test runs one."""

import pytest
import torch
from sklearn.model_selection import TimeSeriesSplit
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.modules import MLP, Regressor, RegularizedStacking
from lightning_weights.runners import StackingRunner
from tests.helpers.battery import NOISE

pytestmark = pytest.mark.filterwarnings(NOISE, "ignore:.*barebones.*")


def test_one_seed_and_rows_without_targets_are_refused(tmp_path):
    for seeds in ([3], [0, 1, 0]):
        with pytest.raises(ValueError, match=r"seeds is \[.*\]; allowed are at least 2, all different"):
            StackingRunner(Regressor, None, seeds=seeds)
    with pytest.raises(ValueError, match="n_folds is 1"):
        StackingRunner(Regressor, None, n_folds=1)
    quick = {"max_epochs": 0, "barebones": True, "accelerator": "cpu"}
    loader = DataLoader(TensorDataset(torch.rand(8, 2)), batch_size=4)
    runner = StackingRunner(lambda: Regressor(MLP(2, (), 1)), loader, quick, str(tmp_path), [0, 1], 2)
    with pytest.raises(ValueError, match="batches hold no targets"):
        runner.run()


def test_errors_are_those_of_rows_that_a_splitter_tests(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(40, 2)
    loader = DataLoader(TensorDataset(x, x.sum(1)), batch_size=20)
    quick = {"max_epochs": 1, "barebones": True, "accelerator": "cpu"}
    stacking = RegularizedStacking(learners=["ridge"], splitter=TimeSeriesSplit(3), tau_mse_mode="relative")
    runner = StackingRunner(
        lambda: Regressor(MLP(2, (), 1)), loader, quick, str(tmp_path), [0, 1], 2, stacking=stacking
    )
    found = runner.run()["rmse"]
    stacked = runner.fitted.oof_
    assert stacked.isnan().sum() == 10
    assert found["stack"] == pytest.approx(float((stacked - x.sum(1))[10:].square().mean().sqrt()))
    assert all(value < float("inf") for value in found.values())
