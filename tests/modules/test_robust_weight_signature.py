"""Signatures: their bits, their files and arithmetic with them."""

import json
import math
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_weights.functional.rws import dequantize_levels, quantize_levels
from lightning_weights.modules import RobustWeightSignature, ShallowSelector
from tests.modules.signature_cases import SmallResNet, signature_of, small_vgg
from tests.modules.test_shallow_selector import vgg16

LEVELS = [None, 4, 8, 16, 32, 64, 128, 256]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("levels", LEVELS)
def test_files_give_back_every_bit(tmp_path, levels):
    signature = 0.5 * signature_of(SmallResNet(), levels=levels, severity=3)
    path = tmp_path / "folder" / "fog.safetensors"
    signature.save(path)
    found = RobustWeightSignature.load(path)
    assert equal(found.dequantize(), signature.dequantize())
    assert found.digest == signature.digest
    described = ("shapes", "levels", "corruption", "severity", "scale", "mode", "architecture", "num_weights", "name")
    assert [getattr(found, name) for name in described] == [getattr(signature, name) for name in described]
    assert (found.name, found.scale, found.nbytes) == ("fog-3", 0.5, signature.nbytes)
    assert os.listdir(path.parent) == ["fog.safetensors"]
    found.save(path)
    assert RobustWeightSignature.load(path).digest == signature.digest


@pytest.mark.parametrize("levels", LEVELS[1:])
def test_codes_are_those_of_the_levels(levels):
    plain = signature_of(small_vgg())
    for name, value in plain.quantized(levels).dequantize().items():
        exact = plain.dequantize()[name]
        assert torch.equal(value, dequantize_levels(quantize_levels(exact, levels), levels))
        assert (value.min(), value.max()) == (exact.min(), exact.max())
    packed = plain.quantized(levels)
    assert equal(packed.quantized(levels).dequantize(), packed.dequantize())
    assert packed.quantized(levels).digest == packed.digest


@pytest.mark.parametrize("levels", LEVELS)
def test_sizes_in_memory_and_on_disk(tmp_path, levels):
    signature = signature_of(SmallResNet(), levels=levels)
    bits = 32 if levels is None else levels.bit_length() - 1
    ranges = 0 if levels is None else 8
    counts = [math.prod(shape) for shape in signature.shapes.values()]
    expected = sum(math.ceil(count * bits / 8) + ranges for count in counts)
    tensors = (*signature.parts.values(), signature.low, signature.high)
    assert signature.nbytes == expected == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    signature.save(tmp_path / "file")
    described = os.path.getsize(tmp_path / "file") - expected
    with open(tmp_path / "file", "rb") as file:
        assert described == 8 + int.from_bytes(file.read(8), "little")
    with safe_open(tmp_path / "file", "pt") as file:
        text = file.metadata()["robust_weight_signature"]
    assert described < 500 + len(text) + text.count('"')  # quotes are escaped: the header is JSON in JSON
    assert json.loads(text)["shapes"] == signature.shapes


def test_the_published_saving(tmp_path):
    """VGG-16 with 10 classes: six convolutions in fp32 are 12.9 times smaller, seven 8.5, and 68 with 16 levels."""
    network = vgg16()
    total = sum(param.numel() for param in network.parameters())
    savings = {}
    for count, levels in ((7, None), (6, None), (5, None), (7, 16)):
        names = ShallowSelector(count).select(network)
        values = {name: torch.zeros(network.state_dict()[name].shape) for name in names}
        signature = RobustWeightSignature.from_tensors(values, levels, num_weights=total)
        savings[count, levels] = signature.saving
        if count == 6 or levels:
            signature.save(tmp_path / "file")
            on_disk = 4 * total / os.path.getsize(tmp_path / "file")
            assert on_disk == pytest.approx(signature.saving, rel=0.01)
    assert total == pytest.approx(14.72e6, rel=1e-3)
    rounded = {key: round(value, 1) for key, value in savings.items()}
    assert rounded == {(7, None): 8.5, (6, None): 12.9, (5, None): 26.5, (7, 16): 67.8}


