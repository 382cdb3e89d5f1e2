"""WeightCompander in a Trainer: what it compands, what optimizers get, checkpoints, and what is refused."""

import copy
import warnings
from functools import partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrizations

from lightning_weights.callbacks import WeightCompander
from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.functional.weight_compander import kurtosis, near_zero_share
from lightning_weights.kernels.compand import compand
from lightning_weights.modules import Compander, compand_layers, find_parametrizations, merge_companders
from tests.helpers.small_nets import classifier, loader
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker).*")
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))


def fit(model, callback, epochs=2, extra=(), ckpt=None, **options):
    torch.manual_seed(1)
    trainer = make_trainer([callback, *extra], max_epochs=epochs, **options)
    trainer.fit(model, loader(), loader(), ckpt_path=ckpt)
    return trainer


def found_in(model):
    return list(find_parametrizations(model, Compander))


def test_a_trainer_does_what_a_loop_of_ones_own_does():
    ours, byhand = classifier(), classifier()
    callback = WeightCompander(kappa=2.5, beta=1.5, learnable=True)
    trainer = fit(ours, callback)
    callback.attach(byhand)
    optimizer = torch.optim.SGD(byhand.parameters(), lr=0.05)
    for _ in range(2):
        for x, y in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(byhand(x), y).backward()
            optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), byhand.parameters(), strict=True):
        assert torch.equal(a, b), name
    logged = trainer.callback_metrics
    weights = [found.layer.weight.detach() for found in found_in(ours)]
    assert float(logged["weights/weight_compander/kurtosis"]) == pytest.approx(sum(map(kurtosis, weights)) / 3)
    assert float(logged["weights/weight_compander/near_zero"]) == pytest.approx(sum(map(near_zero_share, weights)) / 3)
    assert 1.4 < float(logged["weights/weight_compander/gain"]) < 1.9


def test_linear_and_conv_layers_are_companded_and_the_rest_is_listed_once(monkeypatch):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 4), nn.Embedding(3, 4))
    callback = WeightCompander()
    told = []
    monkeypatch.setitem(WeightCompander.attach.__globals__, "rank_zero_info", told.append)
    callback.attach(net)
    callback.attach(net)
    assert [found.name for found in found_in(net)] == ["0", "3"]
    assert told == ["WeightCompander leaves as they are: 1 (BatchNorm2d), 4 (Embedding)"]
    chosen = classifier()
    WeightCompander(modules=["network.body.*", "network.head"], exclude=["*.body.1"]).attach(chosen)
    assert [found.name for found in found_in(chosen)] == ["network.body.5", "network.head"]


def test_arguments_reach_the_companders():
    model = classifier()
    options = {"function": "tanh", "share": "channel", "learnable": True, "init": "latent"}
    before = model.network.head.weight.detach().clone()
    WeightCompander(kappa=4.0, beta=1.0, **options).attach(model)
    step = found_in(model)[-1].step
    assert (step.function, step.learnable, len(step.a)) == ("tanh", True, 3)
    torch.testing.assert_close(step.a / step.b, torch.full((3,), 4.0))
    assert torch.equal(model.network.head.parametrizations["weight"].original, before)


class Watch(Callback):
    """Counts how often weights are computed in every batch."""

    def __init__(self, monkeypatch):
        self.calls, self.counts, real = 0, [], compand

        def counted(*arguments, known=None):
            self.calls += known is None
            return real(*arguments, known=known)

        monkeypatch.setitem(Compander.forward.__globals__, "compand", counted)

    def on_train_batch_start(self, *_):
        self.calls = 0

    def on_before_optimizer_step(self, *_):
        self.counts.append(self.calls)

    def on_train_batch_end(self, *_):
        self.counts.append(self.calls)


