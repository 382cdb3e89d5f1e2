"""Fitted stacks as one linear layer, and as a file."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.model_selection import KFold

from lightning_weights.errors import MissingDependencyError
from lightning_weights.functional.regularized_stacking import meta_features
from lightning_weights.modules import RegularizedStacking, StackOutput, StackState
from tests.modules.test_regularized_stacking import pool, ridge


def output(seed, selected):
    """Return the stack of one output with numbers at random: two learners of the columns and six statistics."""
    random = torch.Generator().manual_seed(seed)
    size = len(selected) + 6
    mean, coefficients, three = (
        torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((size,), (2, size), (3, 2))
    )
    blend, penalties = torch.tensor([0.25, 0.75], dtype=torch.float64), three[2].exp()
    ratios, condition = torch.tensor([torch.nan, 1.0], dtype=torch.float64), three[1].exp()
    return StackOutput(
        torch.tensor(selected), mean, mean.exp(), coefficients, three[0], blend, penalties, ratios, condition
    )


@pytest.fixture
def state():
    outputs = [output(0, [0, 2]), output(1, [2, 3, 4])]
    return StackState(list("abcde"), outputs, statistics=True, interactions=True, flat=False, settings={"seed": 3})


@pytest.fixture
def others():
    return torch.randn(20, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_everything_linear_folds_into_one_layer(state, others):
    predicted = state.predict(others)
    for index, part in enumerate(state.outputs):
        features = meta_features(others[:, part.selected])
        learners = (features - part.mean) / part.scale @ part.coefficients.T + part.intercepts
        want = 0.25 * learners[:, 0] + 0.75 * learners[:, 1]
        weight, bias = part.folded()
        np.testing.assert_allclose(features @ weight + bias, want, rtol=1e-9)
        np.testing.assert_allclose(predicted[:, index], want, rtol=1e-9)


def test_outputs_can_have_predictions_of_their_own(state, others):
    table = torch.stack([others, others + 1], 2)
    predicted = state.predict(table)
    np.testing.assert_array_equal(predicted[:, 0], state.predict(others)[:, 0])
    np.testing.assert_array_equal(predicted[:, 1], state.predict(others + 1)[:, 1])


def test_a_target_without_outputs_gives_predictions_without_outputs(state, others):
    one = replace(state, outputs=state.outputs[:1], flat=True)
    np.testing.assert_array_equal(one.predict(others), state.predict(others)[:, 0])


@pytest.mark.parametrize("shape", [(20, 4), (20,), (20, 5, 3)])
def test_predictions_of_another_shape(state, shape):
    with pytest.raises(ValueError, match=r"allowed is \(N, 5\) or \(N, 5, 2\), a column for each of a, b, c, d, e"):
        state.predict(torch.ones(shape))


def test_a_file_gives_back_every_bit(state, others, tmp_path):
    path = tmp_path / "new" / "stack.safetensors"
    state.save(path)
    found = StackState.load(path)
    np.testing.assert_array_equal(found.predict(others), state.predict(others))
    for name in ("names", "statistics", "interactions", "flat", "settings"):
        assert getattr(found, name) == getattr(state, name)
    for one, other in zip(found.outputs, state.outputs, strict=True):
        for name, tensor in vars(one).items():
            assert tensor.dtype == getattr(other, name).dtype
            assert torch.equal(tensor.nan_to_num(7), getattr(other, name).nan_to_num(7))
    assert [file.name for file in path.parent.iterdir()] == ["stack.safetensors"]


def test_an_estimator_saves_its_settings_and_grids(tmp_path):
    table, target, others = pool()
    stack = ridge(splitter=KFold(3), tau_mse=0.5).fit(table, target, names=list("abcdef"))
    stack.save(tmp_path / "stack.safetensors")
    found = StackState.load(tmp_path / "stack.safetensors")
    np.testing.assert_array_equal(found.predict(others), stack.predict(others))
    assert found.names == list("abcdef")
    settings = {name: found.settings[name] for name in ("learners", "seed", "splitter", "tau_mse")}
    assert settings == {"learners": ["ridge"], "seed": 42, "splitter": "KFold", "tau_mse": 0.5}
    assert [len(found.settings["grids"][name]) for name in ("ridge", "l1", "ratios")] == [50, 30, 7]


def test_retained_columns_are_those_of_any_output(state):
    assert state.retained == [0, 2, 3, 4]
    assert replace(state, outputs=state.outputs[:1]).retained == [0, 2]


def test_an_infinite_condition_number_is_saved(tmp_path):
    table, target, _ = pool()
    table[:, 0] = 1.0
    stack = ridge().fit(table, target)
    stack.save(tmp_path / "stack.safetensors")
    before, after = StackState.load(tmp_path / "stack.safetensors").outputs[0].condition.tolist()
    assert before == float("inf")
    assert after == stack.report_["condition_after"]


def test_files_that_are_no_stacks(state, tmp_path):
    path = tmp_path / "stack.safetensors"
    with pytest.raises(ValueError, match="is not there"):
        StackState.load(path)
    path.write_text("a stack")
    with pytest.raises(ValueError, match="cannot be read as a stack"):
        StackState.load(path)
    save_file({"0.mean": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="is no stack of format 1"):
        StackState.load(path)
    state.save(path)
    tensors = load_file(path)
    description = {"format": 1, "outputs": 2, "names": [], "statistics": True, "interactions": True, "flat": False}
    del tensors["1.blend"]
    save_file(tensors, path, {"regularized_stacking": json.dumps({**description, "settings": {}})})
    with pytest.raises(ValueError, match=r"is not whole: \['1\.blend'\]"):
        StackState.load(path)


def test_without_safetensors(state, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingDependencyError, match="pip install safetensors"):
        state.save(tmp_path / "stack.safetensors")


def test_saving_before_fitting(tmp_path):
    with pytest.raises(ValueError, match="not fitted"):
        RegularizedStacking().save(tmp_path / "stack.safetensors")