def test_scaling_and_adding():
    network = small_vgg()
    fog, frost = signature_of(network, 1, severity=5), signature_of(network, 2, 16, "frost", units=3, severity=5)
    assert ((2 * fog).scale, (fog * 2).scale, fog.scale) == (2.0, 2.0, 1.0)
    assert (2 * fog).digest == fog.digest
    both = 2 * fog + 0.5 * frost
    a, b = fog.dequantize(), frost.dequantize()
    assert both.dequantize().keys() == b.keys() > a.keys()
    for name, value in both.dequantize().items():
        torch.testing.assert_close(value, 2 * a.get(name, 0.0) + 0.5 * b[name])
    assert (both.name, both.scale, both.levels) == ("fog+frost-5", 1.0, None)
    swapped = (0.5 * frost + 2 * fog).dequantize()
    assert all(torch.equal(value, swapped[name]) for name, value in both.dequantize().items())
    with pytest.raises(ValueError, match="only signatures of one architecture and mode"):
        _ = fog + signature_of(SmallResNet())
    with pytest.raises(ValueError, match="only signatures of one architecture and mode"):
        _ = fog + signature_of(network, mode="difference")
    with pytest.raises(TypeError):
        _ = fog + 1.0


def test_tensors_are_copies_and_go_to_devices():
    value = torch.ones(2)
    signature = RobustWeightSignature.from_tensors({"bias": value})
    value.zero_()
    signature.dequantize()["bias"].zero_()
    assert signature.dequantize()["bias"].tolist() == [1.0, 1.0]
    assert {part.device.type for part in signature.to("meta").parts.values()} == {"meta"}


def test_tensors_that_cannot_be_in_it():
    make = RobustWeightSignature.from_tensors
    with pytest.raises(ValueError, match="tensors are none"):
        make({})
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"a\.weight has entries that are not finite"):
            make({"a.weight": torch.tensor([1.0, bad])})
    with pytest.raises(ValueError, match=r"a.weight is 2 of torch.int64"):
        make({"a.weight": torch.ones(2, dtype=torch.long)})
    with pytest.raises(ValueError, match="is a running statistic; re-estimate"):
        make({"bn.running_mean": torch.ones(2)})
    for levels in (2, 10, 512):
        with pytest.raises(ValueError, match=f"levels is {levels}"):
            make({"a.weight": torch.ones(2)}, levels)


def test_descriptions_are_checked():
    for name, value in {"severity": 6, "scale": math.inf, "mode": "sum", "corruption": ""}.items():
        with pytest.raises(ValueError, match=name):
            RobustWeightSignature.from_tensors({"a.weight": torch.ones(2)}, **{name: value})


def test_files_that_are_none(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="file is not there"):
        RobustWeightSignature.load(path)
    path.write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match="can't be read as safetensors"):
        RobustWeightSignature.load(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="no signature of format 1"):
        RobustWeightSignature.load(path)


@pytest.mark.parametrize("levels", [None, 16])
def test_files_that_are_not_whole(tmp_path, levels):
    path = tmp_path / "file"
    signature_of(small_vgg(), levels=levels).save(path)
    with safe_open(path, "pt") as file:
        text, tensors = file.metadata()["robust_weight_signature"], {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    key = "values" if levels is None else "codes"
    save_file({**tensors, key: tensors[key][:-1].clone()}, path, {"robust_weight_signature": text})
    with pytest.raises(ValueError, match="is not whole: its tensors are"):
        RobustWeightSignature.load(path)
    about = json.loads(text)
    del about["corruption"]
    save_file(tensors, path, {"robust_weight_signature": json.dumps(about)})
    with pytest.raises(ValueError, match=r"\['corruption'\] are missing"):
        RobustWeightSignature.load(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="can't be read"):
        RobustWeightSignature.load(path)
