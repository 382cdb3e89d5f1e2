"""CLASSP: an optimizer that protects what earlier tasks have taught."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_weights.errors import ShardedParameterError, check_choice, check_number
from lightning_weights.functional import classp as functional
from lightning_weights.kernels import local_shards, use_kernels
from lightning_weights.kernels._op import takes_triton
from lightning_weights.kernels.classp_step import classp_step, magnitude_threshold
from lightning_weights.optimizers._update_watch import UpdateWatch


class CLASSP(Optimizer):
    r"""Continual learning through adjustment suppression and sparsity promotion.

    Every weight remembers how much it has been used, and moves less the more it was. With gradient g, accumulator A
    (zero at first, never reset) and the mask m = 1[g² > τ]:

    $$A \leftarrow A + m\,|g|^p, \qquad w \leftarrow w - m\,\frac{\alpha\, g}{(\varepsilon + A)^{1/p}}$$

    Keep one optimizer for the whole stream of tasks: the accumulators are the memory. Hyper-parameters live in
    ``param_groups``, so schedulers and per-group values work. "Step" means one real optimizer step: with gradient
    accumulation τ acts once, on the accumulated gradient; clipping happens before and lowers the share of updated
    weights. The state is one tensor per parameter, ``grad_sum``, in fp32 (fp64 for fp64 weights).

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate α ≥ 0; with decay it bounds the change of a weight in one step.
        threshold: τ ≥ 0 on the squared gradient; weights with g² ≤ τ stay as they are, bit for bit.
        power: p > 0; 1 protects most (steps shrink like 1/t), 2 is AdaGrad's decay (1/√t).
        eps: ε > 0, added to the accumulator inside the root.
        apply_decay: Whether steps are divided by the root; without, A still accumulates (first-task phase).
        variant: ``paper`` is the equation above; ``reference`` repeats the author's published code (see below).
        foreach: True insists on multi-tensor eager operations, False on one tensor after another; None is automatic.
        fused: True insists on the Triton kernel, False excludes it, None takes it where it runs.
        maximize: Whether to ascend instead of descend.
        compile: Whether to run the step through ``torch.compile`` (seconds of compilation, then faster on CPUs).

    Raises:
        ValueError: If an argument is out of range or two choices contradict each other.

    Differs from the paper: the sum in its equation (1) ends before the current gradient, its Algorithm 1 includes it;
    this follows Algorithm 1. ``variant="reference"`` repeats two quirks of the published code: the threshold is
    compared with the truth value of "any gradient of this tensor is non-zero", so that every τ < 1 accepts everything
    and τ ≥ 1 nothing, and the accumulator always sums |g| whatever p is. The paper's τ (0.5, 0.99) were chosen under
    that code and freeze a network under the equation. Gradients that are NaN or infinite are always skipped, and
    reported: on CPUs at once, on accelerators after the first 100 of every 1000 steps, with ``compile`` only if they
    occur in those steps.

    Source: Oswaldo Ludwig, "CLASSP: a Biologically-Inspired Approach to Continual Learning through Adjustment
    Suppression and Sparsity Promotion", 2024, arXiv:2405.09637.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = CLASSP([weight], lr=0.5, eps=1e-9)
        >>> weight.grad = torch.tensor([3.0, 1e-5])
        >>> optimizer.step()
        >>> weight.data, optimizer.update_fraction(), optimizer.free_fraction()
        (tensor([-0.5000,  0.0000]), 0.5, 0.5)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        threshold: float = 1e-6,
        power: float = 1.0,
        eps: float = 1e-5,
        apply_decay: bool = True,
        variant: Literal["paper", "reference"] = "paper",
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        compile: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "threshold": threshold, "power": power, "eps": eps, "apply_decay": apply_decay,
            "variant": variant, "foreach": foreach, "fused": fused, "maximize": maximize, "compile": compile,
        }  # fmt: skip
        _check_hyper_parameters(defaults)
        if variant == "paper":
            functional.warn_if_published_threshold("threshold", threshold)
        super().__init__(params, defaults)
        self._watch = UpdateWatch("CLASSP")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; hyper-parameters it does not name take the optimizer's defaults.

        Args:
            param_group: ``params`` and any hyper-parameters of its own.

        Raises:
            ValueError: If a hyper-parameter is out of range or a parameter is not real floating point.
        """
        _check_hyper_parameters({**self.defaults, **param_group})
        if "threshold" in param_group and param_group.get("variant", self.defaults["variant"]) == "paper":
            functional.warn_if_published_threshold("threshold", param_group["threshold"])
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if not param.is_floating_point():
                del self.param_groups[-1]
                raise ValueError(
                    f"params holds a {param.dtype} tensor; leave it out, CLASSP updates real floating-point weights"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._watch = UpdateWatch("CLASSP")

    @torch.compiler.disable  # it is one fused operator already, and tracing it would compile every learning rate anew
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Recomputes the loss and the gradients; it runs first, with gradients enabled.

        Returns:
            What the closure returned, else None.

        Raises:
            RuntimeError: If a gradient is sparse.
            ShardedParameterError: If ``variant="reference"`` meets sharded parameters.
            FloatingPointError: If gradients were NaN or infinite; those elements were skipped, the rest was updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, _with_gradients(group)) for group in self.param_groups]
        counting = self._watch.counting
        for group, params in work:
            for device in dict.fromkeys(param.device for param in params):
                self._update(group, [param for param in params if param.device == device], device, counting)
        gradients = (shard for _, params in work for shard in local_shards([param.grad for param in params])[0])
        self._watch.after_step(gradients, (group["threshold"] for group in self.param_groups))
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor], device: torch.device, count: bool) -> None:
        grad_sums = []
        for param in params:
            state = self.state[param]
            if not state:
                dtype = torch.promote_types(param.dtype, torch.float32)
                state["step"] = 0
                state["grad_sum"] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
            grad_sums.append(state["grad_sum"])
        if count:
            self._watch.seen += sum(shard.numel() for shard in local_shards(params)[0])
        take_step, kernels = _implementation(group)
        with kernels:
            take_step(
                params,
                [param.grad for param in params],
                grad_sums,
                self._watch.counts_on(device),
                lr=-group["lr"] if group["maximize"] else group["lr"],
                threshold=group["threshold"],
                power=group["power"],
                eps=group["eps"],
                apply_decay=group["apply_decay"],
                count_accepted=count,
            )
        for param in params:
            self.state[param]["step"] += 1

    @torch.no_grad()
    def average_grad_sum(self) -> float:
        """Return the mean of A over all weights that have taken a step; 0.0 before the first."""
        sums = [state["grad_sum"] for state in self.state.values()]
        return _mean([total.sum(dtype=torch.float64) for total in sums], sums)

    @torch.no_grad()
    def free_fraction(self) -> float:
        """Return the share of weights never updated so far (A = 0): the capacity left; 1.0 before the first step."""
        sums = [state["grad_sum"] for state in self.state.values()]
        return _mean([(total == 0).sum() for total in sums], sums) if sums else 1.0

    @torch.no_grad()
    def update_fraction(self) -> float:
        """Return the share of weights that the last step updated, from the gradients it used.

        Returns:
            A number in [0, 1]; under FSDP2 over all ranks, which must call together.

        Raises:
            RuntimeError: If the gradients are gone. Call it between ``step()`` and ``zero_grad()``.
        """
        masks = [_accepts(param, group) for group in self.param_groups for param in _with_gradients(group)]
        if not masks:
            raise RuntimeError(
                "update_fraction() looks at the gradients of the last step and there are none: call it after step() "
                "and before zero_grad(set_to_none=True)"
            )
        return _mean([mask.sum() for mask in masks], masks)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore hyper-parameters and accumulators.

        Args:
            state_dict: What ``state_dict()`` returned for parameters of the same shapes.

        Raises:
            ValueError: If an accumulator does not have the shape of its parameter; nothing is changed then.
        """
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        pairs = [(state_dict["state"].get(index, {}), param) for index, param in zip(saved, params, strict=False)]
        for position, (state, param) in enumerate(pairs):
            if state and "grad_sum" not in state:
                raise ValueError(
                    f"the state of parameter {position} holds {', '.join(state)} and no grad_sum: it is another "
                    f"optimizer's. Resume with that one, or start CLASSP anew"
                )
            if state and state["grad_sum"].shape != param.shape:
                raise ValueError(
                    f"grad_sum of parameter {position} has shape {tuple(state['grad_sum'].shape)}, its parameter "
                    f"{tuple(param.shape)}. The checkpoint belongs to another network: build the same one or start anew"
                )
        super().load_state_dict(state_dict)
        for state, param in pairs:
            if state:  # the base class rounds floating-point state to the parameter's dtype
                own = torch.promote_types(param.dtype, torch.float32)
                self.state[param]["grad_sum"] = state["grad_sum"].to(device=param.device, dtype=own, copy=True)


