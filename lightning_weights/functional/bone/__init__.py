"""Block-affine adaptation: one tensor of r×r blocks per linear layer, which updates a weight through itself."""

from lightning_weights.functional.bone.layers import bone_left, bone_miss, bone_row
from lightning_weights.functional.bone.shapes import VARIANTS, BoneVariant, block_shape, grid_sizes, nearest_r
from lightning_weights.functional.bone.weights import as_grid, bone_delta, bone_weight, unmerged_weight

__all__ = [
    "VARIANTS",
    "BoneVariant",
    "as_grid",
    "block_shape",
    "bone_delta",
    "bone_left",
    "bone_miss",
    "bone_row",
    "bone_weight",
    "grid_sizes",
    "nearest_r",
    "unmerged_weight",
]
