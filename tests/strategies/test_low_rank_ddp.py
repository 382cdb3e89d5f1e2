"""Projected gradients on two processes: the numbers of DDP, what travels, and what happens when a process dies."""

import os
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from pytorch_lightning import Trainer as OtherTrainer
from pytorch_lightning.strategies import DDPStrategy as OtherDDPStrategy
from torch import nn

from lightning_weights.callbacks import ExactResume
from lightning_weights.errors import WorkerLostError
from lightning_weights.optimizers import GradNormLoRPAdamW
from lightning_weights.strategies import LowRankDDPStrategy, LowRankReduction
from tests.helpers.battery import NOISE, SaveAt, Setup, differing, small_module, tasks, train
from tests.helpers.two_processes import fit, network, regression, run_on_two

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.slow]

PATH = "lightning_weights.optimizers.GradNormLoRPAdamW"
CALLBACK = "lightning_weights.callbacks.GradNormLoRP"
RULE = {"lr": 0.02, "rank": 2, "update_proj_gap": 3}
TOLERANCE = 1e-5  # the same sums in another order, through singular vectors
KINDS = ("dense", "projected")
SENT = ".logged.weights/gradnorm_lorp/sent"


def row(name: str, callbacks: Any = (), **changes: Any) -> Setup:
    return Setup(name, (PATH, {**RULE, **changes}), callbacks, network=network, loss=regression)


ROWS = {
    "matrices": row("matrices"),
    "full": row("full", proj_type="full"),
    "factors": row("factors", ((CALLBACK, {"r": 3}),)),
    "rotated": row("rotated", rank=12, eps=0.01),
}
OPTIONS = {"uneven": {}, "accumulated": {"accumulate_grad_batches": 2}, "clipped": {"gradient_clip_val": 0.05}}
CASES = [("matrices", "uneven"), ("full", "accumulated"), ("factors", "accumulated")]
CLIPPED = ("rotated", "clipped")


