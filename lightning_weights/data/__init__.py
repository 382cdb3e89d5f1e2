"""Small data modules that need no download."""

from lightning_weights.data.digits import PermutedDigits, SplitDigits

__all__ = ["PermutedDigits", "SplitDigits"]
