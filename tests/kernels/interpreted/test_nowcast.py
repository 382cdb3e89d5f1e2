"""The kernel of KNOWN's predictions in Triton's interpreter, against numpy in float64."""

import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.nowcast import nowcast
from tests.kernels.buffers import guarded, strided
from tests.kernels.nowcast_cases import data, oracle


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


@pytest.mark.parametrize(("count", "length", "recursions"), [(70, 2, 1), (0, 5, 3), (1, 5, 3), (64, 4, 2), (3, 14, 3)])
def test_predictions(count, length, recursions):
    history, parameters = data(count, length)
    found = nowcast(history, parameters, recursions)
    assert found.shape == (count, recursions)
    torch.testing.assert_close(found.double(), oracle(history, parameters, recursions), rtol=0.0, atol=2e-6)


def test_small_deltas_keep_their_digits():
    history, parameters = data(64, 5)
    history.mul_(1e-3)
    parameters[-65:] *= 1e-4
    deltas = nowcast(history, parameters) - history[:, -1:]
    want = oracle(history, parameters, 1) - history[:, -1:].double()
    assert want.abs().max() < 1e-3
    torch.testing.assert_close(deltas.double(), want, rtol=1e-4, atol=1e-9)


@pytest.mark.filterwarnings("ignore:overflow")  # in branches of tl.where that are not taken
def test_exponents_are_bounded_and_nan_stays_where_it_is():
    history, parameters = data(64, 5)
    history.mul_(30.0)
    want = oracle(history, parameters, 1)
    found = nowcast(history, parameters)
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), want, rtol=0.0, atol=1e-3)
    history[3, 0] = torch.nan
    assert nowcast(history, parameters, 2).isnan().any(1).nonzero().tolist() == [[3]]


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
def test_nothing_outside_is_read(shift):
    tensors = data(70, 5)
    copies, clean = guarded(tensors, shift)
    found = nowcast(*copies)
    assert clean()
    want = oracle(*tensors, 1)
    torch.testing.assert_close(found.double(), want, rtol=0.0, atol=2e-6)
    torch.testing.assert_close(nowcast(strided(copies[0]), copies[1]).double(), want, rtol=0.0, atol=2e-6)


def test_opcheck_and_refusals():
    history, parameters = data(6, 5)
    results = torch.library.opcheck(torch.ops.lightning_weights.nowcast.default, (history, parameters, 2, 0.3))
    assert set(results.values()) == {"SUCCESS"}
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        nowcast(history.double(), parameters)
    with pytest.raises(KernelUnavailableError, match="65 columns; the Triton kernel holds up to 64"):
        nowcast(history, parameters, 60)
    with use_kernels("auto"):
        assert nowcast(history, parameters, 60).shape == (6, 60)
