"""Adversarial inputs inside a box, found by projected gradient ascent, and the TRADES loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.evaluation_mode import evaluation_mode

TRADES_START = 1e-3  # standard deviation of the first step, away from the point where the divergence is flat
PerChannel = float | Sequence[float]


def check_per_channel(name: str, value: object, *, low: float = float("-inf"), low_allowed: bool = False) -> None:
    """Check a number, or a sequence of one number per channel.

    Args:
        name: Argument name, for the message.
        value: What was given.
        low: Lower end of the allowed range.
        low_allowed: Whether ``low`` itself is allowed.

    Raises:
        ValueError: If a number is out of range, or the sequence empty.

    Examples:
        >>> check_per_channel("epsilon", [0.1, -0.1], low=0.0)
        Traceback (most recent call last):
        ValueError: epsilon[1] is -0.1; allowed is a finite number in (0.0, inf)
    """
    if not isinstance(value, Sequence):
        check_number(name, value, low=low, low_allowed=low_allowed)
        return
    if len(value) == 0:
        raise ValueError(f"{name} is empty; allowed are a number or one number per channel")
    for i, number in enumerate(value):
        check_number(f"{name}[{i}]", number, low=low, low_allowed=low_allowed)


def trades_attack(
    network: nn.Module,
    x: Tensor,
    *,
    epsilon: PerChannel = 8 / 255,
    step_size: PerChannel = 0.0069,
    steps: int = 10,
    clip_min: PerChannel = 0.0,
    clip_max: PerChannel = 1.0,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Find inputs near ``x`` on which the network's prediction differs most from that on ``x``.

    From $x' = x + 0.001\,\mathcal N(0, 1)$, ``steps`` times

    $$x' \leftarrow \Pi\bigl(x' + \eta\, \operatorname{sign} \nabla_{x'} \mathrm{KL}(p(x) \,\|\, p(x'))\bigr)$$

    with Π the projection to $\|x' - x\|_\infty \le \epsilon$ and to the range of inputs.

    The network is in evaluation mode meanwhile. Neither gradients of parameters nor buffers nor flags are changed, and
    the caller may be under ``no_grad`` or in inference mode.

    Args:
        network: Turns inputs into logits of shape (N, classes).
        x: Inputs of shape (N, channels, ...).
        epsilon: ε ≥ 0, or one per channel.
        step_size: η > 0, or one per channel.
        steps: Number of steps, from 0.
        clip_min: Smallest input, or one per channel for normalised inputs.
        clip_max: Largest input, or one per channel for normalised inputs.
        noise: Standard normal noise to start from, of the shape of ``x``. ``None``: from PyTorch's global generator.

    Returns:
        Adversarial inputs, detached, of the shape and dtype of ``x``.

    Raises:
        ValueError: If inputs are outside their range, or a list fits no channel.

    Source: Zhang et al. 2019 (TRADES), arXiv:1901.08573.

    Examples:
        >>> x = torch.full((2, 1, 4), 0.5)
        >>> attacked = trades_attack(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), x, epsilon=0.1, step_size=0.05)
        >>> bool((attacked - x).abs().max() <= 0.1 + 1e-6)
        True
    """
    with _apart_from_training(network):
        x = x.clone()
        box = _box(x, epsilon, clip_min, clip_max)
        log_clean = network(x).detach().log_softmax(dim=1)

        def divergence(logits: Tensor) -> Tensor:
            return _kl(logits.log_softmax(dim=1), log_clean)

        noise = torch.randn_like(x) if noise is None else noise.to(x)
        start = x + TRADES_START * noise
        return _ascend(network, start, divergence, box, _per_channel("step_size", step_size, x), steps).to(x.dtype)


