"""KNOWN's predictions on the CPU: reference, chunks, registration and cost model."""

import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.nowcast import (
    eager,
    known_delta,
    nowcast,
    nowcast_reference,
    parameter_count,
    split_parameters,
)
from lightning_weights.kernels.nowcast.cost import WIDEST, cost, cost_composed, multiplications, pick_config
from tests.kernels.buffers import guarded, strided
from tests.kernels.nowcast_cases import data, oracle
from tests.kernels.traffic import Traffic

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("length", "recursions"), [(2, 1), (4, 3), (5, 3), (9, 11)])
def test_predictions(length, recursions, dtype, monkeypatch):
    monkeypatch.setattr(eager, "CHUNK", 7)
    history, parameters = data(40, length, dtype)
    want = oracle(history, parameters, recursions)
    for predict in (nowcast, nowcast_reference):
        found = predict(history, parameters, recursions)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), want, rtol=0.0, atol=TOLERANCE[dtype])
    assert (want.diff(dim=1).abs() > 1e-4).any() or recursions == 1


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 14])
def test_any_number_and_layout_of_weights(count, monkeypatch):
    monkeypatch.setattr(eager, "CHUNK", 7)
    history, parameters = data(count, 5)
    want = oracle(history, parameters, 2)
    for layout in (lambda x: x, strided, lambda x: x.t().contiguous().t()):
        found = nowcast(layout(history), parameters, 2)
        torch.testing.assert_close(found.double(), want, rtol=0.0, atol=2e-6)
    copies, clean = guarded([history, parameters], shift=1)
    torch.testing.assert_close(nowcast(*copies, 2).double(), want, rtol=0.0, atol=2e-6)
    assert clean()
    assert torch.equal(copies[0], history)


def test_parts_and_orders_of_weights_do_not_matter():
    history, parameters = data(3000, 5)
    whole, order = nowcast(history, parameters, 3), torch.randperm(3000)
    torch.testing.assert_close(nowcast(history[order], parameters, 3), whole[order], rtol=0.0, atol=1e-6)
    parts = [nowcast(part, parameters, 3) for part in history.split([2100, 1, 899])]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0.0, atol=1e-6)


def test_going_on_from_a_prediction():
    history, parameters = data(30, 4, torch.float64)
    at_once = nowcast(history, parameters, 5)
    first = nowcast(history, parameters, 2)
    later = nowcast(torch.cat([history, first], dim=1)[:, -4:], parameters, 3)
    torch.testing.assert_close(torch.cat([first, later], dim=1), at_once)


def test_what_the_last_layer_does():
    history, parameters = data(20, 5)
    parameters[-65:] = 0.0
    assert torch.equal(nowcast(history, parameters, 3), history[:, -1:].expand(-1, 3))
    parameters[-1] = -20.0
    assert torch.equal(known_delta(history, parameters), torch.full((20,), -1.0))


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_the_slope(slope):
    history, parameters = data(20, 3)
    found = nowcast(history, parameters, 2, slope)
    torch.testing.assert_close(found.double(), oracle(history, parameters, 2, slope), rtol=0.0, atol=2e-6)


def test_exponents_are_bounded():
    history, parameters = data(64, 5)
    known = split_parameters(parameters, 5)
    known.w.F.mul_(2000.0)
    known.w.E.mul_(1e-30)
    known.w.e.mul_(1e-30)
    u = history @ known.w.A.T + known.w.a
    q = (u @ known.w.B.T + known.w.b).relu() @ known.w.F.T + known.w.f
    assert (q * u).max() > 90.0  # beyond what fp32 has a power for
    want = oracle(history, parameters, 1)
    assert want.isfinite().all()
    # an exponent of 80 is known to 80 * 2^-24, and so are the digits of its power
    torch.testing.assert_close(nowcast(history, parameters).double(), want, rtol=0.0, atol=1e-3)


def test_nan_stays_where_it_is():
    history, parameters = data(9, 5)
    want = nowcast(history, parameters, 2)
    history[4, 1] = torch.nan
    found = nowcast(history, parameters, 2)
    assert found.isnan().any(1).nonzero().tolist() == [[4]]
    keep = torch.arange(9) != 4
    torch.testing.assert_close(found[keep], want[keep], rtol=0.0, atol=1e-6)


