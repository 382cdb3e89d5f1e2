"""GradNormLoRP in a Trainer: what it puts in, freezes, folds, merges, loads and refuses."""

import copy
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.distributed.tensor import distribute_tensor

from lightning_weights.callbacks import ExactResume, GradNormLoRP
from lightning_weights.callbacks.gradnorm_lorp import layers_of
from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.modules import MLP, CausalLM, Classifier, GradNormLoRPLinear
from tests.helpers.small_nets import loader
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker).*")
OURS = ("magnitude", "factor_i", "factor_j")


def model_of(hidden=(8, 6), optimizer=None, seed=0):
    torch.manual_seed(seed)
    make = partial(torch.optim.AdamW, lr=0.02) if optimizer is None else optimizer
    return Classifier(MLP(4, hidden, 3, batch_norm=True), 3, optimizer=make)


def fit(model, callbacks, epochs=2, ckpt=None, seed=1, **options):
    torch.manual_seed(seed)
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    trainer = make_trainer(callbacks, max_epochs=epochs, **options)
    trainer.fit(model, loader(), loader(), ckpt_path=ckpt, weights_only=None if ckpt is None else True)
    return trainer


def snapshot(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def moved(before, model):
    return {name for name, param in model.named_parameters() if not torch.equal(before.get(name, param[:0]), param)}


def test_factors_and_magnitudes_are_trained_and_nothing_else():
    model, method = model_of(), GradNormLoRP(r=2)
    method.attach(model)
    before = snapshot(model)
    fit(model, method)
    places = ("network.body.1", "network.body.5", "network.head")
    assert set(layers_of(model)) == set(places)
    assert moved(before, model) == {f"{place}.{name}" for place in places for name in OURS}
    marked = {name for name, param in model.named_parameters() if getattr(param, "_lw_project", False)}
    assert marked == {f"{place}.{name}" for place in places for name in OURS[1:]}
    assert model.network.body[2].running_mean.any(), "statistics are no parameters"


def test_in_the_full_mode_everything_is_trained_and_weights_are_marked():
    model, method = model_of(), GradNormLoRP(mode="full", target_modules=["body.*[15]"])
    method.attach(model)
    before = snapshot(model)
    fit(model, method)
    assert moved(before, model) == set(before)
    marked = {name for name, param in model.named_parameters() if getattr(param, "_lw_project", False)}
    assert marked == {"network.body.1.weight", "network.body.5.weight"}
    assert {name for name in before if name.endswith("magnitude")} == {f"network.body.{i}.magnitude" for i in (1, 5)}


def test_modules_to_save_are_trained_whole():
    model, method = model_of(), GradNormLoRP(r=2, modules_to_save=["head", "body.2"])
    method.attach(model)
    before = snapshot(model)
    fit(model, method)
    assert type(model.network.head) is nn.Linear
    others = {name for name in moved(before, model) if not name.endswith(OURS)}
    assert others == {f"network.{place}.{part}" for place in ("head", "body.2") for part in ("weight", "bias")}


def test_layers_inside_saved_modules_are_left_alone():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    GradNormLoRP(r=2, modules_to_save=["1"]).attach(network)
    assert list(layers_of(network)) == ["0"]
    assert all(param.requires_grad for param in network[1].parameters())


def test_a_compiled_network_gets_its_layers():
    plain, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(3, 4)
    compiled = torch.compile(plain, backend="eager")
    torch.testing.assert_close(compiled(x), plain(x))
    GradNormLoRP(r=2, modules_to_save=["0"]).attach(compiled)
    assert list(layers_of(compiled)) == ["_orig_mod.2"]
    nn.init.normal_(plain[2].factor_i)
    torch.testing.assert_close(compiled(x), plain(x))
    compiled(x).sum().backward()
    assert plain[2].factor_i.grad.any()


def test_all_layers_of_a_language_model_but_its_output_are_replaced():
    pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = torch.randint(384, (2, 6))
    for mode in ("lowrank", "full"):
        model = CausalLM(config={"model_type": "llama", "vocab_size": 384, **shape})
        expected = model(tokens).logits
        GradNormLoRP(r=2, mode=mode).attach(model)
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)
        assert {name.rpartition(".")[2] for name in layers_of(model)} == {
            *(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
        }
        assert len(layers_of(model)) == 14
        assert model.model.lm_head.weight.requires_grad == (mode == "full")


def test_a_layer_that_stands_in_two_places_is_replaced_in_both():
    shared = nn.Linear(4, 4)
    network, x = nn.Sequential(shared, nn.ReLU(), shared), torch.randn(3, 4)
    expected = network(x)
    GradNormLoRP(r=2).attach(network)
    assert network[0] is network[2]
    assert isinstance(network[0], GradNormLoRPLinear)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("mode", ["lowrank", "full"])
def test_a_fit_may_end_with_plain_layers(mode):
    model, outputs, x = model_of(), [], torch.randn(5, 4)

    class Look(Callback):
        def on_train_end(self, trainer, pl_module):
            outputs.append(pl_module.eval()(x))

    method = GradNormLoRP(r=2, mode=mode, merge_on_fit_end=True)
    fit(model, [method, Look()])
    assert not layers_of(model)
    assert model.state_dict().keys() == model_of().state_dict().keys()
    assert all(param.requires_grad for param in model.parameters())
    torch.testing.assert_close(model.eval()(x), outputs[0], rtol=1e-5, atol=1e-5)
    before = snapshot(model)
    fit(model, method)
    assert moved(before, model) >= {"network.head.weight", "network.body.1.weight"}, "a second fit begins anew"


def test_merging_by_hand_leaves_frozen_what_was_frozen():
    model, method = model_of(), GradNormLoRP(r=2)
    model.network.body[1].requires_grad_(False)
    fit(model, method)
    method.merge(model)
    still = {name for name, param in model.named_parameters() if not param.requires_grad}
    assert still == {"network.body.1.weight", "network.body.1.bias"}
    with pytest.raises(ValueError, match="merged before"):
        method.merge(model)


class Watch(Callback):
    """Notes after every batch the outputs, the factors and whose state the optimizer keeps."""

    def __init__(self):
        self.seen, self.x = [], torch.randn(5, 4, generator=torch.Generator().manual_seed(0))

    def note(self, trainer, pl_module):
        layer, (optimizer,) = pl_module.network.head, trainer.optimizers
        return {
            "outputs": layer(torch.ones(2, layer.in_features)).detach(),
            "folded": not layer.factor_i.any(),
            "weight": layer.weight.detach().clone(),
            "state": {name for name, param in layer.named_parameters() if optimizer.state.get(param)},
        }

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen.append(self.note(trainer, pl_module))


def test_factors_are_folded_after_so_many_real_steps_and_start_anew():
    before, after = Watch(), Watch()
    method = GradNormLoRP(r=2, merge_every=2)
    fit(model_of(), [before, method, after], epochs=5, accumulate_grad_batches=2)
    folded = [number for number, note in enumerate(after.seen) if note["folded"]]
    assert folded == [0, 3, 4, 7, 8], "after the second and the fourth step, until the next one"
    for number in (3, 7):
        one, other = before.seen[number], after.seen[number]
        torch.testing.assert_close(one["outputs"], other["outputs"], rtol=1e-5, atol=1e-5)
        assert not torch.equal(one["weight"], other["weight"])
        assert (one["state"], other["state"]) == (set(OURS), {"magnitude"})
    assert torch.equal(after.seen[3]["weight"], after.seen[6]["weight"])
    assert method.steps == 5


@pytest.mark.parametrize("batches", [3, 4, 5])
def test_a_run_resumes_in_the_same_bits_around_a_fold(tmp_path, batches):
    def callbacks(*more):
        return [GradNormLoRP(r=2, merge_every=2, dropout=0.3), *more, ExactResume()]

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == batches:
                trainer.save_checkpoint(tmp_path / "ckpt")

    straight, resumed = model_of(), model_of(seed=4)
    fit(straight, callbacks(Save()), epochs=4)
    fit(resumed, callbacks(), epochs=4, ckpt=tmp_path / "ckpt", seed=9)
    assert straight.state_dict().keys() == resumed.state_dict().keys()
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_stages_put_layers_in_only_where_a_checkpoint_has_some(tmp_path, stage):
    trained, method = model_of(), GradNormLoRP(r=2)
    fit(trained, method).save_checkpoint(tmp_path / "ckpt")
    other = model_of(seed=4)
    other.predict_step = lambda batch, batch_idx: other(batch[0])
    getattr(make_trainer([GradNormLoRP(r=2)]), stage)(other, loader())
    assert not layers_of(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LightningWeightsWarning)
        getattr(make_trainer([GradNormLoRP(r=2)]), stage)(other, loader(), ckpt_path=tmp_path / "ckpt")
    assert layers_of(other).keys() == layers_of(trained).keys()
    torch.testing.assert_close(other.eval()(torch.ones(2, 4)), trained.eval()(torch.ones(2, 4)))
    assert not other._load_state_dict_pre_hooks


def test_the_best_checkpoint_can_be_tested_after_the_merge(tmp_path):
    model, method = model_of(), GradNormLoRP(r=2, merge_on_fit_end=True)

    class Save(Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "ckpt")

    trainer = fit(model, [method, Save()])
    merged = model.eval()(torch.ones(2, 4))
    trainer.test(model, loader(), ckpt_path=tmp_path / "ckpt")
    assert layers_of(model)
    torch.testing.assert_close(model.eval()(torch.ones(2, 4)), merged)


def test_checkpoints_of_other_runs_are_refused_before_anything_is_loaded(tmp_path):
    paths = {name: tmp_path / name for name in ("plain", "other", "merged")}
    fit(model_of(), []).save_checkpoint(paths["plain"])
    fit(model_of(), GradNormLoRP(r=2, alpha=4.0)).save_checkpoint(paths["other"])
    fit(model_of(), GradNormLoRP(r=2, merge_on_fit_end=True)).save_checkpoint(paths["merged"])
    messages = {"plain": "without GradNormLoRP", "other": "alpha is 16.0, but 4.0", "merged": "had been merged"}
    for name, message in messages.items():
        model = model_of(seed=5)
        before = model.network.body[1].weight.detach().clone()
        with pytest.raises(ValueError, match=message):
            fit(model, GradNormLoRP(r=2), ckpt=paths[name])
        assert torch.equal(model.network.body[1].weight, before)
        assert "on_load_checkpoint" not in vars(model)


def test_a_network_with_layers_of_another_kind_is_refused():
    model = model_of()
    fit(model, GradNormLoRP(r=2))
    with pytest.raises(ValueError, match=r"r is 3, but 2 in the layer network.body.1"):
        fit(model, GradNormLoRP(r=3))
    before = snapshot(model)
    fit(model, GradNormLoRP(r=2))
    assert all(name.endswith(OURS) for name in moved(before, model)), "the same kind goes on"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 0.5}, "^dropout is 0.5, but 0.25 in the layer 0; use that one, or merge"),
        (
            {"target_modules": ["0", "2"]},
            r"^target_modules=\['0', '2'\] asks for 0, 2, .* at 0 before; merge",
        ),
    ],
)
def test_other_arguments_than_those_of_the_layers_are_refused(change, message):
    network, arguments = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), {"target_modules": ["0"]}
    arguments |= {"r": 2, "dropout": 0.25}
    GradNormLoRP(**arguments).attach(network)
    with pytest.raises(ValueError, match=message):
        GradNormLoRP(**{**arguments, **change}).attach(network)
    GradNormLoRP(**arguments).attach(network)


