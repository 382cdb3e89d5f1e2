"""GPTQ, GPTAQ and ResComp are CompensationQuantization with a method."""

import pytest
import torch
from torch import nn

from lightning_weights.callbacks import GPTAQ, GPTQ, CompensationQuantization, ResComp
from lightning_weights.functional.column_solver import CompensationConfig
from tests.behaviour.subjects import SETUPS
from tests.helpers.battery import NOISE, small_module, tasks
from tests.helpers.tasks import make_trainer

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.filterwarnings("ignore:.*fewer calibration tokens.*")]

METHODS = {
    "gptq": lambda **options: GPTQ(**options),
    "gptaq": lambda **options: GPTAQ(**options),
    "rescomp": lambda **options: ResComp(**options),
    "rescomp_gptq": lambda **options: ResComp(base="gptq", **options),
}


def weights(callback: CompensationQuantization) -> list[torch.Tensor]:
    module = small_module(SETUPS[0], test_step=lambda self, batch, batch_idx: None)
    data = tasks()
    data.test_dataloader = data.train_dataloader
    make_trainer([callback]).test(module, datamodule=data, verbose=False)
    return [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("method", METHODS)
def test_they_do_what_the_method_does(method):
    given = {"bits": 2, "group_size": 4, "alpha": 0.5}
    callback = METHODS[method](config=CompensationConfig(**given))
    assert callback.config == CompensationConfig(method=method, **given)
    same = CompensationQuantization(config=CompensationConfig(method=method, **given))
    assert all(torch.equal(a, b) for a, b in zip(weights(callback), weights(same), strict=True))
    assert [row.method for row in callback.report.layers] == [method] * 2


@pytest.mark.parametrize("method", METHODS)
def test_other_settings_are_the_defaults(method):
    assert METHODS[method]().config == CompensationConfig(method=method)
    assert METHODS[method](config={"bits": 4}).config == CompensationConfig(method=method, bits=4)


def test_options_are_passed_on():
    options = {
        "targets": "net.0",
        "ignore": ["net.3"],
        "blocks": "net",
        "num_samples": 3,
        "when": "fit_end",
        "export": "packed",
        "cache_device": "meta",
        "on_missing": "skip",
        "mask": None,
        "force_tied": True,
        "measure_blocks": True,
        "folder": "there",
        "calibration_dataloader": [1],
    }
    for make in METHODS.values():
        assert {name: getattr(make(**options), name) for name in options} == options


def test_the_base_is_one_of_two():
    with pytest.raises(ValueError, match="base is 'rtn'; allowed are 'gptaq', 'gptq'"):
        ResComp(base="rtn")
