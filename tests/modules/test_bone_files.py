"""Adapters as files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_weights.modules import BoneLinear
from lightning_weights.modules.bone_files import bone_adapter_of, read_bone_adapter, write_bone_adapter


def network(**options):
    """A network of two layers with blocks that are not zero."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.ModuleDict({"0": nn.Linear(12, 4)}), nn.LayerNorm(4))
    for name in ("0", "2.0"):
        net.set_submodule(name, BoneLinear(net.get_submodule(name), **{"r": 4, **options}))
        nn.init.normal_(net.get_submodule(name).bone_block)
    return net


@pytest.mark.parametrize(
    ("kind", "variant", "options"),
    [
        ("MISS", "col", {}),
        ("MISS", "miss", {"r": 3}),
        ("MISS", "mini", {"mini_r": 2}),
        ("LW_BONE", "col", {}),
        ("LW_BONE", "row", {}),
        ("LW_BONE", "free", {"grid": (1, 2)}),
    ],
)
def test_what_is_written_is_read(tmp_path, kind, variant, options):
    net = network(variant=variant, **options)
    write_bone_adapter(bone_adapter_of(net, ["3"]), tmp_path / "deep" / "folder", kind, base_model="some/model")
    adapter = read_bone_adapter(tmp_path / "deep" / "folder")
    assert (adapter.variant, adapter.grid, adapter.mini_r) == (variant, options.get("grid"), options.get("mini_r", 1))
    assert adapter.ranks == {name: options.get("r", 4) for name in ("0", "2.0")}
    assert all(torch.equal(adapter.blocks[name], net.get_submodule(name).bone_block) for name in ("0", "2.0"))
    assert set(adapter.others) == {"3.weight", "3.bias"}
    config = json.loads((tmp_path / "deep" / "folder" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == (kind, "some/model")


def test_sizes_that_differ_need_our_own_kind(tmp_path):
    net = network()
    net[0] = BoneLinear(nn.Linear(8, 12), r=2)
    with pytest.raises(ValueError, match=r"one block size, not col with sizes \[2, 4\]; use kind='LW_BONE'"):
        write_bone_adapter(bone_adapter_of(net), tmp_path)
    write_bone_adapter(bone_adapter_of(net), tmp_path, "LW_BONE")
    assert read_bone_adapter(tmp_path).ranks == {"0": 2, "2.0": 4}
    with pytest.raises(ValueError, match="not row with sizes"):
        write_bone_adapter(bone_adapter_of(network(variant="row")), tmp_path)


@pytest.mark.parametrize(("start", "shape", "variant"), [("bat", (3, 4, 4), "col"), (True, (4, 12), "miss")])
def test_bone_adapters_of_older_releases_of_peft_are_read(tmp_path, start, shape, variant):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "BONE", "r": 4, "init_weights": start}))
    torch.save({"base_model.model.a.bone_block": torch.ones(shape)}, tmp_path / "adapter_model.bin")
    adapter = read_bone_adapter(tmp_path)
    assert (adapter.variant, adapter.ranks) == (variant, {"a": 4})


def test_keys_are_those_of_peft(tmp_path):
    write_bone_adapter(bone_adapter_of(network()), tmp_path)
    keys = {"base_model.model.0.miss_block", "base_model.model.2.0.miss_block"}
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == keys


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (None, {}, "has no adapter_config.json"),
        ({"peft_type": "LORA"}, {}, "peft_type is 'LORA'; allowed are MISS, BONE, LW_BONE"),
        (
            {"peft_type": "MISS", "init_weights": "tiny"},
            {},
            "init_weights is 'tiny'; allowed are 'bat', True, 'mini', F",
        ),
        ({"peft_type": "MISS"}, None, "has neither adapter_model.safetensors nor adapter_model.bin"),
        ({"peft_type": "MISS"}, {"a.lora_A": torch.ones(1)}, "no key ends with '.miss_block'; there are a.lora_A"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, config, tensors, message):
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    if tensors:
        save_file(tensors, tmp_path / "adapter_model.safetensors")
    elif tensors is not None and config is not None:
        save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        read_bone_adapter(tmp_path)


def test_trained_biases_have_no_place(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "MISS", "bias": "all"}))
    save_file({"base_model.model.a.miss_block": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="has trained biases"):
        read_bone_adapter(tmp_path)


def test_networks_that_are_no_adapter_are_refused():
    with pytest.raises(ValueError, match="no layer with blocks"):
        bone_adapter_of(nn.Linear(2, 2))
    net = network()
    net[0] = BoneLinear(nn.Linear(8, 12), r=4, variant="row")
    with pytest.raises(ValueError, match="an adapter has one variant"):
        bone_adapter_of(net)
