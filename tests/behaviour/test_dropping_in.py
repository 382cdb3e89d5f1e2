"""Trainers that exist: both Lightning roots, networks built late, renamed weights, other dtypes, averaged weights."""

import inspect
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from tests.behaviour.subjects import SETUPS, SUBJECTS, every_setup, own_optimizers
from tests.helpers.battery import NOISE, SaveAt, differing, locate, small_module, tasks, train
from tests.helpers.tiny import ROOTS

pytestmark = pytest.mark.filterwarnings(NOISE)


def parts(row: Any, root: str = ROOTS[0], **overrides: Any) -> dict[str, Any]:
    """Return a module with dropout and data in random order."""
    return {"module": small_module(row, root, dropout=0.5, **overrides), "data": tasks(root, shuffle=True)}


def straight_and_resumed(row: Any, path: Any, root: str = ROOTS[0], **overrides: Any) -> tuple[Any, Any]:
    """Train to the end, and train again from a checkpoint in the middle of the second task."""
    save = SaveAt("on_train_batch_end", 6, path)
    straight = train(row, **parts(row, root, **overrides), root=root, extra=[save])
    return straight, train(row, **parts(row, root, **overrides), root=root, ckpt=path, seed=99)


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Any]]:
    """What every row leaves behind when nothing is unusual."""
    return {row.name: train(row, **parts(row)) for row in SETUPS}


@every_setup
def test_both_roots_train_to_the_same_numbers_and_resume(row, plain, tmp_path):
    straight, resumed = straight_and_resumed(row, tmp_path / "ckpt", ROOTS[1])
    assert not differing(straight, resumed)
    assert not differing(straight, plain[row.name])
    start = {f".weights.net.{name}": value for name, value in row.make_network().state_dict().items()}
    assert any(not torch.equal(straight[name], value) for name, value in start.items() if name in straight)


@every_setup
@pytest.mark.parametrize("built_in", ["setup", "configure_model"])
def test_networks_built_late(row, built_in, plain, tmp_path):
    straight, resumed = straight_and_resumed(row, tmp_path / "ckpt", built_in=built_in)
    assert not differing(straight, resumed)
    assert not differing(straight, plain[row.name])


@every_setup
def test_state_dict_keys_may_differ_from_parameter_names(row, tmp_path):
    def rename(old: str, new: str, names: dict[str, Any]) -> dict[str, Any]:
        return {new + name.removeprefix(old) if name.startswith(old) else name: v for name, v in names.items()}

    def state_dict(self, *args, **kwargs):
        return rename("net.", "model.body.", nn.Module.state_dict(self, *args, **kwargs))

    def load_state_dict(self, state, *args, **kwargs):
        return nn.Module.load_state_dict(self, rename("model.body.", "net.", state), *args, **kwargs)

    renamed = {"state_dict": state_dict, "load_state_dict": load_state_dict}
    straight, resumed = straight_and_resumed(row, tmp_path / "ckpt", **renamed)
    assert any(name.startswith(".weights.model.body.") for name in straight)
    assert not differing(straight, resumed)


