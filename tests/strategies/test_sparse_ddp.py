"""Gradients of chosen entries alone, on two processes: the numbers of DDP, and what travels."""

from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_weights.callbacks import ExactResume
from lightning_weights.optimizers import LIFTAdamW
from lightning_weights.strategies import SparseDDPStrategy, SparseReduction
from tests.helpers.battery import NOISE, SaveAt, Setup, differing
from tests.helpers.two_processes import fit, network, regression, run_on_two

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.slow]

RULE = {"lr": 0.02, "budget_rank": None, "density": 0.25, "filter_rank": 2, "update_interval": 3}
PATH = "lightning_weights.optimizers.LIFTAdamW"
CALLBACK = "lightning_weights.callbacks.LIFTFinetuning"


def row(name: str, callback: dict[str, Any] | None = None, **changes: Any) -> Setup:
    callbacks = () if callback is None else ((CALLBACK, callback),)
    return Setup(name, (PATH, {**RULE, **changes}), callbacks, network=network, loss=regression)


ROWS = {
    "alone": row("alone"),
    "gradient": row("gradient", selector="gradient"),
    "vectors": row("vectors", {"sparse_grads": True, "train_other": True}),
    "whole": row("whole", {"sparse_grads": False}),
}
OPTIONS = {"uneven": {}, "accumulated": {"accumulate_grad_batches": 2}, "clipped": {"gradient_clip_val": 0.05}}
CASES = [
    ("alone", "uneven"),
    ("gradient", "accumulated"),
    ("whole", "accumulated"),
    ("vectors", "clipped"),  # otherwise the norm that DDP compares is that of the whole gradient
]


def scenarios(rank: int, folder: Any) -> dict[str, Any]:
    found, path = {}, folder / "last.ckpt"
    for name, options in CASES:
        strategies = {"dense": DDPStrategy(), "sparse": SparseDDPStrategy()}
        for kind, strategy in strategies.items():
            extra = [ExactResume()]
            if (name, kind) == ("vectors", "sparse"):
                extra += [SaveAt("on_train_batch_end", 4, path)]
            found[f"{name}-{options}-{kind}"] = fit(ROWS[name], strategy, dropout=0.5, extra=extra, **OPTIONS[options])
        reduction = strategies["sparse"].reduction
        found[f"{name}-{options}-bytes"] = [reduction.sent_bytes, reduction.dense_bytes]
    options = {"dropout": 0.5, "extra": [ExactResume()], **OPTIONS["clipped"]}
    found["resumed"] = fit(ROWS["vectors"], SparseDDPStrategy(), ckpt=path, seed=9, **options)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_on_two(scenarios, tmp_path_factory.mktemp("sparse"))


def unlogged(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if not name.startswith(".logged.weights/lift/sent")}


@pytest.mark.parametrize(("name", "options"), CASES)
def test_results_are_those_of_ddp_in_every_bit(ranks, name, options):
    for rank in ranks:
        dense, sparse = rank[f"{name}-{options}-dense"], rank[f"{name}-{options}-sparse"]
        assert not differing(unlogged(dense), unlogged(sparse))
        assert not differing(ranks[0][f"{name}-{options}-sparse"], sparse)


def numbers() -> tuple[list[int], int]:
    """Return the sizes of the matrices, and how many biases there are."""
    parameters = list(network(0.0).parameters())
    return [p.numel() for p in parameters if p.dim() == 2], sum(p.numel() for p in parameters if p.dim() == 1)


def test_bytes_are_those_of_the_formula(ranks):
    sizes, biases = numbers()
    chosen = sum(round(0.25 * size) for size in sizes)
    steps = 9  # three epochs of three batches
    # entries are chosen before or in the first step, and after steps 2, 5 and 8: indices and moments are sent each time
    choices = 4 * 3 * 4 * chosen
    sent, dense = ranks[0]["vectors-clipped-bytes"]
    assert dense == steps * 4 * (sum(sizes) + biases)
    assert sent == steps * 4 * (chosen + biases) + choices
    # without the callback, which chooses before it, the first step is whole
    sent, _ = ranks[0]["alone-uneven-bytes"]
    assert sent == 4 * (sum(sizes) + biases) + (steps - 1) * 4 * (chosen + biases) + choices


def test_bytes_of_a_step_are_logged(ranks):
    sizes, biases = numbers()
    logged = ranks[0]["vectors-clipped-sparse"]
    # the ninth step, with the choice made after the eighth
    expected = 4 * (sum(round(0.25 * size) for size in sizes) * (1 + 3) + biases)
    assert logged[".logged.weights/lift/sent_bytes"] == expected
    assert logged[".logged.weights/lift/sent_share"].item() == pytest.approx(expected / 4 / (sum(sizes) + biases))


def test_resuming_changes_no_bit(ranks):
    for rank in ranks:
        assert not differing(rank["vectors-clipped-sparse"], rank["resumed"])


def test_gradients_come_back_at_their_places_whatever_the_strides():
    reduction = SparseReduction(LIFTAdamW([nn.Parameter(torch.zeros(3, 4))], budget_rank=None, density=0.5))
    whole, entries = torch.arange(12.0).reshape(3, 4), torch.tensor([1, 6, 11], dtype=torch.int32)
    values = reduction.compress(whole, (entries,))
    assert values.tolist() == [1.0, 6.0, 11.0]
    for target in (torch.full((3, 4), 9.0), torch.full((4, 3), 9.0).T):
        reduction.restore(target, values, (entries,))
        assert torch.equal(target, whole * torch.isin(whole, values))


def test_other_optimizers_are_refused():
    with pytest.raises(ValueError, match=r"^SparseReduction needs an optimizer of the class LIFTAdamW, and finds SGD$"):
        SparseReduction(torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
    with pytest.raises(ValueError, match=r"finds none$"):
        SparseReduction([])
