"""Cross-entropy per sample, whose gradient is weighted while it is written, without wide copies of the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError, check_number
from lightning_weights.kernels.weighted_cross_entropy.linear import LinearRowLosses
from lightning_weights.kernels.weighted_cross_entropy.reference import token_means, weighted_cross_entropy_reference
from lightning_weights.kernels.weighted_cross_entropy.rows import KeptRowLosses, RowLosses, keeps

__all__ = ["linear_cross_entropy", "weighted_cross_entropy", "weighted_cross_entropy_reference"]

CHUNK = 1 << 23  # logits that exist at a time behind hidden states: 32 MiB in fp32


def weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    samples: Tensor | None = None,
    num_samples: int | None = None,
    *,
    ignore_index: int = -100,
) -> Tensor:
    r"""Return the cross-entropy of every sample, averaged over its labels.

    $$\ell_i = \frac{1}{T_i} \sum_t -\log \mathrm{softmax}(z_{it})_{y_{it}}, \qquad
    \frac{\partial}{\partial z_{it}} \sum_i w_i \ell_i
    = \frac{w_i}{T_i} \bigl(\mathrm{softmax}(z_{it}) - e_{y_{it}}\bigr)$$

    Weights are chosen when the losses are known: multiply the result by them. The backward pass reads the logits again
    and writes the gradient with its weights, rounded once. On CPUs, where powers cost more than memory traffic, the
    forward pass writes the gradient of every loss, and the backward pass weights it in place; bf16 is then rounded
    twice. Logits are read in their own dtype; the arithmetic is in fp32 or wider, also under autocast. Of tokens whose
    label doesn't count no logit is read.

    Args:
        logits: Logits z of shape (B, ..., V).
        labels: Labels y of shape (B, ...), int64, from 0 to V-1, or ``ignore_index``; not shifted against the logits.
        samples: Which sample each label belongs to, from 0 to ``num_samples`` - 1, of the labels' shape, for sequences
            into which several are packed; ``None``: the first dimension counts them.
        num_samples: How many samples there are, if ``samples`` is given.
        ignore_index: Label of what is not predicted.

    Returns:
        One loss per sample in fp32, or in fp64 for fp64 logits; 0 for a sample without labels. It can be
        differentiated once.

    Raises:
        ValueError: If shapes or dtypes do not fit, or, on the CPU, a label is out of range.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: the loss of Tian et al. 2026, arXiv:2601.04992.

    Examples:
        >>> logits = torch.zeros(2, 3, 4, requires_grad=True)
        >>> losses = weighted_cross_entropy(logits, torch.tensor([[0, 1, -100], [2, -100, -100]]))
        >>> losses
        tensor([1.3863, 1.3863], grad_fn=<DivBackward0>)
        >>> (losses * torch.tensor([1.0, 0.5])).sum().backward()
        >>> logits.grad[1, 0]
        tensor([ 0.1250,  0.1250, -0.3750,  0.1250])
    """
    _check(logits, "logits", labels, samples, num_samples)
    flat = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index
    if keeps(logits):
        losses = KeptRowLosses.apply(*flat)  # type: ignore[no-untyped-call]
    else:
        losses, _ = RowLosses.apply(*flat)  # type: ignore[no-untyped-call]
    return token_means(losses.view(labels.shape), labels != ignore_index, samples, num_samples)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    samples: Tensor | None = None,
    num_samples: int | None = None,
    *,
    ignore_index: int = -100,
    chunk: int | None = None,
) -> Tensor:
    r"""Return the cross-entropy of every sample behind a linear layer, whose output never exists as a whole.

    It is `weighted_cross_entropy(hidden @ weight.T + bias, ...)`, a few rows at a time. Logits are computed twice, in
    the forward and in the backward pass; only once if neither weight nor bias requires a gradient, in which case that
    of the hidden states is kept until it is weighted. Under autocast the product is in the narrow dtype.

    Args:
        hidden: Hidden states of shape (B, ..., H).
        weight: Matrix of shape (V, H).
        labels: As for `weighted_cross_entropy`.
        bias: Vector of shape (V,).
        samples: As for `weighted_cross_entropy`.
        num_samples: As for `weighted_cross_entropy`.
        ignore_index: Label of what is not predicted.
        chunk: Rows whose logits exist at a time; ``None``: as many as make some 8 million logits.

    Returns:
        One loss per sample, as from `weighted_cross_entropy`.

    Raises:
        ValueError: If shapes or dtypes do not fit, or, on the CPU, a label is out of range.
        ShardedParameterError: If the matrix is sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Examples:
        >>> hidden, weight = torch.ones(2, 3, 8), torch.zeros(4, 8)
        >>> linear_cross_entropy(hidden, weight, torch.tensor([[0, 1, -100], [2, -100, -100]]))
        tensor([1.3863, 1.3863])
    """
    if hasattr(weight, "placements"):
        raise ShardedParameterError(
            "weight is sharded (a DTensor), and a whole matrix is needed: use weighted_cross_entropy on the output of "
            "the layer, which gathers it"
        )
    _check(hidden, "hidden", labels, samples, num_samples)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1] or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and bias {None if bias is None else tuple(bias.shape)} for hidden "
            f"states of shape {tuple(hidden.shape)}; allowed are (V, {hidden.shape[-1]}) and (V,)"
        )
    if chunk is not None:
        check_number("chunk", chunk, low=1, whole=True)
    if torch.is_autocast_enabled(hidden.device.type):
        narrow = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(narrow), weight.to(narrow), None if bias is None else bias.to(narrow)
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    options = (ignore_index, chunk or max(1, CHUNK // len(weight)), frozen and hidden.requires_grad)
    losses, *_ = LinearRowLosses.apply(  # type: ignore[no-untyped-call]
        hidden.reshape(-1, hidden.shape[-1]), weight, bias, labels.reshape(-1), options
    )
    return token_means(losses.view(labels.shape), labels != ignore_index, samples, num_samples)


def _check(scores: Tensor, name: str, labels: Tensor, samples: Tensor | None, num_samples: int | None) -> None:
    if scores.ndim < 2 or labels.shape != scores.shape[:-1]:
        raise ValueError(
            f"{name} has shape {tuple(scores.shape)} and labels {tuple(labels.shape)}; allowed are (B, ..., size) and "
            f"(B, ...)"
        )
    if labels.dtype != torch.int64 or not scores.is_floating_point():
        raise ValueError(
            f"{name} is {scores.dtype} and labels {labels.dtype}; allowed are floating point and int64 labels"
        )
    if (samples is None) != (num_samples is None):
        raise ValueError(
            f"samples and num_samples belong together, and num_samples is {num_samples}; give both or none"
        )
    if samples is not None and (samples.shape != labels.shape or samples.is_floating_point()):
        raise ValueError(
            f"samples is {samples.dtype} of shape {tuple(samples.shape)}; allowed are whole numbers of the labels' "
            f"shape, {tuple(labels.shape)}"
        )