@pytest.mark.parametrize("learnable", [False, True])
def test_accumulation_computes_weights_once_per_step_and_equals_one_large_batch(monkeypatch, learnable):
    callback = WeightCompander(learnable=learnable)
    # no batch normalisation: it looks at batches
    models = [classifier(batch_norm=False) for _ in range(2)]
    watch = Watch(monkeypatch)
    options = {"limit_val_batches": 0, "log_every_n_steps": 0}
    fit(models[0], callback, extra=[watch], accumulate_grad_batches=2, **options)
    # two batches per step: computed in the first, known in the second
    assert watch.counts == [3, 0, 0] * 2
    make_trainer([callback], max_epochs=2, **options).fit(models[1], loader(batch_size=16))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not any(found.step._reuses for found in found_in(models[0]))


class SwapInData(Callback):
    """Shows the validation other weights, past all version counters."""

    def on_validation_start(self, trainer, pl_module):
        self.kept = [param.detach().clone() for param in pl_module.parameters()]
        for param in pl_module.parameters():
            param.data.zero_()

    def on_validation_batch_end(self, trainer, pl_module, outputs, *_):
        assert not bool(outputs["preds"].any()), "the validation has seen weights that were kept"

    def on_validation_end(self, trainer, pl_module):
        for param, kept in zip(pl_module.parameters(), self.kept, strict=True):
            param.data.copy_(kept)


def test_validation_in_the_middle_of_accumulation_computes_weights_itself():
    swap = SwapInData()
    fit(classifier(), WeightCompander(), extra=[swap], accumulate_grad_batches=2, val_check_interval=1)
    assert swap.kept


def test_plain_checkpoints_are_validated_loaded_and_not_resumed(tmp_path):
    plain = classifier()
    trainer = make_trainer([], max_epochs=1)
    trainer.fit(plain, loader())
    trainer.save_checkpoint(tmp_path / "plain")
    model, callback = classifier(), WeightCompander()
    callback.attach(model)
    metrics = make_trainer([callback]).validate(model, loader(), ckpt_path=tmp_path / "plain", verbose=False)
    wanted = make_trainer([]).validate(plain, loader(), verbose=False)
    assert metrics[0] == pytest.approx(wanted[0], rel=1e-5)
    with pytest.raises(ValueError, match=r"checkpoint is of a plain network.* load its state_dict .* before fit"):
        fit(classifier(), WeightCompander(), ckpt=tmp_path / "plain")


def test_companded_checkpoints_are_tested_on_fresh_networks_and_stay_out_of_plain_ones(tmp_path):
    model = classifier()
    trainer = fit(model, WeightCompander(learnable=True))
    trainer.save_checkpoint(tmp_path / "ckpt")
    fresh = classifier()
    make_trainer([WeightCompander(learnable=True)]).test(fresh, loader(), ckpt_path=tmp_path / "ckpt", verbose=False)
    assert torch.equal(fresh.eval()(X), model.eval()(X))
    untouched = classifier()
    make_trainer([WeightCompander()]).validate(untouched, loader(), verbose=False)
    assert not found_in(untouched)
    with pytest.raises(ValueError, match=r"function is 'tanh', but the checkpoint was made with 'arctan'"):
        fit(classifier(), WeightCompander(function="tanh", learnable=True), ckpt=tmp_path / "ckpt")


