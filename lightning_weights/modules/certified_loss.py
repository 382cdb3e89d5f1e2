"""The loss of certified training: bounds, and regularisers that act while the radius grows."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional import ibp_warmup
from lightning_weights.functional.full_precision import full_precision
from lightning_weights.functional.intervals import IntervalOutput, crown_fused_loss, crown_margins, interval_forward
from lightning_weights.functional.sum_over_processes import sum_over_processes
from lightning_weights.modules.input_box import InputBox

TERMS = ("tightness", "relu")
HALF = (torch.float16, torch.bfloat16)
BATCH_NORM = nn.modules.batchnorm._BatchNorm
SMALLEST_SHARE = 1e-5  # of CROWN in the bound; below, only intervals are computed


class CertifiedLossOutput(NamedTuple):
    """What `CertifiedLoss` returns.

    Attributes:
        loss: What to minimise.
        clean_ce: Cross-entropy on the clean inputs.
        robust_loss: Upper bound of the cross-entropy over the box, with ``min_eps_reg`` for a radius of 0.
        tightness: Tightness regulariser, before its weight; 0 if it is not used.
        relu: ReLU-balance regulariser, before its weight; 0 if it is not used.
        margin_lb: Lower bounds of the margins, shape (N, K-1), other classes ascending.
        active_fraction: Share of ReLUs that are certainly active, over all layers.
        inactive_fraction: Share of ReLUs that are certainly inactive.

    Examples:
        >>> import torch
        >>> from lightning_weights.modules import MLP
        >>> output = CertifiedLoss()(MLP(4, (8,), 3), torch.rand(2, 4), torch.tensor([0, 1]), eps=0.0, eps_max=0.1)
        >>> bool(output.active_fraction + output.inactive_fraction > 0.9)  # at so small a radius
        True
    """

    loss: Tensor
    clean_ce: Tensor
    robust_loss: Tensor
    tightness: Tensor
    relu: Tensor
    margin_lb: Tensor
    active_fraction: Tensor
    inactive_fraction: Tensor


class CertifiedLoss(nn.Module):
    r"""Bound the loss over an L∞ ball, and keep bounds tight and ReLUs balanced while the radius ε grows.

    $$L = L_\text{main} + \lambda_0 \left(1 - \frac{\varepsilon}{\varepsilon_{\max}}\right)
    (L_\text{tightness} + L_\text{relu}), \qquad L_\text{main} = \begin{cases} L_\text{rob} & \varepsilon > 0 \\
    \text{cross-entropy} & \varepsilon = 0 \end{cases}$$

    At ε_max it is L_rob in every bit. Bounds are computed in full float32, whatever autocast and settings
    such as TF32 say. Batch statistics come from
    the clean inputs, and running statistics are updated once per call.

    Args:
        bound: ``ibp``: interval bounds. ``crown-ibp``: mixed with linear relaxations, with weight 1 - ε/ε_max.
        loss_fusion: Whether the sum of exponentials in the loss is bounded in one piece, instead of each margin. It
            is cheaper with ``crown-ibp``, and changes nothing with ``ibp``, where both are equal.
        reg_lambda: Weight λ₀ of the regularisers at ε = 0.
        reg_terms: Regularisers to use: ``tightness``, ``relu``, both or none.
        tol: Tolerance τ of both, up to 1: the smaller, the more they let pass.
        min_eps_reg: Radius at which they are evaluated while ε is 0.
        sync_regularizer: Whether their sums are taken over the batches of all processes, which have to be equally
            large, as if it were one batch.

    Raises:
        ValueError: If an argument is out of range.

    Source: Shi, Wang, Zhang, Yi, Hsieh, 2021, arXiv:2103.17268; CROWN-IBP: Zhang et al., 2020, arXiv:1906.06316; loss
    fusion: Xu et al., 2020, arXiv:2002.12920.

    Examples:
        >>> import torch
        >>> from lightning_weights.modules import MLP
        >>> net, x, y = MLP(in_features=4, num_classes=3), torch.full((2, 4), 0.5), torch.tensor([0, 2])
        >>> output = CertifiedLoss()(net, x, y, eps=torch.tensor(0.1), eps_max=0.1)
        >>> torch.equal(output.loss, output.robust_loss), output.margin_lb.shape
        (True, torch.Size([2, 2]))
    """

    def __init__(
        self,
        bound: Literal["ibp", "crown-ibp"] = "ibp",
        loss_fusion: bool = False,
        reg_lambda: float = 0.5,
        reg_terms: tuple[str, ...] = TERMS,
        tol: float = 0.5,
        min_eps_reg: float = 1e-6,
        sync_regularizer: bool = False,
    ) -> None:
        check_choice("bound", bound, ("ibp", "crown-ibp"))
        check_number("reg_lambda", reg_lambda, low=0.0)
        if not isinstance(reg_terms, Sequence) or isinstance(reg_terms, str):
            raise ValueError(f"reg_terms is {reg_terms!r}; allowed is a list out of {', '.join(TERMS)}")
        for index, term in enumerate(reg_terms):
            check_choice(f"reg_terms[{index}]", term, TERMS)
        check_number("tol", tol, low=0.0, low_allowed=False)
        if tol > 1:
            raise ValueError(f"tol is {tol!r}; allowed is a number in (0, 1]")
        check_number("min_eps_reg", min_eps_reg, low=0.0, low_allowed=False)
        super().__init__()
        self.bound = bound
        self.loss_fusion = loss_fusion
        self.reg_lambda = float(reg_lambda)
        self.reg_terms = list(reg_terms)
        self.tol = float(tol)
        self.min_eps_reg = float(min_eps_reg)
        self.sync_regularizer = sync_regularizer

    def forward(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: float | Tensor,
        eps_max: float,
        box: InputBox | None = None,
    ) -> CertifiedLossOutput:
        """Return the loss of a batch and its parts.

        Args:
            net: Network of supported layers, from normalised inputs to logits.
            x: Raw inputs, shape (N, ...).
            y: Labels, shape (N,).
            eps: Radius ε in units of the raw inputs; a 0-dim tensor spares ``torch.compile`` a recompilation per step.
            eps_max: Final radius ε_max.
            box: Normalisation and valid range of the inputs. ``None``: no normalisation, inputs from 0 to 1.

        Raises:
            ValueError: If a radius, inputs or labels are out of range, weights in half precision, a batch of one meets
                batch statistics, or the network has no ReLU whose inputs could be regularised.
        """
        box = InputBox() if box is None else box
        check_number("eps_max", eps_max, low=0.0, low_allowed=False)
        ibp_warmup.check_radius("eps_max", eps_max, box.low, box.high)
        if not isinstance(eps, Tensor):
            ibp_warmup.check_radius("eps", eps, box.low, box.high)
        eps = torch.as_tensor(eps, dtype=torch.float32, device=x.device)
        _check_batch(net, y)
        with torch.autocast(x.device.type, enabled=False), full_precision():
            z, lower, upper = box(widened(x), torch.where(eps == 0, self.min_eps_reg, eps))
            # multiplied out, so that it is 0 in every bit at ε_max
            left = (eps_max - eps) / eps_max
            out, robust = self._bound(net, z, lower, upper, y, left)
            assert out.margin_lower is not None
            clean_ce = F.cross_entropy(out.clean, y)
            terms, states = self._regularisers(out, (upper - lower).mean() / 2)
            loss = torch.where(eps > 0, robust, clean_ce)
            if self.reg_terms and self.reg_lambda:
                loss = loss + self.reg_lambda * left * (terms[0] + terms[1])
        return CertifiedLossOutput(loss, clean_ce, robust, *terms, out.margin_lower, *states)

    def margins(self, net: nn.Module, x: Tensor, y: Tensor, eps: float | Tensor, box: InputBox | None = None) -> Tensor:
        """Return interval bounds of the margins, whatever ``bound`` is, to judge a network by.

        They are computed in full float32, but without outward rounding: a bound can be off by rounding errors.

        Args:
            net: Network in evaluation mode.
            x: Raw inputs, shape (N, ...).
            y: Labels, shape (N,).
            eps: Radius in units of the raw inputs.
            box: As in `forward`.

        Raises:
            ValueError: As in `forward`, or if batch normalisation would take statistics of this batch.
        """
        if any(isinstance(module, BATCH_NORM) and module.training for module in net.modules()):
            raise ValueError("the network is in train mode, so that bounds would depend on the batch; call net.eval()")
        _check_batch(net, y)
        with torch.autocast(x.device.type, enabled=False), full_precision():
            ends = (InputBox() if box is None else box)(widened(x), eps)
            margins = interval_forward(net, *ends, spec=y).margin_lower
        assert margins is not None
        return margins

    def _bound(
        self, net: nn.Module, z: Tensor, lower: Tensor, upper: Tensor, y: Tensor, share: Tensor
    ) -> tuple[IntervalOutput, Tensor]:
        """Return what intervals find and the robust loss, ``share`` of whose bound comes from CROWN."""
        if self.bound == "crown-ibp" and share >= SMALLEST_SHARE:
            if self.loss_fusion:
                out, losses = crown_fused_loss(net, z, lower, upper, y, share)
                return out, losses.mean()
            out, margins = crown_margins(net, z, lower, upper, y)
            return out, ibp_warmup.robust_loss(share * margins + (1 - share) * out.margin_lower)
        out = interval_forward(net, z, lower, upper, spec=y)
        return out, ibp_warmup.robust_loss(out.margin_lower)

    def _regularisers(self, out: IntervalOutput, box_radius: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the two regularisers, and the shares of active and inactive ReLUs."""
        zero = box_radius.new_zeros(())
        if not out.preactivations and not self.reg_terms:
            return [zero, zero], [zero, zero]
        sums = ibp_warmup.layer_sums(out.preactivations)
        if self.sync_regularizer and dist.is_available() and dist.is_initialized():
            box_radius = sum_over_processes(box_radius.detach()) / dist.get_world_size()
            sums = sum_over_processes(sums)
        found = [
            ibp_warmup.tightness(sums, box_radius, self.tol) if "tightness" in self.reg_terms else zero,
            ibp_warmup.relu_balance(sums, self.tol) if "relu" in self.reg_terms else zero,
        ]
        totals = sums.detach().sum(dim=0)
        return found, [totals[place] / totals[ibp_warmup.COUNT] for place in (ibp_warmup.ACTIVE, ibp_warmup.INACTIVE)]


def widened(x: Tensor) -> Tensor:
    """Return half-precision inputs in float32, since nothing can be proved in less."""
    return x.float() if x.dtype in HALF else x


def _check_batch(net: nn.Module, y: Tensor) -> None:
    if y.dtype != torch.int64 or not len(y):
        raise ValueError(f"there are {len(y)} labels in {y.dtype}; allowed are one or more, in torch.int64")
    first = next(net.parameters(), None)
    if first is not None and first.dtype in HALF:
        raise ValueError(
            f"the network is in {first.dtype}, half precision, in which bounds prove nothing; keep weights in float32, "
            f"with precision='bf16-mixed' or '32'"
        )
    if len(y) == 1 and any(isinstance(module, BATCH_NORM) and module.training for module in net.modules()):
        raise ValueError(
            "the batch has 1 sample, too few for batch statistics; use drop_last=True in the training "
            "loader (data.drop_last of this package's data modules) or another batch_size"
        )
