"""The device that holds a synapse's conductance."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.hw_synapse import fit_curve, read_table
from lightning_weights.kernels.pulse_update import KINDS, Response, pulses_to_reach, rise

LARGEST_NU = 50.0  # beyond, e^ν leaves the range of fp32
PRESETS: dict[str, dict[str, Any]] = {
    "ideal": {"kind": "linear", "n_states": 1000},
    # ν = N/A of NeuroSim's curves labelled 1.75 and 1.46, the latter between tabulated ones
    "neurosim": {"kind": "soft", "n_states": 32, "nu_ltp": 1.424, "nu_ltd": 1.179, "c2c": 0.003},
}


@dataclass(frozen=True)
class DeviceModel:
    r"""What identical pulses do to the conductance of a device, and how devices differ.

    With the state x = (G - G_min) / (G_max - G_min) in [0, 1], N states and non-linearity ν, k pulses of potentiation
    (LTP), clipped to [0, 1]:

    $$\text{linear: } x + \tfrac{k}{N}, \qquad \text{soft: } K - (K - x)\,e^{-\nu k/N},\; K = \frac{1}{1 - e^{-\nu}},
    \qquad \text{exp: } \frac{1}{\nu}\ln\Bigl(e^{\nu x} + \frac{e^\nu - 1}{N} k\Bigr)$$

    Depression (LTD) does the same to 1 - x, with a ν of its own. ``table`` follows measured curves. N pulses lead from
    one end to the other.

    Args:
        kind: ``linear``, ``soft`` (steps shrink exponentially with the pulses), ``exp`` (and with the state) or
            ``table``.
        n_states: N ≥ 1; a ``table`` has its own.
        nu_ltp: ν of potentiation, for ``soft`` and ``exp``.
        nu_ltd: ν of depression. ``None``: that of potentiation.
        g_min: Lowest conductance > 0. Weights don't depend on it, currents for reading do.
        g_max: Highest conductance.
        d2d_nu: σ of ln ν from device to device; no ν exceeds 50, whatever is drawn.
        d2d_states: σ of ln N from device to device.
        d2d_range: σ of the range of conductance from device to device, as a share; ranges are clipped to [0.5, 1.5].
        c2c: σ of what the pulses of one update do, as a share, from update to update.
        stuck: Probability that a device is stuck, at a state drawn at random.
        table: CSV file with the columns ``n``, ``ltp`` and ``ltd``, for ``table``.
        discrete: Whether weights are programmed to states that whole numbers of pulses reach, from the end at which
            learning begins. Learning itself adds whole pulses; so does a ``pulsed`` refresh.

    Raises:
        ValueError: If a number is out of range, does not belong to the kind, or the table is not monotone.

    Source: the forms are those of device simulators: soft that of NeuroSim, exp that of Querlioz et al. 2013. Lim et
    al. 2017, arXiv:1707.06381, compare linear and non-linear responses; their own numbers could not be read.

    Examples:
        >>> import torch
        >>> device = DeviceModel(kind="soft", n_states=64, nu_ltp=2.0)
        >>> device.pulse(torch.tensor([0.0, 0.5]), 8)
        tensor([0.2558, 0.6452])
        >>> device.pulse(device.pulse(torch.tensor([0.5]), 8), 8, up=False)  # not where it was
        tensor([0.4679])
    """

    kind: Literal["linear", "soft", "exp", "table"] = "soft"
    n_states: int = 64
    nu_ltp: float = 2.0
    nu_ltd: float | None = None
    g_min: float = 0.1
    g_max: float = 1.0
    d2d_nu: float = 0.0
    d2d_states: float = 0.0
    d2d_range: float = 0.0
    c2c: float = 0.0
    stuck: float = 0.0
    table: str | None = None
    discrete: bool = False

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_number("n_states", self.n_states, low=1, whole=True)
        check_number("nu_ltp", self.nu_ltp, low=0.0, high=LARGEST_NU)
        if self.nu_ltd is not None:
            check_number("nu_ltd", self.nu_ltd, low=0.0, high=LARGEST_NU)
        check_number("g_min", self.g_min, low=0.0, low_allowed=False)
        check_number("g_max", self.g_max, low=self.g_min, low_allowed=False)
        for name in ("d2d_nu", "d2d_states", "d2d_range", "c2c"):
            check_number(name, getattr(self, name), low=0.0)
        check_number("stuck", self.stuck, low=0.0, high=1.0)
        check_choice("discrete", self.discrete, (False, True))
        if self.d2d_nu and self.kind not in ("soft", "exp"):
            raise ValueError(f"d2d_nu is {self.d2d_nu}, but kind={self.kind!r} has no ν; use 0, or 'soft' or 'exp'")
        if (self.table is None) == (self.kind == "table"):
            raise ValueError(
                f"table is {self.table!r} with kind={self.kind!r}; give the file with kind='table', and only there"
            )
        # read once: a file that changes or goes away is no reason for a device to become another one
        object.__setattr__(self, "_curves", None if self.table is None else read_table(self.table))

    @classmethod
    def preset(cls, name: str) -> "DeviceModel":
        """Return a device of a known kind.

        Args:
            name: ``ideal`` (linear, 1000 states) or ``neurosim`` (32 states, soft, the default cell of NeuroSim).

        Raises:
            ValueError: If the name is another.

        Examples:
            >>> DeviceModel.preset("ideal").n_states
            1000
        """
        check_choice("name", name, tuple(PRESETS))
        return cls(**PRESETS[name])

    @classmethod
    def of(cls, device: Any) -> "DeviceModel":
        """Return a device from itself, a mapping of its arguments, or None for the default one.

        Raises:
            ValueError: If it is anything else, or a name in the mapping is none of an argument.
        """
        if device is None or isinstance(device, Mapping):
            arguments = {str(name): value for name, value in (device or {}).items()}
            allowed = [f.name for f in fields(cls)]
            if unknown := sorted(arguments.keys() - set(allowed)):
                raise ValueError(f"device has {', '.join(unknown)}; allowed are {', '.join(allowed)}")
            return cls(**arguments)
        if not isinstance(device, cls):
            raise ValueError(f"device is {device!r}; allowed are a DeviceModel and a mapping of its arguments")
        return device

    @classmethod
    def fit(
        cls,
        n: Sequence[float] | Tensor,
        g: Sequence[float] | Tensor,
        g_ltd: Sequence[float] | Tensor | None = None,
        kind: Literal["linear", "soft", "exp"] = "soft",
    ) -> "DeviceModel":
        """Fit a device to measured curves by least squares.

        Args:
            n: Numbers of pulses, ascending.
            g: Conductance after each in potentiation.
            g_ltd: Conductance after each in depression. ``None``: that potentiation mirrored.
            kind: ``linear``, ``soft`` or ``exp``.

        Raises:
            ValueError: If there are fewer than four points, or the curves do not go in their directions.

        Examples:
            >>> import math
            >>> n = list(range(33))
            >>> g = [1 + math.log(1 + k) for k in n]
            >>> device = DeviceModel.fit(n, g, kind="exp")
            >>> device.n_states, round(device.nu_ltp, 2), round(device.g_max / device.g_min, 1)
            (32, 3.5, 4.5)
        """
        up = fit_curve(n, g, kind)
        down = None if g_ltd is None else fit_curve(n, g_ltd, kind)
        for name, curve, sign in (("g", up, 1.0), ("g_ltd", down, -1.0)):
            if curve is not None and not sign * (curve.g_end - curve.g_start) > 0:
                direction = "rises from the lowest" if sign > 0 else "falls from the highest"
                raise ValueError(f"{name} goes from {curve.g_start:g} to {curve.g_end:g}; this curve {direction} one")
        device = cls(kind=kind, n_states=up.n_states, nu_ltp=up.nu, g_min=up.g_start, g_max=up.g_end)
        return device if down is None else replace(device, nu_ltd=down.nu)

    def curves(self) -> Tensor | None:
        """Return the curves of the table in fp64: pulses, states rising and states falling, both from 0 to 1."""
        curves: Tensor | None = vars(self)["_curves"]
        return curves

    @property
    def pulses(self) -> float:
        """Pulses from one end of the range to the other: N, or the last number of the table."""
        curves = self.curves()
        return float(self.n_states) if curves is None else float(curves[0, -1])

    def response(self) -> Response:
        """Return what the operator ``pulse_update`` has to know."""
        up = 0.0 if self.kind in ("linear", "table") else float(self.nu_ltp)
        down = up if self.nu_ltd is None or up == self.nu_ltd else float(self.nu_ltd)
        down = 0.0 if self.kind in ("linear", "table") else down
        return Response(self.kind, up, down, self.pulses, float(self.c2c))

    def pulse(self, x: Tensor, k: Tensor | float, up: bool = True) -> Tensor:
        """Return the state of a nominal device after identical pulses.

        Args:
            x: States in [0, 1].
            k: Number of pulses ≥ 0, whole or not.
            up: Potentiation, or depression.

        Raises:
            ValueError: If a number of pulses is negative.
        """
        if not bool((torch.as_tensor(k) >= 0).all()):
            raise ValueError(f"k is {k}; allowed are numbers of pulses from 0, and up=False for depression")
        response, curves = self.response(), self.curves()
        table = None if curves is None else curves[[0, 1 if up else 2]].to(x.device)
        nu = response.nu_up if up else response.nu_down
        moved = rise(x if up else 1.0 - x, k, self.kind, nu, response.n_states, table)
        return moved if up else 1.0 - moved

    def nearest(self, x: Tensor, up: bool = True) -> Tensor:
        """Return the nearest states that whole numbers of pulses reach on a nominal device.

        Args:
            x: States in [0, 1].
            up: Pulses of potentiation from the lowest state, or of depression from the highest one.

        Examples:
            >>> import torch
            >>> DeviceModel(kind="linear", n_states=4).nearest(torch.tensor([0.3, 0.45]))
            tensor([0.2500, 0.5000])
        """
        response, curves = self.response(), self.curves()
        table = None if curves is None else curves[[0, 1 if up else 2]].to(x.device)
        nu = response.nu_up if up else response.nu_down
        pulses = pulses_to_reach(x if up else 1.0 - x, self.kind, nu, response.n_states, table)
        return self.pulse(torch.full_like(x, 0.0 if up else 1.0), pulses.round(), up)

    def as_dict(self) -> dict[str, Any]:
        """Return the arguments as plain values, the curves in place of the table's path."""
        curves = self.curves()
        return {**asdict(self), "table": None if curves is None else curves.tolist()}

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Name what is different from what another device's ``as_dict`` returned."""
        own = self.as_dict()
        names = [f.name for f in fields(self)]
        return [
            name if name == "table" else f"{name} is {own[name]!r}, was {saved.get(name)!r}"
            for name in names
            if own[name] != saved.get(name)
        ]