def test_merge_on_end_leaves_a_plain_network_and_its_checkpoint(tmp_path):
    model, kept = classifier(), classifier()
    keys = list(model.state_dict())
    saver = ModelCheckpoint(tmp_path, save_last=True)
    callback = WeightCompander(merge_on_end=True)
    fit(model, callback, extra=[saver], enable_checkpointing=True)
    fit(kept, WeightCompander())
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model.eval()(X), kept.eval()(X), rtol=1e-6, atol=1e-6)
    merged = torch.load(tmp_path / "merged.ckpt", weights_only=True)
    assert list(merged["state_dict"]) == keys
    resumed = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert "network.head.parametrizations.weight.original" in resumed
    # what was saved companded is still tested with it
    trainer = make_trainer([callback])
    trainer.test(model, loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    torch.testing.assert_close(model.eval()(X), kept.eval()(X), rtol=1e-6, atol=1e-6)


def with_optimizer(model, make):
    model.configure_optimizers = partial(make, model)
    return model


def test_scales_do_not_decay_and_have_a_rate_of_their_own_whatever_the_schedule():
    def make(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
        first = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        second = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
        return [optimizer], [torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], [1])]

    model = with_optimizer(classifier(), make)
    trainer = fit(model, WeightCompander(learnable=True, lr_scale=0.2), epochs=3)
    (optimizer,) = trainer.optimizers
    weights, scales = optimizer.param_groups
    rhos = {id(rho) for found in found_in(model) for rho in found.step.parameters()}
    assert {id(param) for param in scales["params"]} == rhos
    assert not rhos & {id(param) for param in weights["params"]}
    assert (weights["weight_decay"], scales["weight_decay"], scales["momentum"]) == (0.5, 0.0, 0.9)
    assert weights["lr"] < 0.05
    assert scales["lr"] == pytest.approx(0.2 * weights["lr"])


def test_decay_of_latents_is_the_optimizers_and_decay_of_weights_is_the_penaltys():
    decay = 0.3

    def decayed(model):
        return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)

    ours, byhand = with_optimizer(classifier(), decayed), classifier(lr=0.1)
    fit(ours, WeightCompander(learnable=True, decay_target="effective"))
    WeightCompander(learnable=True).attach(byhand)
    latents = {id(found.layer.parametrizations["weight"].original) for found in found_in(byhand)}
    rhos = {id(rho) for found in found_in(byhand) for rho in found.step.parameters()}
    others = [p for p in byhand.parameters() if id(p) not in latents | rhos]
    companded = [p for p in byhand.parameters() if id(p) in latents | rhos]
    optimizer = torch.optim.SGD([{"params": others, "weight_decay": decay}, {"params": companded}], lr=0.1)
    for _ in range(2):
        for x, y in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(byhand(x), y).backward()
            scales = [(rho, rho.grad.clone()) for found in found_in(byhand) for rho in found.step.parameters()]
            (decay / 2 * sum(found.layer.weight.square().sum() for found in found_in(byhand))).backward()
            for rho, grad in scales:  # the penalty is about latents alone
                rho.grad = grad
            optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), byhand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_several_fits_keep_the_companders_and_other_settings_are_refused():
    model = classifier()
    fit(model, WeightCompander())
    steps = [found.step for found in found_in(model)]
    fit(model, WeightCompander())
    assert [id(found.step) for found in found_in(model)] == [id(step) for step in steps]
    for name, value in {"learnable": True, "kappa": 9.0, "beta": 1.0, "share": "channel", "function": "tanh"}.items():
        message = rf"network\.body\.1 is companded already, with {name}=.*, and {name} is {value!r}; call merge_comp"
        with pytest.raises(ValueError, match=message):
            fit(model, WeightCompander(**{name: value}))
    assert "configure_model" not in vars(model)
    merge_companders(model)
    fit(model, WeightCompander(learnable=True))


def assert_refused(model, message, kind=ValueError, **options):
    keys = list(model.state_dict())
    with pytest.raises(kind, match=message):
        WeightCompander(**options).attach(model)
    assert list(model.state_dict()) == keys


def test_weights_that_something_else_computes_are_refused_by_name():
    normed = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 2)))
    assert_refused(normed, r"cannot compand 1: its weight has another parametrization \(_WeightNorm\); .*exclude")
    WeightCompander(exclude=["1"]).attach(normed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 2)))
    assert_refused(old, r"cannot compand 0: its weight is computed by something else")
    lora = nn.ModuleDict({"q": nn.ModuleDict({"base_layer": nn.Linear(4, 4), "lora_A": nn.Linear(4, 2)})})
    assert_refused(lora, r"cannot compand q\.base_layer: its weight is part of a LoRA layer")
    whole = nn.Linear(4, 2)
    whole.weight = nn.Parameter(torch.ones(2, 4, dtype=torch.int8), requires_grad=False)
    assert_refused(nn.Sequential(whole), r"cannot compand 0: its weight is quantized \(torch\.int8\)")


