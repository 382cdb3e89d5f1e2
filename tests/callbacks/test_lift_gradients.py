"""LIFTFinetuning: what is kept of gradients, and how they are clipped, scaled and cleared."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_weights.callbacks import LIFTFinetuning
from lightning_weights.optimizers import LIFTAdamW
from tests.callbacks.lift_cases import RULE, Watch, classifier, fit, weights
from tests.helpers.battery import NOISE, differing, flat

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.filterwarnings("ignore:.*update_interval")]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("selector", ["lift", "gradient"])
def test_gathered_gradients_are_the_dense_ones_in_every_bit(accumulate, selector):
    """Five batches per epoch, so that the last window of an accumulation is short; masks change in between."""
    found = []
    for sparse in (True, False):
        model, watch = classifier(selector=selector), Watch()
        trainer = fit(
            model, LIFTFinetuning(sparse_grads=sparse), [watch], accumulate_grad_batches=accumulate, max_epochs=3
        )
        assert any(watch.gathered) == sparse
        found.append(flat([weights(model), trainer.optimizers[0].state_dict()]))
    assert not differing(*found)


class Alive(TorchDispatchMode):
    """Counts the new matrices of one size that are alive at the same time, among those that operators return."""

    def __init__(self, numel: int, known: set[int]) -> None:
        super().__init__()
        self.numel, self.known, self.alive, self.peak = numel, known, {}, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() == 4 * self.numel:
                self.alive.setdefault(value.untyped_storage()._cdata, StorageWeakRef(value.untyped_storage()))
        living = ((key, storage) for key, storage in self.alive.items() if not storage.expired())
        self.alive = {key: storage for key, storage in living if key not in self.known}
        self.peak = max(self.peak, len(self.alive))
        return result


class MeasureBackward(Callback):
    """Measures what a backward pass keeps, from the loss to the step."""

    def __init__(self, numel: int) -> None:
        self.numel, self.peaks = numel, []

    def on_before_backward(self, trainer, pl_module, loss):
        known = {param.untyped_storage()._cdata for param in pl_module.parameters()}
        self.mode = Alive(self.numel, known)
        self.mode.__enter__()

    def on_after_backward(self, trainer, pl_module):
        self.mode.__exit__(None, None, None)
        self.peaks.append(self.mode.peak)


@pytest.mark.parametrize("sparse", [True, False])
def test_at_most_one_layers_gradient_is_alive(sparse):
    side, layers = 32, 5
    model = classifier(hidden=(side,) * (layers + 1))
    measure = MeasureBackward(side * side)
    names = [f"body.{1 + 3 * i}" for i in range(1, layers + 1)]
    fit(model, LIFTFinetuning(names, sparse_grads=sparse), [measure], max_steps=3, accumulate_grad_batches=2)
    # accumulating adds a new one to those that are kept
    assert max(measure.peaks) == (1 if sparse else layers + 1), measure.peaks


@pytest.mark.parametrize("train_other", [False, True])
@pytest.mark.parametrize(("algorithm", "limit"), [("norm", 0.05), ("value", 0.01), ("norm", 1e3)])
def test_clipping_looks_at_what_is_trained(train_other, algorithm, limit):
    """The gradients of the first step, clipped by PyTorch as tensors of their own."""
    options = {"target_modules": ["body.4", "head"], "train_other": train_other}
    free, clipped, model = Watch(), Clipped(), classifier()
    fit(classifier(), LIFTFinetuning(**options), [free], max_steps=1)
    fit(
        model,
        LIFTFinetuning(**options),
        [clipped],
        max_steps=1,
        gradient_clip_val=limit,
        gradient_clip_algorithm=algorithm,
    )
    expected = {name: nn.Parameter(torch.zeros_like(value)) for name, value in free.gathered[0].items()}
    for name, param in expected.items():
        param.grad = free.gathered[0][name].clone()
    for name, gradient in clipped.unclipped.items():
        expected[name] = nn.Parameter(torch.zeros_like(gradient))
        expected[name].grad = gradient
    if algorithm == "norm":
        nn.utils.clip_grad_norm_(expected.values(), limit)
    else:
        nn.utils.clip_grad_value_(expected.values(), limit)
    assert clipped.found.keys() == expected.keys()
    assert bool(clipped.unclipped) == train_other
    for name, value in clipped.found.items():
        torch.testing.assert_close(value, expected[name].grad)


class Clipped(Callback):
    """Keeps the whole gradients before clipping, and all gradients as the optimizer finds them."""

    def __init__(self) -> None:
        self.unclipped: dict[str, torch.Tensor] = {}
        self.found: dict[str, torch.Tensor] = {}

    def on_after_backward(self, trainer, pl_module):
        self.unclipped = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if not self.unclipped:
            optimizer.register_step_post_hook(lambda *_: self._look(pl_module))

    def _look(self, pl_module):
        for name, param in pl_module.named_parameters():
            value = getattr(param, "_lw_sparse_grad", None)
            value = param.grad if value is None else value
            if value is not None:
                self.found[name] = value.clone()


class Scaling(Callback):
    """Gives the trainer a scaler, as fp16 on a GPU would, and overflows once."""

    def __init__(self, overflow_at: int | None = None) -> None:
        self.overflow_at, self.skipped = overflow_at, []

    def setup(self, trainer, pl_module, stage):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
        plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
        trainer.strategy.precision_plugin = plugin

    def on_before_backward(self, trainer, pl_module, loss):
        self.before = weights(pl_module)
        if trainer.global_step == self.overflow_at:
            layer = pl_module.network.head
            self.handle = layer.weight.register_hook(lambda gradient: gradient * torch.inf)

    def on_train_batch_end(self, trainer, pl_module, *args):
        if self.overflow_at is not None and trainer.global_step == self.overflow_at + 1:
            self.handle.remove()
            self.skipped.append(not differing(self.before, weights(pl_module)))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("selector", ["lift", "gradient"])
def test_gradients_are_unscaled_in_either_form(accumulate, selector):
    """By a power of two, which changes no bit; with the selector "gradient" some are whole."""
    plain, scaled = classifier(selector=selector), classifier(selector=selector)
    fit(plain, LIFTFinetuning(), accumulate_grad_batches=accumulate)
    trainer = fit(scaled, LIFTFinetuning(), [Scaling()], accumulate_grad_batches=accumulate)
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**10
    assert not differing(weights(plain), weights(scaled))


def test_an_overflow_among_the_selected_entries_skips_the_step():
    scaling = Scaling(overflow_at=2)
    trainer = fit(classifier(), LIFTFinetuning(), [scaling])
    assert scaling.skipped == [True]
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**9


def test_a_modules_own_clipping_is_that_of_the_trainer():
    """Whichever method it overrides, as long as Lightning's own function clips in the end."""
    plain, configured, overridden = classifier(), classifier(), classifier()
    calls = []

    def configure(optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        calls.append("configure")
        configured.clip_gradients(optimizer, gradient_clip_val=0.02, gradient_clip_algorithm="norm")

    def clip(*arguments, **options):
        calls.append("clip")
        type(overridden).clip_gradients(overridden, *arguments, **options)

    configured.configure_gradient_clipping, overridden.clip_gradients = configure, clip
    fit(plain, LIFTFinetuning(), gradient_clip_val=0.02)
    fit(configured, LIFTFinetuning())
    fit(overridden, LIFTFinetuning(), gradient_clip_val=0.02)
    assert calls == ["configure"] * 10 + ["clip"] * 10
    assert not differing(weights(plain), weights(configured))
    assert not differing(weights(plain), weights(overridden))
    assert overridden.clip_gradients is clip
    unclipped = classifier()
    assert "clip_gradients" not in vars(fit(unclipped, LIFTFinetuning()).precision_plugin)
    assert differing(weights(plain), weights(unclipped))


def by_hand(model: Any, clear: Any) -> Any:
    """Make a module train by hand, clip the gradients while they are scaled, and clear them in some way."""

    def training_step(batch, batch_idx):
        optimizer = model.optimizers()
        clear(model, optimizer)
        model.manual_backward(nn.functional.cross_entropy(model(batch[0]), batch[1]))
        model.clip_gradients(optimizer, 20.0, "value")
        optimizer.step()

    model.automatic_optimization, model.training_step = False, training_step
    return model


def test_scaled_vectors_are_clipped_by_hand():
    """Of the scaled ones 20 is 0.02, as whole gradients are clipped there."""
    found = []
    for sparse in (True, False):
        model = by_hand(classifier(), lambda _, optimizer: optimizer.zero_grad())
        fit(model, LIFTFinetuning(sparse_grads=sparse), [Scaling()])
        found.append(weights(model))
    assert not differing(*found)


def test_vectors_that_are_not_cleared_are_told():
    model = by_hand(classifier(), lambda model, _: model.zero_grad())
    with pytest.raises(RuntimeError, match=r"network\.body\.1\.weight was not cleared .* zero_grad\(\) of the"):
        fit(model, LIFTFinetuning())


def test_gathered_gradients_of_doubles_are_doubles():
    found = []
    for sparse in (True, False):
        model = classifier()
        fit(model, LIFTFinetuning(sparse_grads=sparse), precision="64-true")
        found.append(weights(model))
    assert not differing(*found)


def test_each_of_several_optimizers_has_its_own_matrices():
    """Trained by hand, with clipping by hand: as one optimizer for all, without a norm that spans both."""

    def training_step(batch, batch_idx):
        optimizers = model.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        model.manual_backward(nn.functional.cross_entropy(model(batch[0]), batch[1]))
        for optimizer in optimizers:
            model.clip_gradients(optimizer, 0.01, "value")
            optimizer.step()

    single, model = classifier(), classifier()
    fit(single, LIFTFinetuning(), gradient_clip_val=0.01, gradient_clip_algorithm="value")
    body, head = model.network.body, model.network.head
    model.automatic_optimization, model.training_step = False, training_step
    model.configure_optimizers = lambda: [LIFTAdamW(part.parameters(), **RULE) for part in (body, head)]
    trainer = fit(model, LIFTFinetuning())
    assert [len(optimizer.state) for optimizer in trainer.optimizers] == [2, 1]
    assert not differing(weights(single), weights(model))
