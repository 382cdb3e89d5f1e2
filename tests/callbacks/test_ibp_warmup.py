"""IBPWarmup in a LightningModule of one's own, under both roots."""

import copy
import importlib
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import ExactResume, IBPWarmup
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import MLP, CertifiedClassifier, Certifier, EpsilonSchedule
from tests.helpers.battery import SaveAt, differing, flat
from tests.helpers.tasks import make_trainer
from tests.helpers.tiny import ROOTS

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|worker|logging interval|GPU|checkpoint).*")

RAMP = {"max_eps": 0.1, "start_epoch": 2, "ramp_epochs": 2, "kind": "linear"}
STEPS = 6  # per epoch
SHORT = {"limit_train_batches": 1}  # where only the start or the end of a run is looked at


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(6, (8, 8), 3, batch_norm=True)


class _Own:
    """A module that was written for the callback."""

    built_in = "__init__"

    def __init__(self):
        super().__init__()
        self.build("__init__")

    def build(self, place):
        if place == self.built_in and not hasattr(self, "net"):
            self.net = network()

    def setup(self, stage):
        self.build("setup")

    def configure_model(self):
        self.build("configure_model")

    def training_step(self, batch, batch_idx):
        return self.certifier.loss(self.net, *batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def own_module(root=ROOTS[0], **overrides):
    return type("Own", (_Own, importlib.import_module(root).LightningModule), overrides)()


def samples(shuffle=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4 * STEPS, 6, generator=generator)
    order = torch.Generator().manual_seed(1)
    return DataLoader(TensorDataset(x, (3 * x[:, 0]).long()), batch_size=4, shuffle=shuffle, generator=order)


def fit(module, *callbacks, root=ROOTS[0], ckpt=None, seed=3, **options):
    torch.manual_seed(seed)
    trainer = make_trainer(list(callbacks), root, **{"max_epochs": 5, "gradient_clip_val": 10.0, **options})
    trainer.fit(module, samples(shuffle=True), ckpt_path=ckpt, weights_only=None if ckpt is None else True)
    return trainer


class Watch(Callback):
    """Notes ε as every batch sees it."""

    def __init__(self):
        self.eps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.eps.append(pl_module.certifier.eps.item())


@pytest.mark.parametrize("root", ROOTS)
def test_a_module_of_ones_own_trains_like_the_classifier(root):
    module, watch = own_module(root), Watch()
    trainer = fit(module, IBPWarmup(**RAMP), watch, root=root)
    classifier = CertifiedClassifier(network(), 3, EpsilonSchedule(**RAMP), lr=0.01)
    other = fit(classifier)
    assert not differing(flat(module.net.state_dict()), flat(classifier.net.state_dict()))
    schedule = EpsilonSchedule(**RAMP)
    assert watch.eps == pytest.approx([schedule(step, STEPS) for step in range(5 * STEPS)])
    logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("weights/")}
    names = ("eps", "tightness", "relu", "active_fraction", "inactive_fraction")
    assert logged.keys() == {f"weights/ibp_warmup/{name}" for name in names}
    assert not differing(logged, {name: other.callback_metrics[name] for name in logged})


@pytest.mark.parametrize("built_in", ["setup", "configure_model"])
def test_networks_built_late_are_initialised(built_in):
    early, late = own_module(), own_module(built_in=built_in)
    for module in (early, late):
        fit(module, IBPWarmup(**RAMP), **SHORT)
    assert not differing(flat(early.net.state_dict()), flat(late.net.state_dict()))
    kept = own_module(built_in=built_in)
    fit(kept, IBPWarmup(**RAMP, init="keep"), **SHORT)
    assert differing(flat(kept.net.state_dict()), flat(late.net.state_dict()))


def test_resuming_in_the_ramp_continues_it_without_initialising(tmp_path):
    def run(**options):
        module, watch = own_module(), Watch()
        extra = options.pop("extra", [])
        fit(module, ExactResume(), IBPWarmup(**RAMP), watch, *extra, accumulate_grad_batches=2, **options)
        return flat(module.state_dict()), watch.eps

    batches = (8, 16)
    straight, eps = run(extra=[SaveAt("on_train_batch_end", batch, tmp_path / f"{batch}") for batch in batches])
    for batch in batches:
        resumed, rest = run(ckpt=tmp_path / f"{batch}", seed=9)
        assert not differing(straight, resumed), batch
        assert rest == eps[batch:]
    assert len(set(eps)) > 5


