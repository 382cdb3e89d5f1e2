"""TSCNC in a Trainer: what it adds to the loss, when it edits weights, and which weights validation sees."""

import copy
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.data import DataLoader, IterableDataset

from lightning_weights.callbacks import TSCNC
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.tscnc import condition_numbers, condition_penalty
from lightning_weights.modules import HardConcreteGate
from tests.helpers.small_nets import classifier, loader
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker).*")
PLAIN = {"gated_layers": None, "cnc_weight": 0.0, "ema_decay": None}


def fit(model, tscnc, epochs=2, data=None, extra=(), **options):
    torch.manual_seed(1)
    data = loader() if data is None else data
    trainer = make_trainer([tscnc, *extra], max_epochs=epochs, **options)
    trainer.fit(model, data, data)
    return trainer


def zero_loss(model):
    """Make a module whose loss has no gradient but exists."""
    model.training_step = lambda batch, batch_idx: 0.0 * model(batch[0]).sum()
    return model


def test_without_gates_and_constraint_it_is_weight_decay():
    ours, torchs = classifier(), classifier(weight_decay=0.1)
    fit(ours, TSCNC(weight_decay=0.1, **PLAIN))
    make_trainer([], max_epochs=2).fit(torchs, loader())
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_penalty_is_that_of_the_equation_and_reaches_the_weights():
    model, tscnc = classifier(), TSCNC(num_train_samples=16, cnc_weight=2.0)
    tscnc.attach(model)
    head = model.network.head.weight.detach().double()
    gram = head @ head.T / 3
    expected = 2.0 * (torch.logdet(gram) / 3) ** 2
    without = TSCNC(num_train_samples=16, cnc_weight=0.0).penalty(model)
    torch.testing.assert_close((tscnc.penalty(model) - without).double(), expected, rtol=1e-4, atol=1e-6)
    tscnc.penalty(model).backward()
    assert all(param.grad is not None and param.grad.any() for param in model.network.head.parameters())
    (gate,) = (part for part in model.modules() if isinstance(part, HardConcreteGate))
    assert gate.log_alpha.grad.any()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_accumulation_divides_the_penalty_as_it_does_the_loss(precision):
    whole, parts = zero_loss(classifier(batch_norm=False)), zero_loss(classifier(batch_norm=False))
    fit(whole, TSCNC(weight_decay=0.1, num_train_samples=16), precision=precision)
    fit(
        parts,
        TSCNC(weight_decay=0.1, num_train_samples=16),
        precision=precision,
        data=loader(batch_size=4),
        accumulate_grad_batches=2,
    )
    assert not torch.equal(whole.network.head.weight, classifier(batch_norm=False).network.head.weight)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Scaled(Callback):
    """Gives the trainer a scaler, as fp16 on a GPU would."""

    def __init__(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)

    def setup(self, trainer, pl_module, stage):
        trainer.precision_plugin.scaler = self.scaler

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for param in pl_module.parameters():
            param.grad.div_(64.0)


