"""Linear rules in the place of the network that predicts weights."""

import pytest
import torch

from lightning_weights.functional.weight_extrapolation import fit_coefficients, mean_coefficients, shrink_coefficients
from lightning_weights.modules import KNOWNBank, LinearExtrapolation, predict_overflowed

ROWS = torch.tensor([[0.1, 0.3, 0.2], [1.0, -1.0, 2.0]])


def test_a_line_goes_on():
    line = LinearExtrapolation(fit_coefficients(3, points=2))
    start, slope = torch.tensor([0.5, -1.0]), torch.tensor([0.1, 0.25])
    rows = start[:, None] + slope[:, None] * torch.arange(3.0)
    wanted = start[:, None] + slope[:, None] * torch.arange(3.0, 7.0)
    torch.testing.assert_close(line.nowcast(rows, 4), wanted)
    torch.testing.assert_close(line(rows), slope)


def test_recursions_read_their_own_predictions():
    mean = LinearExtrapolation(mean_coefficients(3))
    first = ROWS.mean(dim=1)
    second = (ROWS[:, 1] + ROWS[:, 2] + first) / 3
    torch.testing.assert_close(mean.nowcast(ROWS, 2), torch.stack([first, second], dim=1))


def test_it_serves_in_a_bank():
    """Shrinking by kind, with normalisation layers left alone."""
    parts = {"conv": 0.8, "fc": 0.93, "bias": 1.0}
    bank = KNOWNBank(**{kind: LinearExtrapolation(shrink_coefficients(2, factor)) for kind, factor in parts.items()})
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2))
    weights = network.state_dict()
    predicted = predict_overflowed([weights, weights], bank)
    factors = {"0.weight": 0.8, "2.weight": 0.93}
    for name, tensor in weights.items():
        torch.testing.assert_close(predicted[name], factors[name] * tensor if name in factors else tensor)


def test_coefficients_are_saved_and_moved():
    line = LinearExtrapolation([0.0, -1.0, 2.0])
    other = LinearExtrapolation([0.0, 0.0, 1.0])
    other.load_state_dict(line.state_dict())
    assert torch.equal(other.nowcast(ROWS.double(), 2), line.nowcast(ROWS.double(), 2))
    assert line.nowcast(ROWS.double()).dtype == torch.float64
    assert line.history == 3


@pytest.mark.parametrize("coefficients", [[1.0], [1.0, float("nan")], torch.ones(2, 2)])
def test_odd_coefficients_are_refused(coefficients):
    with pytest.raises(ValueError, match="at least two finite numbers"):
        LinearExtrapolation(coefficients)


def test_odd_histories_are_refused():
    line = LinearExtrapolation([0.0, 1.0])
    with pytest.raises(ValueError, match="recursions is 0"):
        line.nowcast(ROWS[:, :2], 0)
    with pytest.raises(ValueError, match="coefficients has the shape"):
        line(ROWS)
    with pytest.raises(ValueError, match="allowed is a history of 2"):
        line.nowcast(ROWS, 1)
