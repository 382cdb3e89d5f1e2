"""Quantized networks as files in GPTQ's layout."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_weights.modules import CausalLM
from lightning_weights.modules.gptq_files import read_gptq, write_gptq
from lightning_weights.modules.quantized_linear import QuantizedLinear


def quantize(layer, bits=3, size=32, order=None, low=1):
    """A layer on random grids with the bias of another; `order` deals the columns to the groups."""
    rows, columns = layer.out_features, layer.in_features
    groups = -(-columns // size)
    g_idx = torch.empty(columns, dtype=torch.int32)
    g_idx[torch.arange(columns) if order is None else order] = (torch.arange(columns) // size).int()
    weight = SimpleNamespace(
        codes=torch.randint(2**bits, (rows, columns), dtype=torch.uint8),
        scale=torch.rand(rows, groups) + 0.1,
        zero=torch.randint(low, 2**bits, (rows, groups)).float(),
        g_idx=g_idx,
    )
    return QuantizedLinear.from_quantized(weight, bits, layer.bias)


def network(**options):
    """Two quantized layers of different shapes, and others."""
    net = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.ModuleDict({"out": nn.Linear(96, 32, bias=False)}))
    net.append(nn.Linear(5, 5))
    for name in ("0", "2.out"):
        net.set_submodule(name, quantize(net.get_submodule(name), **options))
    return net


def unquantized():
    net = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.ModuleDict({"out": nn.Linear(96, 32, bias=False)}))
    return net.append(nn.Linear(5, 5))


def read_by_the_book(tensors, name, bits, offset):
    """Dequantize with numpy, from what is documented of the layout.

    qweight packs the inputs of a column from the lowest bits on; qzeros packs the outputs of a group, less the offset.
    """

    def values(words):
        # every row of words is one long number; its digits of so many bits are the values, the last digit first
        number = [int.from_bytes(row.astype("<i4").tobytes(), "little") for row in words]
        count = words.shape[1] * 32 // bits
        return np.array([[row >> (bits * i) & (2**bits - 1) for i in range(count)] for row in number])

    qweight, qzeros = (tensors[f"{name}.{key}"].numpy() for key in ("qweight", "qzeros"))
    scales, g_idx = tensors[f"{name}.scales"].double().numpy(), tensors[f"{name}.g_idx"].numpy()
    codes, zeros = values(np.ascontiguousarray(qweight.T)).T, values(qzeros) + offset
    return torch.from_numpy((scales[g_idx] * (codes - zeros[g_idx])).T)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("form", "offset", "low"), [("gptq", 1, 1), ("gptq_v2", 0, 0)])
def test_the_layout_is_the_documented_one(tmp_path, bits, form, offset, low):
    net = network(bits=bits, low=low)
    write_gptq(net, tmp_path, form, scale_dtype="float32")
    tensors = load_file(tmp_path / "model.safetensors")
    shapes = {key: tuple(tensors[f"0.{key}"].shape) for key in ("qweight", "qzeros", "scales", "g_idx")}
    words = {"qweight": (64 * bits // 32, 96), "qzeros": (2, 96 * bits // 32)}
    assert shapes == {**words, "scales": (2, 96), "g_idx": (64,)}
    assert {str(tensors[f"0.{key}"].dtype) for key in ("qweight", "qzeros", "g_idx")} == {"torch.int32"}
    for name in ("0", "2.out"):
        found = read_by_the_book(tensors, name, bits, offset)
        torch.testing.assert_close(found, net.get_submodule(name).dequantize().double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_what_is_written_is_read(tmp_path, bits, form):
    net, x = network(bits=bits), torch.randn(3, 64)
    write_gptq(net, tmp_path / "deep" / "folder", form, "float32")
    fresh = read_gptq(unquantized(), tmp_path / "deep" / "folder")
    state, again = net.state_dict(), fresh.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
    assert torch.equal(fresh[:1](x), net[:1](x))
    assert not [path for path in (tmp_path / "deep" / "folder").iterdir() if path.suffix == ".part"]
    read_gptq(fresh, tmp_path / "deep" / "folder")  # into layers that are quantized already
    assert torch.equal(fresh[:1](x), net[:1](x))


def test_scales_of_float16_are_rounded(tmp_path):
    net = network()
    write_gptq(net, tmp_path)
    assert load_file(tmp_path / "model.safetensors")["0.scales"].dtype == torch.float16
    found = read_gptq(unquantized(), tmp_path)[0]
    assert torch.equal(found.codes, net[0].codes)
    assert torch.equal(found.scales, net[0].scales.half().float())


def test_the_configuration_is_what_readers_expect(tmp_path):
    order = torch.randperm(96)
    net = network(bits=4)
    net[2]["out"] = quantize(nn.Linear(96, 32, bias=False), 4, order=order)
    write_gptq(net, tmp_path, meta={"method": "foem", "damp": 0.05})
    config = json.loads((tmp_path / "quantize_config.json").read_text())
    assert config.pop("meta").items() >= {"method": "foem", "damp": 0.05}.items()
    assert config == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": True,
        "sym": False,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "dynamic": {"-:^3$": {}},
    }


@pytest.mark.parametrize(("size", "group_size"), [(32, 32), (96, 96), (1000, -1)])
def test_one_group_per_layer_is_told_from_groups(tmp_path, size, group_size):
    net = nn.Sequential(quantize(nn.Linear(96, 32), size=size), quantize(nn.Linear(192, 32), size=size))
    for layer in net:
        layer.zeros.fill_(4)
    write_gptq(net, tmp_path)
    config = json.loads((tmp_path / "quantize_config.json").read_text())
    assert (config["group_size"], config["desc_act"], config["sym"]) == (group_size, False, True)


def test_a_language_model_keeps_its_configuration_and_its_tied_embedding(tmp_path):
    from transformers import GPTQConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "vocab_size": 64, "tie_word_embeddings": True, **shape}
    model, fresh = (CausalLM(config=config, dtype="bfloat16").model.eval() for _ in range(2))
    for name, layer in list(model.model.layers.named_modules()):
        if isinstance(layer, nn.Linear):
            model.model.layers.set_submodule(name, quantize(layer, size=16))
    write_gptq(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert "lm_head.weight" not in tensors
    written = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    understood = GPTQConfig.from_dict(written)
    assert (understood.bits, understood.group_size, understood.format) == (3, 16, "gptq")
    read_gptq(fresh, tmp_path)
    (tmp_path / "quantize_config.json").unlink()
    read_gptq(fresh, tmp_path)  # config.json is enough
    tokens = torch.randint(64, (2, 7))
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            layer.scales = layer.scales.half().float()
    assert torch.equal(fresh(tokens).logits, model(tokens).logits)


def test_files_of_others_may_lack_g_idx_and_say_format(tmp_path):
    net = network()
    write_gptq(net, tmp_path, scale_dtype="float32")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.endswith("g_idx")}, tmp_path / "model.safetensors")
    config = {"bits": 3, "group_size": 32, "format": "gptq"}
    (tmp_path / "quantize_config.json").write_text(json.dumps(config))
    assert torch.equal(read_gptq(unquantized(), tmp_path)[0].weight, net[0].weight)


def spoil_zero(net):
    net[0].zeros[1, 1] = 0


def spoil_scale(net):
    net[0].scales[1, 1] = 1e-9


def odd_size(net):
    net[0] = quantize(nn.Linear(64, 40))


def other_bits(net):
    net[0] = quantize(nn.Linear(64, 96), bits=4)


def five_bits(net):
    net[0], net[2]["out"] = (quantize(nn.Linear(*shape), bits=5) for shape in ((64, 96), (96, 32)))


def other_groups(net):
    net[0] = quantize(nn.Linear(64, 96), size=16)


def one_large_group(net):
    net[0] = quantize(nn.Linear(64, 96), size=64)


def plain(net):
    net[0], net[2]["out"] = nn.Linear(64, 96), nn.Linear(96, 32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_zero, "0 has zeros of 0, .* use checkpoint_format='gptq_v2', or a symmetric grid"),
        (spoil_scale, "0 has scales that torch.float16 can't hold; use scale_dtype='float32'"),
        (odd_size, "0 has 64 inputs and 40 outputs; allowed in GPTQ's files are multiples of 32"),
        (other_bits, "layers have {'0': 4, '2.out': 3} bits; allowed is one of 2, 3, 4, 8 for all"),
        (five_bits, "layers have {'0': 5, '2.out': 5} bits"),
        (other_groups, "layers have groups of {'0': 16, '2.out': 32} columns"),
        (one_large_group, "layers have groups of {'2.out': 32, '0': 64} columns"),
        (plain, "module contains no QuantizedLinear"),
    ],
)
def test_what_the_layout_has_no_place_for_is_refused(tmp_path, spoil, message):
    net = network()
    spoil(net)
    with pytest.raises(ValueError, match=message):
        write_gptq(net, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("choice", [{"checkpoint_format": "awq"}, {"scale_dtype": "int8"}])
def test_choices_are_checked(tmp_path, choice):
    with pytest.raises(ValueError, match=f"{next(iter(choice))} is"):
        write_gptq(network(), tmp_path, **choice)


@pytest.mark.parametrize(
    ("config", "drop", "message"),
    [
        (None, "", "has no quantize_config.json, and no config.json with a quantization_config"),
        ({"bits": 3, "group_size": 32, "quant_method": "awq"}, "", "quant_method is 'awq'; allowed are 'gptq'"),
        (
            {"bits": 3, "group_size": 32, "checkpoint_format": "marlin"},
            "",
            "checkpoint_format is 'marlin'; allowed are 'gptq', 'gptq_v2'",
        ),
        ({"bits": 3}, "", "that has bits and group_size"),
        ({"bits": 5, "group_size": 32}, "", "bits is 5; allowed are 2, 3, 4, 8"),
        ({"bits": 3, "group_size": 32, "pack_dtype": "int16"}, "", "pack_dtype is 'int16'"),
        ({"bits": 4, "group_size": 32}, "", r"0 has qweight, .* of \(6, 96\).* 64 inputs and 96 outputs has \(8, 96\)"),
        ({"bits": 3, "group_size": 32}, "1.weight", r"the files lack \['1.weight'\]"),
        ({"bits": 3, "group_size": 32}, "model.safetensors", "has no model.safetensors"),
    ],
)
def test_files_that_do_not_fit_change_nothing(tmp_path, config, drop, message):
    write_gptq(network(), tmp_path)
    (tmp_path / "quantize_config.json").unlink()
    if config is not None:
        (tmp_path / "quantize_config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(drop, None)
    save_file(tensors, file)
    if drop == file.name:
        file.unlink()
    net = unquantized()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        read_gptq(net, tmp_path)
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("g_idx", [torch.full((64,), 2), torch.full((64,), -1), torch.zeros(63)])
def test_groups_that_are_not_there_are_told(tmp_path, g_idx):
    write_gptq(network(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "0.g_idx": g_idx.int()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="0 has a g_idx that does not name one of 2 groups for 64 inputs"):
        read_gptq(unquantized(), tmp_path)


def test_a_network_without_the_layer_is_told(tmp_path):
    write_gptq(network(), tmp_path)
    net = unquantized()
    del net[2]["out"]
    with pytest.raises(ValueError, match=r"2\.out is quantized in the files; allowed is a network with an nn.Linear"):
        read_gptq(net, tmp_path)
    net = unquantized()
    net[3] = nn.Linear(4, 5)
    with pytest.raises(ValueError, match=r"shapes differ in \['3.weight'\]"):
        read_gptq(net, tmp_path)
