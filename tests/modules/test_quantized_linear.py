"""The linear layer that keeps codes instead of its weight."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_weights.functional.column_solver import CompensationConfig, quantize_weight
from lightning_weights.modules.quantized_linear import QuantizedLinear


def quantized(rows=6, columns=40, bits=3, groups=3, seed=0):
    """A weight on random grids, with groups that are not contiguous."""
    draw = torch.Generator().manual_seed(seed)
    zero = torch.randint(2**bits, (rows, groups), generator=draw).float()
    codes = torch.randint(2**bits, (rows, columns), generator=draw, dtype=torch.uint8)
    g_idx = torch.randint(groups, (columns,), generator=draw, dtype=torch.int32)
    return SimpleNamespace(codes=codes, scale=torch.rand(rows, groups, generator=draw), zero=zero, g_idx=g_idx)


def dequantized(weight):
    """The weight column by column, in float64."""
    columns = []
    for column, group in enumerate(weight.g_idx.tolist()):
        difference = weight.codes[:, column].double() - weight.zero[:, group].double()
        columns.append(weight.scale[:, group].double() * difference)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_weight_is_scale_times_code_minus_zero(bits):
    weight, x, bias = quantized(bits=bits), torch.randn(5, 40), torch.randn(6)
    layer = QuantizedLinear.from_quantized(weight, bits, bias)
    torch.testing.assert_close(layer.dequantize().double(), dequantized(weight), rtol=1e-6, atol=1e-6)
    assert torch.equal(layer.weight, layer.dequantize())
    assert torch.equal(layer.unpack(), weight.codes)
    expected = x.double() @ dequantized(weight).T + bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("grid", ["quarot", "gptq"])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_it_holds_what_the_solver_found(grid, sym, bits):
    x = torch.randn(200, 40) @ torch.randn(40, 40)
    config = CompensationConfig(method="gptq", bits=bits, group_size=16, sym=sym, grid=grid)
    found = quantize_weight(torch.randn(6, 40), x.T @ x, config=config)
    assert torch.equal(QuantizedLinear.from_quantized(found, bits).dequantize(), found.dequantized)


def test_inputs_get_gradients_and_nothing_else_does():
    layer, x = QuantizedLinear.from_quantized(quantized(), 3), torch.randn(5, 40, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantize().sum(0).expand(5, 40))
    assert [name for name, _ in layer.named_parameters()] == []


def test_a_layer_of_three_bits_takes_less_than_a_quarter_of_bfloat16():
    layer = QuantizedLinear(576, 192, bits=3, groups=9, bias=False)
    size = sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
    assert size / (576 * 192 * 2) < 0.25
    file = io.BytesIO()
    torch.save(QuantizedLinear(1536, 576, bits=3, groups=24, bias=False).state_dict(), file)
    assert file.tell() / (1536 * 576 * 2) < 0.25


def test_the_state_dict_is_the_checkpoint(tmp_path):
    net = nn.Sequential(nn.Linear(40, 40), QuantizedLinear.from_quantized(quantized(), 3, torch.randn(6)))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    saved = torch.load(tmp_path / "net.pt", weights_only=True)
    fresh = nn.Sequential(nn.Linear(40, 40), QuantizedLinear.for_state(saved, "1."))
    fresh.load_state_dict(saved)
    x = torch.randn(5, 40)
    assert torch.equal(fresh(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))
    keys = ["codes", "scales", "zeros", "g_idx", "code_bits", "bias"]
    assert set(saved) == {"0.weight", "0.bias", *(f"1.{key}" for key in keys)}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"bits": 4}, "1.codes are of 3 bits and the layer is of 4; make it with bits=3"),
        ({"groups": 2}, "size mismatch for 1.scales"),
        ({"out_features": 7}, "size mismatch for 1.codes"),
        ({"in_features": 70}, "size mismatch for 1.codes"),
    ],
)
def test_another_layer_refuses_the_checkpoint_by_name(size, message):
    saved = {f"1.{key}": value for key, value in QuantizedLinear(8, 6, 3, 1).state_dict().items()}
    layer = QuantizedLinear(**{"in_features": 8, "out_features": 6, "bits": 3, "groups": 1, **size})
    with pytest.raises(RuntimeError, match=message):
        nn.ModuleDict({"1": layer}).load_state_dict(saved)


def test_a_state_without_the_layer_is_told():
    with pytest.raises(ValueError, match=r"state_dict has no a.g_idx, a.scales, a.code_bits"):
        QuantizedLinear.for_state(nn.Linear(2, 2).state_dict(), "a.")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_conversions_keep_the_weight(dtype):
    layer, x = QuantizedLinear.from_quantized(quantized(), 3, torch.randn(6)), torch.randn(5, 40)
    before, converted = layer.dequantize(), copy.deepcopy(layer).to(dtype)
    assert torch.equal(converted.dequantize(torch.float32), before)
    assert converted(x.to(dtype)).dtype == dtype
    assert converted.bias.dtype == dtype


def test_autocast_computes_in_half_precision():
    layer = QuantizedLinear.from_quantized(quantized(), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(5, 40)).dtype == torch.bfloat16


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0])
def test_zeros_that_no_layer_can_keep_are_refused(value):
    weight = quantized()
    weight.zero[1, 1] = value
    with pytest.raises(ValueError, match="zero holds values that are not whole numbers from 0 to 255"):
        QuantizedLinear.from_quantized(weight, 3)


def test_codes_that_need_more_bits_are_refused():
    with pytest.raises(ValueError, match="values go from 0 to 7; allowed with 2 bits is 0 to 3"):
        QuantizedLinear.from_quantized(quantized(), 2)


@pytest.mark.parametrize("size", [{"in_features": 0}, {"out_features": 0}, {"bits": 1}, {"bits": 9}, {"groups": 9}])
def test_sizes_out_of_range_are_named(size):
    with pytest.raises(ValueError, match=f"{next(iter(size))} is"):
        QuantizedLinear(**{"in_features": 8, "out_features": 2, **size})
