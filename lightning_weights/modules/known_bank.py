"""The three hyper-models that predict a network's weights, and their file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_weights.errors import check_choice
from lightning_weights.modules._described_tensors import read_tensors, write_tensors
from lightning_weights.modules.known import KNOWN
from lightning_weights.modules.weight_kinds import KINDS, ROUTES, Kind, Route

KIND = "a bank of hyper-models"
BANKS = Path(__file__).with_name("known_banks")


class KNOWNBank(nn.Module):
    """Hyper-models for convolution kernels, matrices and biases.

    Args:
        conv: Predicts kernels of convolutions.
        fc: Predicts matrices.
        bias: Predicts biases. Each is a [`KNOWN`][lightning_weights.modules.KNOWN], or for comparison a
            [`LinearExtrapolation`][lightning_weights.modules.LinearExtrapolation]; all have histories of one length.
        route: What counts as a convolution. ``paper``: all tensors of more than two dimensions. ``shape3x3``: kernels
            of 3 x 3 only, as the data of the published meta-training were sorted.
        about: Where the hyper-models come from: numbers, strings, lists and dicts, which are saved with them.

    Raises:
        ValueError: If a part is no hyper-model, or histories differ in length.

    Source: Jang, Kim, Kim 2026, arXiv:2508.05059.

    Examples:
        >>> import torch
        >>> from lightning_weights.modules import KNOWN
        >>> bank = KNOWNBank(conv=KNOWN(), fc=KNOWN(), bias=KNOWN())
        >>> bank.history, bank.nowcast(torch.randn(8, 3, 5), "fc", recursions=2).shape
        (5, torch.Size([8, 3, 2]))
    """

    def __init__(
        self,
        conv: nn.Module,
        fc: nn.Module,
        bias: nn.Module,
        route: Route = "paper",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("route", route, ROUTES)
        lengths = {}
        for name, part in zip(KINDS, (conv, fc, bias), strict=True):
            if not isinstance(part, nn.Module) or not callable(getattr(part, "nowcast", None)):
                raise ValueError(f"{name} is a {type(part).__name__}; allowed is a KNOWN or a LinearExtrapolation")
            lengths[name] = int(part.history)  # type: ignore[arg-type]
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the histories have the lengths {lengths}; allowed is one length for all three")
        self.conv, self.fc, self.bias = conv, fc, bias
        self.history = lengths["fc"]
        self.route: Route = route
        self.about = dict(about or {})

    def forward(self, history: Tensor, kind: Kind) -> Tensor:
        """Return the changes that the hyper-model of a kind predicts.

        Args:
            history: Histories (..., S), the value after training on all data last.
            kind: ``conv``, ``fc`` or ``bias``.

        Returns:
            Changes (...).
        """
        check_choice("kind", kind, KINDS)
        return getattr(self, kind)(history.reshape(-1, history.shape[-1])).view(history.shape[:-1])

    def nowcast(self, history: Tensor, kind: Kind, recursions: int = 1) -> Tensor:
        """Predict the values that follow, each prediction being the last value of the next one's history.

        Args:
            history: Histories (..., S), the value after training on all data last.
            kind: ``conv``, ``fc`` or ``bias``.
            recursions: Number ≥ 1 of predictions.

        Returns:
            Predictions (..., recursions), without a gradient.

        Raises:
            ValueError: If an argument is out of range.
        """
        check_choice("kind", kind, KINDS)
        rows = history.reshape(-1, history.shape[-1])
        return getattr(self, kind).nowcast(rows, recursions).view(*history.shape[:-1], recursions)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: three vectors, and what they are and come from as JSON in its metadata.

        Args:
            path: File, which is replaced whole; its folder is made if it is not there.

        Raises:
            ValueError: If a part is no ``KNOWN``, or ``about`` can't be written as JSON.
            MissingDependencyError: If the package safetensors is not installed.
        """
        parts = {name: getattr(self, name) for name in KINDS}
        if odd := [name for name, part in parts.items() if not isinstance(part, KNOWN)]:
            raise ValueError(f"{odd} are no KNOWN; a file holds these only")
        slopes = {name: part.leaky_slope for name, part in parts.items()}
        vectors = {name: part.packed().detach().float() for name, part in parts.items()}
        write_tensors(path, vectors, KIND, {"route": self.route, "leaky_slope": slopes, "about": self.about})

    @classmethod
    def load(cls, path: str | Path) -> "KNOWNBank":
        """Read a file that ``save`` has written.

        Args:
            path: The file.

        Raises:
            ValueError: If there is no such file, or it is no bank.
            MissingDependencyError: If the package safetensors is not installed.
        """
        vectors, described = read_tensors(path, KIND)
        if vectors.keys() != set(KINDS):
            raise ValueError(f"{path} holds {sorted(vectors)}; expected are {sorted(KINDS)}")
        if bad := [name for name in KINDS if not vectors[name].isfinite().all()]:
            raise ValueError(f"{path} holds values that are not finite in {bad}")
        parts = {name: KNOWN.from_packed(vectors[name], described["leaky_slope"][name]) for name in KINDS}
        return cls(**parts, route=described["route"], about=described["about"])

    @classmethod
    def from_pretrained(cls, name: str = "digits") -> "KNOWNBank":
        """Read hyper-models that come with this package, or a file of one's own.

        Args:
            name: Name of a bank, such as ``digits``, or the path of a file that ``save`` has written.

        Raises:
            ValueError: If there is none.
            MissingDependencyError: If the package safetensors is not installed.
        """
        path = BANKS / f"{name}.safetensors"
        if path.is_file():
            return cls.load(path)
        if Path(name).is_file():
            return cls.load(name)
        names = ", ".join(sorted(file.stem for file in BANKS.glob("*.safetensors"))) or "none"
        raise ValueError(f"name is {name!r}, neither a file nor a bank of this package; these are: {names}")

    @classmethod
    def from_keras_h5(
        cls, conv: str | Path, fc: str | Path, bias: str | Path, route: Route = "paper", leaky_slope: float = 0.3
    ) -> "KNOWNBank":
        """Read the three files that Keras has saved, such as the published ones.

        Args:
            conv: File of the hyper-model for convolutions.
            fc: File of the hyper-model for matrices.
            bias: File of the hyper-model for biases.
            route: As in the constructor; the published scripts predict by ``paper``.
            leaky_slope: Slope of the LeakyReLU below 0, which the files don't have.

        Raises:
            ValueError: If a file is not there, or holds other layers.
            MissingDependencyError: If the package h5py is not installed.
        """
        files = {name: str(path) for name, path in zip(KINDS, (conv, fc, bias), strict=True)}
        parts = {name: KNOWN.from_keras_h5(path, leaky_slope) for name, path in files.items()}
        return cls(
            **parts, route=route, about={"source": "Keras", "files": {n: Path(p).name for n, p in files.items()}}
        )

    def extra_repr(self) -> str:
        """Describe the bank."""
        return f"history={self.history}, route={self.route!r}"
