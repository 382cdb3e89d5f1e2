"""How a module runs a batch, and what it is left with."""

import random
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_weights.modules import CausalLM
from lightning_weights.modules.quantization.steps import calibration_step, mask_of, move, runner, undisturbed


class Called(nn.Module):
    """A network that keeps what it was called with."""

    def forward(self, x: Any, mask: Any = None) -> Any:
        """Return it."""
        return x, mask


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(3, (3, None)), ((4, "label"), (4, None)), ([5, 6], (5, None)), ({"x": 1, "mask": 2}, (1, 2))],
)
def test_a_network_is_called_with_its_part_of_a_batch(batch, expected):
    assert calibration_step(Called())(batch) == expected


@pytest.mark.parametrize("batch", [{"image": 1}, {"mask": 2}])
def test_a_batch_that_does_not_fit_the_network_is_told(batch):
    with pytest.raises(ValueError, match=r"can't be called .*argument.*calibration_step\(batch\) or predict_step"):
        calibration_step(Called())(batch)


@pytest.mark.parametrize("root", [LightningModule, pytorch_lightning.LightningModule])
def test_a_lightning_module_may_have_steps_of_its_own(root):
    plain = type("Plain", (Called, root), {})
    predicting = type("Predicting", (plain,), {"predict_step": lambda self, batch, batch_idx: ("predict", batch)})
    calibrating = type("Calibrating", (predicting,), {"calibration_step": lambda self, batch: ("calibrate", batch)})
    assert calibration_step(plain())((4, "label")) == (4, None)
    assert calibration_step(predicting())((4, 5)) == ("predict", (4, 5))
    assert calibration_step(calibrating())((4, 5)) == ("calibrate", (4, 5))


def test_a_language_model_is_run_without_its_labels():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    lm = CausalLM(config={"model_type": "llama", "vocab_size": 32, **shape})
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.ones(2, 4, dtype=torch.long)}
    output = calibration_step(lm)(batch)
    assert output.logits.shape == (2, 4, 32)
    assert output.loss is None


def test_masks_that_hide_nothing_are_none():
    full, half = torch.ones(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert mask_of({"m": full}, "m") is None
    assert mask_of({"m": half}, None) is None
    assert mask_of(half, "m") is None
    assert mask_of({"other": half}, "m") is None
    assert mask_of({"m": half[None]}, "m") is None
    assert torch.equal(mask_of({"m": half}, "m"), half.bool())


def test_batches_are_moved_in_any_nesting():
    class Batch:
        """One of those that move themselves."""

        def to(self, device: Any) -> str:
            return f"moved to {device}"

    moved = move({"a": [torch.ones(2)], "b": "text"}, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["b"] == "text"
    assert move(Batch(), torch.device("cpu")) == "moved to cpu"


def test_a_step_may_change_its_batch_and_draws_the_same_every_time():
    batches, drawn = [torch.ones(2), (torch.ones(2),)], []

    def step(batch: Any) -> None:
        tensor = batch[0] if isinstance(batch, tuple) else batch
        drawn.append((*(tensor.mul_(2) + torch.rand(1)).tolist(), random.random(), np.random.rand()))

    run = runner(nn.Linear(1, 1), batches, step)
    with undisturbed(nn.Linear(1, 1)):
        for index in (0, 1, 0):
            run(index)
    assert drawn[0] == drawn[2]
    assert drawn[0] != drawn[1]
    assert torch.equal(batches[0], torch.ones(2))
    assert torch.equal(batches[1][0], torch.ones(2))


def test_generators_and_modes_are_restored_after_an_error():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)

    def spoil() -> Tensor:
        with undisturbed(module):
            assert not module[1].training
            assert not torch.is_grad_enabled()
            assert not torch.backends.mha.get_fastpath_enabled()
            torch.rand(3), random.random(), np.random.rand(2)
            raise RuntimeError("spoiled")

    with pytest.raises(RuntimeError, match="spoiled"):
        spoil()
    assert module[1].training
    assert torch.backends.mha.get_fastpath_enabled()
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