def test_tied_empty_and_missing_weights_are_refused():
    tied = nn.ModuleDict({"wte": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    tied["head"].weight = tied["wte"].weight
    assert_refused(tied, r"cannot compand head: its weight is shared by wte and head; untie them or leave them out")
    for empty in (nn.Linear(2, 2, device="meta"), nn.LazyLinear(2)):
        with pytest.raises(ValueError, match="cannot compand 0: its weight has no values yet"):
            WeightCompander().attach(nn.Sequential(empty))
    assert_refused(
        nn.Sequential(nn.Linear(2, 2)), "modules has 'net', which names no Linear or Conv layer", modules=["net"]
    )
    for options in ({"exclude": ["0"]}, {"modules": ["0"], "exclude": ["*"]}):
        net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        assert_refused(
            net, r"has no layer: .* there are 0 \(Linear\), 1 \(LayerNorm\)", MisconfigurationException, **options
        )


def test_optimizers_made_before_are_refused():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"WeightCompander put parameters into the network that no optimizer has"):
        fit(with_optimizer(model, lambda _: optimizer), WeightCompander(learnable=True))
    copied = torch.optim.SGD(copy.deepcopy(classifier()).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"holds stale parameters.* network\.body\.1, .*configure_optimizers"):
        fit(with_optimizer(classifier(), lambda _: copied), WeightCompander())
    head = with_optimizer(classifier(), lambda m: torch.optim.SGD(m.network.head.parameters(), lr=0.1))
    fit(head, WeightCompander(), epochs=1)  # training a part is allowed


def test_half_precision_weights_are_warned_about():
    with pytest.warns(LightningWeightsWarning, match=r"weights of 0 have 16 bits.*bf16-mixed"):
        WeightCompander().attach(nn.Sequential(nn.Linear(8, 8)).bfloat16())


def test_fsdp_shards_latents_that_were_companded_before_and_nothing_else(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        callback = WeightCompander(learnable=True)
        plain, sharded = nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 2))
        sharded.load_state_dict(plain.state_dict())
        for net in (plain, sharded):
            callback.attach(net)
        fully_shard(sharded, mesh=mesh)
        late = fully_shard(nn.Sequential(nn.Linear(4, 2)), mesh=mesh)
        with pytest.raises(ShardedParameterError, match=r"compand 0: its weight is sharded.* before fully_shard"):
            callback.attach(late)
        for net in (plain, sharded):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                net(X).square().sum().backward()
                optimizer.step()
        for a, b in zip(plain.parameters(), sharded.parameters(), strict=True):
            assert isinstance(b, DTensor)
            torch.testing.assert_close(a, b.full_tensor())
    finally:
        torch.distributed.destroy_process_group()


def test_attaching_keeps_what_was_companded_by_hand():
    model = classifier()
    nn.init.zeros_(model.network.head.weight)
    with pytest.raises(ValueError, match=r"cannot compand network\.head: .*register Compander"):
        WeightCompander().attach(model)
    torch.nn.utils.parametrize.register_parametrization(model.network.head, "weight", Compander(0.3, 0.2))
    WeightCompander().attach(model)
    assert float(found_in(model)[-1].step.a) == pytest.approx(0.3)
    other = classifier()
    compand_layers({"network.head": other.network.head}, kappa=5.0)
    WeightCompander().attach(other)
    assert [float(found.step.a / found.step.b) for found in found_in(other)] == pytest.approx([1.5, 1.5, 2.5])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kappa", 0.0),
        ("beta", -1.0),
        ("function", "cube"),
        ("share", "row"),
        ("init", "cold"),
        ("lr_scale", -0.1),
        ("decay_target", "both"),
        ("modules", "head"),
        ("exclude", [1]),
    ],
)
def test_bad_input(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*; allowed"):
        WeightCompander(**{name: value})
