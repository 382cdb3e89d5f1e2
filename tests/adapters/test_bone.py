"""Bone in peft: all that peft does with a method of its own, and adapters that go over to MiSS and come from it."""

import copy

import pytest
import torch
from torch import nn

from lightning_weights.callbacks import BoneFinetuning
from lightning_weights.functional.bone import VARIANTS, bone_weight
from lightning_weights.modules import bone_adapter_of, read_bone_adapter, write_bone_adapter

peft = pytest.importorskip("peft")
from lightning_weights.adapters import BoneConfig  # noqa: E402

OPTIONS = {"mini": {"mini_r": 2}, "free": {"grid": (1, 2)}}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def network():
    """Two layers to adapt and a head to train whole, always the same."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)), "head": nn.Linear(4, 2)}
    )


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = network()

    def forward(self, x):
        return self.parts["head"](self.parts["body"](x))


LAYERS = ["body.0", "body.2"]


def x():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(2))


def config(variant="col", **options):
    return BoneConfig(**{"r": 4, "variant": variant, "target_modules": LAYERS, **OPTIONS.get(variant, {}), **options})


def adapted(variant="col", std=0.3, **options):
    """Return a network whose blocks are not zero."""
    model = peft.get_peft_model(Net(), config(variant, **options))
    torch.manual_seed(1)
    randomize(model, std)
    return model


def randomize(model, std=0.3, name="default"):
    for key, param in model.named_parameters():
        if key.endswith(f"lw_bone_block.{name}"):
            nn.init.normal_(param, std=std)


def layers(model):
    return [model.base_model.model.get_submodule(f"parts.{name}") for name in LAYERS]


@every_variant
def test_it_starts_as_the_network_and_computes_what_the_callbacks_layer_does(variant):
    start = peft.get_peft_model(Net(), config(variant))
    assert torch.equal(start(x()), Net()(x()))
    model, other = adapted(variant), Net()
    BoneFinetuning(4, variant, LAYERS, **OPTIONS.get(variant, {})).attach(other)
    with torch.no_grad():
        for name, layer in zip(LAYERS, layers(model), strict=True):
            other.get_submodule(f"parts.{name}").bone_block.copy_(layer.lw_bone_block["default"])
    outputs = [net(x()) for net in (model, other)]
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)
    for net, y in zip((model, other), outputs, strict=True):
        y.square().sum().backward()
        assert not torch.equal(y, Net()(x()))
        assert all(param.grad is None for key, param in net.named_parameters() if "bone_block" not in key)
    for name, layer in zip(LAYERS, layers(model), strict=True):
        ours = other.get_submodule(f"parts.{name}").bone_block.grad
        torch.testing.assert_close(layer.lw_bone_block["default"].grad, ours, rtol=1e-5, atol=1e-5)


@every_variant
def test_saving_and_loading(variant, tmp_path):
    model = adapted(variant, modules_to_save=["head"], rank_pattern={r"body\.2": 2})
    nn.init.normal_(model.base_model.model.parts["head"].modules_to_save["default"].weight)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(Net(), tmp_path)
    assert torch.equal(loaded(x()), model(x()))
    assert [
        layer.lw_bone_block["default"].shape[-1 if variant in ("col", "row", "left", "free") else 0]
        for layer in layers(loaded)
    ] == [4, 2]
    assert isinstance(peft.PeftConfig.from_pretrained(tmp_path), BoneConfig)


@every_variant
def test_merging_unmerging_and_unloading(variant):
    model, before = adapted(variant), [layer.weight.clone() for layer in layers(adapted(variant))]
    y = model(x())
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(x()), y, rtol=1e-5, atol=1e-6)
    assert not torch.equal(layers(model)[0].weight, before[0])
    model.unmerge_adapter()
    for layer, weight in zip(layers(model), before, strict=True):
        torch.testing.assert_close(layer.weight, weight, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(model(x()), Net()(x()), rtol=1e-5, atol=1e-5)
    plain = model.merge_and_unload()
    assert type(plain.parts["body"][0]) is nn.Linear
    torch.testing.assert_close(plain(x()), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapted(variant).unload()(x()), Net()(x()))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("col", "col"),
        ("col", "row"),
        ("row", "left"),
        ("left", "free"),
        ("miss", "col"),
        ("free", "mini"),
        ("row", "row"),
        ("mini", "left"),
    ],
)
def test_adapters_act_one_after_the_other(first, second):
    model = adapted(first)
    model.add_adapter("second", config(second))
    randomize(model, name="second")
    assert model.active_adapters == ["default"]
    alone = model(x())
    assert torch.equal(alone, adapted(first)(x()))
    model.base_model.set_adapter(["default", "second"])
    y, plain = model(x()), Net()
    with torch.no_grad():
        for name, layer in zip(LAYERS, layers(model), strict=True):
            target = plain.get_submodule(f"parts.{name}")
            for adapter, variant in (("default", first), ("second", second)):
                target.weight.copy_(bone_weight(target.weight, layer.lw_bone_block[adapter], variant))
    torch.testing.assert_close(y, plain(x()), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    grads = [param.grad for layer in layers(model) for param in layer.lw_bone_block.values()]
    assert all(grad is not None and grad.any() for grad in grads)
    model.merge_adapter()
    torch.testing.assert_close(model(x()), y, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    model.delete_adapter("second")
    model.set_adapter("default")
    torch.testing.assert_close(model(x()), alone, rtol=1e-4, atol=1e-4)


def test_gradients_through_stacked_adapters_are_those_of_their_definition():
    model = adapted("col").double()
    model.add_adapter("second", config("col"))
    randomize(model, name="second")
    model.double().base_model.set_adapter(["default", "second"])
    layer = layers(model)[0]
    blocks = [param.detach().clone().requires_grad_() for param in layer.lw_bone_block.values()]

    def apply(*values):
        for name, value in zip(("default", "second"), values, strict=True):
            del layer.lw_bone_block[name]
            layer.lw_bone_block[name] = nn.Parameter(value)
        parts = torch.func.functional_call(
            layer, {f"lw_bone_block.{n}": v for n, v in zip(("default", "second"), values, strict=True)}, x().double()
        )
        return parts

    assert torch.autograd.gradcheck(apply, blocks)


@pytest.mark.parametrize(
    ("start", "variant", "options"), [("bat", "col", {}), (True, "miss", {"r": 3}), ("mini", "mini", {"mini_r": 2})]
)
def test_adapters_of_miss_come_in_and_go_out(start, variant, options, tmp_path):
    miss = peft.MissConfig(init_weights=start, target_modules=LAYERS, modules_to_save=["head"], **{"r": 4, **options})
    theirs = peft.get_peft_model(Net(), miss)
    torch.manual_seed(1)
    for param in theirs.parameters():
        if param.requires_grad:
            nn.init.normal_(param, std=0.3)
    theirs.save_pretrained(tmp_path / "miss")
    expected = theirs(x())
    assert not torch.equal(expected, Net()(x()))
    # into a Trainer
    ours = Net()
    BoneFinetuning(from_peft=str(tmp_path / "miss"), modules_to_save=["head"]).attach(ours)
    torch.testing.assert_close(ours(x()), expected, rtol=0, atol=1e-6)
    # into peft, as our own type
    write_bone_adapter(read_bone_adapter(tmp_path / "miss"), tmp_path / "own", "LW_BONE")
    loaded = peft.PeftModel.from_pretrained(Net(), tmp_path / "own")
    assert loaded.peft_config["default"].variant == variant
    torch.testing.assert_close(loaded(x()), expected, rtol=0, atol=1e-6)
    # and back, from both
    write_bone_adapter(bone_adapter_of(ours, ["parts.head"]), tmp_path / "from trainer")
    loaded.save_pretrained(tmp_path / "saved again")
    write_bone_adapter(read_bone_adapter(tmp_path / "saved again"), tmp_path / "from peft")
    for folder in ("from trainer", "from peft"):
        again = peft.PeftModel.from_pretrained(Net(), tmp_path / folder)
        assert isinstance(again.peft_config["default"], peft.MissConfig)
        assert torch.equal(again(x()), expected)


def test_training_steps_are_those_of_peft_bat():
    pair = [
        peft.get_peft_model(Net(), c)
        for c in (config(), peft.MissConfig(r=4, init_weights="bat", target_modules=LAYERS))
    ]
    for model in pair:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            model(x()).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(pair[0](x()), pair[1](x()), rtol=1e-5, atol=1e-5)


def test_half_precision_and_autocast():
    model = peft.get_peft_model(Net().bfloat16(), config())
    assert layers(model)[0].lw_bone_block["default"].dtype == torch.float32
    assert model(x().bfloat16()).dtype == torch.bfloat16
    reference = adapted()
    with torch.autocast("cpu", torch.bfloat16):
        y = reference(x())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), reference(x()), rtol=0.05, atol=0.05)


def test_all_linear_twice_finds_the_layers_again():
    model = peft.get_peft_model(Net(), BoneConfig(r=2, target_modules="all-linear"))
    model.add_adapter("second", BoneConfig(r=1, variant="row", target_modules="all-linear"))
    assert all(set(layer.lw_bone_block) == {"default", "second"} for layer in layers(model))
    assert copy.deepcopy(model).peft_config["default"].peft_type == "LW_BONE"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: config(r=5), ValueError, r"cannot adapt parts\.body\.0: r is 5 .* nearest valid r is 4"),
        (lambda: config(r=0), ValueError, "r is 0"),
        (lambda: config("diagonal"), ValueError, "variant is 'diagonal'"),
        (lambda: config(bias="some"), ValueError, "bias is 'some'"),
        (lambda: config(dropout=1.0), ValueError, "dropout is 1.0"),
        (lambda: config(dropout=0.1), ValueError, "dropout is 0.1 with variant 'col'"),
        (lambda: config(rank_pattern={"a": 0}), ValueError, r"rank_pattern\['a'\] is 0"),
        (lambda: config(target_modules=".*", layers_to_transform=[1]), ValueError, "layers_to_transform"),
        (lambda: config(target_modules=["1"]), TypeError, r"parts\.body\.1 is a Tanh; only nn\.Linear"),
    ],
)
def test_what_cannot_be_done_is_told(make, error, message):
    with pytest.raises(error, match=message):
        peft.get_peft_model(Net(), make())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out_proj", r"out_proj: .*MultiheadAttention reads past the layer"),
        ("linear2", "linear2: its TransformerEncoderLayer reads .*set_fastpath_enabled"),
    ],
)
def test_layers_that_are_read_and_not_called_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8)), config(target_modules=[name]))


def test_broken_adapters_scales_and_empty_unmerges():
    model = adapted()
    with torch.no_grad():
        layers(model)[0].lw_bone_block["default"][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="gives NaN or infinity"):
        model.merge_adapter(safe_merge=True)
    layer = layers(model)[0]
    with pytest.raises(ValueError, match="has no scale"):
        layer.scale_layer(2.0)
    layer.scale_layer(1)
    layer.unscale_layer()
    with pytest.warns(UserWarning, match="no adapter is merged"):
        layer.unmerge()
