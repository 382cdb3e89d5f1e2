"""What CLASSP's threshold and accumulator mean under accumulation, clipping, scaling and several optimizers."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_weights.callbacks import CLASSPPhases
from lightning_weights.optimizers import CLASSP
from tests.behaviour.subjects import SETUPS
from tests.helpers.battery import NOISE, small_module, train

pytestmark = pytest.mark.filterwarnings(NOISE)

ROW = SETUPS[0]


def fraction_updated(**options: Any) -> float:
    """Return the share of updated weights in the last of 12 steps under a threshold that matters."""
    configured = {"configure_optimizers": lambda self: CLASSP(self.parameters(), lr=0.05, threshold=1e-4)}
    phases = CLASSPPhases(first_task_decay=True)
    found = train(ROW, small_module(ROW, **configured), callbacks=[phases], **options)
    return found[".logged.weights/classp/update_fraction"].item()


def test_clipping_by_norm_lowers_the_update_fraction():
    free, clipped = fraction_updated(), fraction_updated(gradient_clip_val=0.2)
    assert 0 < clipped < free < 1


def test_the_threshold_acts_once_on_the_accumulated_gradient():
    """Two gradients of 0.03 pass a threshold of 0.05² together, and cancel each other if they are opposite."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = CLASSP([weight], lr=0.1, threshold=0.05**2, eps=1e-9)
    for gradients in ([0.03, 0.03, 0.2], [0.03, -0.03, -0.2]):
        (weight * torch.tensor(gradients)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.1, 0.0, 0.0]))
    torch.testing.assert_close(optimizer.state[weight]["grad_sum"], torch.tensor([0.06, 0.0, 0.0]))


def test_the_threshold_acts_once_under_a_trainer():
    found = train(ROW, accumulate_grad_batches=2)
    steps = [value for name, value in found.items() if name.endswith(".step")]
    assert set(steps) == {6}
    assert found[".counts.0"] == 6


def test_the_threshold_sees_unscaled_gradients():
    """Unscaled, nothing passes; a threshold on scaled gradients would let everything through."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = CLASSP([weight], threshold=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale((weight * 1e-2).sum()).backward()
    assert bool((weight.grad > 1).all())
    scaler.step(optimizer)
    assert bool((weight == 1).all())
    assert optimizer.average_grad_sum() == 0.0


def test_the_accumulator_stays_fp32_for_bf16_weights_under_a_trainer():
    half = small_module(ROW)
    half.net.to(torch.bfloat16)
    found = train(ROW, half, precision="bf16-true")
    sums = [value for name, value in found.items() if name.endswith("grad_sum")]
    assert {total.dtype for total in sums} == {torch.float32}
    assert found[".weights.net.0.weight"].dtype is torch.bfloat16


def test_two_optimizers_are_both_led_through_the_phases():
    def configure_optimizers(self):
        first, second = self.net[0], self.net[3]
        return CLASSP(first.parameters(), lr=0.05, threshold=1e-5), CLASSP(second.parameters(), lr=0.02)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    methods = {"configure_optimizers": configure_optimizers, "training_step": training_step}
    found = train(ROW, small_module(ROW, automatic_optimization=False, **methods))
    for index in (0, 1):
        group = f".optimizer.{index}.param_groups.0"
        assert (found[f"{group}.threshold"], found[f"{group}.apply_decay"]) == (1e-4, True)
        assert found[f".logged.weights/classp/{index}/phase"] == 1.0
        assert found[f".logged.weights/classp/{index}/average_grad_sum"] > 0
