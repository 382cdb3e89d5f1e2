"""Certified training with a short warm-up: ε schedule, input box, robust loss and the two regularisers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.intervals import PreActivation

SCHEDULES = ("smoothed", "linear", "fixed")
SMALLEST = 1e-12  # of a denominator
WIDTHS, ACTIVE, INACTIVE, ACTIVE_TOTAL, INACTIVE_TOTAL, TOTAL, ACTIVE_SQUARES, INACTIVE_SQUARES, COUNT = range(9)


def epsilon_at(
    step: int,
    steps_per_epoch: int,
    *,
    max_eps: float,
    kind: str = "smoothed",
    start_epoch: int = 2,
    ramp_epochs: int = 80,
    mid: float = 0.25,
    beta: float = 4.0,
) -> float:
    r"""Return the radius ε of a training step.

    With the ramp from $T_0 = (\text{start} - 1) E$ to $T_1 = T_0 + \text{ramp} \cdot E$ and
    $T_m = T_0 + \lfloor \text{mid} (T_1 - T_0) \rfloor$, "smoothed" is

    $$\varepsilon(s) = A (s - T_0)^\beta \text{ until } T_m, \text{ then linear up to } \varepsilon_{\max}, \qquad
    A = \frac{\varepsilon_{\max}}{\beta (T_1 - T_m) (T_m - T_0)^{\beta - 1} + (T_m - T_0)^\beta},$$

    so that value and slope are continuous. "linear" rises evenly, "fixed" is ε_max at every step.

    Args:
        step: Optimizer step s, from 0.
        steps_per_epoch: Optimizer steps per epoch, E.
        max_eps: ε_max, in units of the pixels.
        kind: ``smoothed``, ``linear`` or ``fixed``.
        start_epoch: Epoch in which the ramp starts, counted from 1; ε is 0 before.
        ramp_epochs: Length of the ramp in epochs.
        mid: Share of the ramp that is curved, from 0 to 1.
        beta: Power of the curved part, from 2.

    Returns:
        ε ≥ 0; exactly ``max_eps`` from the end of the ramp on.

    Raises:
        ValueError: If an argument is out of range.

    Source: Xu et al., 2020, arXiv:2002.12920 (smoothed); Shi et al., 2021, arXiv:2103.17268.

    Examples:
        >>> schedule = dict(steps_per_epoch=10, max_eps=0.1, start_epoch=2, ramp_epochs=4)
        >>> [round(epsilon_at(step, **schedule), 4) for step in (10, 20, 30, 50)]
        [0.0, 0.0077, 0.0385, 0.1]
    """
    check_choice("kind", kind, SCHEDULES)
    check_number("step", step, low=0, whole=True)
    check_number("steps_per_epoch", steps_per_epoch, low=1, whole=True)
    check_number("max_eps", max_eps, low=0)
    check_number("start_epoch", start_epoch, low=1, whole=True)
    check_number("ramp_epochs", ramp_epochs, low=1, whole=True)
    check_number("mid", mid, low=0, high=math.nextafter(1, 2))
    check_number("beta", beta, low=2)
    length = ramp_epochs * steps_per_epoch
    since = step - (start_epoch - 1) * steps_per_epoch
    if kind == "fixed" or since >= length:
        return max_eps
    if since <= 0:
        return 0.0
    curved = int(mid * length) if kind == "smoothed" else 0
    if curved == 0:
        return max_eps * since / length
    factor = max_eps / ((length - curved) * beta * curved ** (beta - 1) + curved**beta)
    if since < curved:
        return float(factor * since**beta)
    at_mid = factor * curved**beta
    return float(at_mid + (max_eps - at_mid) * (since - curved) / (length - curved))


def input_box(
    x: Tensor,
    eps: float | Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    clip_min: float | None = 0.0,
    clip_max: float | None = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Normalise images and return them with the box of all images within ε, clipped to valid pixels.

    $$z = \frac{x - \mu}{s}, \qquad l = \max\Bigl(z - \frac{\varepsilon}{s}, \frac{0 - \mu}{s}\Bigr), \qquad
    u = \min\Bigl(z + \frac{\varepsilon}{s}, \frac{1 - \mu}{s}\Bigr)$$

    Args:
        x: Images (N, C, ...) before normalisation; without ``mean`` and ``std`` any shape (N, ...).
        eps: Radius ε in the unit of the pixels, a number or, so that ``torch.compile`` compiles once, a 0-dim tensor.
        mean: μ per channel; None: 0.
        std: s per channel; None: 1.
        clip_min: Smallest valid pixel; None: no limit.
        clip_max: Largest valid pixel; None: no limit.

    Returns:
        Normalised images, lower and upper ends of their boxes.

    Raises:
        ValueError: If ε is negative, NaN or larger than the range of pixels, ``std`` has zeros, a length differs from
            the channels, pixels are NaN or outside their range, or ``x`` is in half precision.

    Source: Shi et al., 2021, arXiv:2103.17268.

    Examples:
        >>> z, lower, upper = input_box(torch.tensor([[[0.0, 0.5]]]), 0.25, mean=[0.5], std=[0.5])
        >>> z.flatten().tolist(), lower.flatten().tolist(), upper.flatten().tolist()
        ([-1.0, 0.0], [-1.0, -0.5], [-0.5, 0.5])
    """
    _check_images(x, eps, clip_min, clip_max)
    center, scale = _per_channel("mean", mean, 0.0, x), _per_channel("std", std, 1.0, x)
    with torch.autocast(x.device.type, enabled=False):
        z, reach = (x - center) / scale, eps / scale
        lower, upper = z - reach, z + reach
        if clip_min is not None:
            lower = torch.maximum(lower, (clip_min - center) / scale)
        if clip_max is not None:
            upper = torch.minimum(upper, (clip_max - center) / scale)
    return z, lower, upper


