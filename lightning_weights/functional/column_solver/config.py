"""What the column solver does: method, grid, groups, order, damping and coefficients."""

import math
import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number

METHODS = ("rtn", "gptq", "gptaq", "rescomp", "rescomp_gptq")
SUSPICIOUS_BETA, LARGE_BETA = 0.01, 0.5


class Rule(NamedTuple):
    """What the method and its coefficients come to in one column step.

    Attributes:
        cae: Share of the drift w - W⁰ that the rounding error is corrected by.
        blend: Share of W⁰ in the column that the input errors are computed from.
        pull: Share by which a column is pulled back to W⁰ before it is rounded.
        outer: What later blocks are told: ``current``, ``quantized``, ``clamped`` or ``leftover``.
    """

    cae: float
    blend: float
    pull: float
    outer: str


@dataclass(frozen=True)
class CompensationConfig:
    r"""Settings of column-by-column quantization with compensation of errors: GPTQ, GPTAQ and ResComp.

    Args:
        method: ``rtn`` rounds to the nearest, without statistics; ``gptq`` passes rounding errors on to later columns;
            ``gptaq`` corrects for inputs that carry earlier layers' errors, too; ``rescomp`` adds to it the
            compensation-aware error; ``rescomp_gptq`` adds that to GPTQ.
        bits: Bits per weight, 2 to 8.
        group_size: Columns that share a scale; -1: all of a row. The last group may be shorter.
        sym: Whether the zero point is fixed in the middle of the levels.
        mse_clip: Whether to search, per row and group, for the range with the least Σ|ŵ - w|^2.4.
        grid: Symmetric levels as in QuaRot, the largest at max|w|, or as in GPTQ, spanning ±max|w|.
        act_order: Whether columns with large inputs come first. ``rtn`` has no inputs and keeps the order.
        static_groups: Whether groups are those of neighbouring columns and their scales are set before the first
            column; otherwise they are set when their first column's block is reached.
        block_size: Columns after which later ones are updated.
        damp: Share of the mean diagonal that is added to the diagonal of H.
        damp_increment: What ``damp`` grows by as long as H cannot be factorized; 0: raise an error at once.
        alpha: Scale of GPTAQ's correction; the paper has 1, the authors' code 0.25.
        alpha_cae: Scale of ResComp's error; the paper has 1, the authors' code 0.25.
        outer: Which value of a column later blocks are updated with: ``current`` (as derived), ``quantized`` or
            ``clamped`` to the grid's range; ``auto``: as the authors' code does, ``quantized`` for GPTAQ and for
            2 bits, ``clamped`` otherwise.
        clamp_scope: Range of ``clamped``: of each ``column``'s own group, or, as in the authors' code, of the group
            of the block's last column (``block_last``), which is a wrong one if blocks hold several groups.

    Raises:
        ValueError: If a value is not allowed.

    Source: Frantar et al. 2023, arXiv:2210.17323; Li et al. 2025, arXiv:2504.02692; Li et al. 2026, arXiv:2604.07955.

    Examples:
        >>> CompensationConfig(bits=4, group_size=64).asymmetric
        True
    """

    method: Literal["rtn", "gptq", "gptaq", "rescomp", "rescomp_gptq"] = "rescomp"
    bits: int = 3
    group_size: int = 128
    sym: bool = True
    mse_clip: bool = True
    grid: Literal["quarot", "gptq"] = "quarot"
    act_order: bool = True
    static_groups: bool = False
    block_size: int = 128
    damp: float = 0.01
    damp_increment: float = 0.01
    alpha: float = 0.25
    alpha_cae: float = 0.25
    outer: Literal["auto", "current", "quantized", "clamped"] = "auto"
    clamp_scope: Literal["column", "block_last"] = "column"

    def __post_init__(self) -> None:
        self._check_method()
        check_number("bits", self.bits, low=2, high=9, whole=True)
        if self.group_size != -1:
            check_number("group_size", self.group_size, low=1, whole=True)
        elif self.static_groups:
            raise ValueError(
                "static_groups is True with group_size -1, where there is one scale per row; allowed is a positive "
                "group_size, or static_groups=False"
            )
        check_choice("grid", self.grid, ("quarot", "gptq"))
        check_number("block_size", self.block_size, low=1, whole=True)
        check_number("damp", self.damp, low=0.0, high=1.0, low_allowed=False)
        check_number("damp_increment", self.damp_increment, low=0.0, high=1.0)
        for name in ("alpha", "alpha_cae"):
            value = getattr(self, name)
            check_number(name, value, low=-math.inf)
            if not 0.0 <= value <= 1.0:
                warnings.warn(f"{name} is {value}, outside [0, 1]", LightningWeightsWarning, stacklevel=3)
        check_choice("outer", self.outer, ("auto", "current", "quantized", "clamped"))
        check_choice("clamp_scope", self.clamp_scope, ("column", "block_last"))

    def _check_method(self) -> None:
        check_choice("method", self.method, METHODS)

    @property
    def asymmetric(self) -> bool:
        """Whether inputs of the full-precision network are needed beside those of the quantized one."""
        return self.method in ("gptaq", "rescomp") and self.alpha != 0.0

    @property
    def searched(self) -> int:
        """Columns per group whose grids are searched in the course of the solution; 0: none are."""
        return 0 if self.static_groups or self.group_size == -1 else self.group_size

    @property
    def grid_name(self) -> str:
        """The grid as the operator calls it."""
        return self.grid if self.sym else "asymmetric"

    @property
    def rule(self) -> Rule:
        """What a column step does."""
        cae = self.alpha_cae if self.method.startswith("rescomp") else 0.0
        outer: str = self.outer
        if outer == "auto":
            outer = "quantized" if self.method == "gptaq" or self.bits == 2 else "clamped"
        return Rule(cae, cae / self.alpha if self.asymmetric else 0.0, 0.0, outer)


