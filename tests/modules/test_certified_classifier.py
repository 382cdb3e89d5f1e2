"""The classifier in a Trainer: what it reports, how it resumes, and what it refuses."""

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import ExactResume, IBPWarmup
from lightning_weights.data import Digits
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.metrics import VerifiedError
from lightning_weights.modules import MLP, CertifiedClassifier, CertifiedLoss, EpsilonSchedule
from tests.helpers.battery import SaveAt, differing, flat
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|worker|logging interval|GPU|checkpoint|gradient_clip_val is unset|monitors).*"
)
SHORT = {"limit_train_batches": 1}  # where only the start or the end of a run is looked at
KEYS = {"error", "verified_error", "verified_error_current_eps"}


def samples(shuffle=False, size=24, batch=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(size, 6, generator=generator)
    sets = TensorDataset(x, (3 * x[:, 0]).long())
    order = torch.Generator().manual_seed(1)
    return DataLoader(sets, batch_size=batch, shuffle=shuffle, generator=order if shuffle else None)


def classifier(seed=0, batch_norm=True, net=None, **arguments):
    torch.manual_seed(seed)
    schedule = {"max_eps": 0.1, "start_epoch": 2, "ramp_epochs": 2, "kind": "linear", **arguments.pop("schedule", {})}
    net = MLP(6, (8, 8), 3, batch_norm=batch_norm) if net is None else net
    return CertifiedClassifier(net, 3, EpsilonSchedule(**schedule), **{"lr": 0.01, **arguments})


def fit(model, callbacks=(), loader=None, validate=False, ckpt=None, seed=3, **options):
    torch.manual_seed(seed)
    trainer = make_trainer(list(callbacks), **{"max_epochs": 5, "gradient_clip_val": 10.0, **options})
    loader = samples() if loader is None else loader
    trainer.fit(
        model, loader, samples() if validate else None, ckpt_path=ckpt, weights_only=None if ckpt is None else True
    )
    return trainer


class Watch(Callback):
    """Notes ε as every batch sees it, and the logged values of every epoch."""

    def __init__(self):
        self.eps, self.logged = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.eps.append(pl_module.certifier.eps.item())

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def test_radius_follows_optimizer_steps():
    expected = EpsilonSchedule(0.1, "linear", start_epoch=2, ramp_epochs=2)
    watch = Watch()
    fit(classifier(), [watch])
    assert watch.eps == pytest.approx([expected(step, 6) for step in range(30)])
    watch = Watch()
    fit(classifier(), [watch], accumulate_grad_batches=4)  # 6 batches: 2 steps per epoch
    steps = [2 * epoch + (batch >= 4) for epoch in range(5) for batch in range(6)]
    assert watch.eps == pytest.approx([expected(step, 2) for step in steps])


def test_training_equals_a_plain_loop():
    model, plain = classifier(init="keep"), classifier(init="keep").net
    fit(model)
    optimizer, loss = torch.optim.Adam(plain.parameters(), lr=0.01), CertifiedLoss()
    schedule, step = EpsilonSchedule(0.1, "linear", start_epoch=2, ramp_epochs=2), 0
    for _ in range(5):
        for x, y in samples():
            optimizer.zero_grad()
            loss(plain, x, y, torch.tensor(schedule(step, 6)), 0.1).loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 10.0)
            optimizer.step()
            step += 1
    assert not differing(flat(model.net.state_dict()), flat(plain.state_dict()))