def test_resuming_another_schedule_is_refused(tmp_path):
    fit(own_module(), IBPWarmup(**RAMP), SaveAt("on_train_batch_end", 9, tmp_path / "ckpt"))
    for changed, message in (({"max_eps": 0.2}, "max_eps was 0.1, is 0.2"), ({"beta": 3.0}, "beta was 4.0, is 3.0")):
        with pytest.raises(ValueError, match=message):
            fit(own_module(), IBPWarmup(**{**RAMP, **changed}), ckpt=tmp_path / "ckpt")
    with pytest.raises(ValueError, match="has 3 optimizer steps, but the resumed run had 6"):
        fit(own_module(), IBPWarmup(**RAMP), ckpt=tmp_path / "ckpt", accumulate_grad_batches=2)


def test_a_second_fit_does_not_initialise_what_the_first_has_trained():
    module, callback = own_module(), IBPWarmup(**RAMP)
    fit(module, callback, **SHORT)
    trained = copy.deepcopy(module.net.state_dict())
    for again in (callback, IBPWarmup(**RAMP)):
        with pytest.raises(ValueError, match="would overwrite a network that was trained"):
            fit(module, again)
    assert not differing(flat(trained), flat(module.net.state_dict()))
    fit(module, IBPWarmup(**RAMP, init="keep"), **SHORT)
    fit(module, IBPWarmup(**RAMP, force_init=True), **SHORT)


def test_going_on_with_the_same_trainer_is_no_fresh_fit():
    module, callback, watch = own_module(), IBPWarmup(**RAMP), Watch()
    trainer = fit(module, callback, watch, limit_train_batches=2)
    trainer.fit_loop.max_epochs = 6
    trainer.fit(module, samples())
    assert watch.eps[-2:] == pytest.approx([0.1] * 2)


def test_the_module_can_judge_itself_and_keeps_its_state_dict_keys():
    def validation_step(self, batch, batch_idx):
        self.log("margin", self.certifier.margins(self.net, *batch).mean())

    module = own_module(validation_step=validation_step)
    keys = set(module.state_dict())
    trainer = make_trainer([IBPWarmup(**RAMP)], max_epochs=4, gradient_clip_val=10.0, **SHORT)
    trainer.fit(module, samples(), samples())
    assert trainer.callback_metrics["margin"].isfinite()
    assert set(module.state_dict()) == keys
    assert isinstance(module.certifier, Certifier)


def test_the_network_is_found_or_the_choice_is_named():
    module = own_module()
    module.extra = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"network is None; .* are net, extra"):
        fit(module, IBPWarmup(**RAMP))
    with pytest.raises(ValueError, match="network is 'body'; allowed is the name of a submodule of Own"):
        fit(module, IBPWarmup(**RAMP, network="body"))
    fit(module, IBPWarmup(**RAMP, network="net"), **SHORT)


def test_a_module_that_has_a_certifier_of_another_kind_is_left_alone():
    module = own_module()
    module.certifier = "mine"
    with pytest.raises(ValueError, match="Own has a certifier already"):
        fit(module, IBPWarmup(**RAMP))
    assert module.certifier == "mine"


def caught(module, *callbacks, **options):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fit(module, *callbacks, **options)
    return [str(item.message) for item in found if item.category is LightningWeightsWarning]


def test_an_unused_certifier_and_missing_clipping_are_said():
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    assert not caught(own_module(), IBPWarmup(**RAMP), **SHORT)
    texts = caught(own_module(training_step=training_step), IBPWarmup(**RAMP), **SHORT)
    assert len(texts) == 5
    assert "Own did not use its certifier" in texts[0]
    (text,) = caught(own_module(), IBPWarmup(**RAMP), gradient_clip_val=None, **SHORT)
    assert "use gradient_clip_val=10.0" in text


