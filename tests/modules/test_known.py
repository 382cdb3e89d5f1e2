"""The network that predicts single weights."""

import copy
import io
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_weights.errors import MissingDependencyError
from lightning_weights.kernels.nowcast import split_parameters
from lightning_weights.modules import KNOWN
from tests.helpers.keras_files import write_dense_layers


def a_known(history=5, scale=0.15, seed=0, **options):
    """Return a network whose parts all matter."""
    generator = torch.Generator().manual_seed(seed)
    size = 128 * history + 8785
    return KNOWN.from_packed(scale * torch.randn(size, generator=generator), **options)


def histories(count, history=5, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    steps = 0.1 * torch.randn(count, history, generator=generator, dtype=torch.float64)
    return steps.cumsum(dim=1).to(dtype)


@pytest.mark.parametrize("history", [2, 3, 4, 5, 7])
def test_parameters_follow_the_history(history):
    known = KNOWN(history=history)
    assert sum(parameter.numel() for parameter in known.parameters()) == 9425 - 64 * 2 * (5 - history)
    assert known(histories(4, history)).shape == (4,)


def test_a_network_of_layers_gives_the_same():
    known, rows = a_known(leaky_slope=0.2).double(), histories(50, dtype=torch.float64)
    parts = split_parameters(known.packed(), 5)
    ends = []
    for x, s in ((rows, parts.w), (rows[:, 1:] - rows[:, :-1], parts.dw)):
        u = x @ s.A.T + s.a
        z = F.relu(u @ s.B.T + s.b)
        h = z @ s.C.T + s.c + (z @ s.E.T + s.e) * torch.exp((z @ s.F.T + s.f) * u)
        ends.append(F.leaky_relu(h @ s.G.T + s.h0, 0.2))
    wanted = torch.tanh(torch.cat(ends, dim=1) @ parts.o + parts.o_0)
    torch.testing.assert_close(known(rows), wanted)
    torch.testing.assert_close(known.nowcast(rows)[:, 0], rows[:, -1] + wanted.detach())


@settings(max_examples=25, deadline=None)
@given(history=st.integers(2, 7), seed=st.integers(0, 99), scale=st.sampled_from([0.01, 0.3, 3.0]))
def test_changes_stay_below_one(history, seed, scale):
    delta = a_known(history, scale=0.1, seed=seed)(scale * histories(20, history, seed))
    assert delta.abs().max() <= 1  # tanh rounds to 1 far out
    assert a_known(history, scale=0.01, seed=seed)(histories(20, history, seed)).abs().max() < 1


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_every_weight_is_predicted_by_itself(data):
    rows, known = histories(40), a_known()
    whole = known.nowcast(rows, 3)
    order = torch.tensor(data.draw(st.permutations(range(40))))
    cut = data.draw(st.integers(0, 40))
    torch.testing.assert_close(known.nowcast(rows[order], 3), whole[order], rtol=1e-6, atol=1e-6)
    pieces = torch.cat([known.nowcast(rows[:cut], 3), known.nowcast(rows[cut:], 3)])
    torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-6)


def test_without_an_output_nothing_changes():
    known, rows = a_known(), histories(30)
    with torch.no_grad():
        known.values[-65:] = 0.0
    assert torch.equal(known(rows), torch.zeros(30))
    assert torch.equal(known.nowcast(rows, 2), rows[:, -1:].expand(-1, 2))


def test_without_exponentials_streams_are_piecewise_linear():
    known = a_known().double()
    parts = split_parameters(known.values.data, 5)
    for stream in (parts.w, parts.dw):
        stream.E.zero_()
        stream.e.zero_()
    row, step = histories(1, dtype=torch.float64), 1e-6 * histories(1, seed=3, dtype=torch.float64)
    along = torch.cat([row + t * step for t in range(4)])
    bends = known(along).atanh().diff().diff()
    assert bends.abs().max() < 1e-12
    with torch.no_grad():
        parts.dw.e.fill_(1.0)
    assert known(along).atanh().diff().diff().abs().max() > bends.abs().max()


@pytest.mark.parametrize(("first", "then"), [(1, 1), (2, 3)])
def test_recursions_add_up(first, then):
    known, rows = a_known(history=4), histories(20, 4)
    whole = known.nowcast(rows, first + then)
    shifted = torch.cat([rows, whole[:, :first]], dim=1)[:, -4:]
    torch.testing.assert_close(known.nowcast(shifted, then), whole[:, first:], rtol=1e-6, atol=1e-6)


def test_double_and_single_precision_agree():
    known, rows = a_known(), histories(100)
    single, double = known.nowcast(rows, 3), known.nowcast(rows.double(), 3)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_first_parameters_are_those_of_the_spec():
    known = KNOWN()
    parts = split_parameters(known.values.data, 5)
    for stream in (parts.w, parts.dw):
        for matrix in (stream.A, stream.G):
            bound = math.sqrt(0.3 / matrix.shape[1])
            assert 0.8 * bound < matrix.abs().max() <= bound
        for matrix in (stream.B, stream.C, stream.E, stream.F):
            bound = math.sqrt(6 / sum(matrix.shape))
            assert 0.9 * bound < matrix.abs().max() <= bound
        assert not any(vector.any() for vector in (stream.a, stream.b, stream.c, stream.e, stream.f, stream.h0))
    assert 0.9 * math.sqrt(6 / 65) < parts.o.abs().max() <= math.sqrt(6 / 65)
    assert parts.o_0 == 0
    torch.manual_seed(3)
    first = KNOWN().values.clone()
    torch.manual_seed(3)
    assert torch.equal(KNOWN().values, first)
    assert not torch.equal(KNOWN().values, first)


