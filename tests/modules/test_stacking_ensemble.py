"""Members and their stack in one module: the same numbers as one after the other, and nothing of dropped members."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.modules import MLP, Regressor, StackingEnsemble
from lightning_weights.modules.stack_state import StackOutput, StackState
from tests.helpers.battery import NOISE
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(NOISE)

X = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
NAMES = ["a", "b", "c", "d"]


def network(seed: int = 0, outputs: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(3, (5,), outputs, dropout=0.5, batch_norm=True)


def output(selected: list[int], seed: int = 0) -> StackOutput:
    """Return a stack of two linear models with any numbers."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features, some = len(selected) + 6, drawn(2)
    mean, scale, coefficients = drawn(features), drawn(features).abs() + 0.5, 30 * drawn(2, features)
    blend = torch.tensor([0.25, 0.75], dtype=torch.float64)
    return StackOutput(torch.tensor(selected), mean, scale, coefficients, drawn(2), blend, some, some + 1, some + 2)


def state(*outputs: list[int], flat: bool = True) -> StackState:
    return StackState(NAMES, [output(columns, seed) for seed, columns in enumerate(outputs)], True, True, flat, {})


@pytest.fixture
def saved(tmp_path) -> list[str]:
    """Places of four members, of which only two are there."""
    for seed in (1, 3):
        torch.save(network(seed).state_dict(), tmp_path / f"{seed}.pt")
    return [str(tmp_path / f"{seed}.pt") for seed in range(4)]


@torch.no_grad()
def columns(seeds: list[int], x: Tensor = X, outputs: int = 1) -> Tensor:
    """Return what the members predict; those that are not there predict NaN."""
    found = torch.full((len(x), 4, outputs), torch.nan)
    for seed in seeds:
        found[:, seed] = network(seed, outputs).eval()(x)
    return found


def test_the_whole_is_the_stack_of_the_members_that_it_keeps(saved):
    stack = state([1, 3])
    ensemble = StackingEnsemble(saved, stack, network())
    expected = stack.predict(columns([1, 3])[:, :, 0])
    assert ensemble.names == ["b", "d"]
    assert len(ensemble.members) == 2
    found = ensemble(X)
    assert found.dtype == torch.float32
    assert found.shape == (9,)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    by_name = dict(zip(reversed(NAMES), reversed(saved), strict=True))
    assert torch.equal(StackingEnsemble(by_name, stack, [network()] * 4)(X), found)


def test_every_output_has_columns_of_its_own(tmp_path):
    places = [str(tmp_path / f"{seed}.pt") for seed in range(4)]
    for seed in (0, 1, 3):
        torch.save(network(seed, 2).state_dict(), places[seed])
    stack = state([0, 3], [1, 3], flat=False)
    ensemble = StackingEnsemble(places, stack, network(outputs=2))
    expected = stack.predict(columns([0, 1, 3], outputs=2))
    assert ensemble.names == ["a", "b", "d"]
    assert not expected.isnan().any()
    torch.testing.assert_close(ensemble(X).double(), expected, rtol=1e-6, atol=1e-6)


def test_members_of_one_output_serve_all_outputs_of_a_stack(saved):
    stack = state([1], [1, 3], flat=False)
    found = StackingEnsemble(saved, stack, network())(X)
    torch.testing.assert_close(found.double(), stack.predict(columns([1, 3])[:, :, 0]), rtol=1e-6, atol=1e-6)


def test_a_member_may_be_a_folder_of_folds(tmp_path, saved):
    folder = tmp_path / "folds"
    folder.mkdir()
    for fold in range(11):
        torch.save({"state_dict": network(10 + fold).state_dict()}, folder / f"fold_{fold}.ckpt")
    stack = state([2])
    saved[2] = str(folder)
    found = StackingEnsemble(saved, stack, network())
    assert len(found.members[0]) == 11
    with torch.no_grad():
        mean = torch.stack([network(10 + fold).eval()(X).double() for fold in range(11)]).mean(0)
    expected = stack.predict(mean.expand(-1, 4))
    torch.testing.assert_close(found(X).double(), expected, rtol=1e-6, atol=1e-6)
    torch.save({"state_dict": network(30).state_dict()}, folder / "refit.ckpt")
    whole = StackingEnsemble(saved, stack, network())
    with torch.no_grad():
        expected = stack.predict(network(30).eval()(X).double().expand(-1, 4))
    torch.testing.assert_close(whole(X).double(), expected, rtol=1e-6, atol=1e-6)


def test_the_state_dict_restores_every_bit(saved, tmp_path):
    pytest.importorskip("safetensors")
    path = str(tmp_path / "stack.safetensors")
    state([1, 3]).save(path)
    ensemble = StackingEnsemble(saved, path, network())
    trainer = make_trainer([])
    trainer.validate(ensemble, DataLoader(TensorDataset(X, X[:, 0]), batch_size=4), verbose=False)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    for seed in (1, 3):  # the files have other weights by now
        torch.save(network(seed + 20).state_dict(), saved[seed])
    again = StackingEnsemble.load_from_checkpoint(tmp_path / "whole.ckpt", template=network(), weights_only=True)
    assert torch.equal(again(X), ensemble(X))
    other = StackingEnsemble(saved, path, network())
    assert not torch.equal(other(X), ensemble(X))
    other.load_state_dict(ensemble.state_dict())
    assert torch.equal(other(X), ensemble(X))


