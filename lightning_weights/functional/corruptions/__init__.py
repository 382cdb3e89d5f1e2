"""Corruptions of images, with the severities of CIFAR-10-C: pure torch, and every sample seeded by its index."""

from lightning_weights.functional.corruptions.blur import (
    defocus_blur,
    gaussian_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
)
from lightning_weights.functional.corruptions.color import brightness, contrast, saturate
from lightning_weights.functional.corruptions.digital import elastic_transform, jpeg_compression, pixelate
from lightning_weights.functional.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from lightning_weights.functional.corruptions.registry import (
    CorruptionRule,
    corrupt,
    corruption_names,
    corruption_rule,
    corruption_strength,
    register_corruption,
    relative_size,
)
from lightning_weights.functional.corruptions.sample_noise import SampleNoise
from lightning_weights.functional.corruptions.weather import fog, frost_texture, snow, spatter

__all__ = [
    "CorruptionRule",
    "SampleNoise",
    "brightness",
    "contrast",
    "corrupt",
    "corruption_names",
    "corruption_rule",
    "corruption_strength",
    "defocus_blur",
    "elastic_transform",
    "fog",
    "frost_texture",
    "gaussian_blur",
    "gaussian_noise",
    "glass_blur",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "register_corruption",
    "relative_size",
    "saturate",
    "shot_noise",
    "snow",
    "spatter",
    "speckle_noise",
    "zoom_blur",
]