class Scale(nn.Module):
    """A network without a single matrix: its weights are vectors and one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.linspace(-1.0, 1.0, 4)), nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        score = (self.weight * x).sum(dim=1) + self.shift
        return torch.stack([-score, score], dim=1)


@every_setup
def test_networks_without_matrices(row, tmp_path):
    def build(self, place):
        if place == "__init__":
            self.net = Scale()

    if "no matrices" in row.refuses:
        with pytest.raises(row.refuses["no matrices"], match=r"weight|Linear|net"):
            train(row, small_module(row, _build=build))
        return
    straight, resumed = straight_and_resumed(row, tmp_path / "ckpt", _build=build)
    assert not differing(straight, resumed)
    assert not torch.equal(straight[".weights.net.weight"], Scale().weight)


@every_setup
def test_float32_weights_under_a_float64_default(row, plain):
    expected, given = plain[row.name], parts(row)
    torch.set_default_dtype(torch.float64)
    try:
        found = train(row, **given)
    finally:
        torch.set_default_dtype(torch.float32)
    # values that are logged or measured follow the default, what is trained does not
    trained = [name for name in expected if name.startswith((".weights", ".optimizer", ".counts"))]
    assert not differing({name: expected[name] for name in trained}, {name: found[name] for name in trained})


class SwapAverages(Callback):
    """Keeps averaged weights, shows them to the validation, and refuses parameters that appear later."""

    def __init__(self) -> None:
        self.averages: list[torch.Tensor] = []
        self.parameters: list[int] = []
        self.swaps = 0

    def on_fit_start(self, trainer, pl_module):
        self.averages = [p.detach().clone() for p in pl_module.parameters()]
        self.parameters = [id(p) for p in pl_module.parameters()]

    def on_train_batch_end(self, trainer, pl_module, *args):
        assert [id(p) for p in pl_module.parameters()] == self.parameters
        for average, param in zip(self.averages, pl_module.parameters(), strict=True):
            average.lerp_(param.detach(), 0.1)

    def _swap(self, pl_module):
        self.swaps += 1
        for average, param in zip(self.averages, pl_module.parameters(), strict=True):
            kept = param.detach().clone()
            param.data.copy_(average)
            average.copy_(kept)

    def on_validation_start(self, trainer, pl_module):
        self.shown = [average.clone() for average in self.averages]
        self._swap(pl_module)

    def on_validation_end(self, trainer, pl_module):
        for average, param in zip(self.shown, pl_module.parameters(), strict=True):
            assert torch.equal(average, param), "a weight was edited during validation"
        self._swap(pl_module)


@every_setup
@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_around_validation(row, first, plain):
    swap = SwapAverages()
    callbacks = [swap, *row.make_callbacks()] if first else [*row.make_callbacks(), swap]
    swapped, expected = train(row, **parts(row), callbacks=callbacks), plain[row.name]
    assert swap.swaps == 2 * row.epochs
    # accuracies are those of the averages, training goes on as if nobody had swapped
    trained = [name for name in expected if name.startswith((".weights", ".optimizer"))]
    assert not differing({name: expected[name] for name in trained}, {name: swapped[name] for name in trained})


@own_optimizers
def test_params_may_be_a_one_shot_iterator_given_by_keyword(row):
    path, arguments = row.optimizer
    optimizer_class = locate(path)
    first, *_ = inspect.signature(optimizer_class).parameters
    assert first == "params"
    network = row.make_network()
    optimizer = optimizer_class(params=iter(network.parameters()), **arguments)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in network.parameters()]


@own_optimizers
def test_construction_after_a_type_error(row, plain):
    """Some projects offer every argument they know and, told by a TypeError, try again with fewer."""
    path, arguments = row.optimizer
    optimizer_class = locate(path)
    network = row.make_network()
    before = {name: (p.clone(), dict(vars(p)), p._backward_hooks) for name, p in network.named_parameters()}
    with pytest.raises(TypeError, match="surprise"):
        optimizer_class(network.parameters(), **arguments, surprise=1)
    for name, p in network.named_parameters():
        weight, attributes, hooks = before[name]
        assert torch.equal(weight, p)
        assert (vars(p), p._backward_hooks) == (attributes, hooks)
    configured = {"configure_optimizers": lambda self: _second_try(row, self)}
    assert not differing(plain[row.name], train(row, **parts(row, **configured)))


def _second_try(row: Any, module: Any) -> Any:
    path, arguments = row.optimizer
    try:
        return locate(path)(module.parameters(), **arguments, surprise=1)
    except TypeError:
        return locate(path)(module.parameters(), **arguments)


@own_optimizers
def test_an_unasked_weight_decay_is_named(row):
    path, arguments = row.optimizer
    if "weight_decay" in inspect.signature(locate(path)).parameters:
        locate(path)(row.make_network().parameters(), **arguments, weight_decay=0.0)
    else:
        with pytest.raises(TypeError, match="weight_decay"):
            locate(path)(row.make_network().parameters(), **arguments, weight_decay=0.0)


@own_optimizers
def test_wrong_values_are_value_errors(row):
    """A TypeError would make such projects drop arguments silently."""
    path, _ = row.optimizer
    name, value = SUBJECTS[path].wrong
    with pytest.raises(ValueError, match=name):
        locate(path)(row.make_network().parameters(), **{name: value})
