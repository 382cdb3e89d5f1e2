"""Meta-training: the loss, what is logged, that it learns, and what it is compared with."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.modules import KNOWN, KNOWNMeta
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|logging interval|LeafSpec).*")


def lines(count=256, history=5, seed=0):
    """Return histories that go on as they went, apart from some shrinkage."""
    generator = torch.Generator().manual_seed(seed)
    start, slope = torch.randn(2, count, 1, generator=generator).unbind()
    histories = 0.2 * start + 0.05 * slope * torch.arange(history)
    return histories, 0.98 * histories[:, -1] + 0.05 * slope[:, 0]


def fit(meta, epochs, validate=True):
    trainer = make_trainer([], max_epochs=epochs)
    loaders = [DataLoader(TensorDataset(*lines(seed=seed)), batch_size=64, shuffle=seed == 0) for seed in (0, 1)]
    trainer.fit(meta, loaders[0], loaders[1] if validate else None)
    return trainer.callback_metrics


def test_the_loss_is_the_mean_absolute_error_and_the_penalties():
    torch.manual_seed(0)
    meta = KNOWNMeta(l1_kernel=0.01, l1_bias=0.2)
    meta.log_dict = lambda *args, **kwargs: None
    with torch.no_grad():
        for param in meta.known.parameters():
            param += 0.01
    histories, following = lines()
    expected = (histories[:, -1] + meta.known(histories) - following).abs().mean() + meta.known.penalty(0.01, 0.2)
    assert meta.training_step((histories, following), 0) == expected
    assert meta.known.penalty(0.01, 0.2) > 0


def test_it_learns_to_go_on_and_tells_what_it_is_better_than():
    torch.manual_seed(0)
    metrics = fit(KNOWNMeta(lr=5e-3), epochs=12)
    assert metrics["val/error"] < 0.5 * metrics["val/persistence"]
    histories, following = lines(seed=1)
    torch.testing.assert_close(metrics["val/persistence"], (histories[:, -1] - following).abs().mean())
    linear = 2 * histories[:, -1] - histories[:, -2]
    torch.testing.assert_close(metrics["val/linear"], (linear - following).abs().mean())
    assert {"train/loss", "train/error"} < set(metrics)


def test_it_is_adam_on_the_bare_network_by_default():
    torch.manual_seed(0)
    meta = KNOWNMeta(lr=0.01)
    torch.manual_seed(0)
    known = KNOWN()
    optimizer = torch.optim.Adam(known.parameters(), lr=0.01)
    for _ in range(2):
        for start in range(0, 256, 64):
            histories, following = (part[start : start + 64] for part in lines())
            loss = (histories[:, -1] + known(histories) - following).abs().mean() + known.penalty(1e-6, 0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    make_trainer([], max_epochs=2).fit(meta, DataLoader(TensorDataset(*lines()), batch_size=64))
    for ours, theirs in zip(meta.known.parameters(), known.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_optimizer_and_scheduler_may_be_given():
    def scheduler(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    meta = KNOWNMeta(optimizer=lambda params: torch.optim.SGD(params, lr=0.1), lr_scheduler=scheduler)
    trainer = make_trainer([], max_epochs=2)
    trainer.fit(meta, DataLoader(TensorDataset(*lines()), batch_size=128))
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.025)


@pytest.mark.parametrize("history", [2, 5, 6])
def test_histories_of_any_length(history):
    meta = KNOWNMeta(history=history)
    assert sum(param.numel() for param in meta.parameters()) == 9425 - 128 * (5 - history)
    assert meta(torch.zeros(4, history)).shape == (4,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": 1}, "history is 1"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"l1_kernel": -1.0}, "l1_kernel is -1.0"),
        ({"l1_bias": "much"}, "l1_bias is 'much'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        KNOWNMeta(**options)