def test_learning_rate_drops_at_the_milestones_and_can_be_replaced():
    class Rates(Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_start(self, trainer, pl_module):
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    trainer = fit(classifier(lr_milestones=[2, 4]), [rates], **SHORT)
    assert rates.seen == pytest.approx([0.01, 0.01, 0.002, 0.002, 0.0004])
    assert type(trainer.optimizers[0]) is torch.optim.Adam
    own = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.5), "lr_milestones": [2]}
    rates = Rates()
    trainer = fit(classifier(**own), [rates], **SHORT)
    assert type(trainer.optimizers[0]) is torch.optim.SGD
    assert set(rates.seen) == {0.5}
    drop = {"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)}
    rates = Rates()
    fit(classifier(**own, **drop), [rates], **SHORT)
    assert rates.seen == pytest.approx([0.5 * 0.1**epoch for epoch in range(5)])


def test_reports_are_the_metric_at_both_radii():
    watch, model = Watch(), classifier(batch_norm=False)
    trainer = fit(model, [watch], validate=True, limit_train_batches=2)
    assert {f"val/{name}" for name in KEYS} < watch.logged[-1].keys()
    model.eval()
    for eps, name in ((0.0, "error"), (0.1, "verified_error"), (0.1, "verified_error_current_eps")):
        error = VerifiedError()
        for x, y in samples():
            error.update(model.certifier.margins(model.net, x, y, eps).detach())
        assert watch.logged[-1][f"val/{name}"] == pytest.approx(error.compute().item())
    for logged in watch.logged:
        assert logged["val/error"] <= logged["val/verified_error_current_eps"] <= logged["val/verified_error"]
    assert watch.logged[0]["val/verified_error_current_eps"] == watch.logged[0]["val/error"]  # ε is 0 yet
    wrong = [(model(x).argmax(1) != y).float() for x, y in samples()]
    assert trainer.callback_metrics["val/error"].item() == pytest.approx(torch.cat(wrong).mean().item())
    trainer.test(model, [samples(), samples(size=9)], verbose=False)
    names = {f"test/{name}/dataloader_idx_{index}" for name in KEYS for index in range(2)}
    assert set(trainer.callback_metrics) == names


def test_logs_what_the_regularisers_see():
    watch = Watch()
    fit(classifier(), [watch], **SHORT)
    keys = {
        f"weights/ibp_warmup/{name}" for name in ("eps", "tightness", "relu", "active_fraction", "inactive_fraction")
    }
    assert keys | {"train/loss"} == watch.logged[0].keys()
    assert [logged["weights/ibp_warmup/eps"] for logged in watch.logged][-1] == pytest.approx(0.1)


def test_resuming_in_the_ramp_changes_no_bit(tmp_path):
    def run(**options):
        watch = Watch()
        callbacks = [ExactResume(), watch, *options.pop("extra", [])]
        model = classifier(seed=options.pop("net_seed", 0))
        fit(model, callbacks, samples(shuffle=True), validate=True, accumulate_grad_batches=2, **options)
        return flat(model.state_dict()), watch.eps

    batches = (2, 8, 16)
    straight, eps = run(extra=[SaveAt("on_train_batch_end", batch, tmp_path / f"{batch}") for batch in batches])
    for batch in batches:
        resumed, rest = run(ckpt=tmp_path / f"{batch}", seed=9, net_seed=9)
        assert not differing(straight, resumed), batch
        assert rest == eps[batch:]


def test_the_initialisation_is_for_fresh_runs(tmp_path):
    plain = classifier().net.body[1].weight.clone()
    kept, drawn = classifier(init="keep"), classifier()
    for model in (kept, drawn):
        fit(model, [SaveAt("on_train_start", 1, tmp_path / f"{model.init}")], **SHORT)
    weights = {name: torch.load(tmp_path / name, weights_only=True)["state_dict"] for name in ("ibp", "keep")}
    assert torch.equal(weights["keep"]["net.body.1.weight"], plain)
    assert not torch.equal(weights["ibp"]["net.body.1.weight"], plain)
    assert torch.equal(weights["ibp"]["net.head.weight"], weights["keep"]["net.head.weight"])


def test_trained_networks_are_not_initialised_by_accident(tmp_path):
    model = classifier()
    trainer = fit(model, **SHORT)
    trainer.save_checkpoint(tmp_path / "ckpt")
    with pytest.raises(ValueError, match=r"init='ibp' would overwrite a network that was trained"):
        fit(model)
    loaded = {"net": MLP(6, (8, 8), 3, batch_norm=True), "schedule": EpsilonSchedule(0.1, "linear", 2, 2)}
    again = CertifiedClassifier.load_from_checkpoint(tmp_path / "ckpt", weights_only=True, **loaded)
    before = again.net.body[1].weight.clone()
    with pytest.raises(ValueError, match="init='keep' to go on"):
        fit(again)
    assert torch.equal(again.net.body[1].weight, before)
    network = classifier(net=model.net)  # only its batch statistics tell
    with pytest.raises(ValueError, match="force_init=True"):
        fit(network)
    again.init = "keep"
    fit(again, **SHORT)
    forced = classifier(net=model.net, force_init=True)
    fit(forced, **SHORT)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a checkpoint from the middle of the ramp, and of an epoch."""
    path = tmp_path_factory.mktemp("saved") / "ckpt"
    fit(classifier(), [SaveAt("on_train_batch_end", 15, path)])
    return path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_eps": 0.2}, "max_eps was 0.1, is 0.2"),
        ({"ramp_epochs": 1}, "ramp_epochs was 2, is 1"),
        ({"kind": "smoothed"}, "kind was 'linear', is 'smoothed'"),
    ],
)
def test_a_resumed_schedule_has_to_be_the_same(changed, message, saved):
    with pytest.raises(ValueError, match=message):
        fit(classifier(schedule=changed), ckpt=saved)
    with pytest.raises(ValueError, match="an epoch has 3 optimizer steps, but the resumed run had 6"):
        fit(classifier(), loader=samples(batch=8), ckpt=saved)


def test_loading_with_another_schedule_is_refused(tmp_path):
    fit(classifier(), **SHORT).save_checkpoint(tmp_path / "ckpt")
    given = {"net": MLP(6, (8, 8), 3, batch_norm=True), "schedule": EpsilonSchedule(0.2, "linear", 2, 2)}
    with pytest.raises(ValueError, match=r"max_eps was 0.1, is 0.2"):
        CertifiedClassifier.load_from_checkpoint(tmp_path / "ckpt", weights_only=True, **given)


def test_half_precision_inputs_train_and_are_judged():
    x, y = torch.rand(8, 6).bfloat16(), torch.randint(3, (8,))
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    model = classifier()
    trainer = make_trainer([], max_epochs=4, gradient_clip_val=10.0)
    trainer.fit(model, loader, loader)
    assert trainer.callback_metrics["val/error"] <= trainer.callback_metrics["val/verified_error"]
    assert model(x.float() + 3).isfinite().all()  # plain inference, outside the valid range


def test_a_checkpoint_is_judged_at_the_radius_of_its_training(saved):
    model = classifier(seed=4)
    make_trainer([]).validate(model, samples(), ckpt_path=saved, weights_only=True, verbose=False)
    assert model.certifier.eps.item() == pytest.approx(EpsilonSchedule(0.1, "linear", 2, 2)(14, 6))
    untrained = classifier()
    assert untrained.certifier.eps.item() == pytest.approx(0.1)  # never silently 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 3}, "eps reaches max_eps after 3 epochs .*train for at least 4 epochs"),
        ({"max_epochs": -1, "max_steps": 18}, "eps reaches max_eps at step 18, but max_steps is 18"),
    ],
)
def test_a_ramp_that_does_not_fit_is_an_error(options, message):
    model = classifier()
    before = flat(model.state_dict())
    with pytest.raises(ValueError, match=message):
        fit(model, **options)
    if "max_steps" not in options:
        assert not differing(before, flat(model.state_dict()))
    fit(classifier(), max_epochs=4, **SHORT)


def caught(model, **options):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fit(model, **SHORT, **options)
    return [str(item.message) for item in found if item.category is LightningWeightsWarning]


def test_warnings_name_what_spoils_certificates(tmp_path):
    assert not caught(classifier())
    assert "gradient_clip_val is unset" in caught(classifier(), gradient_clip_val=None)[0]
    monitored = {"enable_checkpointing": True, "validate": True, "max_epochs": 4}
    saver = ModelCheckpoint(tmp_path, monitor="val/error")
    (text,) = caught(classifier(), callbacks=[saver], **monitored)
    assert text.startswith("ModelCheckpoint monitors 'val/error'")
    assert not caught(classifier(), callbacks=[ModelCheckpoint(tmp_path, monitor="val/verified_error")], **monitored)
    assert not caught(classifier(), callbacks=[ModelCheckpoint(tmp_path)], **monitored)
    one = ModelCheckpoint(tmp_path, monitor="val/verified_error/dataloader_idx_0")
    loaders = {"max_epochs": 4, "enable_checkpointing": True, "loader": samples()}
    assert not caught(classifier(), callbacks=[one], **loaders, limit_val_batches=0)

    class Freeze(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net.body[2].eval()

    (text,) = caught(classifier(), callbacks=[Freeze()])
    assert "batch normalisation is in eval mode during training (body.2)" in text


def test_labels_and_classes_are_checked():
    model = classifier()
    with pytest.raises(ValueError, match="labels go from 0 to 3; allowed are 0 to 2"):
        model.training_step((torch.rand(4, 6), torch.tensor([0, 1, 2, 3])), 0)
    assert model.net.body[2].num_batches_tracked == 0
    for arguments, message in (
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr_milestones": 3}, "lr_milestones is 3"),
        ({"lr_milestones": [0]}, r"lr_milestones\[0\] is 0"),
        ({"lr_gamma": -1.0}, "lr_gamma is -1.0"),
        ({"init": "zeros"}, "init is 'zeros'"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier(**arguments)
    with pytest.raises(ValueError, match="num_classes is 1"):
        CertifiedClassifier(MLP(6, (8,), 3), 1, EpsilonSchedule(0.1))


def test_the_callback_is_for_other_modules():
    with pytest.raises(ValueError, match="has a certifier already"):
        fit(classifier(), [IBPWarmup(0.1, ramp_epochs=2)])


def test_bf16_autocast_trains_in_float32():
    watch = Watch()
    exact, mixed = (fit(classifier(batch_norm=False), [watch], precision=p, **SHORT) for p in (32, "bf16-mixed"))
    assert torch.equal(exact.callback_metrics["train/loss"], mixed.callback_metrics["train/loss"])
    with pytest.raises(ValueError, match="half precision, in which bounds prove nothing"):
        fit(classifier(), precision="bf16-true")


@pytest.mark.parametrize("given", ["bare", "optimizer"])
def test_the_command_line_builds_it(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "ibp_warmup.yaml").read_text())
    config["trainer"] |= {
        "max_epochs": 13,  # one more than the ramp takes
        "limit_train_batches": 1,
        "limit_val_batches": 1,
        "check_val_every_n_epoch": 13,
        "logger": False,
    }
    config["trainer"] |= {"enable_checkpointing": False, "enable_progress_bar": False}
    if given == "optimizer":
        config["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}
    Path("given.yaml").write_text(yaml.safe_dump(config))
    cli = LightningCLI(
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=["fit", "--config", "given.yaml"],
        save_config_callback=None,
    )
    assert isinstance(cli.model, CertifiedClassifier)
    assert isinstance(cli.datamodule, Digits)
    assert cli.model.certifier.at_max_eps
    assert type(cli.trainer.optimizers[0]).__name__ == ("SGD" if given == "optimizer" else "Adam")
    assert "val/verified_error" in cli.trainer.callback_metrics