def test_packing():
    for length in (2, 5, 8):
        assert parameter_count(length) == 9425 - 128 * (5 - length)
    packed = torch.arange(9425.0)
    known = split_parameters(packed, 5)
    parts = [*known.w, *known.dw, known.o, known.o_0]
    assert torch.equal(torch.cat([part.reshape(-1) for part in parts]), packed)
    known.dw.h0.zero_()
    assert int((packed == 0).sum()) == 32 + 1  # views, and the number 0
    assert [tuple(part.shape) for part in known.dw][0::2] == [(64, 4), (8, 64), (64, 8), (64, 8), (64, 8), (32, 64)]


def test_gradients():
    history, parameters = (x.requires_grad_() for x in data(3, 3, torch.float64))
    assert torch.autograd.gradcheck(lambda h: known_delta(h, parameters.detach()), history)
    (slope,) = torch.autograd.grad(known_delta(history, parameters).sum(), parameters)
    direction = torch.randn_like(parameters)
    step = 1e-6 * direction
    ends = [known_delta(history, parameters + sign * step).sum() for sign in (1, -1)]
    torch.testing.assert_close(slope @ direction, (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)
    assert not nowcast(history, parameters).requires_grad


def test_predictions_can_be_targets():
    history, parameters = data(3, 5)
    weight = torch.zeros(3, requires_grad=True)
    (weight * nowcast(history, parameters)[:, 0]).sum().backward()
    assert weight.grad.isfinite().all()


def test_opcheck_and_compile():
    history, parameters = data(6, 5)
    results = torch.library.opcheck(torch.ops.lightning_weights.nowcast.default, (history, parameters, 2, 0.3))
    assert set(results.values()) == {"SUCCESS"}
    compiled = torch.compile(lambda h: nowcast(h, parameters, 2), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(history), nowcast(history, parameters, 2))


def test_bad_input():
    history, parameters = data(6, 5)
    with pytest.raises(ValueError, match=r"parameters have shape \(9425,\) for a history of 4"):
        nowcast(history[:, :4], parameters)
    with pytest.raises(ValueError, match="2 or more weights"):
        nowcast(history[:, :1], parameters)
    with pytest.raises(ValueError, match="noise"):
        nowcast(history.bfloat16(), parameters)
    with pytest.raises(ValueError, match=r"history is \(6,\)"):
        nowcast(history[:, 0], parameters)
    with pytest.raises(ValueError, match="recursions is 0"):
        nowcast(history, parameters, 0)
    with pytest.raises(ValueError, match="leaky_slope is -1"):
        nowcast(history, parameters, leaky_slope=-1.0)
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="TRITON_INTERPRET"):
        nowcast(history, parameters)


def test_windows_hold_history_and_predictions():
    for length, recursions in ((2, 1), (5, 3), (5, 12), (30, 34)):
        block, columns, warps = pick_config(length, recursions)
        assert length + recursions <= columns <= max(16, 2 * (length + recursions))
        assert block * warps & (block * warps - 1) == columns & (columns - 1) == 0
    assert pick_config(30, 34)[1] == WIDEST


def test_the_cost_model_is_what_moves():
    history, parameters = data(500, 5)
    moved = cost(500, 5, recursions=2)
    assert moved.bytes_read == history.nbytes + parameters.nbytes
    assert moved.bytes_written == nowcast(history, parameters, 2).nbytes
    known = split_parameters(parameters, 5)
    folded = [matrix.numel() for stream in (known.w, known.dw) for matrix in eager.fold(stream)]
    ones = 2 * (5 + 4 + 2) // 2  # entries that make the numbers that are always 1
    assert sum(folded) + 64 - ones == multiplications(5)
    with Traffic() as traffic:
        nowcast_reference(history, parameters)
    composed = cost_composed(500, 5)
    joined = 4 * 500 * 64  # what the meter does not see read; the model leaves parameters out
    assert traffic.written == pytest.approx(composed.bytes_written, rel=0.01)
    assert traffic.read + joined - parameters.nbytes == pytest.approx(composed.bytes_read, rel=0.01)
    once = cost(500, 5)
    assert (
        100 * (once.bytes_read + once.bytes_written - parameters.nbytes) < composed.bytes_read + composed.bytes_written
    )