def test_marks_lost_in_a_copy_come_back():
    model, method = model_of(), GradNormLoRP(r=2)
    method.attach(model)
    twin = copy.deepcopy(model)
    method.attach(twin)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert getattr(one, "_lw_project", None) == getattr(other, "_lw_project", None)


def test_untrained_networks_are_warned_about_unless_that_is_meant():
    def warned(*arguments, trained=False, **options):
        model = model_of(hidden=(32, 32))
        if trained:
            with torch.no_grad():
                model.network.body[5].weight.mul_(torch.linspace(0.3, 2.0, 32)[:, None])
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            fit(model, GradNormLoRP(r=2, **options), epochs=1)
        return any("never been trained" in str(warning.message) for warning in found)

    assert warned()
    assert not warned(trained=True)
    assert not warned(mode="full")
    assert not warned(merge_every=3)


def test_it_logs_magnitudes_and_sizes_of_updates():
    model = model_of()
    trainer = fit(model, GradNormLoRP(r=2))
    layers = layers_of(model).values()
    factors = [(layer, layer.factor_i, layer.factor_j) for layer in layers]
    logged = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("weights/")}
    assert logged.keys() == {"weights/gradnorm_lorp/magnitude", "weights/gradnorm_lorp/update"}
    sizes = [(layer.scale * i.detach() @ j.detach()).norm() / layer.weight.norm() for layer, i, j in factors]
    assert logged["weights/gradnorm_lorp/update"] == pytest.approx(float(sum(sizes)) / 3, rel=1e-4)
    lengths = torch.cat([layer.magnitude.detach().abs() for layer in layers])
    assert logged["weights/gradnorm_lorp/magnitude"] == pytest.approx(float(lengths.mean()), rel=1e-5)
    assert "weights/gradnorm_lorp/update" not in fit(model_of(), GradNormLoRP(mode="full")).callback_metrics


