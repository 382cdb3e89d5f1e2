"""The equations of stage-wise weight sharing: which layer has whose weights, and what the auxiliary network learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_weights.errors import check_choice, check_number
from lightning_weights.kernels.distillation_loss import distillation_loss

PREFIX_TOKENS = (0, 1, 2)  # in front of the patches: none, a class token, or one for a teacher as well


def stage_map(depth: int, num_stages: int) -> list[int]:
    r"""Return which stage every layer of a descendant has its weights from.

    Every stage gets ⌊depth / S⌋ layers and the first (depth mod S) stages one more. With fewer layers than stages,
    stages are left out evenly; the first and, from two layers on, the last one stay.

    Args:
        depth: Number of layers, at least 1.
        num_stages: Number S of stages, at least 1.

    Returns:
        The stage of every layer, from 0, never decreasing.

    Raises:
        ValueError: If a number is not a whole one from 1.

    Source: Xia et al. 2024, arXiv:2404.16897, whose code has the map for 12 layers and 5 stages; the rule for other
    numbers is inferred from it.

    Examples:
        >>> stage_map(12, 5)
        [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
        >>> stage_map(3, 5)
        [0, 2, 4]
    """
    check_number("depth", depth, low=1, whole=True)
    check_number("num_stages", num_stages, low=1, whole=True)
    if depth < num_stages:
        gaps = max(1, depth - 1)
        return [(2 * layer * (num_stages - 1) + gaps) // (2 * gaps) for layer in range(depth)]
    each, more = divmod(depth, num_stages)
    return stages_of_layers([each + (stage < more) for stage in range(num_stages)])


def stages_of_layers(repeats: Sequence[int]) -> list[int]:
    """Return which stage every layer of an auxiliary network belongs to.

    Args:
        repeats: How often every stage is applied in a row, at least once each.

    Returns:
        The stage of every layer, from 0.

    Raises:
        ValueError: If there is no stage, or one that is not applied.

    Examples:
        >>> stages_of_layers([2, 1, 2])
        [0, 0, 1, 2, 2]
    """
    if isinstance(repeats, str) or not isinstance(repeats, Sequence) or not repeats:
        raise ValueError(f"repeats is {repeats!r}; allowed is a list with a number of layers for every stage")
    for stage, count in enumerate(repeats):
        check_number(f"repeats[{stage}]", count, low=1, whole=True)
    return [stage for stage, count in enumerate(repeats) for _ in range(count)]


def check_repeats(repeats: Sequence[int], depth: int) -> list[int]:
    """Check that stages make up a number of layers.

    Args:
        repeats: How often every stage is applied in a row.
        depth: Number of layers.

    Returns:
        The repeats, as a plain list.

    Raises:
        ValueError: If they do not, there is no stage, or one that is not applied.

    Examples:
        >>> check_repeats((2, 1, 2), 5)
        [2, 1, 2]
    """
    layers = len(stages_of_layers(repeats))
    if layers != depth:
        raise ValueError(
            f"repeats is {list(repeats)}, which makes {layers} layers, but there are {depth}; allowed are numbers with "
            f"the sum {depth}"
        )
    return [int(count) for count in repeats]


def sws_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    kind: Literal["soft", "hard"] = "soft",
    alpha: float = 1.0,
    tau: float = 1.0,
    reduction: Literal["numel", "batch"] = "numel",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Mix what labels say with what a teacher says.

    $$L = (1 - \alpha) \operatorname{CE}(z, y) + \alpha L_\text{KD}, \qquad
    L_\text{soft} = \frac{\tau^2}{B C} \sum_{b,c} p_{bc} (\log p_{bc} - \log q_{bc}), \quad
    L_\text{hard} = \operatorname{CE}(z, \operatorname{argmax} z_T)$$

    with p = softmax(z_T / τ) of the teacher and q = softmax(z / τ). Soft distillation is one fused pass over the
    logits, together with the cross-entropy if that has plain labels. The arithmetic is in fp32 or wider, also under
    autocast, and gradients flow to the student alone.

    Args:
        logits: Student's logits z of shape (B, C).
        teacher_logits: Teacher's logits z_T of the same shape, for the very same inputs.
        targets: Labels of shape (B,), int64, or probabilities of shape (B, C), as mixed images have.
        kind: ``soft`` or ``hard``.
        alpha: α in [0, 1]. With 0 this is the cross-entropy, bit for bit; with 1 targets do not matter.
        tau: Temperature τ > 0 of soft distillation.
        reduction: Whether soft distillation is divided by the number of logits (``numel``, as in the authors' code), or
            by that of rows (``batch``), which is C times as much.
        label_smoothing: What labels give up to all classes, at least 0 and below 1. Probabilities stay as they are.

    Returns:
        The loss, a 0-d tensor.

    Raises:
        ValueError: If an argument is not allowed, or teacher and student differ in shape.

    Source: Xia et al. 2024, arXiv:2404.16897.

    Examples:
        >>> student = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
        >>> round(sws_loss(student, student.flip(1), torch.tensor([1, 0]), tau=1.0, reduction="batch").item(), 4)
        0.9927
        >>> abs(sws_loss(student, student + 3.0, torch.tensor([1, 0])).item()) < 1e-6
        True
    """
    check_choice("kind", kind, ("soft", "hard"))
    check_choice("reduction", reduction, ("numel", "batch"))
    check_alpha(alpha)
    check_number("tau", tau, low=0.0, low_allowed=False)
    check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)
    if alpha > 0.0 and (logits.shape != teacher_logits.shape or logits.ndim != 2):
        raise ValueError(
            f"logits has shape {tuple(logits.shape)} and teacher_logits {tuple(teacher_logits.shape)}; allowed are two "
            f"of the same shape (B, C): the teacher has to know the student's classes, in the same order"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    mixed = targets.is_floating_point()
    fused = kind == "soft" and 0.0 < alpha < 1.0 and not mixed and label_smoothing == 0.0
    scale = tau**2 / (logits.shape[1] if reduction == "numel" else 1)
    soft = partial(distillation_loss, logits, teacher_logits, temperature=tau, kd_scale=scale, relative=True)
    if fused:
        return soft(targets, weight=alpha)
    taught = logits.new_zeros(())
    if alpha > 0.0 and kind == "soft":
        taught = soft(torch.zeros(len(logits), dtype=torch.int64, device=logits.device), weight=1.0)
    elif alpha > 0.0:
        taught = F.cross_entropy(logits, teacher_logits.detach().argmax(dim=1))
    if alpha == 1.0:
        return taught
    base = F.cross_entropy(logits, targets, label_smoothing=0.0 if mixed else label_smoothing)
    return base if alpha == 0.0 else (1.0 - alpha) * base + alpha * taught


def check_alpha(alpha: float) -> None:
    """Check that α is a number in [0, 1].

    Args:
        alpha: What was given.

    Raises:
        ValueError: If it is not.

    Examples:
        >>> check_alpha(1.0)
    """
    check_number("alpha", alpha, low=0.0)
    if alpha > 1.0:
        raise ValueError(f"alpha is {alpha}; allowed is a number in [0, 1]")


def resize_positions(positions: Tensor, tokens: int) -> Tensor:
    """Stretch position embeddings of a square of patches to another square, bicubically.

    Tokens in front of the patches, up to two, keep theirs.

    Args:
        positions: Embeddings of shape (1, N, D).
        tokens: Number of tokens that are wanted, with those in front.

    Returns:
        Embeddings of shape (1, tokens, D).

    Raises:
        ValueError: If the patches are no square here or there.

    Examples:
        >>> resize_positions(torch.ones(1, 17, 4), 65).shape
        torch.Size([1, 65, 4])
    """
    for prefix in PREFIX_TOKENS:
        sides = [math.isqrt(max(0, count - prefix)) for count in (positions.shape[1], tokens)]
        if all(side > 0 and side**2 + prefix == n for side, n in zip(sides, (positions.shape[1], tokens), strict=True)):
            break
    else:
        raise ValueError(
            f"positions has {positions.shape[1]} tokens and {tokens} are wanted; allowed are squares of patches with "
            f"the same number of tokens, at most {PREFIX_TOKENS[-1]}, in front"
        )
    front, grid = positions[:, :prefix], positions[:, prefix:]
    grid = grid.transpose(1, 2).unflatten(2, (sides[0], sides[0]))
    wide = grid.to(torch.promote_types(grid.dtype, torch.float32))  # there is no bicubic kernel for half precision
    resized = F.interpolate(wide, size=(sides[1], sides[1]), mode="bicubic", align_corners=False)
    return torch.cat([front, resized.to(positions.dtype).flatten(2).transpose(1, 2)], dim=1)
