"""From a trained network to a quantized one in a folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_weights.callbacks import FOEM, GPTQ, ResComp
from lightning_weights.data import ClassificationData
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.column_solver import CompensationConfig
from lightning_weights.modules import Classifier, QuantizedLinear, read_gptq
from lightning_weights.modules.quantization import solving
from lightning_weights.runners import QuantizationRunner
from tests.helpers.battery import NOISE
from tests.helpers.tasks import make_trainer

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.filterwarnings("ignore:.*fewer calibration tokens.*")]

CONFIG = CompensationConfig(bits=4, group_size=32, mse_clip=False)


class Signs(ClassificationData):
    """Two classes by the sign of the first input."""

    num_classes = 2

    def load(self):
        x = torch.randn(96, 32, generator=torch.Generator().manual_seed(0))
        y = (x[:, 0] > 0).long()
        return x[:64], y[:64], x[64:], y[64:]


def classifier(outputs: int = 32) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(32, outputs), nn.ReLU(), nn.Linear(outputs, 2))
    return Classifier(network, num_classes=2)


def runner(callbacks: Any, folder: Any, module: Any = None, **options: Any) -> QuantizationRunner:
    module = classifier() if module is None else module
    given = {"folder": None if folder is None else str(folder), **options}
    return QuantizationRunner(make_trainer(callbacks), module, Signs(batch_size=16), **given)


def gptq(**options: Any) -> GPTQ:
    return GPTQ(**{"config": CONFIG, "when": "validate_start", "ignore": ["2"], **options})


def test_it_measures_before_and_after_and_saves_everything(tmp_path):
    module = classifier()
    weight = module.network[0].weight.detach().clone()
    found = runner([gptq(export="packed")], tmp_path, module).run()
    assert isinstance(module.network[0], QuantizedLinear)
    plain = make_trainer([]).validate(classifier(), datamodule=Signs(batch_size=16), verbose=False)
    again = make_trainer([]).validate(module, datamodule=Signs(batch_size=16), verbose=False)
    assert found["before"] == pytest.approx(plain[0])
    assert found["after"] == pytest.approx(again[0])
    assert found["before"] != found["after"]
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert [row["name"] for row in found["layers"]] == ["network.0"]
    checkpoint = torch.load(tmp_path / "quantized.ckpt", weights_only=True)
    assert checkpoint["callbacks"][GPTQ().state_key]["done"]
    fresh = classifier()
    read_gptq(fresh, tmp_path / "gptq")
    assert torch.allclose(fresh.network[0].weight, module.network[0].weight, atol=1e-3)
    assert not torch.equal(module.network[0].weight, weight)


def test_starting_again_solves_nothing_again(tmp_path, monkeypatch):
    first = runner([gptq()], tmp_path).run()
    monkeypatch.setattr(solving, "quantize_weight", pytest.fail)
    again = runner([gptq()], tmp_path).run()
    assert again["after"] == first["after"]


@pytest.mark.parametrize(
    "callback", [FOEM(when="test_start"), ResComp(when="test_start", config=CONFIG)], ids=["foem", "rescomp"]
)
def test_the_test_loop_and_no_comparison(callback):
    module = classifier()
    found = runner([callback], None, module, compare=False).run()
    assert "before" not in found
    assert all(name.startswith("test/") for name in found["after"])


def test_weights_of_a_checkpoint_are_quantized(tmp_path):
    trainer = make_trainer([])
    other = classifier()
    nn.init.normal_(other.network[0].weight)
    trainer.strategy.connect(other)
    trainer.save_checkpoint(tmp_path / "ckpt")
    module = classifier()
    runner(
        [gptq(config=CompensationConfig(bits=8, group_size=32))], None, module, ckpt_path=str(tmp_path / "ckpt")
    ).run()
    assert torch.allclose(module.network[0].weight, other.network[0].weight, atol=0.05)


def test_a_zero_of_0_is_written_in_the_format_that_has_a_place_for_it(tmp_path):
    module = classifier()
    for layer in (each for each in module.modules() if isinstance(each, nn.Linear)):
        nn.init.uniform_(layer.weight, 0.1, 1.0)  # no negative weight: the lowest level is 0
    config = CompensationConfig(bits=4, group_size=32, sym=False)
    runner([gptq(config=config, export="packed")], tmp_path, module).run()
    settings = json.loads((tmp_path / "gptq" / "quantize_config.json").read_text())
    assert settings["checkpoint_format"] == "gptq_v2"


def test_a_network_that_readers_of_gptq_do_not_take_is_saved_without_their_files(tmp_path):
    with pytest.warns(LightningWeightsWarning, match="no files for readers of GPTQ were written: .*32"):
        runner([gptq(export="packed")], tmp_path, classifier(outputs=20)).run()
    assert (tmp_path / "quantized.ckpt").exists()
    assert not (tmp_path / "gptq").exists()


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([], "trainer has 0 callbacks that quantize; allowed is one of GPTQ"),
        ([Callback()], "trainer has 0 callbacks"),
        ([GPTQ(), FOEM()], "trainer has 2 callbacks"),
        ([GPTQ(when="fit_end")], "when is 'fit_end'; here it is allowed to be 'validate_start' or 'test_start'"),
    ],
)
def test_one_callback_that_acts_in_an_evaluation_is_needed(callbacks, message):
    with pytest.raises(ValueError, match=message):
        runner(callbacks, None)


def test_folders_are_made(tmp_path):
    runner([gptq()], tmp_path / "a" / "b").run()
    names = {path.name for path in Path(tmp_path / "a" / "b").iterdir()}
    assert names == {"layers", "quantized.ckpt", "report.json"}


def test_layers_that_were_solved_together_are_written(tmp_path):
    module = classifier()
    module.network = Twins()
    runner([gptq(export="packed", ignore=["head"])], tmp_path, module).run()
    fresh = Classifier(Twins(), num_classes=2)
    read_gptq(fresh, tmp_path / "gptq")
    for name in ("left", "right"):
        written, read = (getattr(each.network, name).weight for each in (module, fresh))
        assert torch.allclose(read, written, atol=1e-3)


class Twins(nn.Module):
    """Two layers with the same inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.left(x) * self.right(x))