def test_manual_optimization_counts_its_own_steps():
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.certifier.loss(self.net, *batch))
        optimizer.step()

    watch, automatic = Watch(), Watch()
    fit(
        own_module(training_step=training_step, automatic_optimization=False),
        IBPWarmup(**RAMP),
        watch,
        gradient_clip_val=None,
        limit_train_batches=3,
    )
    fit(own_module(), IBPWarmup(**RAMP), automatic, limit_train_batches=3)
    assert watch.eps == automatic.eps


@pytest.mark.parametrize("root", ROOTS)
def test_steps_that_epochs_do_not_tell_are_refused(root):
    scheduler = importlib.import_module(f"{root}.callbacks").GradientAccumulationScheduler
    for scheduling in ({0: 1, 2: 3}, {0: 3}):
        module = own_module(root)
        before = copy.deepcopy(module.net.state_dict())
        with pytest.raises(ValueError, match="GradientAccumulationScheduler changes the optimizer steps"):
            fit(module, scheduler(scheduling), IBPWarmup(**RAMP), root=root)
        assert not differing(flat(before), flat(module.net.state_dict()))
    fit(own_module(root), scheduler({0: 1}), IBPWarmup(**RAMP), root=root, **SHORT)

    def two(self):
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.net.body, self.net.head)]

    module = own_module(root, automatic_optimization=False, configure_optimizers=two)
    with pytest.raises(ValueError, match="there are 2 optimizers, whose steps the Trainer counts together"):
        fit(module, IBPWarmup(**RAMP), root=root, gradient_clip_val=None)


def test_an_unfinished_ramp_is_said():
    def training_step(self, batch, batch_idx):
        self.manual_backward(self.certifier.loss(self.net, *batch) / 3)
        if batch_idx % 3 == 2:
            self.optimizers().step()
            self.optimizers().zero_grad()

    module = own_module(training_step=training_step, automatic_optimization=False)
    texts = caught(module, IBPWarmup(**RAMP), gradient_clip_val=None)
    assert "training ended at step 9 with eps 0.025, below max_eps 0.1" in texts[-1]


def test_a_second_fit_may_have_another_schedule():
    module, watch = own_module(), Watch()
    fit(module, IBPWarmup(**RAMP), **SHORT)
    fit(module, IBPWarmup(**{**RAMP, "max_eps": 0.2}, init="keep"), watch, **SHORT)
    assert watch.eps[-1] == pytest.approx(0.2)


def test_endless_data_and_long_ramps_are_refused():
    with pytest.raises(ValueError, match="eps reaches max_eps after 81 epochs"):
        fit(own_module(), IBPWarmup(max_eps=0.1))

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield torch.rand(6), torch.tensor(0)

    trainer = make_trainer([IBPWarmup(**RAMP)], max_epochs=5, gradient_clip_val=10.0)
    with pytest.raises(ValueError, match="no known length; set limit_train_batches"):
        trainer.fit(own_module(), DataLoader(Endless(), batch_size=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_eps": 8.0}, "did you mean 8/255"),
        ({"max_eps": -1.0}, "max_eps is -1.0"),
        ({"kind": "cosine"}, "kind is 'cosine'"),
        ({"bound": "crown"}, "bound is 'crown'"),
        ({"reg_terms": ["std"]}, r"reg_terms\[0\] is 'std'"),
        ({"std": [0.0]}, r"std\[0\] is 0.0"),
        ({"init": "xavier"}, "init is 'xavier'; allowed are 'ibp', 'keep'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        IBPWarmup(**{"max_eps": 0.1, **arguments})


def test_copies_are_lean_and_configs_may_be_omegaconf():
    config = {"max_eps": 0.1, "ramp_epochs": 2, "reg_terms": ["relu"], "mean": [0.5] * 6, "std": [0.5] * 6}
    callback = IBPWarmup(**OmegaConf.create(config))
    module = own_module()
    fit(module, callback, limit_train_batches=2)
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert not any(isinstance(value, (torch.Tensor, nn.Module)) for value in vars(twin).values())
        assert twin.state_key == callback.state_key
        assert pickle.dumps(twin) == pickle.dumps(callback)
    assert b"omegaconf" not in pickle.dumps(callback)
    assert len(pickle.dumps(callback)) < 1500
    assert callback.state_dict()["step"] == 5 * 2 - 1
    assert IBPWarmup(**config).state_dict()["step"] is None
