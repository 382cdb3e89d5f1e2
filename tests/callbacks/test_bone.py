"""BoneFinetuning in a Trainer: what it puts in, what it trains and what it refuses."""

import copy
import pickle
import warnings

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_weights.callbacks import BoneFinetuning
from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.modules import BoneLinear
from tests.helpers.small_nets import classifier, loader
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker).*")
BODY = {"r": 2, "exclude_modules": ["head"]}
FIRST, SECOND = "network.body.1", "network.body.5"


def fit(model, bone, epochs=2, extra=(), ckpt=None, **options):
    torch.manual_seed(1)
    trainer = make_trainer([bone, *extra], max_epochs=epochs, **options)
    trainer.fit(model, loader(), loader(), ckpt_path=ckpt, weights_only=None if ckpt is None else True)
    return trainer


def x():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(2))


def test_only_the_blocks_are_trained_and_the_rest_keeps_every_bit():
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bone = BoneFinetuning(**BODY)
    fit(model, bone)
    after = model.state_dict()
    blocks = [f"{FIRST}.bone_block", f"{SECOND}.bone_block"]
    assert [name for name, param in model.named_parameters() if param.requires_grad] == blocks
    assert sorted(after.keys() - before.keys()) == sorted(blocks)
    weights = {name: value for name, value in before.items() if name.endswith(("weight", "bias"))}
    assert len(weights) == 10
    assert all(torch.equal(value, after[name]) for name, value in weights.items())
    assert all(after[name].any() for name in blocks)


def test_putting_blocks_in_changes_no_output():
    model, plain = classifier().eval(), classifier().eval()
    BoneFinetuning(**BODY).attach(model)
    assert isinstance(model.get_submodule(FIRST), BoneLinear)
    assert torch.equal(model(x()), plain(x()))


@pytest.mark.parametrize("variant", ["col", "row", "left", "miss", "mini", "free"])
def test_every_variant_trains_and_merges_to_plain_layers(variant):
    model = classifier()
    options = {"grid": [2, 1]} if variant == "free" else {"mini_r": 2} if variant == "mini" else {}
    keys = list(model.state_dict())
    kept = BoneFinetuning(variant=variant, **BODY, **options)
    fit(model, kept)
    expected = model.eval()(x())
    assert not torch.equal(expected, classifier().eval()(x()))
    kept.merge(model)
    assert type(model.get_submodule(FIRST)) is nn.Linear
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x()), expected, rtol=1e-5, atol=1e-6)


def test_sizes_by_pattern_and_modules_that_are_saved():
    model = classifier()
    BoneFinetuning(r=2, rank_pattern={"body.1": 4, "body.?": 1}, modules_to_save=["head", "body.6"]).attach(model)
    assert [model.get_submodule(name).r for name in (FIRST, SECOND)] == [4, 1]
    assert type(model.network.head) is nn.Linear
    trained = {name.rpartition(".")[0] for name, param in model.named_parameters() if param.requires_grad}
    assert trained == {FIRST, SECOND, "network.head", "network.body.6"}


def test_attaching_again_keeps_blocks_or_says_why_not():
    model = classifier()
    fit(model, BoneFinetuning(**BODY))
    block = model.get_submodule(FIRST).bone_block
    BoneFinetuning(**BODY).attach(model)
    assert model.get_submodule(FIRST).bone_block is block
    with pytest.raises(ValueError, match=r"has blocks already, with .*'col', 'r': 2.* merge the blocks first"):
        BoneFinetuning(**{**BODY, "variant": "row"}).attach(model)
    free = classifier()
    BoneFinetuning(variant="free", grid=[1, 1], **BODY).attach(free)
    with pytest.raises(ValueError, match=r"has blocks already, with .*\[1, 1\].*\[2, 1\]"):
        BoneFinetuning(variant="free", grid=[2, 1], **BODY).attach(free)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 0.5}, r"has blocks already, with .*'dropout': 0\.25.*asked for are .*'dropout': 0\.5.*merge"),
        ({"keep": "never"}, r"has blocks already, with .*'keep': 'backward'.*asked for are .*'keep': 'never'"),
        ({"target_modules": ["body.1"]}, r"^target_modules=\['body\.1'\] asks for {0}, .* at {0}, {1} before; merge"),
        ({"exclude_modules": []}, r"asks for {0}, {1}, network\.head, .* at {0}, {1} before"),
    ],
)
def test_other_arguments_than_those_of_the_blocks_are_refused(change, message):
    model, first = classifier(), {"variant": "col" if "keep" in change else "row", **BODY}
    dropout = {} if "keep" in change else {"dropout": 0.25}
    BoneFinetuning(**first, **dropout).attach(model)
    with pytest.raises(ValueError, match=message.format(FIRST, SECOND)):
        BoneFinetuning(**{**first, **dropout, **change}).attach(model)
    BoneFinetuning(**{**first, **dropout}).attach(model)