def pgd_attack(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: PerChannel = 8 / 255,
    step_size: PerChannel = 2 / 255,
    steps: int = 10,
    restarts: int = 1,
    clip_min: PerChannel = 0.0,
    clip_max: PerChannel = 1.0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Find inputs near ``x`` that the network classifies wrongly, by ascending the cross-entropy (PGD).

    From $x' = x + \epsilon\,\mathcal U(-1, 1)$, ``steps`` times

    $$x' \leftarrow \Pi\bigl(x' + \eta\, \operatorname{sign} \nabla_{x'} \mathrm{CE}(f(x'), y)\bigr)$$

    Every restart begins anew with the inputs that are still classified correctly. Evaluation mode, gradients, buffers
    and flags as in [`trades_attack`][].

    Args:
        network: Turns inputs into logits of shape (N, classes).
        x: Inputs of shape (N, channels, ...).
        y: Labels of shape (N,).
        epsilon: ε ≥ 0, or one per channel.
        step_size: η > 0, or one per channel.
        steps: Number of steps, from 0.
        restarts: Most number of attempts per input, from 1.
        clip_min: Smallest input, or one per channel for normalised inputs.
        clip_max: Largest input, or one per channel for normalised inputs.
        noise: Noise in [-1, 1] to start from, of shape (restarts, \*x.shape). ``None``: random.
        generator: Source of the noise, on the CPU. ``None``: PyTorch's global generator.

    Returns:
        Adversarial inputs, detached: of each input the attempt that fooled the network, else the last.

    Raises:
        ValueError: If inputs are outside their range, or a list fits no channel.

    Source: Madry et al. 2018, arXiv:1706.06083.

    Examples:
        >>> x, y = torch.full((2, 1, 4), 0.5), torch.tensor([0, 2])
        >>> pgd_attack(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), x, y, epsilon=0.1, step_size=0.05).shape
        torch.Size([2, 1, 4])
    """
    with _apart_from_training(network):
        x, y = x.clone(), y.clone()
        box = _box(x, epsilon, clip_min, clip_max)
        eta = _per_channel("step_size", step_size, x)
        attacked = x.clone()
        left = torch.arange(len(x), device=x.device)
        for attempt in range(restarts):
            if noise is None:
                unit = (
                    torch.rand(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device).mul_(2).sub_(1)
                )
            else:
                unit = noise[attempt].to(x)
            labels = y[left]

            def cross_entropy(logits: Tensor, labels: Tensor = labels) -> Tensor:
                return nn.functional.cross_entropy(logits, labels, reduction="sum")

            start = box.project(x + box.epsilon * unit)[left]
            attacked[left] = _ascend(network, start, cross_entropy, replace(box, x=x[left]), eta, steps)
            with torch.no_grad():
                left = left[network(attacked[left]).argmax(dim=1) == labels]
            if len(left) == 0:
                break
        return attacked


def trades_loss(logits: Tensor, adversarial: Tensor, clean: Tensor, y: Tensor, beta: float = 6.0) -> Tensor:
    r"""Trade accuracy for robustness.

    $$\mathrm{CE}(f(x), y) + \frac{\beta}{B} \sum_{i=1}^{B} \mathrm{KL}\bigl(p(x_i) \,\|\, p(x'_i)\bigr)$$

    Args:
        logits: f(x) of the cross-entropy, shape (B, classes).
        adversarial: f(x') on adversarial inputs.
        clean: f(x) of the divergence; another tensor than ``logits`` where forwards are random.
        y: Labels of shape (B,).
        beta: β ≥ 0.

    Returns:
        The loss, a scalar.

    Source: Zhang et al. 2019 (TRADES), arXiv:1901.08573.

    Examples:
        >>> logits = torch.zeros(4, 2)
        >>> trades_loss(logits, logits, logits, torch.zeros(4, dtype=torch.long))
        tensor(0.6931)
    """
    divergence = _kl(adversarial.log_softmax(dim=1), clean.log_softmax(dim=1))
    return nn.functional.cross_entropy(logits, y) + beta * divergence / len(logits)


def _kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    return nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


@contextlib.contextmanager
def _apart_from_training(network: nn.Module) -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(network):
        yield


def _ascend(
    network: nn.Module, start: Tensor, objective: Callable[[Tensor], Tensor], box: _Box, eta: Tensor, steps: int
) -> Tensor:
    x = start.detach()
    for _ in range(steps):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(objective(network(x)), [x])
        x = box.project(x.detach() + eta * gradient.sign())
    return box.project(x)


@dataclass(frozen=True)
class _Box:
    """All inputs within ε of some, inside the range of inputs."""

    x: Tensor
    epsilon: Tensor
    low: Tensor
    high: Tensor

    def project(self, x: Tensor) -> Tensor:
        near = torch.minimum(torch.maximum(x, self.x - self.epsilon), self.x + self.epsilon)
        return torch.minimum(torch.maximum(near, self.low), self.high)


def _box(x: Tensor, epsilon: PerChannel, clip_min: PerChannel, clip_max: PerChannel) -> _Box:
    low, high = _per_channel("clip_min", clip_min, x), _per_channel("clip_max", clip_max, x)
    if not bool(((x >= low) & (x <= high)).all()):
        raise ValueError(
            f"inputs are between {x.amin():.4g} and {x.amax():.4g}, outside the range from clip_min={clip_min} to "
            f"clip_max={clip_max}; for normalised inputs give clip_min, clip_max, epsilon and step_size as lists "
            f"with one number per channel, (bound - mean) / std and epsilon / std"
        )
    return _Box(x, _per_channel("epsilon", epsilon, x), low, high)


def _per_channel(name: str, value: PerChannel, x: Tensor) -> Tensor:
    numbers = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if numbers.dim() == 0:
        return numbers
    if x.dim() < 2 or len(numbers) != x.shape[1]:
        raise ValueError(
            f"{name} has {len(numbers)} numbers, but inputs have shape {tuple(x.shape)}; allowed are a single number "
            f"or one per channel, dimension 1"
        )
    return numbers.view(-1, *(1,) * (x.dim() - 2))