def _implementation(group: dict[str, Any]) -> tuple[Callable[..., None], AbstractContextManager[None]]:
    if group["variant"] == "reference":
        return functional.published_step, nullcontext()
    if group["compile"]:
        return functional.classp_step_compiled, nullcontext()
    if group["foreach"]:
        return functional.classp_step_foreach, nullcontext()
    if group["fused"]:
        return classp_step, use_kernels("triton")
    if group["foreach"] is False or group["fused"] is False:
        return classp_step, use_kernels("eager")
    return classp_step, nullcontext()


def _with_gradients(group: dict[str, Any]) -> list[Tensor]:
    """Check a group before anything changes and return its parameters that have a gradient."""
    _check_hyper_parameters(group)
    params = [param for param in group["params"] if param.grad is not None]
    for param in params:
        if param.grad.is_sparse:
            raise RuntimeError(
                "CLASSP does not support sparse gradients; use nn.Embedding(sparse=False) or give sparse parameters to "
                "torch.optim.SparseAdam"
            )
    if group["fused"]:
        with use_kernels("triton"):
            for device_type in {param.device.type for param in params}:
                takes_triton(device_type, [])
    if group["variant"] == "reference" and any(hasattr(param, "placements") for param in params):
        raise ShardedParameterError(
            "variant='reference' asks whether any gradient of a whole tensor is non-zero and cannot work on shards; "
            "use variant='paper' under FSDP2, or DDP"
        )
    return params


