"""What a quantization did, layer by layer."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LayerReport:
    """What was done to one layer.

    Args:
        name: Name of the layer; the first of those that share a weight.
        method: What quantized it: the method, or ``rtn`` for a layer that no batch has reached.
        loss: What the solver reports, ½ Σ ((w - ŵ) / U_qq)² with a mean over tokens in U, of the layer and of those
            that share its inputs. None for ``rtn``.
        relative_error: Squared error of the layer's outputs on its calibration inputs, relative to their square.
        damp: Damping that the inverse needed, a share of the mean diagonal. None for ``rtn``.
        tokens: Number of inputs that the layer was fitted to, of all processes; padding does not count.
        seconds: Time for the layer; layers that share inputs share it equally.

    Examples:
        >>> LayerReport("head", "gptq", 0.5, 0.01, 0.01, 128, 0.2).relative_error
        0.01
    """

    name: str
    method: str
    loss: float | None
    relative_error: float
    damp: float | None
    tokens: int
    seconds: float


@dataclass
class QuantizationReport:
    """What a quantization did.

    Args:
        layers: One entry for every layer, in the order in which they were quantized.
        skipped: Names of layers that no calibration batch has reached and that were left as they are.
        blocks: Squared error of every block's output against the full-precision network, relative to its square, where
            both were run.
        seconds: Time for all of it.

    Examples:
        >>> report = QuantizationReport([LayerReport("head", "gptq", 0.5, 0.01, 0.01, 128, 0.2)])
        >>> print(report.describe())
        layer  method  relative error  loss     damp  tokens  seconds
        head   gptq    0.01            0.5      0.01  128     0.2
    """

    layers: list[LayerReport] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    blocks: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def mean_relative_error(self) -> float:
        """Mean of the layers' relative errors."""
        return sum(layer.relative_error for layer in self.layers) / max(len(self.layers), 1)

    def as_dict(self, times: bool = True) -> dict[str, Any]:
        """Return it as dicts, lists, strings and numbers.

        Args:
            times: Whether seconds are in it, which differ from run to run.
        """
        found = asdict(self)
        if not times:
            del found["seconds"]
            for layer in found["layers"]:
                del layer["seconds"]
        return found

    def describe(self) -> str:
        """Return a table."""
        head = ("layer", "method", "relative error", "loss", "damp", "tokens", "seconds")
        rows = [
            (r.name, r.method, f"{r.relative_error:.3g}", _text(r.loss), _text(r.damp), r.tokens, f"{r.seconds:.2g}")
            for r in self.layers
        ]
        widths = [max(len(str(row[i])) for row in (head, *rows)) for i in range(len(head))]
        lines = ["  ".join(str(v).ljust(w) for v, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
        lines += [f"{name} was reached by no batch, and left as it is" for name in self.skipped]
        return "\n".join(lines)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
