"""The network that predicts the next value of a single weight from its history."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.errors import MissingDependencyError, check_number
from lightning_weights.kernels.nowcast import (
    known_delta,
    nowcast,
    parameter_count,
    split_parameters,
)

SPREAD = 0.1  # variance of the first and the last matrix of a stream, relative to 1 / inputs
H5 = "Reading a KNOWN that Keras has saved"


class KNOWN(nn.Module):
    r"""Predicts how a scalar weight would change if the network had been trained on more data.

    A weight's history w = [θ_{S-1}, …, θ_0] leads from the network that has forgotten most to the one trained on all
    data, and dw are its differences. Each of the two is read by a stream of its own,

    $$u = Ax + a, \quad z = \mathrm{ReLU}(Bu + b), \quad
    h = (Cz + c) + (Ez + e) \odot \exp\bigl((Fz + f) \odot u\bigr), \quad v = \mathrm{LeakyReLU}(Gh + h_0),$$

    and the change is $\delta = \tanh(o \cdot [v_w; v_{dw}] + o_0)$, so that θ_0 + δ is the prediction. The 128 S + 8785
    parameters (9425 for S = 5) serve every weight of a kind, each by itself.

    Args:
        history: Number S ≥ 2 of values that a history has.
        leaky_slope: Slope of the LeakyReLU below 0, in [0, 1). Keras' default is 0.3.

    Raises:
        ValueError: If an argument is out of range.

    Source: Jang, Kim, Kim 2026, arXiv:2508.05059.

    Differs from the published code in that exponents are clamped at 80, where e^x would soon leave float32.

    Examples:
        >>> import torch
        >>> known = KNOWN(history=5)
        >>> sum(parameter.numel() for parameter in known.parameters())
        9425
        >>> history = torch.tensor([[0.10, 0.12, 0.15, 0.19, 0.24]])
        >>> known(history).shape, known.nowcast(history, recursions=3).shape
        (torch.Size([1]), torch.Size([1, 3]))
    """

    def __init__(self, history: int = 5, leaky_slope: float = 0.3) -> None:
        super().__init__()
        check_number("history", history, low=2, whole=True)
        check_number("leaky_slope", leaky_slope, low=0.0, high=1.0)
        self.history, self.leaky_slope = int(history), float(leaky_slope)
        self.values = nn.Parameter(torch.empty(parameter_count(self.history)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new parameters from PyTorch's generator, as for meta-training."""
        self.values.zero_()
        parts = split_parameters(self.values, self.history)
        for stream in (parts.w, parts.dw):
            for matrix in (stream.A, stream.G):
                bound = math.sqrt(3.0 * SPREAD / matrix.shape[1])
                matrix.uniform_(-bound, bound)
            for matrix in (stream.B, stream.C, stream.E, stream.F):
                nn.init.xavier_uniform_(matrix)
        nn.init.xavier_uniform_(parts.o.unsqueeze(0))

    def forward(self, w: Tensor) -> Tensor:
        """Return the change δ of every weight.

        Args:
            w: Histories (N, S) in float32 or float64, the value after training on all data last.

        Returns:
            N changes in (-1, 1), differentiable in the parameters.

        Raises:
            ValueError: If the shape or the type is another.
        """
        self._check(w)
        with torch.autocast(w.device.type, enabled=False):  # changes of 1e-4 don't survive in half precision
            return known_delta(w, self.values.to(w.dtype), self.leaky_slope)

    @torch.no_grad()
    def nowcast(self, history: Tensor, recursions: int = 1) -> Tensor:
        """Predict the values that follow, each prediction being the last value of the next one's history.

        Args:
            history: Histories (N, S) in float32 or float64, the value after training on all data last.
            recursions: Number ≥ 1 of predictions.

        Returns:
            Predictions (N, recursions).

        Raises:
            ValueError: If an argument is out of range.
        """
        self._check(history)
        check_number("recursions", recursions, low=1, whole=True)
        return nowcast(history, self.values.to(history), recursions, self.leaky_slope)

    def penalty(self, kernel: float = 1e-6, bias: float = 0.1) -> Tensor:
        """Return the L1 penalty of meta-training, on the first and the last layer of both streams.

        Args:
            kernel: Factor of the sum of absolute weights.
            bias: Factor of the sum of absolute biases.

        Returns:
            A differentiable scalar.
        """
        parts = split_parameters(self.values, self.history)
        outer = [(part.A, part.G, part.a, part.h0) for part in (parts.w, parts.dw)]
        kernels = sum(matrix.abs().sum() for first, last, _, _ in outer for matrix in (first, last))
        biases = sum(vector.abs().sum() for _, _, first, last in outer for vector in (first, last))
        return kernel * kernels + bias * biases

    def packed(self) -> Tensor:
        """Return all parameters in one vector, differentiably.

        Of the stream that reads the weights A, a, B, b, C, c, E, e, F, f, G and h_0, matrices (out, in) by rows, then
        the same of the stream that reads the differences, then o and o_0.
        """
        return self.values

    @classmethod
    def from_packed(cls, parameters: Tensor, leaky_slope: float = 0.3) -> "KNOWN":
        """Build a network from the vector that ``packed`` gives; its length says how long histories are.

        Args:
            parameters: Vector of 128 S + 8785 values.
            leaky_slope: As in the constructor.

        Raises:
            ValueError: If no network has so many parameters.
        """
        fewest, more = parameter_count(2), parameter_count(3) - parameter_count(2)
        longer, rest = divmod(parameters.numel() - fewest, more)
        if parameters.dim() != 1 or rest or longer < 0:
            raise ValueError(
                f"parameters has the shape {tuple(parameters.shape)}; allowed is a vector of {more} S + "
                f"{fewest - 2 * more} values for histories of S ≥ 2"
            )
        with torch.random.fork_rng(devices=[]):  # what the constructor draws is thrown away
            known = cls(2 + longer, leaky_slope)
        known.values = nn.Parameter(parameters.detach().clone())
        return known

    @classmethod
    def from_keras_h5(cls, path: str | Path, leaky_slope: float = 0.3) -> "KNOWN":
        """Read weights that Keras has saved as HDF5, such as the published ``KNOWN_Conv.h5``.

        The 13 dense layers are taken in the order in which they were created: numbers at the end of their names.

        Args:
            path: The file.
            leaky_slope: As in the constructor; the file does not have it.

        Raises:
            ValueError: If there is no such file, or it holds other layers.
            MissingDependencyError: If the package h5py is not installed.

        Source: the authors' files have no licence, so none comes with this package.
        """
        layers = _dense_layers(path)
        history = layers[0][0].shape[0] if layers and layers[0][0].dim() == 2 else 5
        found = [(tuple(kernel.shape), tuple(bias.shape)) for kernel, bias in layers]
        stream = [(64, 8), (8, 64), (8, 64), (8, 64), (64, 32)]
        kernels = [(history, 64), *stream, (history - 1, 64), *stream, (64, 1)]
        if history < 2 or found != [(kernel, kernel[1:]) for kernel in kernels]:
            raise ValueError(
                f"{path} holds dense layers with kernels and biases of the shapes {found}; expected are, in this "
                f"order, {len(kernels)} layers with kernels (in, out) of {kernels}, of which the first numbers of the "
                f"1st and the 7th follow the length of a history (5 and 4 in the published files), and biases of (out,)"
            )
        return cls.from_packed(
            torch.cat([part.flatten() for layer in layers for part in (layer[0].T, layer[1])]), leaky_slope
        )

    def extra_repr(self) -> str:
        """Describe the network."""
        return f"history={self.history}, leaky_slope={self.leaky_slope}"

    def _check(self, history: Tensor) -> None:
        if history.dim() != 2 or history.shape[1] != self.history:
            raise ValueError(
                f"the history has the shape {tuple(history.shape)}; allowed is (N, {self.history}), one row per weight"
            )
        if history.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"the history is of {history.dtype}; allowed are torch.float32 and torch.float64")


def _dense_layers(path: str | Path) -> list[tuple[Tensor, Tensor]]:
    """Return kernels and biases of an HDF5 file, ordered by the number of their layer."""
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("h5py", "h5py", H5) from error
    if not Path(path).is_file():
        raise ValueError(f"{path} is not there; give the file that Keras' save_weights has written")
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path} is no HDF5 file; give the one that Keras' save_weights has written")
    parts: dict[str, dict[str, Tensor]] = {}

    def collect(name: str, item: Any) -> None:
        layer, _, part = name.rpartition("/")
        part = part.partition(":")[0]
        if part in ("kernel", "bias") and hasattr(item, "shape"):
            parts.setdefault(layer, {})[part] = torch.from_numpy(item[()]).float()

    with h5py.File(path, "r") as file:
        file.get("model_weights", file).visititems(collect)  # a whole saved model has them there
    nothing = torch.empty(0)
    return [
        (parts[name].get("kernel", nothing), parts[name].get("bias", nothing))
        for name in sorted(parts, key=lambda name: [int(number) for number in re.findall(r"\d+$", name)])
    ]