def _accepts(param: Tensor, group: dict[str, Any]) -> Tensor:
    grad = param.grad.to(torch.promote_types(param.dtype, torch.float32))
    if group["variant"] == "reference":
        return (grad.square() != 0).any().float().gt(group["threshold"]).expand_as(grad)
    return (grad.abs() > magnitude_threshold(group["threshold"], grad.dtype)) & grad.isfinite()


def _mean(totals: list[Tensor], tensors: list[Tensor]) -> float:
    """Divide the sum of per-tensor totals by the number of elements, across ranks where tensors are sharded."""
    whole = [total.full_tensor() if hasattr(total, "full_tensor") else total for total in totals]
    return sum(total.item() for total in whole) / max(1, sum(tensor.numel() for tensor in tensors))


def _check_hyper_parameters(group: dict[str, Any]) -> None:
    for name in ("lr", "threshold", "eps"):
        check_number(name, group[name], low=0.0)
    check_number("power", group["power"], low=0.0, low_allowed=False)
    if group["eps"] == 0 and group["apply_decay"]:
        raise ValueError(
            "eps is 0 with apply_decay=True, which divides 0 by 0 at weights never updated; use eps=1e-5 or smaller"
        )
    check_choice("variant", group["variant"], ("paper", "reference"))
    chosen = [name for name in ("foreach", "fused", "compile") if group[name]]
    if len(chosen) > 1 or (chosen and group["variant"] == "reference"):
        raise ValueError(
            f"{' and '.join(chosen)} cannot be combined with each other or with variant='reference', which is one "
            f"eager loop; choose at most one of foreach, fused and compile"
        )
