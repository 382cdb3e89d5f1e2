"""The weights of robustness against one corruption, for a few layers in a few bits, and their file."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional._safetensors import safetensors
from lightning_weights.functional.bit_packing import pack_bits
from lightning_weights.functional.rws import bits_of, quantize_levels, signature_bytes
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.kernels.apply_signature import dequantize_codes
from lightning_weights.kernels.apply_signature.reference import packed_bytes
from lightning_weights.modules._signature_tensors import is_running

PURPOSE = "Reading and writing signatures"
KEY, FORMAT = "robust_weight_signature", 1
MODES = ("projected", "difference")


@dataclass(frozen=True, eq=False)
class RobustWeightSignature:
    """What to add to a clean network's shallow layers to make it robust against one corruption.

    `extract_rws` makes one from three networks, `patched` and `RWSPatch` add it. ``a + b`` is a signature against both
    corruptions, and ``0.5 * a`` the same signature of half the scale.

    Attributes:
        shapes: Shape of every tensor by its name, in order.
        parts: Flat tensors by name: fp32 values, or packed codes as bytes if there are levels.
        low: Smallest value of every tensor, fp32, (T,), or (0,) without levels.
        high: Largest value of every tensor, likewise.
        levels: Number of levels that values are rounded to, 4 to 256 and a power of two, or None.
        corruption: What it is against.
        severity: How strong the corruption was, 1 to 5, or None if that has no number.
        scale: Factor with which it is to be added, besides the one at patching.
        mode: ``projected``, or ``difference`` for the plain difference of robust and clean weights.
        architecture: Text that tells the networks apart which it fits: names and shapes, without the classifier's.
        num_weights: How many weights the network has that it comes from.

    Source: Cai, Zhang, Wang 2023, arXiv:2302.12480.

    Examples:
        >>> values = {"0.weight": torch.tensor([[0.5, -1.0], [0.0, 2.0]])}
        >>> signature = RobustWeightSignature.from_tensors(values, levels=4, corruption="fog", severity=5)
        >>> signature.name, signature.nbytes, signature.dequantize()["0.weight"].tolist()
        ('fog-5', 9, [[1.0, -1.0], [0.0, 2.0]])
    """

    shapes: dict[str, list[int]]
    parts: dict[str, Tensor]
    low: Tensor
    high: Tensor
    levels: int | None = None
    corruption: str = "unknown"
    severity: int | None = None
    scale: float = 1.0
    mode: str = "projected"
    architecture: str = ""
    num_weights: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.corruption, str) or not self.corruption:
            raise ValueError(f"corruption is {self.corruption!r}; allowed is a name such as 'fog'")
        if self.severity is not None:
            check_number("severity", self.severity, low=1, high=6, whole=True)
        check_number("scale", self.scale, low=-math.inf, low_allowed=False)
        check_choice("mode", self.mode, MODES)
        if self.levels is not None:
            bits_of(self.levels)

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], levels: int | None = None, **description: Any
    ) -> "RobustWeightSignature":
        """Make a signature from its values; tensors are copied.

        Args:
            tensors: Values by name.
            levels: Number of levels to round to, a power of two from 4 to 256. ``None``: fp32 as it is.
            **description: The other attributes: ``corruption``, ``severity`` and so on.

        Raises:
            ValueError: If there are none, or some are not finite, not of floating type, empty or running statistics.
        """
        if not tensors:
            raise ValueError("tensors are none; allowed is one or more by name")
        values: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if is_running(name):
                raise ValueError(f"{name} is a running statistic; re-estimate it instead (bn='reestimate' of RWSPatch)")
            if not tensor.is_floating_point() or not tensor.numel():
                raise ValueError(f"{name} is {tensor.numel()} of {tensor.dtype}; allowed are weights of floating type")
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} has entries that are not finite; check the three networks")
            values[name] = tensor.detach().to("cpu", torch.float32, copy=True).flatten()
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        none = torch.empty(0, dtype=torch.float32)
        if levels is None:
            return cls(shapes, values, none, none, None, **description)
        bits = bits_of(levels)
        rounded = {name: quantize_levels(tensor, levels) for name, tensor in values.items()}
        low, high = (torch.stack([getattr(codes, end) for codes in rounded.values()]) for end in ("low", "high"))
        parts = {name: _packed(codes.codes, bits) for name, codes in rounded.items()}
        return cls(shapes, parts, low, high, levels, **description)

    @property
    def name(self) -> str:
        """What `RWSController` calls it: the corruption and its severity."""
        return self.corruption if self.severity is None else f"{self.corruption}-{self.severity}"

    @property
    def nbytes(self) -> int:
        """Bytes that its tensors take, in memory as in a file."""
        return signature_bytes(map(math.prod, self.shapes.values()), self.levels)

    @property
    def saving(self) -> float:
        """How many times smaller it is than a copy of the whole network in fp32; 0 if its size is not known."""
        return 4 * self.num_weights / self.nbytes

    @property
    def digest(self) -> str:
        """Text that tells signatures apart by their values, whatever their scale."""
        digest = hashlib.sha256(json.dumps([self.shapes, self.levels]).encode())
        for tensor in (*self.parts.values(), self.low, self.high):
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]

    def dequantize(self) -> dict[str, Tensor]:
        """Return the values in fp32 by name, without ``scale``."""
        names = enumerate(self.shapes.items())
        return {name: self._values(i, name).reshape(shape) for i, (name, shape) in names}

    def _values(self, index: int, name: str) -> Tensor:
        if self.levels is None:
            return self.parts[name].clone()
        count = math.prod(self.shapes[name])
        return dequantize_codes(self.parts[name], self.low[index], self.high[index], bits_of(self.levels), count)

    def quantized(self, levels: int | None) -> "RobustWeightSignature":
        """Return the same signature with other levels, or in fp32.

        Args:
            levels: Number of levels, a power of two from 4 to 256, or ``None``.
        """
        return self.from_tensors(self.dequantize(), levels, **self._description())

    def to(self, device: Any) -> "RobustWeightSignature":
        """Return the signature with its tensors on a device.

        Args:
            device: The device.
        """
        parts = {name: tensor.to(device) for name, tensor in self.parts.items()}
        return replace(self, parts=parts, low=self.low.to(device), high=self.high.to(device))

    def __add__(self, other: object) -> "RobustWeightSignature":
        if not isinstance(other, RobustWeightSignature):
            return NotImplemented
        if (self.architecture, self.mode) != (other.architecture, other.mode):
            raise ValueError(
                f"{self.name} and {other.name} are of other networks or modes: {self.architecture!r} ({self.mode}) and "
                f"{other.architecture!r} ({other.mode}); only signatures of one architecture and mode can be added"
            )
        if odd := [name for name, shape in self.shapes.items() if other.shapes.get(name, shape) != shape]:
            raise ValueError(f"{self.name} and {other.name} have {', '.join(odd)} in different shapes")
        mine, others = self.dequantize(), other.dequantize()
        total = {name: self.scale * value for name, value in mine.items()}
        for name, value in others.items():
            total[name] = total[name] + other.scale * value if name in total else other.scale * value
        severity = self.severity if self.severity == other.severity else None
        corruption = f"{self.corruption}+{other.corruption}"
        return self.from_tensors(
            total, **{**self._description(), "corruption": corruption, "severity": severity, "scale": 1.0}
        )

    def __mul__(self, factor: float) -> "RobustWeightSignature":
        return replace(self, scale=self.scale * factor)

    __rmul__ = __mul__

    def _description(self) -> dict[str, Any]:
        tensors = ("shapes", "parts", "low", "high", "levels")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in tensors}

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: ``nbytes`` bytes, names and shapes.

        Args:
            path: File, which is replaced whole; its folder is made if it is not there.

        Raises:
            MissingDependencyError: If the package safetensors is not installed.
        """
        save_file = safetensors("safetensors", PURPOSE).save_file
        flat = torch.cat(list(self.parts.values())).cpu()
        ranges = {"low": self.low.cpu(), "high": self.high.cpu()}
        tensors = {"values": flat} if self.levels is None else {"codes": flat, **ranges}
        about = {"format": FORMAT, "shapes": self.shapes, "levels": self.levels, **self._description()}
        with replacing_file(path) as part:
            save_file(tensors, part, {KEY: json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> "RobustWeightSignature":
        """Read a file that ``save`` has written.

        Args:
            path: The file.

        Raises:
            ValueError: If there is no such file, it holds no signature, or is not whole.
            MissingDependencyError: If the package safetensors is not installed.
        """
        package = safetensors("safetensors", PURPOSE)
        if not Path(path).is_file():
            raise ValueError(f"{path} is not there; give the file that RobustWeightSignature.save has written")
        about, tensors = _read(package, path)
        if about.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is no signature of format {FORMAT}; write one with extract_rws(...).save")
        if odd := about.keys() ^ {field.name for field in fields(cls)} - {"parts", "low", "high"}:
            raise ValueError(f"{path} is not whole: in its description {sorted(odd)} are missing or unexpected")
        counts = [math.prod(shape) for shape in about["shapes"].values()]
        if (levels := about["levels"]) is None:
            expected = {"values": (torch.float32, sum(counts))}
        else:
            counts = [packed_bytes(count, bits_of(levels)) for count in counts]
            ends = (torch.float32, len(counts))
            expected = {"codes": (torch.uint8, sum(counts)), "low": ends, "high": ends}
        found = {name: (tensor.dtype, tensor.numel()) for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"{path} is not whole: its tensors are {found}, by its description {expected}")
        flat = tensors["values" if levels is None else "codes"].split(counts)
        parts = {name: part.clone() for name, part in zip(about["shapes"], flat, strict=True)}
        none = torch.empty(0, dtype=torch.float32)
        return cls(parts=parts, low=tensors.get("low", none), high=tensors.get("high", none), **about)


def _packed(codes: Tensor, bits: int) -> Tensor:
    return pack_bits(codes, bits).view(torch.uint8)[: packed_bytes(codes.numel(), bits)].clone()


def _read(package: Any, path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError

    try:
        with package.safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read as safetensors: {error}") from error
