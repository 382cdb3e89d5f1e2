"""What BoneFinetuning saves and loads: adapters without their network, adapters of peft, and which it refuses."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import nn

from lightning_weights.callbacks import BoneFinetuning
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.fingerprint import fingerprint
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


def saved(tmp_path, name="saved", model=None, **arguments):
    """Train with blocks and return the module, its trainer and the path of a checkpoint."""
    model = classifier() if model is None else model
    trainer = fit(model, BoneFinetuning(**{**BODY, **arguments}))
    trainer.save_checkpoint(tmp_path / name)
    return model, trainer, tmp_path / name


def x():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(2))


def test_the_fit_can_end_merged(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=4)
    merged, kept = classifier(), classifier()
    trainer = fit(merged, BoneFinetuning(merge_on_fit_end=True, **BODY), extra=[saver], enable_checkpointing=True)
    fit(kept, BoneFinetuning(**BODY))
    assert type(merged.get_submodule(FIRST)) is nn.Linear
    torch.testing.assert_close(merged.eval()(x()), kept.eval()(x()))
    assert f"{FIRST}.bone_block" in torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    trainer.save_checkpoint(tmp_path / "after")
    assert f"{FIRST}.weight" in torch.load(tmp_path / "after", weights_only=True)["state_dict"]
    # the network is another now, and an adapter on top of its own merged self would count twice
    with pytest.raises(ValueError, match="belongs to another network"):
        trainer.validate(merged, loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)


def test_checkpoints_hold_the_adapter_what_is_saved_and_buffers(tmp_path):
    model, _, path = saved(tmp_path, modules_to_save=["head"])
    checkpoint = torch.load(path, weights_only=True)
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    assert trained == {f"{FIRST}.bone_block", f"{SECOND}.bone_block", "network.head.weight", "network.head.bias"}
    assert set(checkpoint["state_dict"]) == trained | (buffers & set(model.state_dict()))
    state = checkpoint["callbacks"]["BoneFinetuning"]
    assert state["layers"][FIRST] == {"variant": "col", "r": 2, "grid": None, "shape": state["layers"][FIRST]["shape"]}
    assert len(state["base"]) == 32
    _, _, whole = saved(tmp_path, "whole", save_adapter_only=False)
    assert f"{FIRST}.weight" in torch.load(whole, weights_only=True)["state_dict"]


def test_what_was_trained_is_saved_even_if_it_is_frozen_by_now(tmp_path):
    model, trainer, path = saved(tmp_path, modules_to_save=["head"])
    model.freeze()
    trainer.save_checkpoint(tmp_path / "frozen")
    before, after = (torch.load(name, weights_only=True)["state_dict"] for name in (path, tmp_path / "frozen"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_tied_weights_are_left_out_under_both_names(tmp_path):
    def tied():
        model = classifier()
        model.network.tied = nn.Linear(6, 3)
        model.network.tied.weight = model.network.head.weight
        return model

    _, _, path = saved(tmp_path, model=tied())
    assert not any(
        key.endswith("weight") and "body.2" not in key and "body.6" not in key
        for key in torch.load(path, weights_only=True)["state_dict"]
    )
    other = tied()
    make_trainer([BoneFinetuning(**BODY)]).validate(other, loader(), ckpt_path=path, verbose=False)
    assert other.get_submodule(FIRST).bone_block.any()


@pytest.mark.parametrize("only", [True, False])
def test_a_fresh_module_tests_and_resumes_with_a_checkpoint(tmp_path, only):
    model, _, path = saved(tmp_path, save_adapter_only=only)
    expected = model.eval()(x())
    fresh = classifier()
    make_trainer([BoneFinetuning(save_adapter_only=only, **BODY)]).test(fresh, loader(), ckpt_path=path, verbose=False)
    assert torch.equal(fresh.eval()(x()), expected)
    assert "on_load_checkpoint" not in vars(fresh)
    straight, resumed = classifier(), classifier()
    fit(straight, BoneFinetuning(save_adapter_only=only, **BODY), epochs=3)
    fit(resumed, BoneFinetuning(save_adapter_only=only, **BODY), epochs=3, ckpt=path)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in straight.state_dict().items())


def test_a_test_without_a_checkpoint_leaves_the_network_alone():
    model = classifier()
    make_trainer([BoneFinetuning(**BODY)]).test(model, loader(), verbose=False)
    assert type(model.get_submodule(FIRST)) is nn.Linear
    assert all(param.requires_grad for param in model.parameters())


def test_a_row_checkpoint_is_refused_by_a_col_model_although_shapes_agree(tmp_path):
    square = {"r": 2, "target_modules": "body.1"}
    row, col = classifier(hidden=(4, 4)), classifier(hidden=(4, 4))
    trainer = fit(row, BoneFinetuning(variant="row", **square))
    trainer.save_checkpoint(tmp_path / "row")
    BoneFinetuning(**square).attach(col)
    blocks = [model.get_submodule(FIRST).bone_block for model in (row, col)]
    assert blocks[0].shape == blocks[1].shape
    for stage in ("fit", "test"):
        model = classifier(hidden=(4, 4))
        with pytest.raises(ValueError, match=r"of variant 'row', but variant is 'col': equal shapes"):
            getattr(make_trainer([BoneFinetuning(**square)], max_epochs=3), stage)(
                model, loader(), ckpt_path=tmp_path / "row", weights_only=True
            )
        assert not any("bone_block" in name and param.any() for name, param in model.named_parameters())
        assert "on_load_checkpoint" not in vars(model)
        assert not model._load_state_dict_pre_hooks


def test_other_sizes_layers_and_networks_are_refused(tmp_path):
    _, _, path = saved(tmp_path, rank_pattern={"body.1": 4})

    def resume(model=None, **arguments):
        fit(classifier() if model is None else model, BoneFinetuning(**{**BODY, **arguments}), epochs=3, ckpt=path)

    with pytest.raises(ValueError, match=r"other blocks for network\.body\.1"):
        resume()
    with pytest.raises(ValueError, match=r"other blocks for network\.body\.5"):
        resume(target_modules="body.1", r=4, exclude_modules=[])
    other = classifier()
    with torch.no_grad():
        other.network.head.bias.add_(1.0)
    with pytest.raises(ValueError, match=r"belongs to another network: the frozen weights have the fingerprint"):
        resume(other, rank_pattern={"body.1": 4})


def test_what_is_missing_besides_frozen_weights_stays_an_error(tmp_path):
    _, _, path = saved(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state_dict"][f"{SECOND}.bone_block"]
    torch.save(checkpoint, path)
    with pytest.raises(RuntimeError, match=r"Missing key.*network\.body\.5\.bone_block\"\.\s*$"):
        fit(classifier(), BoneFinetuning(**BODY), epochs=3, ckpt=path)


def test_a_checkpoint_of_weights_only_loads_with_a_warning(tmp_path):
    model = classifier()
    trainer = fit(model, BoneFinetuning(**BODY))
    trainer.save_checkpoint(tmp_path / "weights", weights_only=True)
    fresh = classifier()
    with pytest.warns(LightningWeightsWarning, match="nobody can tell whether its blocks are of variant 'col'"):
        make_trainer([BoneFinetuning(**BODY)]).test(fresh, loader(), ckpt_path=tmp_path / "weights", verbose=False)
    assert torch.equal(fresh.eval()(x()), model.eval()(x()))


def test_plain_checkpoints_load_as_ever(tmp_path):
    plain = classifier()
    make_trainer([], max_epochs=1).fit(plain, loader())
    trainer = make_trainer([], max_epochs=1)
    trainer.fit(plain, loader())
    trainer.save_checkpoint(tmp_path / "plain")
    fresh = classifier()
    make_trainer([BoneFinetuning(**BODY)]).test(fresh, loader(), ckpt_path=tmp_path / "plain", verbose=False)
    assert torch.equal(fresh.eval()(x()), plain.eval()(x()))


def test_half_precision_keeps_the_fingerprint(tmp_path):
    model, _, path = saved(tmp_path)
    callback = BoneFinetuning(**BODY)
    trainer = fit(model, callback, precision="bf16-true")
    trainer.save_checkpoint(tmp_path / "half")
    first, half = (
        torch.load(p, weights_only=True)["callbacks"]["BoneFinetuning"]["base"] for p in (path, tmp_path / "half")
    )
    assert first == half
    trainer.test(model, loader(), ckpt_path=tmp_path / "half", verbose=False)


def test_fingerprints_tell_networks_apart():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3)}
    prints = [
        fingerprint(tensors),
        fingerprint({**tensors, "b": torch.ones(3) * 1.01}),
        fingerprint({"a": tensors["a"]}),
    ]
    prints += [fingerprint({**tensors, "a": tensors["a"].view(3, 2)}), fingerprint({})]
    assert len(set(prints)) == 5
    assert fingerprint(dict(reversed(tensors.items()))) == prints[0]
    assert fingerprint({name: value.bfloat16() for name, value in tensors.items()}) == prints[0]
    assert fingerprint({"a": torch.empty(2, device="meta")}) == ""


def peft_folder(path, config, tensors):
    """Write what peft would save."""
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "MISS", **config}))
    save_file(
        {f"base_model.model.{name}": value for name, value in tensors.items()}, path / "adapter_model.safetensors"
    )
    return str(path)


def test_an_adapter_from_peft_decides_layers_variant_and_sizes(tmp_path):
    blocks = {"body.1.miss_block": torch.randn(2, 4, 4), "body.5.miss_block": torch.randn(3, 2, 2)}
    head = torch.randn(3, 6)
    folder = peft_folder(tmp_path / "bat", {"init_weights": "bat", "r": 4}, {**blocks, "head.weight": head})
    model, ours = classifier(), classifier()
    BoneFinetuning(from_peft=folder, modules_to_save=["head"]).attach(model)
    BoneFinetuning(r=2, rank_pattern={"body.1": 4}, exclude_modules=["head"]).attach(ours)
    with torch.no_grad():
        for name, block in blocks.items():
            ours.network.get_submodule(name.removesuffix(".miss_block")).bone_block.copy_(block)
        ours.network.head.weight.copy_(head)
    assert torch.equal(model.eval()(x()), ours.eval()(x()))
    # it is there in a test, too, and goes on from there in a fit
    tested = classifier()
    bone = BoneFinetuning(from_peft=folder, modules_to_save=["head"])
    trainer = make_trainer([bone], max_epochs=2)
    trainer.test(tested, loader(), verbose=False)
    assert torch.equal(tested.eval()(x()), ours(x()))
    trainer.fit(tested, loader(), loader())
    trainer.save_checkpoint(tmp_path / "saved")
    fresh = classifier()
    make_trainer([BoneFinetuning(from_peft=folder, modules_to_save=["head"])]).test(
        fresh, loader(), ckpt_path=tmp_path / "saved", verbose=False
    )
    assert torch.equal(fresh.eval()(x()), tested.eval()(x()))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"tail.miss_block": torch.zeros(2, 4, 4)}, "'tail', which the network does not have"),
        ({"1.miss_block": torch.zeros(2, 4, 4)}, "'1', of which the module has several"),
        ({"body.1.miss_block": torch.zeros(3, 4, 4)}, r"has \(3, 4, 4\) for body\.1, which needs \(2, 4, 4\)"),
        ({"body.1.miss_block": torch.zeros(2, 4, 4), "head.bias": torch.zeros(3)}, "modules_to_save leaves out"),
        ({"head.bias": torch.zeros(3)}, "has no blocks"),
    ],
)
def test_adapters_that_do_not_fit_are_told(tmp_path, tensors, message):
    folder = peft_folder(tmp_path / "bat", {"init_weights": "bat"}, tensors)
    model = classifier()
    model.network.extra = nn.ModuleDict({"1": nn.Linear(4, 8)})
    with pytest.raises(ValueError, match=message):
        BoneFinetuning(from_peft=folder).attach(model)
