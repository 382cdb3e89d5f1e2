"""FOEM is CompensationQuantization with FOEM's settings."""

import pytest
import torch
from torch import nn

from lightning_weights.callbacks import FOEM, CompensationQuantization
from lightning_weights.functional.column_solver import CompensationConfig, FOEMConfig
from tests.callbacks.test_rescomp import weights
from tests.helpers.battery import NOISE
from tests.helpers.tasks import make_trainer

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.filterwarnings("ignore:.*fewer calibration tokens.*")]


def test_the_default_is_the_published_method():
    assert FOEM().config == FOEMConfig()
    assert FOEM(config={"beta": 0.2, "bits": 4}).config == FOEMConfig(beta=0.2, bits=4)


def test_without_its_terms_it_is_gptq():
    settings = {"bits": 3, "group_size": 4, "sym": False, "mse_clip": False, "grid": "gptq", "damp": 0.05}
    gptq = weights(CompensationQuantization(config=CompensationConfig(method="gptq", **settings)))
    assert all(map(torch.equal, weights(FOEM(FOEMConfig(beta=0.0, group_size=4))), gptq))
    assert not all(map(torch.equal, weights(FOEM(FOEMConfig(beta=0.25, group_size=4))), gptq))


def test_it_logs_under_its_own_name():
    callback = FOEM(FOEMConfig(group_size=4), when="predict_start")
    trainer = make_trainer([callback])
    module = _module()
    trainer.predict(module, torch.utils.data.DataLoader(torch.randn(8, 4)))
    assert "weights/foem/relative_error" in trainer.callback_metrics
    assert [row.method for row in callback.report.layers] == ["foem"]


def _module() -> object:
    from lightning.pytorch import LightningModule

    class One(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

        def train_dataloader(self) -> object:
            return torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=4)

    return One()