def test_an_adapted_weight_that_is_kept_changes_no_bit_of_accumulation():
    runs = []
    for keep in ("never", "backward", "step"):
        model = classifier()
        fit(model, BoneFinetuning(keep=keep, **BODY), accumulate_grad_batches=2)
        assert model.get_submodule(FIRST).keep == keep
        runs.append(model.state_dict())
    assert all(torch.equal(value, run[name]) for run in runs[1:] for name, value in runs[0].items())


def test_it_logs_the_size_of_the_blocks():
    model = classifier()
    logged = fit(model, BoneFinetuning(**BODY)).callback_metrics
    blocks = torch.cat([model.get_submodule(name).bone_block.detach().flatten() for name in (FIRST, SECOND)])
    torch.testing.assert_close(logged["weights/bone/block_norm"], blocks.norm())
    torch.testing.assert_close(logged["weights/bone/block_max"], blocks.abs().max())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: BoneFinetuning(r=4, exclude_modules=["head"]).attach(classifier()),
            r"cannot adapt network\.body\.5.*4",
        ),
        (lambda: BoneFinetuning(r=2, target_modules="tail").attach(classifier()), "'tail', which names no module"),
        (lambda: BoneFinetuning(r=2, target_modules="body.2").attach(classifier()), "a BatchNorm1d; only nn.Linear"),
        (
            lambda: BoneFinetuning(**BODY, rank_pattern={"head": 3}).attach(classifier()),
            "'head', which names no adapted",
        ),
        (
            lambda: BoneFinetuning(**BODY, modules_to_save=["tail"]).attach(classifier()),
            "'tail', which names no module",
        ),
        (lambda: BoneFinetuning(**BODY, modules_to_save=["body"]).attach(classifier()), "leaves none of the target"),
        (
            lambda: BoneFinetuning(r=2).attach(nn.TransformerEncoderLayer(4, 2, 8)),
            "out_proj belongs to a MultiheadAttention",
        ),
        (
            lambda: BoneFinetuning(r=2).attach(nn.Sequential(type("Own", (nn.Linear,), {"forward": len})(4, 4))),
            "0 is a Own, whose forward is not that of nn.Linear",
        ),
        (lambda: BoneFinetuning(dropout=0.5, **BODY).attach(classifier()), "dropout"),
        (lambda: BoneFinetuning(exclude_modules=["haed"]).attach(classifier()), "exclude_modules has 'haed'"),
    ],
)
def test_what_cannot_be_done_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refused_layer_leaves_the_network_as_it_was():
    model = classifier()
    with pytest.raises(ValueError, match="cannot adapt"):
        BoneFinetuning(r=4, exclude_modules=["head"]).attach(model)
    assert type(model.get_submodule(FIRST)) is nn.Linear
    assert all(param.requires_grad for param in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r": 0}, "r is 0"),
        (
            {"target_modules": None},
            r"^target_modules is None; allowed is a list of names, one name, or 'all-linear'",
        ),
        ({"exclude_modules": "head"}, r"^exclude_modules is 'head'; allowed is a list of names such as \['head'\]$"),
        ({"grid": ["a"]}, r"^grid is \['a'\]; allowed are two whole numbers, .* such as \[2, 4\], or None"),
        ({"grid": 2}, "^grid is 2; allowed are two whole numbers"),
        ({"grid": [0, 1]}, r"^grid is \[0, 1\]; allowed are"),
        ({"r": 2.5}, "r is 2.5"),
        ({"variant": "diagonal"}, "variant is 'diagonal'; allowed are 'col'"),
        ({"rank_pattern": {"head": 0}}, r"rank_pattern\['head'\] is 0"),
        ({"mini_r": 0}, "mini_r is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"from_peft": "somewhere", "r": 8}, "from_peft says which layers, .* leave out r"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoneFinetuning(**arguments)


def test_an_optimizer_without_the_blocks_is_refused():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.configure_optimizers = lambda: optimizer
    with pytest.raises(ValueError, match=r"BoneFinetuning put parameters .* that no optimizer has: network\.body\.1"):
        fit(model, BoneFinetuning(**BODY))


def test_strong_decay_of_the_blocks_is_told():
    with pytest.warns(LightningWeightsWarning, match="weight_decay 0.2 on Bone's blocks"):
        fit(classifier(weight_decay=0.2), BoneFinetuning(**BODY))
    with warnings.catch_warnings():
        warnings.simplefilter("error", LightningWeightsWarning)
        fit(classifier(weight_decay=0.05), BoneFinetuning(**BODY))


def test_copies_are_lean_and_configs_may_be_omegaconf():
    lists = {"rank_pattern": {"body.1": 4}, "modules_to_save": ["body.6"], "grid": [1, 2]}
    bone = BoneFinetuning(**OmegaConf.create({**BODY, **lists, "variant": "free"}))
    assert type(bone.exclude_modules) is type(bone.modules_to_save) is type(bone.grid) is list
    assert type(bone.rank_pattern) is dict
    bone = BoneFinetuning(**BODY)
    fit(classifier(), bone)
    for twin in (copy.deepcopy(bone), pickle.loads(pickle.dumps(bone))):
        assert twin.state_dict() == {"layers": {}, "base": "", "adapter_only": True}
    assert len(pickle.dumps(bone)) < 1000


@pytest.fixture
def one_process(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_blocks_put_in_before_sharding_train_as_without(one_process):
    def steps(model):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for inputs, labels in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.network(inputs), labels).backward()
            optimizer.step()
        return model

    plain, sharded = classifier(batch_norm=False), classifier(batch_norm=False)
    for model in (plain, sharded):
        BoneFinetuning(**BODY).attach(model)
    fully_shard(sharded.network, mesh=one_process)
    BoneFinetuning(**BODY).attach(sharded)  # as the Trainer does, after configure_model
    steps(plain), steps(sharded)
    for a, b in zip(plain.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(a, b.full_tensor())
    assert plain.get_submodule(FIRST).bone_block.any()
    with pytest.raises(ShardedParameterError, match="cannot merge network"):
        BoneFinetuning(**BODY).merge(sharded)


@pytest.mark.parametrize("only", [True, False])
def test_sharded_runs_resume_with_what_their_strategy_needs(one_process, tmp_path, only):
    def run(epochs=3, ckpt=None, variant="col", **options):
        model, bone = classifier(batch_norm=False), BoneFinetuning(variant=variant, save_adapter_only=only, **BODY)

        def configure_model():
            BoneFinetuning(variant=variant, **BODY).attach(model.network)
            fully_shard(model.network, mesh=model.device_mesh["data_parallel"])

        def configure_optimizers():
            return torch.optim.SGD([param for param in model.parameters() if param.requires_grad], 0.05, 0.9)

        model.configure_model, model.configure_optimizers = configure_model, configure_optimizers
        model.strict_loading = False
        sharded = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False)
        trainer = fit(model, bone, epochs, ckpt=ckpt, strategy=sharded)
        if ckpt is None:
            trainer.save_checkpoint(tmp_path / str(epochs))
        # a validation leaves whole weights
        return [param.full_tensor() if hasattr(param, "full_tensor") else param for param in model.parameters()]

    straight, _ = run(), run(epochs=2)
    assert ("network.head.weight" in torch.load(tmp_path / "2", weights_only=True)["state_dict"]) != only
    assert all(map(torch.equal, straight, run(ckpt=tmp_path / "2")))
    with pytest.raises(ValueError, match="of variant 'col', but variant is 'left'"):
        run(ckpt=tmp_path / "2", variant="left")


def test_weights_that_are_sharded_already_are_refused(one_process):
    model = classifier(batch_norm=False)
    fully_shard(model.network, mesh=one_process)
    with pytest.raises(ShardedParameterError, match=r"attach\(network\) in configure_model before fully_shard"):
        BoneFinetuning(**BODY).attach(model)
