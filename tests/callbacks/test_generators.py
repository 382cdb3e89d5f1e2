"""Random generators as plain state."""

import io
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lightning_weights.callbacks import _generators


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (random, lambda g: g.random()),
        (random.Random(3), lambda g: g.gauss(0, 1)),
        (np.random, lambda g: g.rand()),
        (np.random.RandomState(3), lambda g: g.rand()),
        (np.random.default_rng(3), lambda g: g.random()),
        (torch.Generator().manual_seed(3), lambda g: torch.rand(1, generator=g).item()),
    ],
    ids=["random", "Random", "numpy.random", "RandomState", "default_rng", "torch"],
)
def test_a_generator_goes_on_where_it_was_after_a_file(generator, draw):
    draw(generator)
    buffer = io.BytesIO()
    torch.save(_generators.get_state(generator), buffer)
    expected = [draw(generator) for _ in range(3)]
    buffer.seek(0)
    _generators.set_state(generator, torch.load(buffer, weights_only=True))
    assert [draw(generator) for _ in range(3)] == expected


def test_accelerator_generators_are_stored_and_restored(monkeypatch):
    """With a stand-in for the accelerator's module, since there may be none here."""

    class Device:
        states = (torch.tensor([1]), torch.tensor([2]))

        def device_count(self):
            return 2

        def get_rng_state_all(self):
            return list(self.states)

        def set_rng_state_all(self, states):
            self.states = tuple(states)

    device = Device()
    monkeypatch.setattr(_generators, "_device_module", lambda: device)
    trainer = Trainer(logger=False, accelerator="cpu")
    saved = _generators.read_generators(trainer)
    device.states = (torch.tensor([7]), torch.tensor([8]))
    _generators.write_generators(trainer, saved)
    assert [state.item() for state in device.states] == [1, 2]
    _generators.write_generators(trainer, {**saved, "accelerator": [torch.tensor([5])]})
    assert [state.item() for state in device.states] == [1, 2], "another number of devices keeps its own"
