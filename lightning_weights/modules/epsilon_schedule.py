"""How the radius of the certified box grows during training."""

from typing import Any, Literal

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.ibp_warmup import SCHEDULES, epsilon_at


class EpsilonSchedule:
    r"""Grow the radius ε from 0 to its final value while training runs.

    With $s$ optimizer steps done, $E$ steps per epoch, $T_0 = (\text{start} - 1) E$,
    $T_1 = T_0 + \text{ramp} \cdot E$ and $T_m = T_0 + \lfloor \text{mid} (T_1 - T_0) \rfloor$, ``smoothed`` is

    $$\varepsilon(s) = 0 \;(s \le T_0), \qquad A (s - T_0)^\beta \;(s < T_m), \qquad
    A (T_m - T_0)^\beta + (s - T_m) \, A \beta (T_m - T_0)^{\beta - 1} \;(s < T_1), \qquad
    \varepsilon_{\max} \;(s \ge T_1)$$

    with the $A$ that makes it reach $\varepsilon_{\max}$ at $T_1$. ``linear`` is the straight line between $T_0$ and
    $T_1$, ``fixed`` is $\varepsilon_{\max}$ from the first step on.

    Args:
        max_eps: Final radius ε_max in units of the raw input, such as 8/255 for pixels in [0, 1].
        kind: ``smoothed`` (a power, then a line), ``linear`` or ``fixed``.
        start_epoch: Epoch, counted from 1, with whose first step the ramp begins; before it ε is 0.
        ramp_epochs: Length of the ramp in epochs.
        mid: Share of the ramp, from 0 to 1, that follows the power (``smoothed`` only).
        beta: Exponent of the power, at least 2 (``smoothed`` only).

    Raises:
        ValueError: If an argument is out of range.

    Source: Shi, Wang, Zhang, Yi, Hsieh, 2021, arXiv:2103.17268, schedule of the published code.

    Examples:
        >>> schedule = EpsilonSchedule(max_eps=0.1, kind="linear", start_epoch=2, ramp_epochs=4)
        >>> [round(schedule(step, steps_per_epoch=5), 3) for step in (0, 5, 10, 15, 25, 99)]
        [0.0, 0.0, 0.025, 0.05, 0.1, 0.1]
    """

    def __init__(
        self,
        max_eps: float,
        kind: Literal["smoothed", "linear", "fixed"] = "smoothed",
        start_epoch: int = 2,
        ramp_epochs: int = 80,
        mid: float = 0.25,
        beta: float = 4.0,
    ) -> None:
        check_number("max_eps", max_eps, low=0.0, low_allowed=False)
        check_choice("kind", kind, SCHEDULES)
        check_number("start_epoch", start_epoch, low=1, whole=True)
        check_number("ramp_epochs", ramp_epochs, low=1, whole=True)
        check_number("mid", mid, low=0.0)
        if mid > 1:
            raise ValueError(f"mid is {mid!r}; allowed is a share of the ramp from 0 to 1")
        check_number("beta", beta, low=2.0)
        self.max_eps = float(max_eps)
        self.kind = kind
        self.start_epoch = start_epoch
        self.ramp_epochs = ramp_epochs
        self.mid = float(mid)
        self.beta = float(beta)

    def __call__(self, step: int, steps_per_epoch: int) -> float:
        """Return ε after ``step`` optimizer steps, where an epoch has ``steps_per_epoch``."""
        return epsilon_at(step, steps_per_epoch, **self.settings())

    @property
    def full_epoch(self) -> int:
        """Number of epochs after which ε is ε_max."""
        return 0 if self.kind == "fixed" else self.start_epoch - 1 + self.ramp_epochs

    def settings(self) -> dict[str, Any]:
        """Return the arguments, which decide ε together with the step."""
        return dict(vars(self))
