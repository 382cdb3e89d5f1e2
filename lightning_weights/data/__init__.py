"""Data modules that download nothing."""

from lightning_weights.data.arithmetic import Arithmetic
from lightning_weights.data.augmentation import FlipAndCrop
from lightning_weights.data.causal_text import CausalText
from lightning_weights.data.cifar10 import CIFAR10
from lightning_weights.data.class_incremental import ClassIncremental
from lightning_weights.data.classification import BatchDataset, ClassificationData
from lightning_weights.data.digit_superpixels import DigitSuperpixels
from lightning_weights.data.digits import Digits, PermutedDigits, SplitDigits
from lightning_weights.data.exemplar_memory import ExemplarMemory
from lightning_weights.data.mnist import MNIST
from lightning_weights.data.mnist1d import MNIST1D
from lightning_weights.data.molecule_energies import MoleculeEnergies
from lightning_weights.data.n_body import NBody
from lightning_weights.data.qm9 import QM9
from lightning_weights.data.rmd17 import RMD17
from lightning_weights.data.tiny_image_net import TinyImageNet

__all__ = [
    "CIFAR10",
    "MNIST",
    "MNIST1D",
    "QM9",
    "RMD17",
    "Arithmetic",
    "BatchDataset",
    "CausalText",
    "ClassIncremental",
    "ClassificationData",
    "DigitSuperpixels",
    "Digits",
    "ExemplarMemory",
    "FlipAndCrop",
    "MoleculeEnergies",
    "NBody",
    "PermutedDigits",
    "SplitDigits",
    "TinyImageNet",
]