def test_an_optimizer_made_too_early_is_refused():
    model = model_of()
    early = torch.optim.AdamW(model.parameters())
    model.configure_optimizers = lambda: early
    with pytest.raises(ValueError, match=r"GradNormLoRP put parameters .* network.body.1.magnitude"):
        fit(model, GradNormLoRP(r=2))
    assert "configure_model" not in vars(model)


def test_layers_that_cannot_be_replaced_are_named_and_nothing_is_changed():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

    for network, arguments, message in (
        (Tied(), {"target_modules": ["a"]}, "a: its weight is shared"),
        (nn.MultiheadAttention(4, 2), {"target_modules": ["out_proj"]}, "MultiheadAttention"),
        (nn.Sequential(nn.Linear(4, 4, device="meta")), {}, "no values"),
        (nn.Sequential(nn.Linear(4, 4)), {"target_modules": ["1"]}, "target_modules has '1'"),
        (nn.Sequential(nn.Linear(4, 4)), {"modules_to_save": ["head"]}, "modules_to_save has 'head'"),
        (nn.Sequential(nn.Linear(4, 4)), {"modules_to_save": ["0"]}, "leaves no layer"),
    ):
        with pytest.raises(ValueError, match=message):
            GradNormLoRP(r=2, **arguments).attach(network)
        assert not layers_of(network)
        assert all(param.requires_grad for param in network.parameters())


def test_sharded_weights_are_refused(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        network = nn.Sequential(nn.Linear(4, 4))
        network[0].weight = nn.Parameter(distribute_tensor(network[0].weight.detach(), mesh))
        with pytest.raises(ShardedParameterError, match="0: its weight is sharded"):
            GradNormLoRP(r=2).attach(network)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r is 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"mode": "dense"}, "mode"),
        ({"merge_every": -1}, "merge_every"),
        ({"mode": "full", "merge_every": 3}, "merge_every is 3"),
        ({"mode": "full", "dropout": 0.1}, "dropout"),
        ({"target_modules": None}, "target_modules is None; allowed is a list of names, one name, or 'all-linear'"),
        ({"modules_to_save": "head"}, "modules_to_save"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GradNormLoRP(**options)
