"""LightningModules around `Ponita`: potentials, dynamics, regression, classification and generation."""

from lightning_weights.modules.ponita_tasks.classifier import PonitaClassifier
from lightning_weights.modules.ponita_tasks.diffusion import Denoised, DiffusionSamples, PonitaDiffusion
from lightning_weights.modules.ponita_tasks.dynamics import PonitaDynamics
from lightning_weights.modules.ponita_tasks.potential import EnergyForces, PonitaPotential
from lightning_weights.modules.ponita_tasks.regressor import PonitaRegressor
from lightning_weights.modules.ponita_tasks.task import linear_decay_groups
from lightning_weights.modules.ponita_tasks.warmup_cosine import WarmupCosine

__all__ = [
    "Denoised",
    "DiffusionSamples",
    "EnergyForces",
    "PonitaClassifier",
    "PonitaDiffusion",
    "PonitaDynamics",
    "PonitaPotential",
    "PonitaRegressor",
    "WarmupCosine",
    "linear_decay_groups",
]
