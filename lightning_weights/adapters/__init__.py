"""Tuners for peft: importing this package registers them, so that ``get_peft_model`` and ``from_pretrained`` work."""

from lightning_weights.adapters.bone import BoneConfig

__all__ = ["BoneConfig"]
