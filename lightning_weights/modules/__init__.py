"""Networks, layers and LightningModules."""

from lightning_weights.modules.bone import BoneLinear
from lightning_weights.modules.bone_files import (
    BoneAdapter,
    bone_adapter_of,
    read_bone_adapter,
    write_bone_adapter,
)
from lightning_weights.modules.causal_lm import CausalLM
from lightning_weights.modules.certified_classifier import CertifiedClassifier
from lightning_weights.modules.certified_loss import CertifiedLoss, CertifiedLossOutput
from lightning_weights.modules.certifier import Certifier
from lightning_weights.modules.class_incremental import ClassIncrementalModule
from lightning_weights.modules.classifier import Classifier
from lightning_weights.modules.cnn7 import CNN7
from lightning_weights.modules.companded import (
    compand_layers,
    merge_companders,
    plain_state_dict,
    unmerge_companders,
    wc_param_groups,
)
from lightning_weights.modules.compander import Compander
from lightning_weights.modules.conv_net_1d import ConvNet1d
from lightning_weights.modules.epsilon_schedule import EpsilonSchedule
from lightning_weights.modules.gradnorm_lorp import GradNormLoRPLinear
from lightning_weights.modules.hard_concrete_gate import HardConcreteGate
from lightning_weights.modules.incremental_linear import IncrementalLinear
from lightning_weights.modules.input_box import InputBox
from lightning_weights.modules.mlp import MLP
from lightning_weights.modules.parametrized import find_parametrizations
from lightning_weights.modules.permanent_pruning import make_pruning_permanent
from lightning_weights.modules.robust_classifier import RobustClassifier
from lightning_weights.modules.score_mask import ScoreMask, refresh_masks
from lightning_weights.modules.trades_loss import TradesLoss
from lightning_weights.modules.wide_resnet import WideResNet

__all__ = [
    "CNN7",
    "MLP",
    "BoneAdapter",
    "BoneLinear",
    "CausalLM",
    "CertifiedClassifier",
    "CertifiedLoss",
    "CertifiedLossOutput",
    "Certifier",
    "ClassIncrementalModule",
    "Classifier",
    "Compander",
    "ConvNet1d",
    "EpsilonSchedule",
    "GradNormLoRPLinear",
    "HardConcreteGate",
    "IncrementalLinear",
    "InputBox",
    "RobustClassifier",
    "ScoreMask",
    "TradesLoss",
    "WideResNet",
    "bone_adapter_of",
    "compand_layers",
    "find_parametrizations",
    "make_pruning_permanent",
    "merge_companders",
    "plain_state_dict",
    "read_bone_adapter",
    "refresh_masks",
    "unmerge_companders",
    "wc_param_groups",
    "write_bone_adapter",
]
