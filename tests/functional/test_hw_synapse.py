"""Programming pairs, signals of few bits, fits and tables."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_weights.functional.hw_synapse import (
    clipped_share,
    default_scale,
    fit_curve,
    quantize_errors,
    quantize_inputs,
    read_table,
    target_states,
)
from lightning_weights.kernels.pulse_update import MODES, read_out, rise

FEW = [-1.0, -0.2, 0.0, 0.1, 0.7, 1.0]


@pytest.mark.parametrize("mode", MODES)
@given(weight=st.floats(-3.0, 3.0), w_scale=st.floats(0.5, 4.0), base=st.floats(0.0, 0.5))
def test_programmed_states_read_out_to_the_weights(mode, weight, w_scale, base):
    values = torch.tensor([weight], dtype=torch.float64)
    states = target_states(values, w_scale, mode, base)
    limit = w_scale * (0.5 if mode == "single" else 1.0)
    assert all(0.0 <= x.item() <= 1.0 for x in states)
    torch.testing.assert_close(read_out(states, (), w_scale), values.clamp(-limit, limit), rtol=1e-12, atol=1e-12)
    assert clipped_share(values, w_scale, mode) == float(abs(weight) > limit)


def test_where_pairs_start():
    weight = torch.tensor([0.3, -0.3], dtype=torch.float64)
    up, down, both = (
        target_states(weight, 1.0, mode, base) for mode, base in zip(MODES, (0.1, 0.1, 0.5), strict=False)
    )
    assert [x.tolist() for x in up] == [pytest.approx([0.4, 0.1]), pytest.approx([0.1, 0.4])]
    assert [x.tolist() for x in down] == [pytest.approx([0.9, 0.6]), pytest.approx([0.6, 0.9])]
    assert [x.tolist() for x in both] == [pytest.approx([0.8, 0.5]), pytest.approx([0.5, 0.8])]


def test_default_scale_is_the_rule_of_thumb():
    assert default_scale(64) == pytest.approx(3 * (2 / 64) ** 0.5 * 2.5)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_signals_have_few_values_and_gradients_pass(bits):
    x = torch.tensor(FEW, requires_grad=True)
    y = quantize_inputs(x, bits)
    step = 1.0 / (2 ** (bits - 1) - 1)
    assert ((y / step - (y / step).round()).abs() < 1e-5).all()
    assert ((y - x).abs() <= step / 2 + 1e-6).all()
    y.backward(torch.tensor(FEW))
    assert torch.equal(x.grad, torch.tensor(FEW))
    z = torch.tensor(FEW, requires_grad=True)
    out = quantize_errors(z, bits)
    assert torch.equal(out, z)
    out.backward(torch.tensor(FEW))
    assert torch.equal(z.grad, y.detach())


def test_signals_without_any_size():
    x = torch.zeros(3, requires_grad=True)
    quantize_errors(quantize_inputs(x, 4), 4).backward(torch.zeros(3))
    assert torch.equal(x.grad, torch.zeros(3))
    assert quantize_inputs(torch.zeros(0, 3), 4).shape == (0, 3)


@pytest.mark.parametrize("kind", ["soft", "exp"])
@pytest.mark.parametrize("nu", [0.3, 2.0, 7.0])
def test_fits_find_what_made_a_curve(kind, nu):
    n = torch.arange(65, dtype=torch.float64)
    curve = 1.5 + 4.0 * rise(torch.zeros_like(n), n, kind, nu, 64)
    fit = fit_curve(n, curve, kind)
    assert (fit.nu, fit.g_start, fit.g_end) == pytest.approx((nu, 1.5, 5.5), rel=1e-5)
    assert (fit.n_states, fit.error) == (64, pytest.approx(0, abs=1e-7))
    noisy = fit_curve(n, curve + 0.04 * torch.randn(65, dtype=torch.float64), kind)
    assert noisy.nu == pytest.approx(nu, rel=0.25)
    assert noisy.error == pytest.approx(0.01, rel=0.5)
    down = fit_curve(n, 7.0 - curve, kind)
    assert (down.nu, down.g_start, down.g_end) == pytest.approx((nu, 5.5, 1.5), rel=1e-5)


def test_fits_of_lines_and_of_too_little():
    assert fit_curve([0, 1, 2, 4], [1.0, 2.0, 3.0, 5.0], "linear")[:4] == pytest.approx((0.0, 1.0, 5.0, 4))
    with pytest.raises(ValueError, match="from 4"):
        fit_curve([0, 1, 2], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="n has to ascend"):
        fit_curve([0, 2, 1, 3], [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match="kind is 'table'"):
        fit_curve([0, 1, 2, 3], [1.0, 2.0, 3.0, 4.0], "table")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n,ltp,ltd\n0,1,3\n1,2,2\n2,2,1\n", r"not monotone: ltp goes from 2 to 2 in row 3"),
        ("n,ltp,ltd\n0,1,3\n1,2,3.5\n2,4,1\n", r"not monotone: ltd goes from 3 to 3.5 in row 2"),
        ("n,ltp,ltd\n0,1,3\n0,2,2\n", r"not monotone: n goes from 0 to 0 in row 2"),
        ("n,ltp,ltd\n0,1,3\n", r"has 1 rows"),
        ("n,ltp\n0,1\n1,2\n", r"column 'ltd'"),
        ("n,ltp,ltd\n0,1,3\n1,two,1\n", r"column 'ltp'.*two"),
    ],
)
def test_bad_tables_are_told_row_by_row(text, message, tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(path)
