"""Penalties that prepare weights for pruning: the transformed sparse constraint and the condition-number constraint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError, check_choice, check_number
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.kernels.transformed_l1 import transformed_l1 as filter_energies

MODES = ("logdet", "released", "amgm")
CLASSES_WITHOUT_GRADIENT = 20  # at its initialisation, a head of so many has no gradient left in mode "released"


def transformed_l1(x: Tensor, a: float) -> Tensor:
    r"""Map every element by the transformed absolute value, between |x| (large a) and [x ≠ 0] (small a).

    $$\rho_a(x) = \frac{(a + 1)|x|}{a + |x|}$$

    Args:
        x: Any tensor.
        a: Shape a > 0; values saturate at a + 1.

    Returns:
        Values in [0, a + 1), of the shape of ``x``.

    Raises:
        ValueError: If ``a`` is not positive.

    Source: Feng et al. 2025, arXiv:2503.20454. With the sign of the released code it would be (a + 1)x / (a - x).

    Examples:
        >>> transformed_l1(torch.tensor([0.0, 1.0, -3.0]), a=1.0)
        tensor([0.0000, 1.0000, 1.5000])
    """
    check_number("a", a, low=0.0, low_allowed=False)
    size = x.abs()
    return (a + 1.0) * size / (a + size)


def tsc_penalty(
    gated: Sequence[tuple[Tensor, Tensor]],
    plain: Sequence[Tensor],
    norms: Sequence[Tensor],
    *,
    num_samples: int,
    weight_decay: float = 5e-4,
    l0: float = 1e-3,
    a: float = 100.0,
    weight: float = 1.0,
    droprate: float = 0.3,
    released_sign: bool = False,
) -> Tensor:
    r"""Return the transformed sparse constraint (TSC) on all parameters of a network.

    $$R = \frac{\lambda}{N}\Bigl[\sum_j \rho_a\Bigl(\pi_j
    \Bigl(\frac{N\omega}{2(1 - p)} \|W_j\|^2 + \lambda_0 n_j\Bigr)\Bigr)
    + \sum_W \frac{N\omega}{2} \|W\|^2\Bigr] + \sum_{BN} \frac{\omega}{2} \|\cdot\|^2$$

    Args:
        gated: Pairs of a gated weight, of shape (filters, ...), and the probabilities π of its filters to be kept.
        plain: Weights and biases without gates: they get plain weight decay.
        norms: Weights and biases of normalisation layers: weight decay that ``weight`` does not scale.
        num_samples: Number N of training samples.
        weight_decay: ω ≥ 0; the optimizer should have none of its own.
        l0: λ0 ≥ 0, the price of a weight that is probably kept.
        a: Shape a > 0 of the transformed ℓ1.
        weight: λ ≥ 0.
        droprate: p in [0, 1), the initial drop rate, by which gated weights are decayed more.
        released_sign: Use (a + 1)s / (a - s) of the released code instead of ρ.

    Returns:
        The penalty, a scalar in fp32 or wider.

    Raises:
        ValueError: If a number is out of range, no tensor is given, or, with ``released_sign``, an energy reaches a.

    Source: Feng et al. 2025, arXiv:2503.20454; released code. The factor 1 / (1 - p) is fixed to p = 0.3 there.

    Examples:
        >>> tsc_penalty([], [torch.ones(4)], [], num_samples=100, weight_decay=0.5)
        tensor(1.)
    """
    check_number("num_samples", num_samples, low=1, whole=True)
    for name, value in (("weight_decay", weight_decay), ("l0", l0), ("weight", weight)):
        check_number(name, value, low=0.0)
    check_number("droprate", droprate, low=0.0, high=1.0)
    if not (gated or plain or norms):
        raise ValueError("gated, plain and norms are empty; allowed are lists with at least one tensor in all")
    precision = num_samples * weight_decay / (1.0 - droprate)
    energies = [
        filter_energies(tensor, keep, precision=precision, l0=l0, a=a, released=released_sign).sum()
        for tensor, keep in gated
    ]
    # λ/N · ½Nω‖W‖² without the detour through N
    terms = [weight / num_samples * energy for energy in energies]
    terms += [0.5 * weight_decay * weight * _square(tensor) for tensor in plain]
    terms += [0.5 * weight_decay * _square(tensor) for tensor in norms]
    return torch.stack(terms).sum()


def _square(tensor: Tensor) -> Tensor:
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(wide).square().sum()


def condition_penalty(weight: Tensor, mode: str = "logdet", eps: float = 1e-5, normalize: bool = True) -> Tensor:
    r"""Penalise a weight matrix whose singular values are spread, through its Gram matrix of the smaller side.

    With $G = W^\top W / n$ for W of n columns and at least as many rows (or the transpose), the modes are

    $$\Bigl(\frac{\log\det G}{n}\Bigr)^2, \qquad \bigl(\log(\epsilon + \det G)\bigr)^2, \qquad
    \log\frac{\operatorname{tr} G}{n} - \frac{\log\det G}{n}$$

    ``logdet`` and ``released`` pull det G to 1; with a penalty on ‖W‖ beside them, the condition number goes to 1.
    ``amgm`` does that alone, at any scale. All are computed in fp32 or wider, under autocast too. A matrix that is
    singular in this precision is measured with about ``eps`` times its mean eigenvalue added to the diagonal of G.

    Args:
        weight: Weights of shape (out, in, ...), flattened to a matrix.
        mode: ``logdet``; ``released``, the published formula, which is flat for 20 classes and more; or ``amgm``.
        eps: ε > 0.
        normalize: Whether ``logdet`` and ``amgm`` are per singular value, as written above, or have n times the
            logarithms. ``released`` is never normalised.

    Returns:
        The penalty, a scalar ≥ 0.

    Raises:
        ValueError: If an argument is out of range, or the weight is no matrix in fp32 or wider.
        ShardedParameterError: If the weight is sharded.

    Source: Feng et al. 2025, arXiv:2503.20454; ``released`` as in its code, the other two are our repairs.

    Examples:
        >>> condition_penalty(2.0 * torch.eye(4)), condition_penalty(torch.diag(torch.tensor([4.0, 1.0])))
        (tensor(0.), tensor(0.4805))
        >>> condition_penalty(torch.eye(3), mode="amgm")
        tensor(0.)
    """
    check_choice("mode", mode, MODES)
    check_number("eps", eps, low=0.0, low_allowed=False)
    matrix = _as_matrix(weight)
    size = min(matrix.shape)
    if mode == "released" and size >= CLASSES_WITHOUT_GRADIENT:
        warnings.warn(
            f"mode='released' has practically no gradient for the {size} singular values of this weight: the "
            f"determinant vanishes beside eps. Use mode='logdet'.",
            LightningWeightsWarning,
            stacklevel=2,
        )
    with torch.autocast(weight.device.type, enabled=False):
        gram = (matrix.mT @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.mT) / size
        gram = _made_definite(gram, eps)
        log_det: Tensor = 2.0 * torch.linalg.cholesky_ex(gram).L.diagonal().log().sum()
        if mode == "released":
            return (eps + log_det.exp()).log().square()
        scale = size if normalize else 1
        if mode == "logdet":
            return (log_det / scale).square()
        return (size * (gram.trace() / size).log() - log_det) / scale


def _as_matrix(weight: Tensor) -> Tensor:
    if hasattr(weight, "placements"):
        raise ShardedParameterError("the condition of a matrix cannot be found in its shards; train without FSDP2")
    if weight.dim() < 2 or weight.numel() == 0:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; allowed is a matrix, or (out, in, ...)")
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"weight is {weight.dtype}; allowed are float32 and float64, since determinants of half precision are "
            f"meaningless; keep master weights in float32 (precision='16-mixed' or 'bf16-mixed')"
        )
    return weight.flatten(1)


def _made_definite(gram: Tensor, eps: float) -> Tensor:
    """Add to the diagonal what makes a singular matrix definite, and nothing to a definite one; never waits."""
    with torch.no_grad():
        rounding = torch.finfo(gram.dtype).eps * math.sqrt(len(gram)) * torch.linalg.matrix_norm(gram)
        shift = eps * gram.trace() / len(gram) + rounding + math.sqrt(torch.finfo(gram.dtype).tiny)
        singular = torch.linalg.cholesky_ex(gram).info != 0
        shift = torch.where(singular, shift, 0.0)
    return gram + shift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


@torch.no_grad()
def condition_numbers(module: nn.Module) -> dict[str, float]:
    r"""Return the condition number of every weight matrix of a network.

    $$\kappa(W) = \sigma_{\max}(W) / \sigma_{\min}(W)$$

    Args:
        module: Network; every submodule whose ``weight`` has two dimensions or more counts, convolutions as matrices
            of shape (out, in·kernel). Parametrized weights are taken as in evaluation: masked, gates without noise.

    Returns:
        Condition numbers by layer name, the network itself being ``""``; infinite for singular matrices.

    Examples:
        >>> condition_numbers(nn.Sequential(nn.Linear(3, 3), nn.ReLU())).keys()
        dict_keys(['0'])
    """
    numbers = {}
    with evaluation_mode(module):
        for name, layer in module.named_modules():
            weight = getattr(layer, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() >= 2 and weight.is_floating_point():
                numbers[name] = _condition_number(weight)
    return numbers


def _condition_number(weight: Tensor) -> float:
    if hasattr(weight, "placements"):
        raise ShardedParameterError("the condition of a matrix cannot be found in its shards; gather the weights first")
    matrix = weight.detach().flatten(1).to("cpu", torch.float64)
    values = torch.linalg.svdvals(matrix)
    rounding = max(matrix.shape) * torch.finfo(matrix.dtype).eps * values[0]
    return math.inf if values[-1] <= rounding else float(values[0] / values[-1])


def geometric_mean_condition(numbers: Mapping[str, float]) -> float:
    """Return the geometric mean of condition numbers.

    Args:
        numbers: Condition numbers by layer, as [`condition_numbers`][] returns them.

    Returns:
        The mean; infinite if one of them is.

    Raises:
        ValueError: If there are none.

    Examples:
        >>> round(geometric_mean_condition({"a": 2.0, "b": 8.0}), 6)
        4.0
    """
    if not numbers:
        raise ValueError("numbers is empty; allowed is a mapping with at least one layer")
    return math.exp(sum(map(math.log, numbers.values())) / len(numbers))
