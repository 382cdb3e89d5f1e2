"""Data modules that download nothing."""

from lightning_weights.data.arithmetic import Arithmetic
from lightning_weights.data.augmentation import FlipAndCrop
from lightning_weights.data.causal_text import CausalText
from lightning_weights.data.chain_of_thought import ChainOfThought
from lightning_weights.data.cifar10 import CIFAR10
from lightning_weights.data.class_incremental import ClassIncremental
from lightning_weights.data.classification import BatchDataset, ClassificationData
from lightning_weights.data.corrupted import Corrupted
from lightning_weights.data.digit_edits import DigitEdits
from lightning_weights.data.digit_sums import DigitSums
from lightning_weights.data.digit_superpixels import DigitSuperpixels
from lightning_weights.data.digits import Digits, PermutedDigits, SplitDigits
from lightning_weights.data.exemplar_memory import ExemplarMemory
from lightning_weights.data.indexed_dataset import CollateWithIds, IndexedDataset
from lightning_weights.data.mnist import MNIST
from lightning_weights.data.mnist1d import MNIST1D
from lightning_weights.data.molecule_energies import MoleculeEnergies
from lightning_weights.data.n_body import NBody
from lightning_weights.data.nested_subset import NestedSubset
from lightning_weights.data.out_of_fold import OutOfFold
from lightning_weights.data.qm9 import QM9
from lightning_weights.data.rmd17 import RMD17
from lightning_weights.data.student_scores import StudentScores, student_scores
from lightning_weights.data.styled_sentences import StyledSentences
from lightning_weights.data.symbol_tokenizer import SymbolTokenizer
from lightning_weights.data.tiny_image_net import TinyImageNet
from lightning_weights.data.trajectories import TrajectoryDataModule
from lightning_weights.data.word_problems import WordProblems

__all__ = [
    "CIFAR10",
    "MNIST",
    "MNIST1D",
    "QM9",
    "RMD17",
    "Arithmetic",
    "BatchDataset",
    "CausalText",
    "ChainOfThought",
    "ClassIncremental",
    "ClassificationData",
    "CollateWithIds",
    "Corrupted",
    "DigitEdits",
    "DigitSums",
    "DigitSuperpixels",
    "Digits",
    "ExemplarMemory",
    "FlipAndCrop",
    "IndexedDataset",
    "MoleculeEnergies",
    "NBody",
    "NestedSubset",
    "OutOfFold",
    "PermutedDigits",
    "SplitDigits",
    "StudentScores",
    "StyledSentences",
    "SymbolTokenizer",
    "TinyImageNet",
    "TrajectoryDataModule",
    "WordProblems",
    "student_scores",
]
