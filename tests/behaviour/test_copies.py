"""Copies, pickles, checkpoints and configs of every public optimizer and callback."""

import copy
import io
import pickle
from collections import UserList
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.behaviour.subjects import CALLBACKS, OPTIMIZERS, SETUPS, SUBJECTS, every_setup, own_optimizers
from tests.helpers.battery import NOISE, SaveAt, differing, flat, locate, small_module, train
from tests.helpers.tiny import ROOTS

pytestmark = pytest.mark.filterwarnings(NOISE)

COPIERS = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}
LEAN = 2000  # bytes


class LeanPickler(pickle.Pickler):
    """Refuses what a copy must not drag along."""

    def persistent_id(self, value: Any) -> None:
        heavy = (torch.Tensor, nn.Module, torch.optim.Optimizer, torch.utils.data.DataLoader)
        assert not isinstance(value, heavy), f"a {type(value).__name__} is pickled"
        assert getattr(value, "__name__", "") != "<lambda>", "a lambda is pickled"


def lean_pickle(value: Any) -> bytes:
    buffer = io.BytesIO()
    LeanPickler(buffer).dump(value)
    return buffer.getvalue()


def build(path: str, arguments: Any = None) -> Any:
    arguments = SUBJECTS[path].arguments if arguments is None else arguments
    return locate(path)([nn.Parameter(torch.ones(3))], **arguments) if path in OPTIMIZERS else locate(path)(**arguments)


class Trained(NamedTuple):
    """A run with its callbacks as they are after the fit, a checkpoint from its middle, and what it left behind."""

    callbacks: list[Any]
    checkpoint: Path
    outcome: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Trained]:
    """Train every run once."""
    folder, found = tmp_path_factory.mktemp("trained"), {}
    for row in SETUPS:
        callbacks, path = row.make_callbacks(), folder / row.name
        outcome = train(row, callbacks=callbacks, extra=[SaveAt("on_train_batch_end", 6, path)])
        found[row.name] = Trained(callbacks, path, outcome)
    return found


@every_setup
@pytest.mark.parametrize("copier", COPIERS)
def test_copies_of_used_callbacks_are_lean_and_equal(trained, row, copier):
    for callback in trained[row.name].callbacks:
        twin = COPIERS[copier](callback)
        assert type(twin) is type(callback)
        assert twin.state_key == callback.state_key
        assert not hasattr(twin, "log")
        assert len(lean_pickle(twin)) < LEAN
        assert len(lean_pickle(callback)) < LEAN
        assert lean_pickle(twin) == lean_pickle(callback)


@every_setup
def test_copies_train_like_the_original(trained, row):
    twins = [copy.deepcopy(pickle.loads(pickle.dumps(callback))) for callback in row.make_callbacks()]
    assert not differing(trained[row.name].outcome, train(row, callbacks=twins))


@own_optimizers
@pytest.mark.parametrize("copier", COPIERS)
def test_optimizers_are_copied_with_their_state_and_weights(row, copier):
    def steps(network: nn.Module, optimizer: Any, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(4):
            optimizer.zero_grad()
            network(torch.randn(8, 4, generator=generator)).square().mean().backward()
            optimizer.step()

    network = row.make_network()
    optimizer = row.make_optimizer(network.parameters())
    steps(network, optimizer, seed=0)
    optimizer.zero_grad()
    other, twin = COPIERS[copier]((network, optimizer))
    steps(network, optimizer, seed=1)
    steps(other, twin, seed=1)
    left, right = ([n.state_dict(), o.state_dict()] for n, o in ((network, optimizer), (other, twin)))
    assert not differing(flat(left), flat(right))
    assert not any(
        torch.equal(a, b) for a, b in zip(network.parameters(), row.make_network().parameters(), strict=True)
    )


def test_state_keys_differ():
    keys = [build(path).state_key for path in CALLBACKS]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("path", CALLBACKS)
def test_state_keys_do_not_depend_on_the_module_of_definition(path):
    """A key with an address or a counter in it would not be found in the checkpoint of another process."""
    assert build(path).state_key == build(path).state_key
    assert path.rpartition(".")[2] in build(path).state_key
    assert "0x" not in build(path).state_key


@every_setup
def test_checkpoints_are_plain(trained, row):
    checkpoint = torch.load(trained[row.name].checkpoint, weights_only=True)
    saved = [callback.state_key for callback in row.make_callbacks()]
    assert set(saved) <= set(checkpoint["callbacks"])
    allowed = {torch.Tensor, int, float, str, bool, type(None)}
    states = [checkpoint["optimizer_states"], *(checkpoint["callbacks"][key] for key in saved)]
    assert {type(leaf) for leaf in flat(states).values()} <= allowed


def with_lists_as(make: Any) -> Any:
    return lambda arguments: {k: make(v) if isinstance(v, list) else v for k, v in arguments.items()}


FORMS = {"omegaconf": OmegaConf.create, "UserList": with_lists_as(UserList), "tuple": with_lists_as(tuple)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", SUBJECTS)
def test_arguments_of_other_types_become_plain(path, form):
    part, plain = build(path, FORMS[form](dict(SUBJECTS[path].arguments))), build(path)
    assert form.encode() not in pickle.dumps(part)
    if path in OPTIMIZERS:
        assert flat(part.state_dict()) == flat(plain.state_dict())
    else:
        assert pickle.dumps(part) == pickle.dumps(plain)


@every_setup
def test_omegaconf_groups_and_arguments_train(trained, row):
    path, arguments = row.optimizer
    configured = {
        "configure_optimizers": lambda self: locate(path)(self.parameters(), **OmegaConf.create(dict(arguments)))
    }
    callbacks = [locate(path)(**OmegaConf.create(dict(arguments))) for path, arguments in row.callbacks]
    found = train(row, small_module(row, **configured), callbacks=callbacks)
    assert not differing(trained[row.name].outcome, found)


# both roots save hyper-parameters with the same code
IN_ROOTS = [*((row, ROOTS[0]) for row in SETUPS), (SETUPS[0], ROOTS[1])]


@pytest.mark.parametrize(("row", "root"), IN_ROOTS, ids=[f"{row.name}-{root}" for row, root in IN_ROOTS])
def test_callbacks_may_be_hyper_parameters(trained, row, root, tmp_path):
    """Some projects deep-copy their callbacks at construction and pickle the live ones into every checkpoint."""

    callbacks = row.make_callbacks()
    module = small_module(row, root)
    module.save_hyperparameters({"callbacks": callbacks})
    path = tmp_path / "ckpt"
    straight = train(row, module, root=root, callbacks=callbacks, extra=[SaveAt("on_train_batch_end", 6, path)])
    checkpoint = torch.load(path, weights_only=False)
    kept = checkpoint["hyper_parameters"]["callbacks"]
    assert [type(callback) for callback in kept] == [type(callback) for callback in callbacks]
    assert all(len(lean_pickle(callback)) < LEAN for callback in kept)
    assert not differing(trained[row.name].outcome, straight)
    # what the copies at construction and the pickles in the checkpoint left behind goes on like the original
    module = small_module(row, root)
    assert not differing(straight, train(row, module, root=root, callbacks=kept))
