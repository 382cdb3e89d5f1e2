"""The loss of GLOW: invariants, its table, bad input and compiled graphs."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import GLOWLoss, glow_loss

IDS = torch.tensor([3, 0, 2, 1])


def losses_of(*values: float) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True)


def trained(make_loss, epochs: int = 3, lr: float = 0.5):
    """Train a small network on four samples and return its weights."""
    torch.manual_seed(0)
    net, x, y = nn.Linear(3, 5), torch.randn(4, 3), torch.tensor([0, 4, 1, 1])
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    loss = make_loss()
    for epoch in range(epochs):
        for rows in ([0, 1], [2, 3]):
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(net(x[rows]), y[rows], reduction="none")
            loss(losses, torch.tensor(rows), epoch).backward()
            optimizer.step()
    return list(net.parameters()), loss


class Plain:
    """Supervised fine-tuning: the mean over samples."""

    def __call__(self, losses, ids, epoch):
        return losses.mean()


@pytest.mark.parametrize(
    "options", [{"beta": 0.0}, {"min_weight": 1.0, "max_weight": 1.0}, {"warmup_epochs": 3}], ids=str
)
def test_neutral_settings_are_plain_training_bit_for_bit(options):
    ours, _ = trained(lambda: GLOWLoss(num_samples=4, **options))
    plain, _ = trained(Plain)
    assert all(map(torch.equal, ours, plain))


def test_the_first_epoch_is_plain_training_and_later_ones_are_not():
    ours, plain = (trained(make, epochs=1)[0] for make in (lambda: GLOWLoss(num_samples=4, alpha=7.0), Plain))
    assert all(map(torch.equal, ours, plain))
    ours, plain = (trained(make, epochs=2)[0] for make in (lambda: GLOWLoss(num_samples=4), Plain))
    assert not any(map(torch.equal, ours, plain))


def test_a_network_that_does_not_learn_has_weights_of_half_alpha():
    _, loss = trained(lambda: GLOWLoss(num_samples=4, alpha=3.0), lr=0.0)
    assert torch.equal(loss.last.weights, torch.full((2,), 1.5))
    assert not loss.last.gains.any()


def test_loss_gradient_and_table():
    loss = GLOWLoss(num_samples=4)
    loss(losses_of(1.0, 1.0, 1.0, 1.0), IDS, 0)
    now = losses_of(0.9, 1.0, 1.1, 5.0)
    value = loss(now, IDS, 1)
    (gradient,) = torch.autograd.grad(value, now)
    want = torch.tensor([2 / (1 + math.exp(10 * (1 - x))) for x in (0.9, 1.0, 1.1, 5.0)]).clamp(0.5, 5.0)
    torch.testing.assert_close(loss.last.weights, want)
    assert torch.equal(gradient, loss.last.weights / 4)
    torch.testing.assert_close(value.detach(), (want * now.detach()).mean())
    assert torch.equal(loss.history[IDS], now.detach())


def test_permuting_the_batch_permutes_the_weights():
    order = torch.tensor([2, 0, 3, 1])
    found = []
    for chosen in (torch.arange(4), order):
        loss = GLOWLoss(num_samples=4)
        loss(torch.tensor([0.4, 0.5, 0.6, 0.7])[chosen], IDS[chosen], 0)
        value = loss(torch.tensor([0.5, 0.4, 0.6, 0.6])[chosen], IDS[chosen], 1)
        found.append((value, loss.last.weights, loss.history))
    assert torch.equal(found[0][1][order], found[1][1])
    assert torch.equal(found[0][2], found[1][2])
    torch.testing.assert_close(found[0][0], found[1][0])


def test_values_that_are_not_finite_stay_out_of_the_table():
    loss = GLOWLoss(num_samples=4)
    loss(torch.tensor([1.0, torch.nan, torch.inf, 2.0]), IDS, 0)
    assert loss.history[IDS].isnan().tolist() == [False, True, True, False]
    loss(torch.full((4,), torch.nan), IDS, 1)
    assert loss.history[IDS].nan_to_num(-1).tolist() == [1.0, -1.0, -1.0, 2.0]


def test_evaluation_is_the_plain_mean_and_changes_nothing():
    loss = GLOWLoss(num_samples=4)
    loss(torch.ones(4), IDS, 0)
    loss.eval()
    assert loss(torch.tensor([0.2, 0.4])) == torch.tensor([0.2, 0.4]).mean()
    assert torch.equal(loss.history, torch.ones(4))


def test_a_sample_twice_in_a_batch():
    loss = GLOWLoss(num_samples=4)
    with pytest.warns(LightningWeightsWarning, match="occurs twice"):
        loss(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 0, 1]), 0)
    assert loss.history[:2].tolist() == [2.0, 3.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 0, 1]), 0)


def test_ids_and_epoch_may_be_provided():
    loss, other = GLOWLoss(num_samples=4), GLOWLoss(num_samples=4)
    for epoch in range(2):
        losses = torch.rand(4)
        loss.provide(IDS, epoch)
        assert torch.equal(loss(losses), other(losses, IDS, epoch))
    loss.provide(None, 1, "the batch has no 'sample_id'")
    with pytest.raises(ValueError, match="ids of the samples are missing: the batch has no 'sample_id'"):
        loss(torch.rand(4))


def test_the_table_grows_on_demand():
    loss = GLOWLoss()
    loss(torch.tensor([1.0, 2.0]), torch.tensor([0, 4]), 0)
    assert loss.history.nan_to_num(-1).tolist() == [1.0, -1.0, -1.0, -1.0, 2.0]
    loss(torch.tensor([3.0]), torch.tensor([5]), 0)
    assert len(loss.history) == 10
    fixed = GLOWLoss(num_samples=6)
    fixed(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 4, 5]), 0)
    assert torch.equal(loss.history[:6].nan_to_num(-1), fixed.history.nan_to_num(-1))


@pytest.mark.parametrize("size", [0, 4])
def test_saved_and_loaded_in_the_middle_it_weighs_the_same(size, tmp_path):
    loss = GLOWLoss(num_samples=size)
    loss(torch.rand(4), IDS, 0)
    torch.save(loss.state_dict(), tmp_path / "state")
    other = GLOWLoss(num_samples=size)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    losses = torch.rand(4)
    assert torch.equal(loss(losses, IDS, 1), other(losses, IDS, 1))
    twin = copy.deepcopy(loss)
    assert torch.equal(loss(losses / 2, IDS, 2), twin(losses / 2, IDS, 2))
    with pytest.raises(RuntimeError, match="size mismatch"):
        GLOWLoss(num_samples=7).load_state_dict(loss.state_dict())


def test_the_table_is_in_fp32_whatever_the_losses_are():
    loss = GLOWLoss(num_samples=4)
    for dtype in (torch.bfloat16, torch.float64):
        value = loss(torch.rand(4, dtype=dtype), IDS, 1)
        assert loss.history.dtype == torch.float32
        assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert [name for name, _ in loss.named_parameters()] == []
    table = loss.history.clone()
    for cast in (nn.Module.bfloat16, nn.Module.half, nn.Module.double):
        assert torch.equal(cast(nn.Sequential(loss))[0].history, table)
    assert loss.history.dtype == torch.float32


def test_compiles_without_graph_breaks_for_any_number_of_epochs():
    counter = CompileCounter()
    eager = GLOWLoss(num_samples=8)
    ours = copy.deepcopy(eager)
    compiled = torch.compile(
        lambda z, y, i, e: ours(ours.per_sample_cross_entropy(z, y), i, e), fullgraph=True, backend=counter
    )
    for epoch in range(6):
        logits, labels = torch.randn(4, 5, 7), torch.randint(7, (4, 5))
        found = compiled(logits, labels, IDS, epoch)
        assert torch.equal(found, eager(eager.per_sample_cross_entropy(logits, labels), IDS, epoch))
        assert torch.equal(ours.history.nan_to_num(-1), eager.history.nan_to_num(-1))
    assert counter.frame_count <= 3, "one for the first epoch, one in which the epoch is a symbol, one of each side"


def test_processes_exchange_what_they_saw(monkeypatch):
    """What the other process sends stands in for it; test_distributed.py has two real ones."""
    seen = [torch.tensor([[1, 0.9, 1.0, 0.0, 0.0]], dtype=torch.float64), torch.zeros(0, 5, dtype=torch.float64)]
    monkeypatch.setattr(glow_loss, "several_processes", lambda: True)
    monkeypatch.setattr(glow_loss, "rows_of_processes", lambda rows: torch.cat([rows, seen.pop(0)]))
    loss = GLOWLoss(num_samples=5)
    loss(torch.tensor([0.4, 0.1, 0.0]), torch.tensor([4, 1, 0]), 0)
    loss.synchronise()
    table = [0.0, 0.9, torch.nan, torch.nan, 0.4]  # sample 1 is in both batches: the last process wins
    torch.testing.assert_close(loss.history, torch.tensor(table), equal_nan=True)
    assert loss.last.ids.tolist() == [4, 1, 0, 1]
    torch.testing.assert_close(loss.last.losses, torch.tensor([0.4, 0.1, 0.0, 0.9]))
    loss.last = None
    loss.synchronise()
    torch.testing.assert_close(loss.history, torch.tensor(table), equal_nan=True)
    with pytest.raises(ValueError, match="give the length of the training data as num_samples"):
        GLOWLoss()(torch.ones(2), torch.tensor([0, 1]), 0)


def test_a_sample_without_tokens_is_told():
    loss = GLOWLoss(num_samples=4)
    labels = torch.tensor([[1, 2, 3], [4, -100, -100]])
    with pytest.warns(LightningWeightsWarning, match="no token to predict"):
        losses = loss.per_sample_cross_entropy(torch.zeros(2, 3, 5), labels)
    torch.testing.assert_close(losses, torch.tensor([math.log(5), 0.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor(1.0), IDS, 0), r"per_sample_loss has shape \(\); allowed is one loss per sample"),
        ((torch.ones(4), IDS[:3], 0), r"ids has shape \(3,\) for 4 losses"),
        ((torch.ones(4), IDS.float(), 0), "ids is torch.float32; allowed are whole numbers"),
        ((torch.ones(4), IDS > 1, 0), "ids is torch.bool"),
        ((torch.ones(4), IDS + 1, 0), "ids has values from 1 to 4; allowed are 0 to 3"),
        ((torch.ones(4), IDS - 1, 0), "ids has values from -1 to 2"),
        ((torch.ones(4), IDS), "epoch is None"),
        ((torch.ones(4),), "ids of the samples are missing"),
    ],
)
def test_bad_batches(arguments, message):
    loss = GLOWLoss(num_samples=4)
    with pytest.raises(ValueError, match=message):
        loss(*arguments)
    assert loss.history.isnan().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, r"alpha is 0.0; allowed is a finite number in \(0.0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"min_weight": 2.0, "max_weight": 1.0}, "min_weight is 2.0 and max_weight 1.0"),
        ({"min_weight": -0.1}, "min_weight is -0.1"),
        ({"warmup_epochs": 0.5}, "warmup_epochs is 0.5; allowed is a whole number"),
        ({"num_samples": -1}, "num_samples is -1"),
        ({"fallback": "zero"}, "fallback is 'zero'; allowed are 'neutral', 'batch_mean'"),
        ({"normalize": "yes"}, "normalize is 'yes'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        GLOWLoss(**options)
