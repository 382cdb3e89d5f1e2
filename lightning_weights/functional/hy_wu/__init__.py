"""HY-WU's equations: low-rank matrices as tokens, rotary positions on two axes, and how well vectors agree."""

from lightning_weights.functional.hy_wu.agreement import centred_similarity, cosine_matrix, group_means
from lightning_weights.functional.hy_wu.rotary import rotary_table, rotate
from lightning_weights.functional.hy_wu.sheets import from_sheets, sheet_count, to_sheets

__all__ = [
    "centred_similarity",
    "cosine_matrix",
    "from_sheets",
    "group_means",
    "rotary_table",
    "rotate",
    "sheet_count",
    "to_sheets",
]
