"""What a stack of seeds is refused; the command line's test runs one."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.modules import MLP, Regressor
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
