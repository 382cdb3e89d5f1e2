"""LIFT: an optimizer that trains the principal weights of matrices and keeps state for them alone."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_weights.optimizers._sparse_rules import (
    check_rules,
    check_saved_rules,
    warn_about_choice,
    warn_about_rules,
    warn_if_nothing_is_marked,
)
from lightning_weights.optimizers._sparse_state import (
    check_saved_state,
    chooses_by_gradient,
    new_sparse_state,
    refresh,
    refreshes_after,
)
from lightning_weights.optimizers._sparse_steps import step_dense, step_sparse
from lightning_weights.optimizers._sparse_targets import (
    all_parameters,
    check_gradient,
    check_marked,
    sparse_targets,
)


class LIFTAdamW(Optimizer):
    r"""AdamW on the principal weights of matrices: the entries that are largest after rank reduction.

    Of every matrix W (m, n) exactly k = min(q (m + n), m n) entries are trained, as many as LoRA of rank q has weights,
    directly in place; all others keep their bits. The choice is that of the rank-r approximation and is made anew
    every N steps:

    $$M = \operatorname{top}_k |W_r|, \qquad
    W_M \leftarrow W_M - \eta\,\frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}\,\frac{m}{\sqrt v + \varepsilon}$$

    Moments exist for the k entries alone: 12 bytes each, index included. Entries that stay chosen keep their moments,
    new ones start from zero, dropped ones keep the value they were trained to. Masks are built at the first step, or by
    `select`, from the weights as they are then, and chosen anew after the steps N - 1, 2N - 1, ...

    Matrices marked ``weight._lw_sparse = True`` get masks, which ``LIFTFinetuning`` does in Lightning; if none is
    marked, all trainable matrices do, except those marked False. Everything else trainable gets AdamW with the same
    conventions.

    Args:
        params: Parameters, named parameters or parameter groups.
        lr: Learning rate η ≥ 0.
        betas: (β₁, β₂). A new entry first moves by η (1 - β₁)/√(1 - β₂): 0.45 η here, 3.2 η with β₂ = 0.999.
        eps: ε ≥ 0, outside the root and outside the bias correction.
        weight_decay: Decoupled, after the update; of a matrix it reaches chosen entries only.
        budget_rank: q ≥ 1, or None where ``density`` says how many entries are chosen.
        density: Fraction of the entries, in (0, 1], or None where ``budget_rank`` does.
        filter_rank: Rank r ≥ 1 of the approximation; from min(m, n) on it is W itself.
        update_interval: N ≥ 1. More than the number of steps keeps the first masks.
        selector: ``lift``, or for comparison ``magnitude`` (largest |W|), ``random`` (once), ``gradient`` (largest |G|
            of the step at which the choice is made) and ``bottom`` (smallest |W_r|, see below).
        svd: How W_r is found: ``gram`` takes half the time of ``exact``, ``randomized`` still less for large matrices.
        seed: Of the random selector, the randomized decomposition and stochastic rounding.
        state_dtype: Type of the moments: ``float32``, ``float64`` or ``bfloat16``.
        stochastic_rounding: Whether bf16 matrices are rounded up or down at random instead of to the nearest, which
            loses every step below 1/512 of a weight.

    Raises:
        ValueError: If an argument is out of range or a marked parameter is no trainable matrix.

    Differs from the paper's released code, whose default trains the k smallest entries of |W_r|, because the name of
    the mask lost the word that its selector looks for: ``selector="bottom"`` repeats this. There the masks are made in
    the constructor, and weight decay does nothing on matrices.

    Source: Zihang Liu et al., "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for
    Reasoning-Focused Supervised Fine-Tuning", ICML 2025, arXiv:2506.00772.

    Examples:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 0.1], [0.2, 1.0]]))
        >>> weight._lw_sparse = True
        >>> optimizer = LIFTAdamW([weight], lr=0.5, budget_rank=None, density=0.5, filter_rank=1)
        >>> weight.grad = torch.ones(2, 2)
        >>> optimizer.step()
        >>> optimizer.selection(weight).tolist(), (weight.data * 10).round().tolist()
        ([0, 2], [[25.0, 1.0], [-3.0, 10.0]])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        budget_rank: int | None = 128,
        density: float | None = None,
        filter_rank: int = 128,
        update_interval: int = 400,
        selector: Literal["lift", "magnitude", "random", "gradient", "bottom"] = "lift",
        svd: Literal["exact", "gram", "randomized"] = "gram",
        seed: int = 0,
        state_dtype: str = "float32",
        stochastic_rounding: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "budget_rank": budget_rank,
            "density": density, "filter_rank": filter_rank, "update_interval": update_interval, "selector": selector,
            "svd": svd, "seed": seed, "state_dtype": state_dtype, "stochastic_rounding": stochastic_rounding,
        }  # fmt: skip
        check_rules(defaults)
        defaults["betas"] = tuple(betas)  # of a configuration it may be a list of its own kind
        super().__init__(params, defaults)
        self._told: set[str] = set()
        for group in self.param_groups:
            warn_about_rules(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; hyper-parameters it does not name take the optimizer's defaults.

        Args:
            param_group: ``params`` and any hyper-parameters of its own.

        Raises:
            ValueError: If a hyper-parameter is out of range, a parameter is complex, or a marked one no matrix.
        """
        check_rules({**self.defaults, **param_group})
        super().add_param_group(param_group)
        self.param_groups[-1]["betas"] = tuple(self.param_groups[-1]["betas"])
        try:
            for target in all_parameters(self.param_groups[-1:]):
                if target.param.is_complex():
                    raise ValueError(f"{target.name} is complex; LIFTAdamW trains real weights")
                if target.marked is True:
                    check_marked(target)
        except ValueError:
            del self.param_groups[-1]
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._told = set()

    @property
    def targets(self) -> list[Tensor]:
        """Return the parameters that get masks, in their order."""
        return [target.param for target in sparse_targets(self.param_groups)]

    @torch.no_grad()
    def select(self) -> None:
        """Choose the entries of every matrix that has none chosen yet; after a resume nothing is left to do.

        With ``selector="gradient"`` that happens at the first step, which has gradients.

        Raises:
            ValueError: If a weight holds NaN or infinity, or there is no matrix.
            ShardedParameterError: If a matrix is sharded.
        """
        targets = sparse_targets(self.param_groups)
        missing = [target for target in targets if self._indices(target.param) is None]
        missing = [t for t in missing if t.group["selector"] != "gradient" or t.param.grad is not None]
        if not missing:
            return
        started = time.perf_counter()
        for target in missing:
            self.state[target.param].update(new_sparse_state(target))
        warn_about_choice(missing, time.perf_counter() - started, self._told)
        warn_if_nothing_is_marked(targets, self._told)

    def selection(self, param: Tensor) -> Tensor:
        """Return which entries of a matrix are trained, choosing them if that has not happened.

        The tensor is replaced when the choice is made anew, and never changed in place.

        Args:
            param: A matrix of this optimizer.

        Returns:
            Row-major flat indices, int32, ascending.

        Raises:
            ValueError: If the parameter gets no mask.
            RuntimeError: If the choice needs a gradient and there is none yet.
        """
        if self._indices(param) is None:
            self.select()
        indices = self._indices(param)
        if indices is None:
            if not any(param is target for target in self.targets):
                raise ValueError(f"the parameter of shape {tuple(param.shape)} gets no mask from this optimizer")
            raise RuntimeError("selector='gradient' chooses by the first whole gradient, and there is none yet")
        return indices

    def wants_dense_gradient(self, param: Tensor) -> bool:
        """Return whether the coming step chooses entries by the gradient, and so needs all of it.

        Args:
            param: A matrix of this optimizer.

        Raises:
            ValueError: If this optimizer does not have it.
        """
        for group in self.param_groups:
            if any(param is other for other in group["params"]):
                return chooses_by_gradient(group, self.state.get(param, {}))
        raise ValueError(f"the parameter of shape {tuple(param.shape)} is in no group of this optimizer")

    @torch.compiler.disable  # one fused operator already, and the choice depends on data
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, and choose entries anew where that is due.

        A matrix with ``_lw_sparse_grad``, the gradient of its chosen entries alone, uses that and not its ``grad``.

        Args:
            closure: Recomputes the loss and the gradients; it runs first, with gradients enabled.

        Returns:
            What the closure returned, else None.

        Raises:
            RuntimeError: If a gradient is sparse, complex, or that of another selection.
            ValueError: If a hyper-parameter was set out of range, or a weight holds NaN or infinity when entries are
                chosen.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            check_rules(group)
        work = [target for target in all_parameters(self.param_groups) if target.gradient is not None]
        for target in work:
            wants_dense = chooses_by_gradient(target.group, self.state.get(target.param, {}))
            check_gradient(target, self._indices(target.param), wants_dense)
        self.select()
        sparse = [target for target in work if self._indices(target.param) is not None]
        for group in self.param_groups:
            step_sparse(group, [target for target in sparse if target.group is group], self.state)
        for target in work:
            if self._indices(target.param) is None:
                step_dense(target, self.state[target.param])
        for target in sparse:
            if refreshes_after(self.state[target.param]["step"], target.group):
                refresh(target, self.state[target.param])
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those gathered at chosen entries included.

        Args:
            set_to_none: Whether they become None; otherwise zero.
        """
        super().zero_grad(set_to_none)
        for target in all_parameters(self.param_groups):
            if target.gathered is not None:
                target.param._lw_sparse_grad = None if set_to_none else torch.zeros_like(target.gathered)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore hyper-parameters, selections and moments; selections are not computed anew.

        Args:
            state_dict: What ``state_dict()`` returned for parameters of the same shapes.

        Raises:
            ValueError: If it belongs to another optimizer, network, budget or selector; nothing is changed then.
        """
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            check_saved_rules(group, saved)
        numbers = [index for group in state_dict["param_groups"] for index in group["params"]]
        states = [state_dict["state"].get(number, {}) for number in numbers]
        pairs = list(zip(states, all_parameters(self.param_groups), strict=False))
        for state, target in pairs:
            check_saved_state(target, state)
        super().load_state_dict(state_dict)
        for state, target in pairs:  # the base class rounds all state to the parameter's dtype
            for name in state.keys() & {"idx", "m", "v"}:
                self.state[target.param][name] = state[name].to(target.param.device, copy=True)

    def _indices(self, param: Tensor) -> Tensor | None:
        return self.state.get(param, {}).get("idx")
