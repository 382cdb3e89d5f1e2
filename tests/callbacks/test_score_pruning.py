"""ScorePruning and FinetunePruned in a Trainer: what is frozen, what moves, and what checkpoints bring back."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

from lightning_weights.callbacks import TSCNC, FinetunePruned, ScorePruning
from lightning_weights.modules import ScoreMask, make_pruning_permanent
from tests.helpers.small_nets import classifier, loader
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker|val_d).*"
)


def fit(model, callbacks, epochs=2, ckpt=None, **options):
    trainer = make_trainer(callbacks, max_epochs=epochs, **options)
    torch.manual_seed(1)
    trainer.fit(model, loader(), ckpt_path=ckpt)
    return trainer


def masks(model):
    return {name: part for name, part in model.named_modules() if isinstance(part, ScoreMask)}


def snapshot(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def moved(before, model):
    return {name for name, param in model.named_parameters() if not torch.equal(before[name], param)}


class Snapshots(Callback):
    """Copies the parameters at the start of every epoch."""

    def __init__(self):
        self.starts, self.masks = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.starts.append(snapshot(pl_module))
        self.masks.append({name: mask.mask.clone() for name, mask in masks(pl_module).items()})


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_it_starts_with_magnitude_pruning_and_moves_nothing_but_scores_and_batch_norm(scope):
    model, pruning = classifier(lr=0.5, hidden=(16, 12)), ScorePruning(keep=0.3, scope=scope)
    fit(model, [], epochs=1)
    weights = {
        name: layer.weight.detach().clone() for name, layer in model.named_modules() if isinstance(layer, nn.Linear)
    }
    pruning.attach(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            assert torch.equal(layer.weight, weights[name]), "masks prune before the phase begins"
    pruning.prune(model)
    if scope == "layer":
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear):
                size = weights[name].numel()
                order = weights[name].abs().flatten().argsort(descending=True, stable=True)
                expected = torch.zeros(size, dtype=torch.bool)
                expected[order[: size - int(0.7 * size)]] = True
                assert torch.equal(layer.weight != 0, expected.view_as(layer.weight))
    kept = [int(mask.mask.sum()) for mask in masks(model).values()]
    total = sum(mask.mask.numel() for mask in masks(model).values())
    before, first = snapshot(model), {name: mask.mask.clone() for name, mask in masks(model).items()}
    fit(model, [pruning], epochs=8)
    names = moved(before, model)
    assert {name for name in names if name.endswith("scores")} == {n for n in before if n.endswith("scores")}
    assert {name for name in names if not name.endswith("scores")} == {
        f"network.body.{i}.{part}" for i in (2, 6) for part in ("weight", "bias")
    }
    assert any(not torch.equal(first[name], mask.mask) for name, mask in masks(model).items())
    now = [int(mask.mask.sum()) for mask in masks(model).values()]
    assert now == kept if scope == "layer" else sum(now) == sum(kept) == total - int(0.7 * total)


def test_batch_norm_may_stand_still_and_moves_again_afterwards():
    model = classifier()
    statistics = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    pruning = ScorePruning(keep=0.5, train_bn=False)
    pruning.attach(model)
    before = snapshot(model)
    fit(model, [pruning, FinetunePruned(2)], epochs=2)
    assert all(name.endswith("scores") for name in moved(before, model))
    assert all(torch.equal(dict(model.named_buffers())[name], value) for name, value in statistics.items())
    assert all(part.training for part in model.modules() if isinstance(part, nn.BatchNorm1d))


def test_phases_in_one_fit_follow_each_other():
    """Dense training, then scores, then the weights that are left: each phase moves its own."""
    model, seen = classifier(hidden=(16, 12)), Snapshots()
    callbacks = [TSCNC(ema_decay=0.9), FinetunePruned(4), ScorePruning(0.3, start_epoch=2), seen]
    trainer = fit(model, callbacks, epochs=6, accumulate_grad_batches=2)
    assert trainer.global_step == 6

    def between(first, last):
        start, end = seen.starts[first], seen.starts[last] if last < 6 else snapshot(model)
        return {name for name in start if not torch.equal(start[name], end[name])}

    names = set(seen.starts[0])
    scores = {name for name in names if name.endswith("scores")}
    norms = {f"network.body.{i}.{part}" for i in (2, 6) for part in ("weight", "bias")}
    assert between(0, 1) == names - scores
    assert between(2, 3) == scores | norms
    assert between(4, 5) == names - scores
    assert all(mask.all() for mask in seen.masks[1].values())
    assert all(torch.equal(seen.masks[4][name], mask.mask) for name, mask in masks(model).items())
    for name, mask in masks(model).items():
        layer = model.get_submodule(name.partition(".parametrizations")[0])
        assert not layer.parametrizations["weight"].original[~mask.mask].any(), "a pruned weight has moved"
        assert layer.weight[mask.mask].any()


def test_clipping_sees_what_the_phase_trains_only():
    norms = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            given = {name: param.grad for name, param in pl_module.named_parameters() if param.grad is not None}
            assert all(name.endswith("scores") or ".2." in name or ".6." in name for name in given)
            norms.append(torch.stack([grad.norm() for grad in given.values()]).norm().item())

    fit(classifier(), [ScorePruning(0.5), Look()], gradient_clip_val=1e-3)
    assert norms == pytest.approx([1e-3] * 4, rel=1e-2)


def test_the_average_of_the_dense_phase_is_what_is_pruned():
    model, tscnc, seen = classifier(), TSCNC(ema_decay=0.9), Snapshots()
    averages = []

    class Look(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            averages.append({name: value.clone() for name, value in tscnc.state_dict()["averages"].items()})

    fit(model, [tscnc, Look(), ScorePruning(0.3, start_epoch=2), seen], epochs=3)
    assert averages[2] == {}
    for name, value in averages[1].items():
        if not name.endswith("scores"):
            assert torch.equal(seen.starts[2][name], value), name


@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_stop_and_resume_ends_in_the_same_bits_in_every_phase(tmp_path, epoch):
    def callbacks():
        return [TSCNC(ema_decay=0.9), ScorePruning(0.3, start_epoch=2, scope="global"), FinetunePruned(4)]

    straight, resumed = classifier(hidden=(16, 12)), classifier(hidden=(16, 12))
    fit(straight, callbacks(), epochs=6)
    fit(classifier(hidden=(16, 12)), callbacks(), epochs=epoch).save_checkpoint(tmp_path / "ckpt")
    torch.load(tmp_path / "ckpt", weights_only=True)
    fit(resumed, callbacks(), epochs=6, ckpt=tmp_path / "ckpt")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for name, mask in masks(straight).items():
        assert torch.equal(mask.mask, masks(resumed)[name].mask)


def test_masks_are_the_same_after_reloading_and_the_export_is_the_masked_network(tmp_path):
    model, pruning = classifier(), ScorePruning(0.3)
    fit(model, [TSCNC(), pruning]).save_checkpoint(tmp_path / "ckpt")
    other = classifier()
    TSCNC().attach(other)
    ScorePruning(0.3).attach(other)
    other.load_state_dict(torch.load(tmp_path / "ckpt", weights_only=True)["state_dict"])
    for name, mask in masks(model).items():
        assert torch.equal(mask.mask, masks(other)[name].mask)
    x = torch.randn(5, 4)
    expected = model.eval()(x)
    torch.testing.assert_close(make_pruning_permanent(model)(x), expected)
    assert not any(is_parametrized(part) for part in model.modules())
    assert model.state_dict().keys() == classifier().state_dict().keys()
    total = model.network.head.weight.numel()
    assert int(model.network.head.weight.count_nonzero()) == total - int(0.7 * total)


def test_a_second_fit_goes_on_with_the_scores_and_random_scores_are_random():
    model, pruning = classifier(), ScorePruning(0.5, init="random")
    fit(model, [pruning])
    scores = {name: mask.scores.detach().clone() for name, mask in masks(model).items()}
    seen = Snapshots()
    fit(model, [pruning, seen], epochs=1)
    assert all(torch.equal(seen.starts[0][f"{name}.scores"], value) for name, value in scores.items())
    weight = model.network.head.parametrizations["weight"].original
    assert not torch.equal(scores["network.head.parametrizations.weight.0"].sign(), weight.sign())


def test_another_keep_or_scope_prunes_anew_by_the_scores_that_there_are():
    model = classifier(hidden=(16, 12))
    fit(model, [ScorePruning(0.5)])
    before, seen = {name: mask.mask.clone() for name, mask in masks(model).items()}, Snapshots()
    fit(model, [ScorePruning(0.1, start_epoch=1), seen])
    for name, mask in masks(model).items():
        size = mask.mask.numel()
        assert int(mask.kept) == int(mask.mask.sum()) == size - int(0.9 * size)
        assert torch.equal(seen.masks[0][name], before[name])
        assert not (seen.masks[1][name] & ~before[name]).any(), "masks are not nested"
    fit(model, [ScorePruning(0.1, scope="global")])
    total = sum(mask.mask.numel() for mask in masks(model).values())
    assert sum(int(mask.mask.sum()) for mask in masks(model).values()) == total - int(0.9 * total)


def test_testing_leaves_an_exported_network_alone_and_loads_a_pruned_one(tmp_path):
    model, outputs = classifier(), []
    trainer = fit(model, [TSCNC(), ScorePruning(0.3, start_epoch=1), FinetunePruned(2)], epochs=3)
    trainer.save_checkpoint(tmp_path / "ckpt")
    model.eval()
    expected = model(torch.ones(2, 4)).detach()
    make_pruning_permanent(model)
    trainer.test(model, loader(), verbose=False)
    assert not any(is_parametrized(part) for part in model.modules())
    torch.testing.assert_close(model(torch.ones(2, 4)), expected)
    other = classifier()
    other.test_step = lambda batch, batch_idx: outputs.append(other(torch.ones(2, 4)))
    make_trainer([TSCNC(), ScorePruning(0.3)]).test(other, loader(), ckpt_path=tmp_path / "ckpt", verbose=False)
    torch.testing.assert_close(outputs[0], expected)
    assert not other._load_state_dict_pre_hooks


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same_bits():
    def callbacks():
        return [TSCNC(), ScorePruning(0.3, start_epoch=1), FinetunePruned(2)]

    plain, compiled = classifier(), classifier()
    compiled.network = torch.compile(compiled.network, backend="aot_eager")
    for model in (plain, compiled):
        fit(model, callbacks(), epochs=3)
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert torch.equal(a, b)


def test_excluded_layers_stay_dense_and_all_is_logged():
    model, seen = classifier(), []

    class Look(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    fit(model, [ScorePruning(0.5, exclude=["network.head"], start_epoch=1), Look()])
    assert not is_parametrized(model.network.head)
    assert len(masks(model)) == 2
    assert [values["weights/tscnc/kept"] for values in seen] == [1.0, 0.5]
    assert seen[0]["weights/tscnc/mask_changes"] == 0.0


def zeroed():
    model = classifier()
    nn.init.zeros_(model.network.body[1].weight)
    model.network.body[1].weight.requires_grad_(False)
    return model


def tied():
    model = classifier(hidden=(4, 4))
    model.network.body[5].weight = model.network.body[1].weight
    return model


def normed():
    model = classifier()
    parametrizations.weight_norm(model.network.body[1])
    return model


@pytest.mark.parametrize(
    ("make", "pruning", "message"),
    [
        (classifier, {"keep": 0.5, "exclude": ["head"]}, "exclude has 'head', which names no Linear"),
        (classifier, {"keep": 0.5, "exclude": ["*"]}, r"nothing to prune: .* network\.body\.1, .*exclude is \['\*'\]"),
        (classifier, {"keep": 1e-20}, r"layer network\.body\.1: keep is 1e-20, which keeps none of"),
        (zeroed, {"keep": 0.5}, r"layer network\.body\.1: the weight .* is all zero"),
        (
            tied,
            {"keep": 0.5},
            r"cannot prune network\.body\.1: its weight is shared by network\.body\.1 and network\.body\.5",
        ),
        (normed, {"keep": 0.5}, r"weight of network\.body\.1 has another parametrization"),
    ],
)
def test_networks_that_cannot_be_pruned_are_refused_before_anything_changes(make, pruning, message):
    model = make()
    before = [(param, param.detach().clone()) for param in model.parameters()]
    with pytest.raises(ValueError, match=message):
        fit(model, [ScorePruning(**pruning)])
    assert all(torch.equal(param, value) for param, value in before)


def test_wrong_orders_and_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="FinetunePruned has start_epoch=2, but ScorePruning begins at 2"):
        fit(classifier(), [ScorePruning(0.5, start_epoch=2), FinetunePruned(2)])
    with pytest.raises(ValueError, match="FinetunePruned found no score masks"):
        fit(classifier(), [FinetunePruned()])
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.configure_optimizers = lambda: optimizer
    with pytest.raises(ValueError, match=r"ScorePruning put parameters .* no optimizer has: network\.body\.1"):
        fit(model, [ScorePruning(0.5)])

    class Late(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.callbacks.append(ScorePruning(0.5, start_epoch=1))

    with pytest.raises(ValueError, match="ScorePruning found no scores in the network: it came to the Trainer after"):
        fit(classifier(), [Late()])
    fit(classifier(), []).save_checkpoint(tmp_path / "dense")
    with pytest.raises(RuntimeError, match="scores"):
        fit(classifier(), [ScorePruning(0.5)], epochs=3, ckpt=tmp_path / "dense")
    loose = classifier()
    loose.strict_loading = False
    with pytest.raises(ValueError, match="the checkpoint holds no scores"):
        fit(loose, [ScorePruning(0.5)], epochs=3, ckpt=tmp_path / "dense")
    fit(classifier(), [ScorePruning(0.5)]).save_checkpoint(tmp_path / "pruned")
    with pytest.raises(ValueError, match=r"keep is 0\.25, but 0\.5 in the checkpoint"):
        fit(classifier(), [ScorePruning(0.25)], epochs=3, ckpt=tmp_path / "pruned")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScorePruning(0.0), r"keep is 0\.0"),
        (lambda: ScorePruning(1.5), r"keep is 1\.5"),
        (lambda: ScorePruning("0.1"), r"keep is '0\.1'"),
        (lambda: ScorePruning(0.5, scope="net"), "scope is 'net'"),
        (lambda: ScorePruning(0.5, init="zero"), "init is 'zero'"),
        (lambda: ScorePruning(0.5, exclude="head"), "exclude is 'head'; allowed is a list"),
        (lambda: ScorePruning(0.5, start_epoch=-1), "start_epoch is -1"),
        (lambda: FinetunePruned(0.5), r"start_epoch is 0\.5"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_keeping_everything_changes_nothing():
    model = classifier()
    expected = model.eval()(torch.ones(2, 4))
    pruning = ScorePruning(1.0)
    pruning.attach(model)
    pruning.prune(model)
    assert torch.equal(model(torch.ones(2, 4)), expected)


def test_copies_are_lean_and_configs_may_be_omegaconf():
    pruning = ScorePruning(**OmegaConf.create({"keep": 0.5, "exclude": ["network.head"]}))
    assert type(pruning.exclude) is list
    fit(classifier(), [pruning, FinetunePruned(1)])
    for twin in (copy.deepcopy(pruning), pickle.loads(pickle.dumps(pruning))):
        assert vars(twin).keys() == vars(ScorePruning(0.5)).keys()
        assert not twin.started
    assert len(pickle.dumps(pruning)) < 1000