def test_the_penalty_is_scaled_with_the_loss():
    plain, scaled = zero_loss(classifier()), zero_loss(classifier())
    fit(plain, TSCNC(num_train_samples=16))
    fit(scaled, TSCNC(num_train_samples=16), extra=[Scaled()])
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_manual_optimization_gets_the_penalty():
    model = classifier()
    model.automatic_optimization = False

    def training_step(batch, batch_idx):
        optimizer = model.optimizers()
        optimizer.zero_grad()
        model.manual_backward(nn.functional.cross_entropy(model(batch[0]), batch[1]))
        optimizer.step()

    model.training_step = training_step
    automatic = classifier()
    for each in (model, automatic):
        fit(each, TSCNC())
    for a, b in zip(model.parameters(), automatic.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_manual_optimization_leaves_the_loss_of_the_user_alone():
    model, losses = classifier(), []
    model.automatic_optimization = False

    def training_step(batch, batch_idx):
        optimizer = model.optimizers()
        optimizer.zero_grad()
        loss = (nn.functional.cross_entropy(model(batch[0]), batch[1]) + 1).sqrt()
        before = loss.item()
        model.manual_backward(loss)
        losses.append((before, loss.item()))
        optimizer.step()

    model.training_step = training_step
    automatic = classifier()
    automatic.training_step = lambda batch, batch_idx: (
        (nn.functional.cross_entropy(automatic(batch[0]), batch[1]) + 1).sqrt() * 1.0
    )
    for each in (model, automatic):
        fit(each, TSCNC())
    assert all(before == after for before, after in losses)
    for a, b in zip(model.parameters(), automatic.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_manual_optimization_under_ddp_is_refused(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = classifier()
        model.automatic_optimization = False
        trainer = make_trainer([])
        trainer.strategy.model = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ValueError, match="manual optimization under DDP"):
            TSCNC().on_fit_start(trainer, model)
    finally:
        torch.distributed.destroy_process_group()


def test_many_classes_are_conditioned_by_the_default_and_not_by_the_released_formula():
    kappas = {}
    for mode in ("logdet", "released"):
        model = zero_loss(classifier(lr=1.0, classes=100, hidden=(8, 128)))
        before = condition_numbers(model.network.head)[""]
        tscnc = TSCNC(cnc_mode=mode, cnc_weight=10.0, gated_layers=None, weight_decay=0.0, num_train_samples=16)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(model, tscnc, epochs=20, data=loader(100))
        warned = [w for w in caught if issubclass(w.category, LightningWeightsWarning)]
        assert bool(warned) == (mode == "released")
        kappas[mode] = condition_numbers(model.network.head)[""] / before
    assert kappas["logdet"] < 0.9
    assert kappas["released"] == pytest.approx(1.0, abs=1e-3)


def test_which_layers_are_gated_and_conditioned():
    model = classifier()
    TSCNC().attach(model)
    assert [is_parametrized(model.network.body[i], "weight") for i in (1, 5)] == [False, True]
    assert not is_parametrized(model.network.head, "weight")
    named = classifier()
    TSCNC(gated_layers=["network.body.*"]).attach(named)
    TSCNC(gated_layers=["network.body.*"]).attach(named)
    gates = [part for part in named.modules() if isinstance(part, HardConcreteGate)]
    assert [len(gate.log_alpha) for gate in gates] == [8, 6]
    samples = {"num_train_samples": 16, "gated_layers": None}
    both = TSCNC(cnc_layers=["network.body.1", "network.body.5"], **samples).penalty(classifier())
    none = TSCNC(cnc_weight=0.0, **samples).penalty(classifier())
    layers = [classifier().network.body[i].weight for i in (1, 5)]
    torch.testing.assert_close(both - none, sum(condition_penalty(weight) for weight in layers) / 2)
    everywhere = TSCNC(cnc_layers="all", **samples).penalty(classifier())
    layers.append(classifier().network.head.weight)
    torch.testing.assert_close(everywhere - none, sum(condition_penalty(weight) for weight in layers) / 3)


def test_log_alpha_is_clamped_after_real_steps_only():
    model, tscnc = classifier(lr=1e4), TSCNC(l0=1e3, num_train_samples=16, ema_decay=None)
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.extend(
                part.log_alpha.abs().max().item() for part in pl_module.modules() if isinstance(part, HardConcreteGate)
            )

    fit(zero_loss(model), tscnc, extra=[Look()], epochs=1)
    assert max(seen) == pytest.approx(torch.tensor(100.0).log().item())


def test_stop_and_resume_ends_in_the_same_bits_and_checkpoints_hold_both_weights(tmp_path):
    straight, tscnc = classifier(), TSCNC()
    whole = fit(straight, tscnc, epochs=4)
    stopped = fit(classifier(), TSCNC(), epochs=2)
    stopped.save_checkpoint(tmp_path / "ckpt")
    saved = torch.load(tmp_path / "ckpt", weights_only=True)
    average = saved["callbacks"]["TSCNC"]["averages"]["network.head.weight"]
    assert not torch.equal(average, saved["state_dict"]["network.head.weight"])
    resumed, again = classifier(), TSCNC()
    trainer = make_trainer([again], max_epochs=4)
    trainer.fit(resumed, loader(), loader(), ckpt_path=tmp_path / "ckpt")
    assert trainer.global_step == whole.global_step
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for name, value in tscnc.state_dict()["averages"].items():
        assert torch.equal(value, again.state_dict()["averages"][name]), name
    tested = classifier()
    during = []
    tested.test_step = lambda batch, batch_idx: during.append(tested.network.head.weight.clone())
    make_trainer([TSCNC()]).test(tested, loader(), ckpt_path=tmp_path / "ckpt", verbose=False)
    assert torch.equal(during[0], average)


def test_testing_leaves_networks_without_gates_alone():
    model, outputs = classifier(), []
    make_trainer([], max_epochs=1).fit(model, loader())
    model.test_step = lambda batch, batch_idx: outputs.append(model(batch[0]))
    make_trainer([]).test(model, loader(), verbose=False)
    make_trainer([TSCNC()]).test(model, loader(), verbose=False)
    assert all(torch.equal(a, b) for a, b in zip(outputs[:2], outputs[2:], strict=True))
    assert not model._load_state_dict_pre_hooks


def test_logs_what_is_measured():
    model, seen = classifier(), []

    class Look(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    fit(model, TSCNC(), extra=[Look()])
    last = seen[-1]
    assert last["weights/tscnc/tsc"] > 0
    assert last["weights/tscnc/cnc"] > 0
    assert last["weights/tscnc/condition_number"] == pytest.approx(condition_numbers(model.network.head)[""], rel=1e-4)
    assert last["weights/tscnc/open_gates"] == 1.0


def test_warnings_say_what_is_odd():
    with pytest.warns(LightningWeightsWarning, match="decay twice"):
        fit(classifier(weight_decay=0.1), TSCNC(), epochs=1)
    with pytest.warns(LightningWeightsWarning, match=r"network\.head has 6 outputs and 6 inputs: .* the smaller side"):
        fit(classifier(classes=6), TSCNC(), epochs=1, data=loader(6))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=LightningWeightsWarning)
        fit(classifier(), TSCNC(), epochs=1)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(loader(batch_size=1).dataset)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fit(classifier(hidden=(8,)), TSCNC()),
            r"gated_layers is 'auto'.* only network\.body\.1, network\.head among",
        ),
        (
            lambda: fit(classifier(), TSCNC(gated_layers=["body.1"])),
            r"gated_layers has 'body\.1', which names no Linear",
        ),
        (
            lambda: fit(classifier(), TSCNC(cnc_layers=["head"])),
            r"cnc_layers has 'head', .* there are network\.body\.1",
        ),
        (lambda: TSCNC(gated_layers=None).attach(nn.ReLU()), "no Linear or Conv layer, only ReLU; use cnc_weight=0"),
        (lambda: fit(classifier(), TSCNC(), data=DataLoader(Stream(), batch_size=4)), "num_train_samples is None, and"),
        (lambda: TSCNC().penalty(classifier()), "num_train_samples is None; outside a Trainer"),
        (lambda: TSCNC(num_train_samples=9).penalty(classifier()), "'auto', but no layer has a gate; call attach"),
        (lambda: fit(classifier(), TSCNC(num_train_samples=10**7, released_sign=True)), "pole|reach|a is"),
        (lambda: fit(classifier(), TSCNC(), precision="bf16-true"), "bfloat16; allowed are float32"),
    ],
)
def test_what_cannot_be_done_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_optimizer_without_the_gates_is_refused():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.configure_optimizers = lambda: optimizer
    with pytest.raises(ValueError, match=r"TSCNC put parameters .* that no optimizer has: network\.body\.5"):
        fit(model, TSCNC())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train_samples": 0}, "num_train_samples is 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"l0": -1.0}, "l0 is -1.0"),
        ({"a": 0.0}, "a is 0.0"),
        ({"tsc_weight": float("nan")}, "tsc_weight is nan"),
        ({"cnc_weight": -1.0}, "cnc_weight is -1.0"),
        (
            {"cnc_layers": "head"},
            r"cnc_layers is 'head'; allowed is a list of names .* or 'classifier' or 'all'",
        ),
        ({"cnc_layers": []}, r"cnc_layers is \[\]; allowed is a list of at least one name or 'classifier'"),
        ({"gated_layers": [1]}, r"gated_layers is \[1\]; allowed is a list of names or 'auto'"),
        ({"cnc_mode": "svd"}, "cnc_mode is 'svd'"),
        ({"droprate_init": 1.0}, "droprate_init is 1.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TSCNC(**arguments)


def test_copies_are_lean_and_configs_may_be_omegaconf():
    tscnc = TSCNC(**OmegaConf.create({"gated_layers": ["network.body.*"], "cnc_layers": ["*"]}))
    assert type(tscnc.gated_layers) is list
    fit(classifier(), tscnc)
    for twin in (copy.deepcopy(tscnc), pickle.loads(pickle.dumps(tscnc))):
        assert twin.cnc_layers == ["*"]
        assert twin.state_dict() == {"steps": 0, "averages": {}, "ema_decay": 0.99}
    assert len(pickle.dumps(tscnc)) < 1000
