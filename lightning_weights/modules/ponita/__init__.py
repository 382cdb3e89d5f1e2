"""Equivariant networks on positions and orientations."""

from lightning_weights.modules.ponita.block import PonitaBlock
from lightning_weights.modules.ponita.calibration import calibrating
from lightning_weights.modules.ponita.graph_inputs import GraphInputs, graph_inputs
from lightning_weights.modules.ponita.kernel_basis import KernelBasis
from lightning_weights.modules.ponita.ponita import Ponita, PonitaOutput
from lightning_weights.modules.ponita.separable_fiber_conv import SeparableFiberConv

__all__ = [
    "GraphInputs",
    "KernelBasis",
    "Ponita",
    "PonitaBlock",
    "PonitaOutput",
    "SeparableFiberConv",
    "calibrating",
    "graph_inputs",
]