class Register(Callback):
    """Use the reduction without the strategy, under the other root's Trainer."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.reduction = LowRankReduction(trainer.optimizers)
        self.reduction.register(trainer.strategy.model)


class Die(Callback):
    """End the second process without a word in the middle of the sixth step."""

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        if trainer.global_step == 5 and trainer.global_rank == 1:
            os._exit(0)


def scenarios(rank: int, folder: Any) -> dict[str, Any]:
    found, path = {}, folder / "last.ckpt"
    for name, options in (*CASES, CLIPPED):
        strategies = {"dense": DDPStrategy(), "projected": LowRankDDPStrategy()}
        for kind, strategy in strategies.items():
            extra = [ExactResume()]
            if (name, kind) == ("matrices", "projected"):
                extra += [SaveAt("on_train_batch_end", 5, path)]
            found[f"{name}-{options}-{kind}"] = fit(ROWS[name], strategy, extra=extra, **OPTIONS[options])
        reduction = strategies["projected"].reduction
        found[f"{name}-{options}-bytes"] = [reduction.sent_bytes, reduction.dense_bytes]
    extra = [ExactResume(), Register()]
    found["other root"] = fit(ROWS["matrices"], OtherDDPStrategy(), "pytorch_lightning", extra=extra)
    found["resumed"] = fit(ROWS["matrices"], LowRankDDPStrategy(), extra=[ExactResume()], ckpt=path, seed=9)
    torch.save(found, folder / f"rank{rank}.pt")  # the second process does not come back from the last run
    extra = [ModelCheckpoint(folder, "saved-{step}", every_n_train_steps=4), Die()]
    try:
        fit(ROWS["matrices"], LowRankDDPStrategy(), enable_checkpointing=True, extra=extra)
    except WorkerLostError as error:
        found["error"] = str(error)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("projected")


@pytest.fixture(scope="module")
def ranks(folder):
    return run_on_two(scenarios, folder)


def unlogged(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if not name.startswith(SENT)}


@pytest.mark.parametrize(("name", "options"), CASES)
def test_results_are_those_of_ddp(ranks, name, options):
    for rank in ranks:
        dense, projected = rank[f"{name}-{options}-dense"], rank[f"{name}-{options}-projected"]
        assert not differing(unlogged(dense), unlogged(projected), TOLERANCE)
        assert not differing(ranks[0][f"{name}-{options}-projected"], projected)


def test_clipping_sees_the_norm_of_projected_gradients(ranks):
    """Projected onto all directions they are as long as whole ones; some directions hold rounding errors alone."""
    runs = [
        {n: v for n, v in ranks[0][f"rotated-clipped-{kind}"].items() if n.startswith(".weights")} for kind in KINDS
    ]
    assert len(runs[0]) == len(list(network(0.0).parameters()))
    assert not differing(*runs, 1e-3)
    assert not differing(*(rank["rotated-clipped-projected"] for rank in ranks))


def test_bytes_are_those_of_the_formula(ranks):
    parameters = list(network(0.0).parameters())
    sizes, biases = [p.shape for p in parameters if p.dim() == 2], sum(p.numel() for p in parameters if p.dim() == 1)
    whole = 4 * (sum(a * b for a, b in sizes) + biases)
    projected = 4 * (sum(2 * max(shape) for shape in sizes) + biases)
    # every matrix with its projection, 2 min(a, b), and two moments, 2 max(a, b), when the projection is new
    states = 4 * sum(2 * min(shape) + 4 * max(shape) for shape in sizes)
    sent, dense = ranks[0]["matrices-uneven-bytes"]
    assert dense == 9 * whole
    assert sent == 3 * whole + 6 * projected + 3 * states, "projections are made in steps 1, 4 and 7 of 9"
    logged = ranks[0]["matrices-uneven-projected"]
    assert logged[f"{SENT}_bytes"] == projected
    assert logged[f"{SENT}_share"].item() == pytest.approx(projected / whole)


def test_the_reduction_works_under_the_other_root(ranks):
    for rank in ranks:
        assert not differing(rank["other root"], unlogged(rank["matrices-uneven-projected"]))


def test_resuming_changes_no_bit(ranks):
    for rank in ranks:
        assert not differing(rank["matrices-uneven-projected"], rank["resumed"])


def test_the_loss_of_a_process_is_told_and_training_goes_on(ranks, folder):
    assert "error" not in ranks[1]
    path = folder / "saved-step=4.ckpt"
    message = ranks[0]["error"]
    assert message.startswith(
        "process 0 of 2 could not reduce gradients after step 5, because another process has ended"
    )
    assert f"Start all processes again with ckpt_path={str(path)!r}" in message
    module = small_module(ROWS["matrices"])
    found = train(ROWS["matrices"], module, data=tasks(), ckpt=path)  # here on one process alone
    assert found[".counts.0"] > 5


def test_gradients_hold_what_the_projection_sees():
    reduction = LowRankReduction(GradNormLoRPAdamW([nn.Parameter(torch.zeros(5, 4))]))
    gradient = torch.randn(5, 4)
    left, right = torch.linalg.qr(torch.randn(5, 2)).Q, torch.linalg.qr(torch.randn(4, 3)).Q.T
    for basis in ((left, None), (None, right), (left, right)):
        values = reduction.compress(gradient, basis)
        for target in (torch.empty(5, 4), torch.empty(4, 5).T):
            reduction.restore(target, values.reshape(-1), basis)
            rows = torch.eye(5) if basis[0] is None else left @ left.T
            columns = torch.eye(4) if basis[1] is None else right.T @ right
            torch.testing.assert_close(target.norm(), (rows @ gradient @ columns).norm())
            assert torch.equal(target[: values.shape[0], : values.shape[1]], values)
            assert target.count_nonzero() == values.numel()


def test_a_trainer_of_the_other_root_is_told_what_to_use():
    with pytest.raises(ValueError, match=r"LowRankDDPStrategy \(of lightning\.pytorch; .* use LowRankReduction\)"):
        OtherTrainer(strategy=LowRankDDPStrategy(), accelerator="cpu", logger=False)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^LowRankReduction needs .* GradNormLoRPAdamW, and finds SGD, AdamW$"):
        LowRankReduction([make([nn.Parameter(torch.zeros(1))]) for make in (torch.optim.SGD, torch.optim.AdamW)])
