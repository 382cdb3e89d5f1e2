"""Files of what sparse fine-tuning has changed: exact, small, and only for the weights that they belong to."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import nn

from lightning_weights.errors import MissingDependencyError
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.functional.lift_delta import SparseChange, load_delta, save_delta


def trained(dtype=torch.float32, rows=40, columns=30, k=100):
    """Return a layer, a copy with some entries trained, and the change: values of all sizes, as hard to add as any."""
    generator = torch.Generator().manual_seed(0)
    before = nn.Linear(columns, rows, dtype=dtype)
    after = nn.Linear(columns, rows, dtype=dtype)
    after.load_state_dict(before.state_dict())
    indices = torch.randperm(rows * columns, generator=generator)[:k].sort().values.to(torch.int32)
    values = torch.randn(k, generator=generator) * 10.0 ** torch.randint(-6, 4, (k,), generator=generator)
    after.weight.data.view(-1)[indices] = values.to(dtype)
    change = SparseChange(indices, before.weight.data.view(-1)[indices], values.to(dtype), before.weight.shape)
    return before, after, change


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_original_and_its_delta_are_the_trained_weights_in_every_bit(tmp_path, dtype):
    before, after, change = trained(dtype)
    save_delta(tmp_path / "new" / "delta", {"weight": change})
    assert load_delta(before, tmp_path / "new" / "delta") == ["weight"]
    tolerance = 1e-13 if dtype is torch.float64 else 0.0  # no wider type is left
    torch.testing.assert_close(before.weight, after.weight, rtol=0.0, atol=tolerance)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["delta"]


def test_small_steps_need_no_wide_differences(tmp_path):
    before, _, change = trained()
    for factor, dtype in ((1.25, torch.float32), (1e-4, torch.float64)):
        save_delta(tmp_path / "delta", {"weight": change._replace(after=change.before * factor)})
        assert load_file(tmp_path / "delta")["weight.delta"].dtype is dtype
    load_delta(before, tmp_path / "delta")
    assert torch.equal(before.weight.data.view(-1)[change.indices], change.before * 1e-4)


def test_the_file_is_plain_safetensors_with_differences(tmp_path):
    _, _, change = trained(torch.bfloat16)
    save_delta(tmp_path / "delta", {"net.weight": change})
    tensors = load_file(tmp_path / "delta")
    assert torch.equal(tensors["net.weight.indices"], change.indices)
    assert tensors["net.weight.indices"].dtype is torch.int32
    torch.testing.assert_close(tensors["net.weight.delta"].float(), change.after.float() - change.before.float())
    with safe_open(tmp_path / "delta", framework="pt") as file:
        about = json.loads(file.metadata()["net.weight"])
    assert (about["shape"], about["dtype"]) == ([40, 30], "bfloat16")


def test_names_may_have_a_prefix_and_what_compile_adds(tmp_path):
    before, after, change = trained()
    save_delta(tmp_path / "delta", {"model.body.weight": change})
    model = torch.compile(nn.Sequential())
    model.body = before
    assert plain_name("_orig_mod.body.weight") == "body.weight"
    assert load_delta(model, tmp_path / "delta", prefix="model.") == ["body.weight"]
    assert torch.equal(before.weight, after.weight)


def test_views_and_transposed_memory_are_written_through(tmp_path):
    before, after, change = trained()
    save_delta(tmp_path / "delta", {"weight": change})
    before.weight = nn.Parameter(before.weight.data.t().contiguous().t())
    load_delta(before, tmp_path / "delta")
    assert torch.equal(before.weight, after.weight)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda layer, _: layer.weight.data.view(-1)[:].add_(1.0),
            "not those from before .* load the weights that",
        ),
        (lambda layer, after: layer.load_state_dict(after.state_dict()), "the delta is applied already"),
        (lambda layer, _: layer.to(torch.bfloat16), "dtype of weight is bfloat16, but the training had float32"),
        (
            lambda layer, _: setattr(layer, "weight", nn.Parameter(torch.ones(2, 2))),
            r"shape of weight is \[2, 2\],",
        ),
        (lambda layer, _: delattr(layer, "weight"), "has no parameter 'weight'; it has bias"),
    ],
)
def test_weights_that_it_does_not_belong_to_are_refused_and_stay(tmp_path, spoil, message):
    before, after, change = trained()
    other, _, _ = trained(rows=8, columns=40, k=9)
    shape = other.weight.shape
    good = SparseChange(torch.arange(9), other.weight.data.view(-1)[:9].clone(), torch.zeros(9), shape)
    save_delta(tmp_path / "delta", {"other": good, "weight": change})
    spoil(before, after)
    before.other = other.weight
    kept = {name: param.clone() for name, param in before.named_parameters()}
    with pytest.raises(ValueError, match=message):
        load_delta(before, tmp_path / "delta")
    assert all(torch.equal(param, kept[name]) for name, param in before.named_parameters())


def test_files_that_are_no_deltas_or_damaged_are_refused(tmp_path):
    before, _, change = trained()
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_delta(before, tmp_path / "nothing")
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="is no delta"):
        load_delta(before, tmp_path / "other")
    with pytest.raises(ValueError, match="no matrix was trained"):
        save_delta(tmp_path / "empty", {})
    save_delta(tmp_path / "delta", {"weight": change})
    with safe_open(tmp_path / "delta", framework="pt") as file:
        about = file.metadata()
    tensors = load_file(tmp_path / "delta")
    tensors["weight.delta"] += 1
    save_file(tensors, tmp_path / "damaged", metadata=about)
    with pytest.raises(ValueError, match="the file is damaged"):
        load_delta(before, tmp_path / "damaged")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    _, _, change = trained()
    save_delta(tmp_path / "delta", {"weight": change})
    old = (tmp_path / "delta").read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_delta(tmp_path / "delta", {"weight": change._replace(after=change.before)})
    assert (tmp_path / "delta").read_bytes() == old


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    _, _, change = trained()
    with pytest.raises(MissingDependencyError, match=r"pip install safetensors \(extra 'hf'"):
        save_delta(tmp_path / "delta", {"weight": change})