@dataclass(frozen=True)
class FOEMConfig(CompensationConfig):
    r"""Settings of FOEM: GPTQ, or GPTAQ, with a first-order term for weights that have left their trained values.

    Arguments that are not named here are those of [`CompensationConfig`][], with the defaults of FOEM's authors.

    Args:
        method: ``foem``.
        bits: Bits per weight, 2 to 8.
        group_size: Columns that share a scale; -1: all of a row.
        sym: Whether the zero point is fixed in the middle of the levels.
        mse_clip: Whether to search for the best range.
        grid: Convention of symmetric levels.
        act_order: Whether columns with large inputs come first.
        static_groups: Whether scales are set before the first column.
        block_size: Columns after which later ones are updated.
        damp: Share of the mean diagonal that is added to the diagonal of H.
        damp_increment: What ``damp`` grows by as long as H cannot be factorized.
        alpha: Scale of GPTAQ's correction; 0: one activation stream is enough.
        alpha_cae: ResComp's coefficient, which must be 0: ``beta`` takes its place.
        outer: Which value of a column later blocks are updated with; ``auto``: what the authors' code leaves there,
            ŵ + β(w - W⁰), with the error as in the block. v1 always does what its code does.
        clamp_scope: Range of ``clamped``.
        beta: β. About 0.1 for ``v2``; v1 had 3e-4.
        variant: ``v2``, the published method, or ``v1`` of the first preprint, whose step depends on the size of the
            inputs and can diverge.
        pull: Which columns ``v2`` pulls back to their original weights after a step: the ``next`` of the block,
            ``none``, or ``all``, the formula's literal reading, which undoes the compensation.
        pull_block_start: Whether the first column of a block is pulled, too. Then results do not depend on
            ``block_size``; the authors' code does not do it.

    Raises:
        ValueError: If a value is not allowed.

    Source: Zheng et al. 2026, AAAI 40(34), arXiv:2507.11017 (v2), and the authors' code in GPTQModel.

    Examples:
        >>> FOEMConfig(beta=0.2).asymmetric, FOEMConfig(alpha=0.25).asymmetric
        (False, True)
    """

    method: Literal["foem"] = "foem"  # type: ignore[assignment]
    sym: bool = False
    mse_clip: bool = False
    grid: Literal["quarot", "gptq"] = "gptq"
    damp: float = 0.05
    alpha: float = 0.0
    alpha_cae: float = 0.0
    beta: float = 0.1
    variant: Literal["v2", "v1"] = "v2"
    pull: Literal["next", "none", "all"] = "next"
    pull_block_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variant", self.variant, ("v2", "v1"))
        check_choice("pull", self.pull, ("next", "none", "all"))
        if isinstance(self.beta, bool) or not isinstance(self.beta, (int, float)) or not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta is {self.beta!r}; allowed is a number in [0, 1], about 0.1")
        if self.alpha_cae != 0.0:
            raise ValueError(f"alpha_cae is {self.alpha_cae!r}; FOEM allows 0 only: its coefficient is beta")
        if self.beta > LARGE_BETA:
            self._warn("above 0.5 the authors' own comparison gets worse; 0.1 to 0.25 are usual")
        if self.variant == "v2" and 0.0 < self.beta < SUSPICIOUS_BETA:
            self._warn("which looks like a value of v1; v2 has about 0.1")

    def _check_method(self) -> None:
        check_choice("method", self.method, ("foem",))

    def _warn(self, reason: str) -> None:
        warnings.warn(f"beta is {self.beta}: {reason}", LightningWeightsWarning, stacklevel=4)

    @property
    def asymmetric(self) -> bool:
        return self.alpha != 0.0

    @property
    def rule(self) -> Rule:
        pull = self.beta if self.pull != "none" else 0.0
        return Rule(self.beta, 0.0, pull, "leftover" if self.outer == "auto" else self.outer)
