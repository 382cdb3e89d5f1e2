"""The cross-entropy per sample behind a linear layer, a few rows at a time, against logits that exist as a whole."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError
from lightning_weights.kernels.weighted_cross_entropy import linear as linear_module
from lightning_weights.kernels.weighted_cross_entropy import linear_cross_entropy, weighted_cross_entropy_reference
from tests.kernels.cross_entropy_cases import IGNORED, head

WEIGHTS = torch.tensor([0.5, 1.7, 1.0])


def gradients(function: Any, tensors: list[Tensor], trained: str, labels: Tensor) -> list[Tensor]:
    """Losses, and the gradients of their weighted sum in hidden states, matrix and bias, those that are trained."""
    leaves = [t.detach().requires_grad_(name in trained) for t, name in zip(tensors, "hwb", strict=True)]
    losses = function(*leaves, labels)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [losses.detach(), *torch.autograd.grad((WEIGHTS * losses).sum(), wanted)]


def whole(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    return weighted_cross_entropy_reference(torch.nn.functional.linear(hidden, weight, bias), labels)


def chunked(chunk: int | None) -> Any:
    return lambda hidden, weight, bias, labels: linear_cross_entropy(hidden, weight, labels, bias, chunk=chunk)


@pytest.mark.parametrize("trained", ["hwb", "h", "w", "b", "hb"])
@pytest.mark.parametrize("chunk", [1, 4, 100, None])
def test_losses_and_gradients_are_those_of_whole_logits(chunk, trained):
    *tensors, labels = head(3, 5, 4, 9)
    torch.testing.assert_close(
        gradients(chunked(chunk), tensors, trained, labels), gradients(whole, tensors, trained, labels)
    )


@pytest.mark.parametrize("trained", ["hw", "h"])
def test_without_bias_and_without_ignored_labels(trained):
    *tensors, _ = head(3, 5, 4, 9)
    labels = torch.randint(9, (3, 5))
    found = gradients(lambda h, w, b, y: linear_cross_entropy(h, w, y, chunk=2), tensors, trained, labels)
    want = gradients(lambda h, w, b, y: weighted_cross_entropy_reference(h @ w.t(), y), tensors, trained, labels)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("trained", ["hwb", "h"])
def test_bf16_sums_of_the_matrix_are_in_fp32(trained):
    *tensors, labels = head(3, 40, 8, 30, torch.bfloat16)
    found = gradients(chunked(2), tensors, trained, labels)
    want = gradients(whole, [t.double() for t in tensors], trained, labels)
    assert {tensor.dtype for tensor in found[1:]} == {torch.bfloat16}
    assert found[0].dtype == torch.float32
    for got, exact in zip(found, want, strict=True):
        # logits and their gradient are rounded to 8 bits, sums over 60 chunks are not
        assert (got.double() - exact).abs().max() < 0.02 * exact.abs().max()


def test_autocast_multiplies_in_the_narrow_dtype_and_returns_wide_gradients():
    *tensors, labels = head(3, 5, 4, 9, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(chunked(4), tensors, "hwb", labels)
        want = gradients(whole, tensors, "hwb", labels)
    assert {tensor.dtype for tensor in found} == {torch.float32}
    torch.testing.assert_close(found, want, rtol=0.05, atol=0.01)
    exact = gradients(whole, tensors, "hwb", labels)
    assert not torch.equal(found[0], exact[0]), "autocast was not on"


def test_samples_packed_into_sequences():
    hidden, weight, bias, labels = head(2, 6, 4, 9)
    samples = torch.tensor([[0, 0, 2, 2, 2, 2], [1, 1, 1, -1, -1, -1]])
    found = linear_cross_entropy(hidden, weight, labels, bias, samples, 3, chunk=5)
    logits = torch.nn.functional.linear(hidden, weight, bias)
    torch.testing.assert_close(found, weighted_cross_entropy_reference(logits, labels, samples, 3))


@pytest.mark.parametrize(("trained", "times"), [("hwb", 2), ("h", 1)])
def test_logits_exist_for_a_chunk_of_rows_and_once_if_the_matrix_is_frozen(trained, times, monkeypatch):
    made = []

    def watched(*arguments: Tensor) -> Tensor:
        made.append(torch.nn.functional.linear(*arguments))
        return made[-1]

    monkeypatch.setattr(linear_module, "linear", watched)
    *tensors, labels = head(3, 64, 4, 100)
    gradients(chunked(8), tensors, trained, labels)
    predicted = int((labels != IGNORED).sum())
    assert [logits.shape[1] for logits in made] == [100] * (times * -(-predicted // 8))
    assert max(len(logits) for logits in made) == 8
    assert sum(len(logits) for logits in made) == times * predicted


def test_nothing_to_predict():
    *tensors, labels = head(3, 5, 4, 9)
    found = gradients(chunked(2), tensors, "hwb", torch.full_like(labels, IGNORED))
    assert not any(tensor.any() for tensor in found)


@pytest.mark.parametrize("trained", ["hwb", "h"])
def test_gradcheck(trained):
    *tensors, labels = head(2, 3, 4, 6)
    leaves = [t.requires_grad_(name in trained) for t, name in zip(tensors, "hwb", strict=True)]
    assert torch.autograd.gradcheck(lambda h, w, b: chunked(2)(h, w, b, labels), leaves)


def test_second_derivatives_are_refused():
    *tensors, labels = head(2, 3, 4, 6)
    leaves = [t.requires_grad_() for t in tensors]
    (first,) = torch.autograd.grad(chunked(2)(*leaves, labels).sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        first.square().sum().backward()


def test_opcheck():
    hidden, weight, bias, labels = head(2, 3, 4, 6, torch.float32)
    flat, label = hidden.view(6, 4), labels.view(6)
    ops = torch.ops.lightning_weights
    results = []
    for frozen in (False, True):
        arguments = (flat, weight, bias, label, IGNORED, 4, frozen)
        results.append(torch.library.opcheck(ops.linear_cross_entropy.default, arguments))
    losses, normalizers, _ = ops.linear_cross_entropy(flat, weight, bias, label, IGNORED, 4, False)
    arguments = (torch.ones_like(losses), normalizers, flat, weight, bias, label, IGNORED, 4)
    results.append(torch.library.opcheck(ops.linear_cross_entropy_backward.default, arguments))
    assert {value for result in results for value in result.values()} == {"SUCCESS"}


@pytest.mark.parametrize("trained", ["hwb", "h"])
def test_compiles_with_autograd_without_graph_breaks(trained):
    *tensors, labels = head(3, 5, 4, 9)
    compiled = torch.compile(chunked(4), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        gradients(compiled, tensors, trained, labels), gradients(whole, tensors, trained, labels)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, w, b, y: (h, w[:, :3], y), r"weight has shape \(9, 3\) and bias None"),
        (lambda h, w, b, y: (h, w, y, b[:4]), r"bias \(4,\).*allowed are \(V, 4\) and \(V,\)"),
        (lambda h, w, b, y: (h[0], w, y), r"hidden has shape \(5, 4\)"),
    ],
)
def test_bad_tensors(change, message):
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*change(*head(3, 5, 4, 9)))


def test_bad_chunk():
    hidden, weight, _, labels = head(3, 5, 4, 9)
    with pytest.raises(ValueError, match=r"chunk is 0; allowed is a whole number in \[1, inf\)"):
        linear_cross_entropy(hidden, weight, labels, chunk=0)


def test_sharded_matrices_are_refused():
    hidden, weight, _, labels = head(3, 5, 4, 9)
    weight.placements = ()
    with pytest.raises(ShardedParameterError, match="use weighted_cross_entropy"):
        linear_cross_entropy(hidden, weight, labels)
