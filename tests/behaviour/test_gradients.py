"""Accumulation, clipping, mixed precision, loss scaling, closures and manual optimisation, against a plain loop."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from tests.behaviour.subjects import every_setup, own_optimizers
from tests.helpers.battery import NOISE, Setup, differing, flat, small_module, tasks, train

pytestmark = pytest.mark.filterwarnings(NOISE)

EPOCHS = 3


def batches(batch_size: int = 4) -> list[Any]:
    """Return what `tasks` serves when nothing moves the task along: the first one, over and over."""
    return [batch for _ in range(EPOCHS) for batch in tasks(batch_size=batch_size).train_dataloader()]


def plain_loop(
    row: Setup, accumulate: int = 1, clip: float | None = None, with_closure: bool = False
) -> tuple[nn.Module, Any]:
    """Train with nothing but PyTorch."""
    network = row.make_network()
    optimizer = row.make_optimizer(network.parameters())
    data = batches()
    for start in range(0, len(data), accumulate):

        def gradients(start: int = start) -> torch.Tensor:
            optimizer.zero_grad()
            total = torch.zeros(())
            for x, y in data[start : start + accumulate]:
                loss = nn.functional.cross_entropy(network(x), y) / accumulate
                loss.backward()
                total += loss.detach()
            if clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            return total

        if with_closure:
            assert optimizer.step(gradients) is not None
        else:
            gradients()
            assert optimizer.step() is None
    return network, optimizer


def state(network: nn.Module, optimizer: Any) -> dict[str, Any]:
    return flat({"weights": network.state_dict(), "optimizer": optimizer.state_dict()})


def alone(row: Setup, module: Any = None, **options: Any) -> dict[str, Any]:
    """Train the row's optimizer without its callbacks under a Trainer and return the same entries as `state`."""
    module = small_module(row) if module is None else module
    found = train(row, module, callbacks=[], max_epochs=EPOCHS, **options)
    trained = {name.replace("weights.net.", "weights."): value for name, value in found.items()}
    trained = {name.replace("optimizer.0.", "optimizer."): value for name, value in trained.items()}
    return {name: value for name, value in trained.items() if name.startswith((".weights", ".optimizer"))}


@own_optimizers
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.05}], ids=str)
def test_a_trainer_does_what_a_plain_loop_does(row, options):
    accumulate, clip = options.get("accumulate_grad_batches", 1), options.get("gradient_clip_val")
    assert not differing(alone(row, **options), state(*plain_loop(row, accumulate, clip)))


@own_optimizers
@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (2, 0.05)])
def test_closures_change_nothing(row, accumulate, clip):
    ways = [state(*plain_loop(row, accumulate, clip, with_closure)) for with_closure in (False, True)]
    assert not differing(*ways)


@every_setup
def test_two_small_batches_are_one_large_one(row):
    row.skip_where_it_differs("accumulation")
    small = train(row, accumulate_grad_batches=2)
    large = train(row, data=tasks(batch_size=8))
    assert not differing(small, large, tolerance=1e-6)


@every_setup
def test_manual_optimisation_gives_the_same_numbers(row):
    manual = small_module(row, automatic_optimization=False)
    assert not differing(train(row), train(row, manual))


@every_setup
def test_bf16_autocast_keeps_weights_and_state_in_fp32(row):
    row.skip_where_it_differs("bf16")
    found = train(row, precision="bf16-mixed")
    plain = train(row)
    state_names = [name for name in found if ".weights" in name or ".optimizer" in name]
    tensors = {name: found[name] for name in state_names if isinstance(found[name], torch.Tensor)}
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float32}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    moved = [name for name, tensor in tensors.items() if not torch.equal(tensor, plain[name])]
    assert moved, "autocast was not on"


class ScalingOnly(MixedPrecision):
    """Lightning's fp16 path, on the CPU; `autocast=False` leaves only the loss scaling."""

    def __init__(self, autocast: bool) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))
        self.autocast = autocast

    def forward_context(self) -> Any:
        return super().forward_context() if self.autocast else contextlib.nullcontext()


@every_setup
def test_loss_scaling_is_undone_before_the_step(row):
    """Scaling by a power of two is exact, so unscaled gradients have the same bits."""
    assert not differing(train(row), train(row, plugins=[ScalingOnly(autocast=False)]))


@every_setup
def test_fp16_autocast_trains(row):
    found = train(row, plugins=[ScalingOnly(autocast=True)])
    tensors = [value for value in found.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert not any(bool(tensor.isinf().any()) for tensor in tensors)


class Overflow(Callback):
    """Spoils the gradients of one step and compares what the skipped step leaves with what it found."""

    def __init__(self, at: int) -> None:
        self.at, self.checked = at, False

    def _state(self, trainer: Any) -> dict[str, Any]:
        states = [trainer.lightning_module.state_dict(), *(o.state_dict() for o in trainer.optimizers)]
        return flat([*states, *(callback.state_dict() for callback in trainer.callbacks)])

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.at:
            gradient = next(param.grad for param in pl_module.parameters() if param.grad is not None)
            (gradient._values() if gradient.is_sparse else gradient).view(-1)[0] = torch.inf

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before, self.scale = self._state(trainer), trainer.precision_plugin.scaler.get_scale()

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.at + 1:
            assert trainer.precision_plugin.scaler.get_scale() == self.scale / 2
            assert not differing(self.before, self._state(trainer))
            self.checked = True


@every_setup
def test_a_skipped_step_leaves_everything_as_it_was(row):
    overflow = Overflow(at=6)
    train(row, plugins=[ScalingOnly(autocast=False)], extra=[overflow])
    assert overflow.checked


def scaled_loop(row: Setup, overflow_at: int | None = None) -> tuple[nn.Module, Any]:
    """Train with PyTorch's own scaler, skipping one step if asked to."""
    network = row.make_network()
    optimizer = row.make_optimizer(network.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for index, (x, y) in enumerate(batches()):
        if index == overflow_at:
            before = state(network, optimizer)
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(network(x), y)).backward()
        if index == overflow_at:
            next(network.parameters()).grad.view(-1)[0] = torch.nan
        scaler.step(optimizer)
        scaler.update()
        if index == overflow_at:
            assert not differing(before, state(network, optimizer))
    return network, optimizer


@own_optimizers
def test_a_scaler_in_a_plain_loop(row):
    assert not differing(state(*scaled_loop(row)), state(*plain_loop(row)))
    scaled_loop(row, overflow_at=5)


@own_optimizers
def test_ways_to_the_same_step(row):
    """The step after gradients were summed by hand, by autograd and by a closure."""

    def by_hand(network: nn.Module, data: Any) -> None:
        parts = []
        for x, y in data:
            network.zero_grad()
            (nn.functional.cross_entropy(network(x), y) / len(data)).backward()
            parts.append([p.grad.clone() for p in network.parameters()])
        for p, *gradients in zip(network.parameters(), *parts, strict=True):
            p.grad = sum(gradients[1:], start=gradients[0])

    def by_autograd(network: nn.Module, data: Any) -> None:
        for x, y in data:
            (nn.functional.cross_entropy(network(x), y) / len(data)).backward()

    def one_step(prepare: Callable[..., None]) -> dict[str, Any]:
        network = row.make_network()
        optimizer = row.make_optimizer(network.parameters())
        prepare(network, batches()[:2])
        optimizer.step()
        return state(network, optimizer)

    assert not differing(one_step(by_hand), one_step(by_autograd))
