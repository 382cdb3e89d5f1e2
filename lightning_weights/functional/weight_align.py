"""The equations of Weight Aligning: fair norms, the weight of distillation, and which exemplars to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError, check_number

NORM_FLOOR = 1e-8  # added to the norm that features are divided by
TIE = 1e-12  # distances of normalised features that differ by less do so because of rounding
FLOAT64_NOISE = 1e-13  # relative error of a mean of norms that is itself computed in float64


@torch.no_grad()
def align_weights(weight: Tensor, num_old: int) -> tuple[Tensor, float]:
    r"""Scale the classifier rows of the new classes so that their mean norm is that of the old rows.

    $$\gamma = \frac{\mathrm{mean}_{k < C_o} \lVert w_k \rVert_2}{\mathrm{mean}_{k \ge C_o} \lVert w_k \rVert_2}, \quad
    w_k \leftarrow \gamma\, w_k \;\; (k \ge C_o)$$

    Norms and products are taken in float64. A γ that differs from 1 by at most the spacing of the weight's dtype at 1
    is rounding and counts as 1, so that aligning a second time changes no bit.

    Args:
        weight: Classifier weight of shape (C, D), old classes first. It's left as it is.
        num_old: Number C_o of old classes, from 1 to C-1.

    Returns:
        The aligned weight, whose old rows have the bits they had, and the γ that the new rows were multiplied by.

    Raises:
        ValueError: If nothing can be aligned: no old or no new rows, rows that are all zero, NaN or infinity.
        ShardedParameterError: If the weight is sharded: the means need all rows.

    Source: Zhao et al. 2020, arXiv:1911.07053.

    Examples:
        >>> aligned, gamma = align_weights(torch.tensor([[3.0, 4.0], [0.0, 10.0]]), num_old=1)
        >>> aligned.tolist(), gamma
        ([[3.0, 4.0], [0.0, 5.0]], 0.5)
    """
    if hasattr(weight, "placements"):
        raise ShardedParameterError(
            "aligning needs the whole classifier weight, but it is sharded; gather it first, or leave the classifier "
            "out of FSDP"
        )
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and dtype {weight.dtype}; allowed is a floating-point (C, D) "
            f"matrix with one row per class, like that of nn.Linear"
        )
    if not 0 < num_old < len(weight):
        raise ValueError(
            f"num_old is {num_old} with {len(weight)} classes: nothing to align; allowed are 1 to {len(weight) - 1}"
        )
    old, new = mean_norms(weight, num_old)
    for which, norm, rows in (("old", old, f"0 to {num_old - 1}"), ("new", new, f"{num_old} to {len(weight) - 1}")):
        if not 0.0 < norm < float("inf"):
            raise ValueError(
                f"the rows of weight for the {which} classes, {rows}, have a mean norm of {norm}, so that they "
                f"can't be aligned; too high a learning rate kills a classifier, above all with clipping: lower it"
            )
    gamma = old / new
    aligned = weight.detach().clone()
    if abs(gamma - 1.0) <= max(torch.finfo(weight.dtype).eps, FLOAT64_NOISE):
        return aligned, 1.0
    aligned[num_old:] = (aligned[num_old:].double() * gamma).to(weight.dtype)
    return aligned, gamma


@torch.no_grad()
def mean_norms(weight: Tensor, num_old: int) -> tuple[float, float]:
    """Return the mean norm of the classifier rows of the old classes and that of the new ones, taken in float64.

    Args:
        weight: Classifier weight of shape (C, D), old classes first.
        num_old: Number of old classes, from 1 to C-1.

    Returns:
        The two means, that of the old classes first; γ is their quotient.

    Source: Zhao et al. 2020, arXiv:1911.07053.

    Examples:
        >>> mean_norms(torch.tensor([[3.0, 4.0], [0.0, 10.0]]), num_old=1)
        (5.0, 10.0)
    """
    norms = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float64)
    return norms[:num_old].mean().item(), norms[num_old:].mean().item()


def distillation_weight(num_old: int, num_classes: int) -> float:
    """Return λ = C_o / C, the share of old classes, by which the loss weighs distillation against cross-entropy.

    Args:
        num_old: Number C_o of classes that the teacher knows; 0 in the first step.
        num_classes: Number C ≥ 1 of classes after the step.

    Returns:
        The weight, from 0 to below 1.

    Raises:
        ValueError: If the step adds no class, or a number is negative.

    Source: Zhao et al. 2020, arXiv:1911.07053.

    Examples:
        >>> distillation_weight(0, 20), distillation_weight(20, 40), distillation_weight(80, 100)
        (0.0, 0.5, 0.8)
    """
    check_number("num_classes", num_classes, low=1, whole=True)
    check_number("num_old", num_old, low=0, high=num_classes, whole=True)
    return num_old / num_classes


def class_quota(size: int, num_classes: int) -> int:
    """Return how many exemplars of each class a memory of a fixed size holds: ⌊K / C⌋.

    Args:
        size: Budget K of the memory, over all classes.
        num_classes: Number C ≥ 1 of classes that share it.

    Returns:
        The quota, at least 1.

    Raises:
        ValueError: If there are more classes than places.

    Source: Rebuffi et al. 2017 (iCaRL), arXiv:1611.07725.

    Examples:
        >>> class_quota(2000, 60)
        33
    """
    check_number("num_classes", num_classes, low=1, whole=True)
    check_number("size", size, low=0, whole=True)
    if size < num_classes:
        raise ValueError(
            f"size is {size} with {num_classes} classes: no exemplar per class; allowed is a size of at least the "
            f"number of classes"
        )
    return size // num_classes


@torch.no_grad()
def herd(features: Tensor, m: int) -> Tensor:
    r"""Choose the m samples of a class whose running mean stays closest to the class's mean.

    $$i_t = \arg\min_{i \notin \{i_1, \dots, i_{t-1}\}} \Bigl\lVert \mu - \tfrac{1}{t}
    \bigl(f_i + \textstyle\sum_{s<t} f_{i_s}\bigr) \Bigr\rVert_2, \quad
    f_i \leftarrow \frac{f_i}{\lVert f_i \rVert_2 + 10^{-8}}, \; \mu = \mathrm{mean}_i f_i$$

    The choice is greedy: for a smaller m it is the beginning of that for a larger one. It happens on the CPU in
    float64, so that it depends on the features alone.

    Args:
        features: Features of shape (n, D) of all samples of one class, not normalised.
        m: Number of samples to choose, at least 0.

    Returns:
        Indices of min(m, n) samples in the order of their choice, int64 on the CPU. Ties, to within rounding, go to the
        lowest index.

    Raises:
        ValueError: If features aren't a matrix or hold NaN or infinity.

    Source: Rebuffi et al. 2017 (iCaRL), arXiv:1611.07725.

    Examples:
        >>> herd(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), 2).tolist()
        [1, 0]
    """
    check_number("m", m, low=0, whole=True)
    vectors = _normalized(features)
    target = vectors.mean(dim=0)
    missing = torch.zeros_like(target)  # t·μ minus the sum of what is chosen: the best next vector is the nearest to it
    used = torch.zeros(len(vectors), dtype=torch.float64)
    chosen, difference = [], torch.empty_like(vectors)
    for _ in range(min(m, len(vectors))):
        missing += target
        torch.sub(vectors, missing, out=difference)
        distances = torch.linalg.vector_norm(difference, dim=1).add_(used)
        best = int((distances <= distances.min() + TIE).byte().argmax())  # the first of them
        chosen.append(best)
        used[best] = torch.inf
        missing -= vectors[best]
    return torch.tensor(chosen, dtype=torch.int64)


@torch.no_grad()
def class_mean(features: Tensor) -> Tensor:
    """Return the direction of a class: the mean of its normalised exemplars, normalised again.

    Args:
        features: Features of shape (n, D) of the exemplars of one class, n ≥ 1, not normalised.

    Returns:
        The mean of shape (D,), in float64 on the CPU, ready for [`nearest_mean`][].

    Raises:
        ValueError: If features aren't a matrix with at least one row, or hold NaN or infinity.

    Source: Rebuffi et al. 2017 (iCaRL), arXiv:1611.07725.

    Examples:
        >>> class_mean(torch.tensor([[3.0, 0.0], [5.0, 0.0]])).tolist()
        [0.99999999..., 0.0]
    """
    vectors = _normalized(features)
    if len(vectors) == 0:
        raise ValueError("features has no rows; a class needs at least one exemplar to have a mean")
    return _normalized(vectors.mean(dim=0, keepdim=True))[0]


@torch.no_grad()
def nearest_mean(features: Tensor, means: Tensor) -> Tensor:
    r"""Classify by the nearest class mean.

    $$\hat y = \arg\min_k \Bigl\lVert \frac{f}{\lVert f \rVert_2 + 10^{-8}} - \mu_k \Bigr\rVert_2$$

    Args:
        features: Features of shape (N, D), not normalised.
        means: Class means of shape (C, D), as [`class_mean`][] returns them.

    Returns:
        Classes of shape (N,), int64 on the features' device. Ties go to the lowest class.

    Raises:
        ValueError: If shapes don't fit or features hold NaN or infinity.

    Source: Rebuffi et al. 2017 (iCaRL), arXiv:1611.07725.

    Examples:
        >>> means = torch.stack([class_mean(torch.tensor([[1.0, 0.0]])), class_mean(torch.tensor([[0.0, 1.0]]))])
        >>> nearest_mean(torch.tensor([[0.1, 7.0], [7.0, 0.1]]), means).tolist()
        [1, 0]
    """
    if means.ndim != 2 or features.shape[-1:] != means.shape[-1:] or len(means) == 0:
        raise ValueError(
            f"means has shape {tuple(means.shape)} and features {tuple(features.shape)}; allowed are (C, D) and "
            f"(N, D), C ≥ 1"
        )
    vectors = _normalized(features)
    # Computed directly: the products that cdist takes for speed lose half of the digits.
    distances = torch.cdist(vectors, means.to(vectors), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.argmin(dim=1).to(features.device)


def _normalized(features: Tensor) -> Tensor:
    """Return the features with norms of about 1, in float64 on the CPU."""
    if features.ndim != 2:
        raise ValueError(f"features has shape {tuple(features.shape)}; allowed is (n, D), one row per sample")
    wide = features.detach().cpu().double()
    if not wide.isfinite().all():
        raise ValueError("features holds NaN or infinity; allowed are finite numbers: has the training diverged?")
    norms: Tensor = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return wide / (norms + NORM_FLOOR)