def _check_images(x: Tensor, eps: float | Tensor, clip_min: float | None, clip_max: float | None) -> None:
    low, high = -math.inf if clip_min is None else clip_min, math.inf if clip_max is None else clip_max
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x is in {x.dtype}; allowed are float32 and float64: certificates need them")
    if not low < high:
        raise ValueError(f"clip_min is {clip_min} and clip_max {clip_max}; allowed is clip_min < clip_max")
    inside = ((x >= low) & (x <= high)).all()  # false for NaN, too
    if not isinstance(eps, Tensor):
        check_radius("eps", eps, low, high)
    elif eps.ndim != 0:
        raise ValueError(f"eps has shape {tuple(eps.shape)}; allowed is a number or a tensor without dimensions")
    elif not (inside & (eps >= 0) & (eps <= high - low)):  # the device is asked once
        check_radius("eps", eps.item(), low, high)
    if not inside:
        raise ValueError(
            f"x has pixels outside [{low}, {high}], or NaN; give images as they are before normalisation, with `mean` "
            f"and `std`, or set clip_min and clip_max to their range"
        )


def check_radius(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless a radius is a number from 0 to the range of pixels, which go from low to high."""
    check_number(name, value, low=0)
    if value > high - low:
        raise ValueError(
            f"{name} is {value}, more than the whole range [{low}, {high}] of a pixel; did you mean {name}/255?"
        )


def normalize(x: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Tensor:
    """Return (x - mean) / std per channel in the precision of ``x``, which may be outside the valid range."""
    if not x.is_floating_point():
        raise ValueError(f"x is in {x.dtype}; allowed are floating-point numbers")
    return (x - _per_channel("mean", mean, 0.0, x)) / _per_channel("std", std, 1.0, x)


def _per_channel(name: str, values: Sequence[float] | None, default: float, x: Tensor) -> Tensor:
    if values is None:
        return x.new_tensor(default)
    if x.ndim < 2 or len(values) != x.shape[1]:
        raise ValueError(
            f"{name} has {len(values)} entries and x the shape {tuple(x.shape)}; allowed is one per channel"
        )
    if name == "std" and min(values) <= 0:
        raise ValueError(f"std is {list(values)}; allowed are numbers above 0")
    return x.new_tensor([float(value) for value in values]).view(-1, *(1,) * (x.ndim - 2))


def robust_loss(margin_lower: Tensor) -> Tensor:
    r"""Return the cross-entropy of the worst logits that the bounds allow.

    $$L = \frac{1}{N} \sum_n \log\Bigl(1 + \sum_{j \neq y_n} e^{-\underline{m}_{nj}}\Bigr)$$

    Args:
        margin_lower: Lower bounds m of the margins of the true class (N, K-1).

    Returns:
        The loss, a 0-dim tensor.

    Source: Gowal et al., 2018, arXiv:1810.12715.

    Examples:
        >>> robust_loss(torch.zeros(1, 3)).item()
        1.386294...
    """
    return F.pad(-margin_lower, (1, 0)).logsumexp(dim=1).mean()


def layer_sums(preactivations: Sequence[PreActivation]) -> Tensor:
    """Collect what the regularisers need to know: one row of sums per layer.

    The sums add up over processes: all-reduced, they regularise the whole batch of distributed training.

    Args:
        preactivations: Boxes in front of the m ReLUs.

    Returns:
        Tensor (m, 9) of Σ r, |A|, |I|, Σ_A c, Σ_I c, Σ c, Σ_A c², Σ_I c² and the number of units, with the active set
        A (lower end > 0) and the inactive set I (upper end < 0), over batch and units.

    Raises:
        ValueError: If there is no ReLU.

    Examples:
        >>> box = PreActivation(torch.tensor([2.0, -1.0, 0.0]), torch.full((3,), 0.5))
        >>> layer_sums([box]).tolist()
        [[1.5, 1.0, 1.0, 2.0, -1.0, 1.0, 4.0, 1.0, 3.0]]
    """
    if not preactivations:
        raise ValueError("the network has no ReLU, on whose inputs the regularisers act; switch them off: reg_terms=[]")
    sums = torch.stack([box.sums for box in preactivations])
    counts = sums.new_tensor([box.center.numel() for box in preactivations])
    return torch.cat([sums, counts[:, None]], dim=1)


def tightness(sums: Tensor, box_radius: Tensor, tol: float = 0.5) -> Tensor:
    r"""Penalise layers whose boxes are wider than the input's by more than a factor of 1/τ.

    $$L_t = \frac{1}{m} \sum_{i=1}^m \frac{1}{\tau} \Bigl[\tau - \frac{\bar r_0}{\bar r_i}\Bigr]_+$$

    Args:
        sums: Rows of [`layer_sums`][] (m, 9).
        box_radius: Mean half-width r̄_0 of the input box, 0-dim.
        tol: Tolerance τ.

    Returns:
        The penalty, from 0 to 1.

    Source: Shi et al., 2021, arXiv:2103.17268.

    Examples:
        >>> box = PreActivation(torch.zeros(3), torch.full((3,), 0.4))
        >>> tightness(layer_sums([box]), torch.tensor(0.1)).item()
        0.5
    """
    check_number("tol", tol, low=0, low_allowed=False)
    widths = sums[:, WIDTHS] / sums[:, COUNT]
    return F.relu(tol - box_radius / widths.clamp_min(SMALLEST)).mean() / tol


def relu_balance(sums: Tensor, tol: float = 0.5) -> Tensor:
    r"""Penalise layers whose active and inactive units differ too much in the sum or the spread of their centres.

    $$L_r = \frac{1}{m \tau} \sum_{i=1}^m \bigl[\tau - \min(\alpha_i, 1/\alpha_i)\bigr]_+
    + \bigl[\tau - \min(\beta_i, 1/\beta_i)\bigr]_+, \qquad
    \alpha_i = \frac{\sum_A c}{-\sum_I c}, \quad \beta_i = \frac{\sum_A (c - \bar c)^2}{\sum_I (c - \bar c)^2}$$

    As in the authors' code, a layer without inactive units adds nothing but counts in m, and one without active units
    adds the constant 2/m, without a gradient.

    Args:
        sums: Rows of [`layer_sums`][] (m, 9).
        tol: Tolerance τ.

    Returns:
        The penalty, from 0 to 2.

    Source: Shi et al., 2021, arXiv:2103.17268, and its code.

    Examples:
        >>> box = PreActivation(torch.tensor([3.0, -3.0]), torch.ones(2))
        >>> relu_balance(layer_sums([box])).item()
        0.0
        >>> box = PreActivation(torch.tensor([-3.0, -2.0]), torch.ones(2))
        >>> relu_balance(layer_sums([box])).item()
        2.0
    """
    check_number("tol", tol, low=0, low_allowed=False)
    active, inactive = _spread(sums, ACTIVE), _spread(sums, INACTIVE)
    terms = _imbalance(sums[:, ACTIVE_TOTAL], -sums[:, INACTIVE_TOTAL], tol) + _imbalance(active, inactive, tol)
    dropped = (sums[:, INACTIVE] == 0) | ((active == 0) & (inactive == 0)) | ~terms.isfinite()
    return torch.where(dropped, 0, terms).mean() / tol


def _spread(sums: Tensor, which: int) -> Tensor:
    """Σ (c - c̄)² over the active or the inactive units, c̄ being the mean over all units."""
    mean = sums[:, TOTAL] / sums[:, COUNT]
    total, squares = (which + offset for offset in (ACTIVE_TOTAL - ACTIVE, ACTIVE_SQUARES - ACTIVE))
    return (sums[:, squares] - mean * (2 * sums[:, total] - mean * sums[:, which])).clamp_min(0)


def _imbalance(above: Tensor, below: Tensor, tol: float) -> Tensor:
    """[τ - min(q, 1/q)]+ of the quotient q; a zero below gives q = ∞, without a NaN in any gradient."""
    ratio = above / torch.where(below == 0, 1, below)
    folded = torch.minimum(ratio, 1 / ratio.clamp_min(SMALLEST))
    return F.relu(tol - torch.where(below == 0, 0, folded))
