"""Stochastic gradient descent by identical pulses on electronic synapses."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_weights.errors import ShardedParameterError, check_choice, check_number
from lightning_weights.kernels._mixing import mixed
from lightning_weights.kernels.pulse_update import REFRESHES, ROUNDINGS, PulseRule
from lightning_weights.modules.synapse_array import check_precision, devices_of

SEED_BITS = 0x7FFFFFFF  # what the operator takes


class PulseSGD(Optimizer):
    r"""Train electronic synapses with pulses: nobody reads a conductance before it is changed.

    The wanted change of a weight becomes a number of identical pulses, as if every device were linear; the devices then
    move as they do, and the next gradient is that of the weights they really hold.

    $$q_{ij} = -\frac{\eta N}{\gamma}\,\frac{\partial L}{\partial w_{ij}}, \qquad
    k_{ij} = \min(\lfloor |q_{ij}| + u \rfloor,\; k_{max}), \quad u \sim U(0, 1)$$

    Layers with the mode ``unidirectional`` give the k pulses to one device of the pair, always in the same direction:
    G⁺ is raised for q > 0, G⁻ for q < 0, so that it does not matter how different raising and lowering are. As devices
    fill, full pairs are refreshed: reset, and their difference is written anew.

    The noise is a function of ``seed``, the parameter's place, its number of steps and the device's index: the same on
    CPU and GPU, on all processes, and after a resume. Gradient accumulation programs a whole batch at a time: fewer
    pulses than after every micro-batch. Parameters that no synapse layer owns, such as those of norms, are digital and
    take a plain step of w - ηg. There is neither momentum nor weight decay: conductances have none.

    The state is one number per parameter, ``step``. States of devices and counters of pulses are the layers' buffers.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate η ≥ 0.
        rounding: ``stochastic`` as above, unbiased; ``nearest``; ``sign``, one pulse where |q| > ``sign_threshold``; or
            ``none``, a real number of pulses, which no device offers.
        max_pulses: k_max ≥ 1, most pulses of one update for one device.
        sign_threshold: For ``sign``, in pulses.
        refresh: How differences are written into full pairs: ``ideal`` exactly, ``pulsed`` with whole pulses to the
            nominal curve, ``never`` leaves pairs full.
        refresh_every: Steps from one look for full pairs to the next.
        refresh_threshold: A pair is full if its fuller device is at least here, in (0, 1].
        refresh_low: And if its emptier one is at least here, in [0, 1).
        seed: Of the noise.

    Raises:
        ValueError: If an argument is out of range, or a group has momentum or weight decay.
        ShardedParameterError: If a parameter is sharded (FSDP2).

    Source: Lim, Bae, Eum, Lee, Kim, Kwon, Park, Lee, "Adaptive Learning Rule for Hardware-based Deep Neural Networks
    Using Electronic Synapse Devices", 2017, arXiv:1707.06381. Only its abstract could be read: pulse counts, refresh
    and all numbers are inferred from it and from simulators of such devices.

    Examples:
        >>> from lightning_weights.modules import SynapseLinear
        >>> layer = SynapseLinear(4, 2, device={"kind": "linear", "n_states": 64}, w_scale=2.0)
        >>> optimizer = PulseSGD(layer.parameters(), lr=0.1, rounding="nearest")
        >>> before = layer.weight.detach().clone()
        >>> layer(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> ((layer.weight - before) * 64 / 2.0).round()  # -0.1 are three pulses of 2/64
        tensor([[-3., -3., -3., -3.],
                [-3., -3., -3., -3.]], grad_fn=<RoundBackward0>)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        rounding: Literal["stochastic", "nearest", "sign", "none"] = "stochastic",
        max_pulses: int = 10,
        sign_threshold: float = 0.5,
        refresh: Literal["ideal", "pulsed", "never"] = "ideal",
        refresh_every: int = 1,
        refresh_threshold: float = 0.9,
        refresh_low: float = 0.0,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr, "rounding": rounding, "max_pulses": max_pulses, "sign_threshold": sign_threshold,
            "refresh": refresh, "refresh_every": refresh_every, "refresh_threshold": refresh_threshold,
            "refresh_low": refresh_low, "seed": seed,
        }  # fmt: skip
        _check_hyper_parameters(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; hyper-parameters it does not name take the optimizer's defaults.

        Args:
            param_group: ``params`` and any hyper-parameters of its own.

        Raises:
            ValueError: If a hyper-parameter is out of range, or a parameter is not real floating point.
            ShardedParameterError: If a parameter is sharded.
        """
        _check_hyper_parameters({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            problem: Exception | None = None
            if hasattr(param, "placements"):
                problem = ShardedParameterError(
                    "params holds a sharded tensor (FSDP2), but arrays of devices are whole; use DDP, or one device"
                )
            elif not param.is_floating_point():
                problem = ValueError(f"params holds a {param.dtype} tensor; leave it out, allowed is floating point")
            if problem is not None:
                del self.param_groups[-1]
                raise problem

    @torch.compiler.disable  # it is one operator per array already
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Recomputes the loss and the gradients; it runs first, with gradients enabled.

        Returns:
            What the closure returned, else None.

        Raises:
            RuntimeError: If a gradient is sparse.
            ValueError: If a state has been cast to 16 bits.
            ShardedParameterError: If a parameter has become sharded.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = []
        place = 0
        for group in self.param_groups:
            _check_hyper_parameters(group)
            for param in group["params"]:
                if param.grad is not None:
                    _check_gradient(param)
                    work.append((group, place, param))
                place += 1
        for group, place, param in work:
            self._update(group, place, param)
        return loss

    def _update(self, group: dict[str, Any], place: int, param: Tensor) -> None:
        state = self.state[param]
        step = state["step"] = state.get("step", 0) + 1
        array = devices_of(param)
        if array is None:
            param.add_(param.grad, alpha=-group["lr"])
            return
        due = group["refresh"] != "never" and step % group["refresh_every"] == 0
        rule = PulseRule(
            group["rounding"],
            group["max_pulses"],
            float(group["sign_threshold"]),
            group["refresh"] if due else "never",
            float(group["refresh_threshold"]),
            float(group["refresh_low"]),
        )
        seed = mixed(mixed(mixed(group["seed"]) + place) + step) & SEED_BITS
        array.step(param, param.grad, group["lr"], rule, seed)


def _check_gradient(param: Tensor) -> None:
    if param.grad.is_sparse:
        raise RuntimeError("PulseSGD does not support sparse gradients; use nn.Embedding(sparse=False)")
    if devices_of(param) is not None:
        check_precision(param)


def _check_hyper_parameters(group: dict[str, Any]) -> None:
    check_number("lr", group["lr"], low=0.0)
    check_choice("rounding", group["rounding"], ROUNDINGS)
    check_number("max_pulses", group["max_pulses"], low=1, whole=True)
    check_number("sign_threshold", group["sign_threshold"], low=0.0)
    check_choice("refresh", group["refresh"], REFRESHES)
    check_number("refresh_every", group["refresh_every"], low=1, whole=True)
    for name, low_allowed in (("refresh_threshold", False), ("refresh_low", True)):
        check_number(name, group[name], low=0.0, low_allowed=low_allowed)
        if group[name] > 1.0 or (name == "refresh_low" and group[name] == 1.0):
            raise ValueError(f"{name} is {group[name]!r}; allowed is a state of a device, up to 1")
    check_number("seed", group["seed"], low=0, whole=True)
    for name in ("momentum", "weight_decay"):
        if group.get(name):
            raise ValueError(f"{name} is {group[name]!r}; conductances have none, so leave it out")
