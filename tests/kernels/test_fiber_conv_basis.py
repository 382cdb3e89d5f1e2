"""The basis in chunks on the CPU, against the same functions from PyTorch's own operators."""

import pytest
import torch
from torch.nn import functional as F

from lightning_weights.functional.ponita import kernel_basis, num_polynomial_features, polynomial_features
from lightning_weights.functional.ponita.polynomials import monomials
from lightning_weights.kernels.fiber_conv import basis

SIZES = {"few rows": (7, 2, 3), "no rows": (0, 2, 2), "one attribute": (40, 1, 4), "three": (33, 3, 3)}


@pytest.fixture(autouse=True)
def chunks_for_any_number_of_rows(monkeypatch):
    monkeypatch.setattr(basis, "FEW", -1)


def operands(rows, attributes, degree, dtype=torch.float64):
    """Attributes and parameters."""
    shapes = ((6, num_polynomial_features(attributes, degree)), (6,), (5, 6), (5,))
    parameters = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    return torch.randn(rows, attributes, dtype=dtype), parameters


def plain(attributes, parameters, *, degree):
    first, first_bias, second, second_bias = parameters
    hidden = F.gelu(F.linear(polynomial_features(attributes, degree), first, first_bias))
    return F.gelu(F.linear(hidden, second, second_bias))


def made(attributes, degree):
    factors, places = monomials(attributes.shape[-1], degree)
    return [place for pair in factors for place in pair], list(places)


@pytest.mark.parametrize("chunk", [1 << 18, 60, 1])
@pytest.mark.parametrize("name", SIZES)
def test_value_and_gradients_are_those_of_the_composition(name, chunk, monkeypatch):
    monkeypatch.setattr(basis, "CHUNK", chunk)
    *_, degree = SIZES[name]
    attributes, parameters = operands(*SIZES[name])
    found = []
    for function in (kernel_basis, plain):
        value = function(attributes, parameters, degree=degree)
        found.append([value, *torch.autograd.grad(value.sin().sum(), parameters)])
    torch.testing.assert_close(*found)


def test_narrow_numbers_stay_near():
    attributes, parameters = operands(50, 2, 3, torch.float32)
    value = kernel_basis(attributes, parameters, degree=3)
    exact = plain(attributes.double(), [parameter.double() for parameter in parameters], degree=3)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-4)


def test_different_monomials_are_all_there_are():
    for attributes, degree, count in ((2, 3, 9), (1, 4, 4), (3, 2, 9)):
        factors, places = monomials(attributes, degree)
        assert len(factors) + attributes == count == max(places) + 1
        values = torch.rand(attributes, dtype=torch.float64)
        columns = list(values)
        for left, right in factors:
            columns.append(columns[left] * columns[right])
        torch.testing.assert_close(
            torch.stack([columns[place] for place in places]), polynomial_features(values, degree)
        )


def test_opcheck():
    attributes, parameters = operands(9, 2, 2)
    given = (attributes, *(parameter.detach() for parameter in parameters))
    results = [torch.library.opcheck(basis.basis_op, (*given, *made(attributes, 2)))]
    value, *kept = basis.basis_op(*given, *made(attributes, 2))
    backward = (torch.ones_like(value), *kept, *given[1:4], made(attributes, 2)[1])
    results.append(torch.library.opcheck(basis.basis_backward_op, backward))
    assert {outcome for result in results for outcome in result.values()} == {"SUCCESS"}


def test_only_monomials_and_what_the_last_gelu_was_applied_to_are_kept():
    attributes, parameters = operands(100, 2, 3)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        value = kernel_basis(attributes, parameters, degree=3)
    leaves = attributes.numel() + sum(parameter.numel() for parameter in parameters)
    different = 9 + 1  # and a constant
    assert sum(tensor.numel() for tensor in saved) == leaves + value.numel() + 100 * different


@pytest.mark.parametrize("functional", [False, True])
def test_gradients_of_parameters_have_gradients(functional):
    attributes, parameters = operands(5, 2, 2)

    def slopes(function):
        def value(*given):
            return function(attributes, given, degree=2).square().sum()

        if functional:
            return torch.func.grad(lambda *given: torch.func.grad(value)(*given).square().sum())(*parameters)
        once = torch.autograd.grad(value(*parameters), parameters, create_graph=True)
        return torch.autograd.grad(sum(slope.square().sum() for slope in once), parameters)

    torch.testing.assert_close(slopes(kernel_basis), slopes(plain))
