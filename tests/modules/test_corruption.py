"""The corruption as a module: the function, without state."""

import copy
import pickle

import pytest
import torch

from lightning_weights.functional.corruptions import corrupt
from lightning_weights.modules import Corruption

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_it_is_the_function():
    module = Corruption("snow", severity=2, seed=4)
    assert torch.equal(module(IMAGES), corrupt(IMAGES, "snow", 2, seed=4))
    assert torch.equal(module(IMAGES, [7, 8, 9]), corrupt(IMAGES, "snow", 2, seed=4, indices=[7, 8, 9]))
    assert torch.equal(module(IMAGES, torch.tensor([7, 8, 9])), module(IMAGES, [7, 8, 9]))


def test_it_has_no_state_and_no_modes():
    module = Corruption("gaussian_noise", strength=0.3)
    assert not module.state_dict()
    assert torch.equal(module.train()(IMAGES), module.eval()(IMAGES))
    assert torch.equal(module(IMAGES), module(IMAGES))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(copied):
    module = Corruption("fog", strength=[0.5, 2.0], seed=1)
    assert torch.equal(copied(module)(IMAGES), module(IMAGES))
    assert repr(module) == "Corruption(name='fog', strength=[0.5, 2.0], seed=1)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "rain"}, "corruption is 'rain'"),
        ({"name": "fog", "severity": 6}, "severity is 6"),
        ({"name": "fog", "strength": 1.0}, "strength of 'fog' is 1.0; allowed are 2 numbers"),
        ({"name": "fog", "seed": -1}, "seed is -1"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Corruption(**arguments)
