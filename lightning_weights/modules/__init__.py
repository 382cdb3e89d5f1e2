"""Networks, layers and LightningModules."""

from lightning_weights.modules.attention_layouts import (
    QuantizedMultiheadAttention,
    QuantizedViTAttention,
    attention_obstacle,
    is_attention,
    quantize_attention,
)
from lightning_weights.modules.behind_gelu import behind_gelu
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
from lightning_weights.modules.device_model import DeviceModel
from lightning_weights.modules.epsilon_schedule import EpsilonSchedule
from lightning_weights.modules.fake_quant_attention import FakeQuantAttention
from lightning_weights.modules.fake_quant_conv import FakeQuantConv2d
from lightning_weights.modules.fake_quant_linear import FakeQuantLinear
from lightning_weights.modules.fake_quantized import FakeQuantized, fake_quantized, warn_about_zero_rows
from lightning_weights.modules.gptq_files import read_gptq, write_gptq
from lightning_weights.modules.gradnorm_lorp import GradNormLoRPLinear
from lightning_weights.modules.hard_concrete_gate import HardConcreteGate
from lightning_weights.modules.incremental_linear import IncrementalLinear
from lightning_weights.modules.input_box import InputBox
from lightning_weights.modules.input_quantizer import InputQuantizer
from lightning_weights.modules.kd_loss import KDLoss
from lightning_weights.modules.lsq_quantizer import LSQQuantizer, calibrating
from lightning_weights.modules.mlp import MLP
from lightning_weights.modules.parametrized import find_parametrizations
from lightning_weights.modules.permanent_pruning import make_pruning_permanent
from lightning_weights.modules.qkr_attention import QKRAttention
from lightning_weights.modules.quantization import (
    BetaChoice,
    LayerReport,
    QuantizationReport,
    make_room,
    quantize,
    sweep_beta,
)
from lightning_weights.modules.quantized_export import export_codes, merge_quantized
from lightning_weights.modules.quantized_linear import QuantizedLinear
from lightning_weights.modules.robust_classifier import RobustClassifier
from lightning_weights.modules.score_mask import ScoreMask, refresh_masks
from lightning_weights.modules.stats_quantizer import StatsQuantizer
from lightning_weights.modules.synapse_conv import SynapseConv2d
from lightning_weights.modules.synapse_linear import SynapseLinear
from lightning_weights.modules.synapse_settings import SynapseSettings
from lightning_weights.modules.trades_loss import TradesLoss
from lightning_weights.modules.vision_transformer import CompactViT, SelfAttention, TransformerBlock
from lightning_weights.modules.wide_resnet import WideResNet

__all__ = [
    "CNN7",
    "MLP",
    "BetaChoice",
    "BoneAdapter",
    "BoneLinear",
    "CausalLM",
    "CertifiedClassifier",
    "CertifiedLoss",
    "CertifiedLossOutput",
    "Certifier",
    "ClassIncrementalModule",
    "Classifier",
    "CompactViT",
    "Compander",
    "ConvNet1d",
    "DeviceModel",
    "EpsilonSchedule",
    "FakeQuantAttention",
    "FakeQuantConv2d",
    "FakeQuantLinear",
    "FakeQuantized",
    "GradNormLoRPLinear",
    "HardConcreteGate",
    "IncrementalLinear",
    "InputBox",
    "InputQuantizer",
    "KDLoss",
    "LSQQuantizer",
    "LayerReport",
    "QKRAttention",
    "QuantizationReport",
    "QuantizedLinear",
    "QuantizedMultiheadAttention",
    "QuantizedViTAttention",
    "RobustClassifier",
    "ScoreMask",
    "SelfAttention",
    "StatsQuantizer",
    "SynapseConv2d",
    "SynapseLinear",
    "SynapseSettings",
    "TradesLoss",
    "TransformerBlock",
    "WideResNet",
    "attention_obstacle",
    "behind_gelu",
    "bone_adapter_of",
    "calibrating",
    "compand_layers",
    "export_codes",
    "fake_quantized",
    "find_parametrizations",
    "is_attention",
    "make_pruning_permanent",
    "make_room",
    "merge_companders",
    "merge_quantized",
    "plain_state_dict",
    "quantize",
    "quantize_attention",
    "read_bone_adapter",
    "read_gptq",
    "refresh_masks",
    "sweep_beta",
    "unmerge_companders",
    "warn_about_zero_rows",
    "wc_param_groups",
    "write_bone_adapter",
    "write_gptq",
]
