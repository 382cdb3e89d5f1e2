"""AdamW on projected gradients: GaLore for any matrix, and the optimizer of GradNormLoRP's factors."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_weights.functional.full_precision import full_precision
from lightning_weights.functional.gradient_projection import Projection, kept_projection
from lightning_weights.kernels.projected_adam import projected_adam
from lightning_weights.optimizers._projected_groups import (
    Entry,
    check_gradient,
    check_hyper_parameters,
    check_parameters,
    choose_projected,
    new_projection,
    step_size_of,
)
from lightning_weights.optimizers._projected_state import (
    check_saved_state,
    create_state,
    is_projected,
    projected_shape,
    projection_of,
    refresh_state,
    sides_of,
)


class GradNormLoRPAdamW(Optimizer):
    r"""AdamW whose moments live in a low-rank projection of the gradient.

    With gradient D (a × b), its leading singular vectors P (p × b), found again every T steps, and t = 1, 2, …:

    $$R = D P^\top, \quad m \leftarrow \beta_1 m + (1-\beta_1) R, \quad v \leftarrow \beta_2 v + (1-\beta_2) R^2, \quad
    w \leftarrow w - \eta\,\frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t}\,\kappa\,\frac{m}{\sqrt v + \varepsilon}\,P$$

    and then w ← (1 - η·weight_decay)·w. What is projected: the parameters that the ``GradNormLoRP`` callback marked;
    without it every matrix, which is GaLore-AdamW; and all parameters of a group that names a ``rank`` of its own. All
    others take a plain AdamW step, without κ. ``rank: None`` in a group excludes it.

    The state consists of tensors and integers: ``projection_left`` or ``projection_right``, ``exp_avg``,
    ``exp_avg_sq``, always in fp32 (fp64 for fp64 weights) or in 8-bit codes, and ``step``.

    Args:
        params: Parameters or parameter groups, named or not.
        lr: Learning rate η ≥ 0.
        betas: β₁ and β₂ in [0, 1).
        eps: ε > 0, added to the root of the second moment.
        weight_decay: Decoupled weight decay ≥ 0.
        rank: p ≥ 1. From the shorter side of a matrix on, the projection is a rotation and saves nothing, which is
            reported once. None projects nothing.
        update_proj_gap: T ≥ 1, steps from one projection to the next; the first step always makes one.
        scale: κ > 0, factor of projected updates.
        proj_type: ``std`` projects the shorter side, ``reverse_std`` the longer one, ``left`` or ``right`` always this
            one, ``full`` both.
        state_bits: 8 stores moments of 4096 elements and more in blocks of 256 as 8-bit codes (needs bitsandbytes).
        svd: How singular vectors are computed: ``exact``, or faster by ``gram`` or ``randomized``.
        moment_transport: What a new projection does to the moments: ``none`` leaves them, although they belong to the
            old basis, as GaLore does; ``rotate`` turns them into the new one; ``reset`` starts them anew.
        sign_fix: Whether the largest entry of every singular vector is made positive, so that training beyond the
            first T steps does not depend on the library that computed them.

    Raises:
        ValueError: If an argument is out of range, or a group with a rank of its own holds anything but matrices.
        MissingDependencyError: If ``state_bits`` is 8 and bitsandbytes is not installed.

    Differs from GaLore: signs are fixed by default; ``reverse_std`` works where the rank reaches the shorter side; the
    projection is computed and kept in fp32 whatever the gradient's dtype; second moments in 8 bits are never rounded
    to zero; nothing in the state needs pickle.

    Source: Huang et al., "Gradient Weight-normalized Low-rank Projection for Efficient LLM Training", 2025,
    arXiv:2412.19616; Zhao et al., "GaLore", 2024, arXiv:2403.03507.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 3))
        >>> optimizer = GradNormLoRPAdamW([weight], lr=0.1, rank=1)
        >>> weight.grad = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
        >>> optimizer.step()
        >>> weight.data
        tensor([[ 0.0000, -0.1000,  0.0000],
                [ 0.0000,  0.0000,  0.0000]])
        >>> {name: tuple(value.shape) for name, value in optimizer.state[weight].items() if name != "step"}
        {'projection_left': (2, 1), 'exp_avg': (1, 3), 'exp_avg_sq': (1, 3)}
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        rank: int | None = 8,
        update_proj_gap: int = 200,
        scale: float = 1.0,
        proj_type: Literal["std", "reverse_std", "left", "right", "full"] = "std",
        state_bits: Literal[8, 32] = 32,
        svd: Literal["exact", "gram", "randomized"] = "exact",
        moment_transport: Literal["none", "rotate", "reset"] = "none",
        sign_fix: bool = True,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rank": rank,
            "update_proj_gap": update_proj_gap, "scale": scale, "proj_type": proj_type, "state_bits": state_bits,
            "svd": svd, "moment_transport": moment_transport, "sign_fix": sign_fix,
        }  # fmt: skip
        check_hyper_parameters(defaults)
        super().__init__(params, {**defaults, "betas": tuple(betas)})
        self._projected: set[Tensor] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._projected = set()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; hyper-parameters it does not name take the optimizer's defaults.

        Args:
            param_group: ``params`` and any hyper-parameters of its own. One with a ``rank`` holds matrices only.

        Raises:
            ValueError: If a hyper-parameter is out of range, a parameter is not real floating point, or one that is to
                be projected is no matrix.
        """
        check_hyper_parameters({**self.defaults, **param_group})
        own_rank = param_group.get("rank") is not None
        super().add_param_group({"all_matrices": own_rank, **param_group})
        try:
            check_parameters(self.param_groups[-1], own_rank)
        except ValueError:
            del self.param_groups[-1]
            raise

    @torch.compiler.disable
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Recomputes the loss and the gradients; it runs first, with gradients enabled.

        Returns:
            What the closure returned, else None.

        Raises:
            FloatingPointError: If a gradient that a projection is to be made from holds NaN or infinity; nothing has
                been changed then.
            RuntimeError: If a gradient is sparse, or came projected although this step makes a projection.
            ShardedParameterError: If a parameter that is to be projected is sharded.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = self._with_gradients()
        with full_precision():
            self._make_projections(work)
            for entries in self._batches(work):
                self._update(entries)
        for param in self._projected:
            param.grad = None  # another step would take it for a whole one
        self._projected.clear()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, and in what form they came.

        Args:
            set_to_none: Whether they become None; otherwise zero.
        """
        super().zero_grad(set_to_none)
        self._projected.clear()

    def coming_projection(self, param: Tensor) -> Projection:
        """Return the projection that the coming step finds ready, or none if it makes one or does without.

        Args:
            param: A parameter of this optimizer.
        """
        state = self.state.get(param) or {}
        gap = next(group["update_proj_gap"] for group in self.param_groups if any(param is p for p in group["params"]))
        return Projection(None, None) if not state or state["step"] % gap == 0 else projection_of(state)

    def expect_gradient(self, param: Tensor, projected: bool) -> None:
        """Say in what form the next gradient of a parameter comes, for the coming step.

        Args:
            param: A parameter of this optimizer.
            projected: Whether it comes projected by `coming_projection`, kept in ``grad`` by
                [`keep_projection`][lightning_weights.functional.gradient_projection.keep_projection]; else it is whole.
                The step uses it up.

        Raises:
            RuntimeError: If a projected gradient is there still, to which the next one would be added.
        """
        if param in self._projected:
            raise RuntimeError(
                f"the gradient of a parameter of shape {tuple(param.shape)} is projected already, and another one was "
                f"added to it. Accumulate under no_sync() of the wrapped model, and clear gradients with zero_grad() "
                f"of the optimizer, not with that of a module"
            )
        if projected:
            self._projected.add(param)

    def _with_gradients(self) -> list[Entry]:
        """Check everything before anything changes and return the parameters that have a gradient."""
        work = []
        for group in self.param_groups:
            check_hyper_parameters(group)
            for index, param in enumerate(group["params"]):
                if param.grad is not None:
                    needs_whole = (self.state.get(param) or {"step": 0})["step"] % group["update_proj_gap"] == 0
                    check_gradient(group, index, needs_whole and param in self._projected)
                    work.append((group, index, param))
        return work

    def _make_projections(self, work: list[Entry]) -> None:
        """Create states, and put new projections where they are due; all are computed before anything changes."""
        fresh = [entry for entry in work if not self.state.get(entry[2])]
        chosen = choose_projected(self.param_groups, fresh)
        made = {}
        for group, index, param in work:
            state = self.state.get(param) or {"step": 0}
            if chosen.get(param, is_projected(state)) and state["step"] % group["update_proj_gap"] == 0:
                made[param] = new_projection(group, index, param, state["step"] + 1)
        for group, _, param in work:
            if not self.state.get(param):
                create_state(self.state[param], param, made.get(param, Projection(None, None)), group["state_bits"])
            elif param in made:
                refresh_state(self.state[param], made[param], group["moment_transport"])

    def _batches(self, work: list[Entry]) -> Iterable[list[Entry]]:
        """Put together what one call of the operator can do."""
        batches: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
        for group, index, param in work:
            state = self.state[param]
            form = (*sides_of(projection_of(state)), "block_size" in state, param in self._projected)
            batches[id(group), param.device, form].append((group, index, param))
        return batches.values()

    def _update(self, entries: list[Entry]) -> None:
        group = entries[0][0]
        params = [param for _, _, param in entries]
        states = [self.state[param] for param in params]
        for state in states:
            state["step"] += 1
        gradients = [param.grad for param in params]
        projected = params[0] in self._projected
        if projected:
            shapes = [projected_shape(param, projection_of(self.state[param])) for param in params]
            gradients = list(map(kept_projection, gradients, shapes))
        beta1, beta2 = group["betas"]

        def column(name: str) -> list[Tensor]:
            return [state[name] for state in states if name in state]

        projected_adam(
            params,
            gradients,
            column("exp_avg"),
            column("exp_avg_sq"),
            lefts=column("projection_left"),
            rights=column("projection_right"),
            absmaxes=column("exp_avg_absmax"),
            sq_absmaxes=column("exp_avg_sq_absmax"),
            step_sizes=[step_size_of(group, state) for state in states],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            scale=group["scale"],
            decay=group["lr"] * group["weight_decay"],
            projected=projected,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore hyper-parameters, projections and moments.

        Args:
            state_dict: What ``state_dict()`` returned for parameters of the same shapes.

        Raises:
            ValueError: If a state does not fit its parameter; nothing is changed then.
        """
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        pairs = [(state_dict["state"].get(index, {}), param) for index, param in zip(saved, params, strict=False)]
        for position, (state, param) in enumerate(pairs):
            check_saved_state(position, state, param)
        super().load_state_dict(state_dict)
        for state, param in pairs:  # the base class gives every tensor of the state the parameter's dtype
            for name, value in state.items():
                if isinstance(value, Tensor):
                    self.state[param][name] = value.to(device=param.device, copy=True)
