"""The probe: its losses are what a loop of one's own finds, its cosines those of gradients, and nothing is changed."""

from collections import UserDict

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from lightning_weights.callbacks import ConditionShuffleProbe
from lightning_weights.callbacks.condition_shuffle_probe import probe
from tests.helpers.battery import NOISE
from tests.helpers.edits import awake, batch, module
from tests.helpers.small_nets import classifier
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(NOISE)


def made():
    own = module()
    awake(own.memory.generator)
    return own


def rows(data):
    return [{name: part[row] for name, part in data.items()} for row in range(len(data["inputs"]))]


def validate(own, data, callback, per=6, epochs=1):
    trainer = make_trainer([callback], max_epochs=epochs)
    trainer.fit(own, DataLoader(rows(batch()), batch_size=6), DataLoader(rows(data), batch_size=per))
    return trainer.callback_metrics


def test_losses_are_those_of_single_samples():
    own, data = made(), batch()
    adapters = own.adapters(data)

    def loss(row, matrices):
        y = own.memory(matrices, data["inputs"][row : row + 1])
        return nn.functional.mse_loss(y, data["target"][row : row + 1])

    size, found = probe(own, data)
    assert size == 6
    expected = {
        "loss_matched": [loss(row, adapters.select(row)) for row in range(6)],
        "loss_shuffled": [loss(row, adapters.select((row + 1) % 6)) for row in range(6)],
        "loss_averaged": [loss(row, adapters.mean()) for row in range(6)],
    }
    for name, values in expected.items():
        assert found[name] == pytest.approx(torch.stack(values).mean().item(), rel=1e-5)


def test_cosines_are_those_of_the_tasks_gradients():
    own, data = made(), batch()
    shared = own.adapters(data).mean().map(lambda tensor: tensor.clone().requires_grad_())
    leaves = [part for pair in shared.values() for part in pair]
    slopes = []
    for task in (0, 1):
        chosen = data["task"] == task
        y = own.memory(shared, data["inputs"][chosen])
        grads = torch.autograd.grad(nn.functional.mse_loss(y, data["target"][chosen]), leaves)
        slopes.append(torch.cat([grad.flatten() for grad in grads]))
    expected = torch.nn.functional.cosine_similarity(*slopes, dim=0).item()
    _, found = probe(own, data)
    assert found["gradient_cosine"] == pytest.approx(expected, abs=1e-4)
    assert found["gradient_cosine_min"] == found["gradient_cosine"]
    assert found["similarity_within"] > 0.9 > 0.0 > found["similarity_across"]


def test_what_is_logged_is_a_mean_over_samples():
    own, data = made(), batch(10)
    callback = ConditionShuffleProbe()
    logged = validate(own, data, callback, per=6)
    parts = [probe(own, {name: part[some] for name, part in data.items()}) for some in (slice(0, 6), slice(6, 10))]
    for name in ("loss_matched", "gradient_cosine", "similarity_across"):
        expected = sum(size * found[name] for size, found in parts) / 10
        assert callback.values[name] == pytest.approx(expected, rel=1e-5)
        assert float(logged[f"weights/hy_wu/{name}"]) == pytest.approx(expected, rel=1e-5)
    assert callback.values["loss_matched"] == pytest.approx(float(logged["val/loss"]), rel=1e-5)


def test_training_is_the_same_with_and_without():
    states = []
    for callbacks in ([], [ConditionShuffleProbe()]):
        own = made()
        torch.manual_seed(0)
        trainer = make_trainer(callbacks, max_epochs=2)
        trainer.fit(own, DataLoader(rows(batch()), batch_size=6, shuffle=True), DataLoader(rows(batch()), batch_size=6))
        states.append(own.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_epochs_and_batches_are_chosen():
    calls = []
    own = made()
    plain = own.memory_loss
    own.memory_loss = lambda batch, change=None: calls.append(change is not None) or plain(batch, change)
    validate(own, batch(12), ConditionShuffleProbe(every_n_epochs=2, max_batches=1), per=4, epochs=3)
    assert sum(calls) == 2 * 4  # two epochs of one batch: matched, shuffled, averaged, and the gradients


def test_batches_of_one_sample_or_without_tasks():
    own, data = made(), batch()
    assert set(probe(own, {name: part[:1] for name, part in data.items()})[1]) == {"loss_matched"}
    _, found = probe(own, {name: part for name, part in data.items() if name != "task"})
    assert set(found) == {"loss_matched", "loss_shuffled", "loss_averaged"}
    _, found = probe(own, tuple(data[name] for name in ("condition", "inputs", "target", "task")))
    assert "gradient_cosine" in found


class Named(nn.Module):
    """Takes its inputs by name, as models of transformers do."""

    def __init__(self, network):
        super().__init__()
        self.blocks, self.network = network.blocks, network

    def forward(self, x):
        return self.network(x)


def test_inputs_that_are_no_dict():
    """As tokenizers of transformers return them; what validation makes of them would let no gradient through."""
    own, data, callback = made(), batch(), ConditionShuffleProbe()
    own.memory.backbone = Named(own.memory.backbone)
    whole = {**data, "inputs": UserDict(x=data["inputs"])}
    make_trainer([callback]).validate(own, DataLoader([whole], batch_size=None), verbose=False)
    assert callback.values["gradient_cosine"] == pytest.approx(probe(made(), data)[1]["gradient_cosine"])


def test_modules_without_a_memory_are_told():
    with pytest.raises(MisconfigurationException, match=r"no memory_loss\(batch, change\): use FunctionalMemory"):
        ConditionShuffleProbe().on_fit_start(make_trainer([]), classifier())


@pytest.mark.parametrize("change", [{"every_n_epochs": 0}, {"max_batches": 0}, {"max_batches": 1.5}], ids=str)
def test_bad_arguments(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        ConditionShuffleProbe(**change)
