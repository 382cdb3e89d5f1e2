"""The averaged weights of TSCNC: which steps move them, who sees them, and where they are saved."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision

from lightning_weights.callbacks import TSCNC
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import make_pruning_permanent
from tests.helpers.small_nets import classifier, loader
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker|val_d).*"
)


def fit(model, tscnc, epochs=2, data=None, extra=(), **options):
    torch.manual_seed(1)
    data = loader() if data is None else data
    trainer = make_trainer([tscnc, *extra], max_epochs=epochs, **options)
    trainer.fit(model, data, data)
    return trainer


def test_weights_in_half_precision_are_averaged_in_single():
    model, tscnc = classifier(), TSCNC(cnc_weight=0.0)
    fit(model, tscnc, precision="bf16-true")
    assert model.network.head.weight.dtype == torch.bfloat16
    assert {value.dtype for value in tscnc.state_dict()["averages"].values()} == {torch.float32}


class Watch(Callback):
    """Notes the weights that training and validation see."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.trained.append(copy.deepcopy(list(pl_module.parameters())))

    def on_validation_epoch_start(self, trainer, pl_module):
        self.validated.append(copy.deepcopy(list(pl_module.parameters())))


def test_validation_and_test_see_the_average_of_the_real_steps_and_training_goes_on():
    model, tscnc, watch = classifier(), TSCNC(ema_decay=0.9), Watch()
    tscnc.attach(model)
    average = [param.detach().clone() for param in model.parameters()]
    trainer = fit(model, tscnc, extra=[watch], data=loader(batch_size=4), accumulate_grad_batches=2)
    assert len(watch.trained) == 8
    for seen in watch.trained[1::2]:
        average = [0.9 * mean + 0.1 * param.detach() for mean, param in zip(average, seen, strict=True)]
    live = [param.detach().clone() for param in model.parameters()]
    for mean, shown, last, now in zip(average, watch.validated[-1], watch.trained[-1], live, strict=True):
        torch.testing.assert_close(shown.detach(), mean)
        assert torch.equal(last, now)
    during = []
    model.test_step = lambda batch, batch_idx: during.append(model.network.head.weight.clone())
    trainer.test(model, loader(), verbose=False)
    torch.testing.assert_close(
        during[0], average[[id(p) for p in model.parameters()].index(id(model.network.head.weight))]
    )
    assert all(torch.equal(a, b) for a, b in zip(live, model.parameters(), strict=True))
    tscnc.apply_average(model)
    for mean, param in zip(average, model.parameters(), strict=True):
        torch.testing.assert_close(param.detach(), mean)
    assert tscnc.state_dict()["averages"] == {}
    with pytest.raises(ValueError, match="there are no averaged weights"):
        tscnc.apply_average(model)


def test_the_average_of_one_network_is_not_shown_in_another():
    tscnc = TSCNC()
    trainer = fit(classifier(), tscnc)
    other, during = classifier(lr=0.1), []
    other.test_step = lambda batch, batch_idx: during.append(other.network.head.weight.clone())
    trainer.test(other, loader(), verbose=False)
    assert torch.equal(during[0], classifier().network.head.weight)
    resumed = classifier()
    fit(resumed, tscnc)
    with pytest.raises(ValueError, match=r"averaged weights are those of another network: network\.body\.1\.weight"):
        tscnc.apply_average(classifier(hidden=(7, 6)))


def test_an_exception_in_validation_gives_the_weights_back():
    model = classifier()

    def validation_step(batch, batch_idx):
        raise OSError("disk full")

    model.validation_step = validation_step
    watch = Watch()
    with pytest.raises(OSError, match="disk full"):
        fit(model, TSCNC(), extra=[watch])
    before = watch.trained[-1]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_checkpoint_that_is_saved_in_validation_holds_the_live_weights(tmp_path):
    class Save(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "ckpt")

    model, watch = classifier(), Watch()
    fit(model, TSCNC(), extra=[watch, Save()])
    saved = torch.load(tmp_path / "ckpt", weights_only=True)["state_dict"]
    names = [name for name, _ in model.named_parameters()]
    for name, live, shown in zip(names, watch.trained[-1], watch.validated[-1], strict=True):
        assert torch.equal(saved[name], live)
        assert not torch.equal(live, shown)


def test_resuming_with_another_decay_is_refused(tmp_path):
    for saved, now in ((0.99, 0.9), (None, 0.9), (0.9, None)):
        fit(classifier(), TSCNC(ema_decay=saved), epochs=1).save_checkpoint(tmp_path / "ckpt")
        trainer = make_trainer([TSCNC(ema_decay=now)], max_epochs=2)
        with pytest.raises(ValueError, match=f"ema_decay is {now}, but {saved} in the checkpoint"):
            trainer.fit(classifier(), loader(), ckpt_path=tmp_path / "ckpt")


def test_steps_that_a_scaler_skips_do_not_count():
    model, tscnc = classifier(), TSCNC()
    usual = model.training_step
    model.training_step = lambda batch, batch_idx: usual(batch, batch_idx) * (float("inf") if batch_idx == 0 else 1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer = fit(model, tscnc, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert trainer.global_step == 4
    assert tscnc.state_dict()["steps"] == 2
    assert all(param.isfinite().all() for param in model.parameters())
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


def test_an_exported_network_that_was_averaged_is_tested_as_it_is():
    model, tscnc = classifier(), TSCNC()
    trainer = fit(model, tscnc)
    make_pruning_permanent(model)
    expected = copy.deepcopy(model.state_dict())
    with pytest.warns(LightningWeightsWarning, match="no longer the one whose weights were averaged"):
        trainer.test(model, loader(), verbose=False)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