def test_members_stay_in_evaluation_mode_and_get_no_gradients(saved):
    ensemble = StackingEnsemble(saved, state([1, 3]), network()).train()
    assert ensemble.training
    assert not any(part.training for part in ensemble.members.modules())
    assert not any(param.requires_grad for param in ensemble.parameters())
    assert torch.equal(ensemble(X), ensemble(X))


def test_it_exports_and_compiles(tmp_path):
    member = nn.Linear(3, 1)
    torch.save(member.state_dict(), tmp_path / "1.pt")
    ensemble = StackingEnsemble([str(tmp_path / "1.pt")] * 4, state([1, 3]), member).eval()
    exported = torch.export.export(ensemble, (X,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},)).module()
    for rows in (9, 4):
        torch.testing.assert_close(exported(X[:rows]), ensemble(X[:rows]))
    torch.testing.assert_close(torch.compile(ensemble, backend="eager", fullgraph=True)(X), ensemble(X))


def test_the_linear_part_is_exact_under_autocast(saved):
    stack = state([1, 3])
    ensemble = StackingEnsemble(saved, stack, network())
    with torch.autocast("cpu", torch.bfloat16):
        members, found = ensemble.member_predictions(X), ensemble(X)
    assert members.dtype == torch.bfloat16
    table = torch.full((9, 4), torch.nan, dtype=torch.float64)
    table[:, [1, 3]] = members[:, :, 0].double()
    torch.testing.assert_close(found.double(), stack.predict(table), rtol=1e-6, atol=1e-6)


def test_trainers_validate_test_and_predict(saved):
    ensemble, y = StackingEnsemble(saved, state([1, 3]), network()), X[:, :1]
    loader, trainer = DataLoader(TensorDataset(X, y), batch_size=4), make_trainer([])
    mse = (ensemble(X) - y[:, 0]).square().mean().item()
    (validated,), (tested,) = (
        trainer.validate(ensemble, loader, verbose=False),
        trainer.test(ensemble, loader, verbose=False),
    )
    assert validated["val/mse"] == pytest.approx(mse, rel=1e-5)
    assert tested["test/mse"] == pytest.approx(mse, rel=1e-5)
    assert torch.equal(
        torch.cat(trainer.predict(ensemble, loader)), torch.cat([ensemble(X[i : i + 4]) for i in (0, 4, 8)])
    )
    assert torch.equal(ensemble.predict_step({"x": X}, 0), ensemble.predict_step(X, 0))


def test_checkpoints_of_lightning_modules_are_members(tmp_path):
    module = Regressor(network(1))
    trainer = make_trainer([], max_epochs=1)
    trainer.fit(module, DataLoader(TensorDataset(X, X[:, 0]), batch_size=3))
    trainer.save_checkpoint(tmp_path / "1.ckpt")
    places = [str(tmp_path / f"{place}.ckpt") for place in range(4)]
    found = StackingEnsemble(places, state([1]), Regressor(network(5)))(X)
    with torch.no_grad():
        expected = state([1]).predict(module.eval()(X).expand(-1, 4))
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"1.ckpt does not say how its module is made"):
        StackingEnsemble(places, state([1]))


class Whole(LightningModule):
    """A module that keeps all its arguments in its checkpoints."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(3, width)

    def forward(self, x):
        return self.layer(x).sum(dim=1)


def test_checkpoints_of_the_command_line_say_how_their_module_is_made(tmp_path):
    module, places = Whole(4), [str(tmp_path / "1.ckpt")] * 4
    made = {"_class_path": f"{__name__}.Whole", "width": 4, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": made, "pytorch-lightning_version": "2.6.0"}
    torch.save(checkpoint, places[0])
    found = StackingEnsemble(places, state([1]))(X)
    with torch.no_grad():
        expected = state([1]).predict(module(X)[:, None].expand(-1, 4))
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    made["width"] = "wide"
    torch.save(checkpoint, places[0])
    refused(r"1.ckpt does not say how its module is made", places, state([1]))


def refused(told: str, *arguments: Any) -> None:
    with pytest.raises(ValueError, match=told):
        StackingEnsemble(*arguments)


def test_what_does_not_fit_is_refused(saved):
    stack = state([1, 3])
    refused(r"allowed are 4 places, as the stack was fitted on the columns a, b, c, d", saved[:3], stack, network())
    refused(r"allowed are 4 places", "abcd", stack, network())
    refused(r"members and the columns of the stack differ in d, e", {**dict.fromkeys("abc", ""), "e": ""}, stack)
    refused(r"template has 2 modules for 4 members", saved, stack, [network()] * 2)
    refused(r"stack is a dict; allowed is a fitted RegularizedStacking", saved, {}, network())
    refused(r"member '.*0.pt' is neither a checkpoint nor a folder", saved, state([0]), network())
    refused(r"1.pt does not fit into the template, a MLP: Error.*\s+size mismatch", saved, stack, network(outputs=2))


def test_hyper_parameters_say_where_members_were(saved):
    ensemble = StackingEnsemble(saved, state([1]), network())
    assert ensemble.hparams["members"] == saved


def test_half_precision_for_all_rounds_the_linear_part_too(saved):
    stack = state([1, 3])
    ensemble = StackingEnsemble(saved, stack, network())
    exact, trainer = ensemble(X), make_trainer([], precision="bf16-true")
    found = torch.cat(trainer.predict(ensemble, DataLoader(TensorDataset(X), batch_size=9)))
    assert ensemble.weight_0.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert 1e-4 < (found - exact).abs().max() < 0.5 * exact.abs().max()