def test_the_penalty_is_on_the_first_and_last_layer_of_the_streams():
    known = a_known()
    known.penalty(kernel=0.5, bias=0.25).backward()
    values, wanted = known.values.data, torch.zeros(9425)
    parts = split_parameters(wanted, 5)
    for stream in (parts.w, parts.dw):
        for part, factor in ((stream.A, 0.5), (stream.G, 0.5), (stream.a, 0.25), (stream.h0, 0.25)):
            part.fill_(factor)
    torch.testing.assert_close(known.values.grad, wanted * values.sign())
    torch.testing.assert_close(known.penalty(0.5, 0.25).detach(), (wanted * values.abs()).sum())


def test_training_moves_every_parameter_and_autocast_changes_nothing():
    known, rows = a_known(scale=0.2), histories(200)
    plain = known(rows)
    with torch.autocast("cpu", torch.bfloat16):
        inside = known(rows)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)
    (plain - 0.1).abs().mean().backward()
    parts = split_parameters(known.values.grad, 5)
    assert all(part.any() for part in (*parts.w, *parts.dw, parts.o, parts.o_0))
    assert not known.nowcast(rows).requires_grad


def test_compiled_networks_take_any_number_of_weights():
    known = a_known()
    delta = torch.compile(known, backend="eager", fullgraph=True, dynamic=True)
    for count in (3, 7):
        assert torch.equal(delta(histories(count)), known(histories(count)))


def test_copies_and_checkpoints_keep_every_bit():
    known, rows = a_known(history=3, leaky_slope=0.1), histories(5, 3)
    for other in (
        copy.deepcopy(known),
        pickle.loads(pickle.dumps(known)),
        KNOWN.from_packed(known.packed(), leaky_slope=0.1),
    ):
        assert torch.equal(other.nowcast(rows), known.nowcast(rows))
    buffer = io.BytesIO()
    torch.save(known.state_dict(), buffer)
    buffer.seek(0)
    fresh = KNOWN(history=3, leaky_slope=0.1)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh.nowcast(rows), known.nowcast(rows))


def test_building_from_values_draws_nothing():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    a_known()
    assert torch.equal(torch.rand(3), wanted)


def test_it_forgets_nothing_of_its_arguments():
    rows = histories(8)
    before = rows.clone()
    a_known().nowcast(rows, 3)
    assert torch.equal(rows, before)
    assert a_known().nowcast(rows[:0], 3).shape == (0, 3)


def test_odd_arguments_are_refused():
    with pytest.raises(ValueError, match=r"history is 1; allowed is a whole number in \[2"):
        KNOWN(history=1)
    with pytest.raises(ValueError, match=r"leaky_slope is -0.1"):
        KNOWN(leaky_slope=-0.1)
    known = KNOWN()
    for rows in (histories(3, 4), histories(3)[0], histories(3)[None]):
        with pytest.raises(ValueError, match=r"shape .*; allowed is \(N, 5\)"):
            known(rows)
    with pytest.raises(ValueError, match=r"torch.bfloat16; allowed are torch.float32"):
        known.nowcast(histories(3).bfloat16())
    with pytest.raises(ValueError, match="recursions is 0"):
        known.nowcast(histories(3), 0)
    for count in (9424, 9426, 8785 + 128, 0):
        with pytest.raises(ValueError, match=r"vector of 128 S \+ 8785 values"):
            KNOWN.from_packed(torch.zeros(count))


def keras_layers(known):
    """Return kernels (in, out) and biases of a network in the order of Keras."""
    parts = split_parameters(known.values.detach(), known.history)
    flat = [*parts.w, *parts.dw, parts.o.unsqueeze(0), parts.o_0.unsqueeze(0)]
    return [(kernel.T.numpy().copy(), bias.numpy()) for kernel, bias in zip(flat[::2], flat[1::2], strict=True)]


@pytest.mark.parametrize(("history", "first", "group"), [(5, 0, ""), (4, 13, ""), (8, 90, "model_weights")])
def test_files_of_keras(tmp_path, history, first, group):
    """Numbers cross from 9 to 10 and from 99 to 100, where names sort differently."""
    known = a_known(history)
    path = write_dense_layers(tmp_path / "known.h5", keras_layers(known), first, group)
    assert torch.equal(KNOWN.from_keras_h5(path).packed(), known.packed())
    assert KNOWN.from_keras_h5(str(path), leaky_slope=0.01).leaky_slope == 0.01


def test_other_files_say_what_is_expected(tmp_path):
    layers, path = keras_layers(a_known()), tmp_path / "known.h5"
    swapped = [layers[1], layers[0], *layers[2:]]
    for wrong in (layers[:-1], swapped, [(layers[0][0], np.zeros(3, np.float32)), *layers[1:]], []):
        write_dense_layers(path, wrong)
        with pytest.raises(ValueError, match=r"13 layers with kernels \(in, out\) of \[.*\(8, 64\).*\(64, 1\)\]"):
            KNOWN.from_keras_h5(path)
    path.write_text("no such file")
    with pytest.raises(ValueError, match="no HDF5 file"):
        KNOWN.from_keras_h5(path)
    with pytest.raises(ValueError, match="not there"):
        KNOWN.from_keras_h5(tmp_path / "other.h5")


def test_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match="pip install h5py"):
        KNOWN.from_keras_h5(tmp_path / "known.h5")
