"""Networks, layers and LightningModules."""

from lightning_weights.modules.adapted_backbone import AdaptedBackbone
from lightning_weights.modules.adapted_layers import adapt_layers, plain_layers
from lightning_weights.modules.attention_layouts import (
    QuantizedMultiheadAttention,
    QuantizedViTAttention,
    attention_obstacle,
    is_attention,
    quantize_attention,
)
from lightning_weights.modules.batch_norm_statistics import reestimate_batch_norm
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
from lightning_weights.modules.corruption import Corruption
from lightning_weights.modules.cv_elastic_net import CVElasticNet
from lightning_weights.modules.cv_lasso import CVLasso
from lightning_weights.modules.cv_ridge import CVRidge
from lightning_weights.modules.device_model import DeviceModel
from lightning_weights.modules.epsilon_schedule import EpsilonSchedule
from lightning_weights.modules.extract_rws import extract_rws
from lightning_weights.modules.fake_quant_attention import FakeQuantAttention
from lightning_weights.modules.fake_quant_conv import FakeQuantConv2d
from lightning_weights.modules.fake_quant_linear import FakeQuantLinear
from lightning_weights.modules.fake_quantized import FakeQuantized, fake_quantized, warn_about_zero_rows
from lightning_weights.modules.functional_memory import FunctionalMemory
from lightning_weights.modules.generated_linear import GeneratedLinear, inject, keep_injected, samples_of_rows
from lightning_weights.modules.generated_lora import GeneratedLoRA
from lightning_weights.modules.glow_loss import GLOWLoss, GLOWStep
from lightning_weights.modules.gptq_files import read_gptq, write_gptq
from lightning_weights.modules.gradnorm_lorp import GradNormLoRPLinear
from lightning_weights.modules.growing import (
    copy_templates,
    grow,
    idle_parameters,
    mixture_param_groups,
    mixture_parts,
    set_mode,
)
from lightning_weights.modules.gru_language_model import GRULanguageModel, LanguageModelOutput
from lightning_weights.modules.hard_concrete_gate import HardConcreteGate
from lightning_weights.modules.incremental_linear import IncrementalLinear
from lightning_weights.modules.input_box import InputBox
from lightning_weights.modules.input_quantizer import InputQuantizer
from lightning_weights.modules.inverse_rmse_blender import InverseRMSEBlender
from lightning_weights.modules.kd_loss import KDLoss
from lightning_weights.modules.knowledge_overflow import predict_overflowed
from lightning_weights.modules.known import KNOWN
from lightning_weights.modules.known_bank import KNOWNBank
from lightning_weights.modules.known_meta import KNOWNMeta
from lightning_weights.modules.language_model import language_model
from lightning_weights.modules.learngene import Learngene, extract_learngene
from lightning_weights.modules.learngene_expansion import expand
from lightning_weights.modules.linear_extrapolation import LinearExtrapolation
from lightning_weights.modules.lora_files import export_lora
from lightning_weights.modules.lora_targets import LayerTargets, find_targets
from lightning_weights.modules.lora_tokenizer import ExpertGroup, LoRATokenizer
from lightning_weights.modules.lsq_quantizer import LSQQuantizer, calibrating
from lightning_weights.modules.meta_feature_augmenter import MetaFeatureAugmenter
from lightning_weights.modules.mixture_batch_norm import MixtureBatchNorm1d, MixtureBatchNorm2d
from lightning_weights.modules.mixture_conv import MixtureConv1d, MixtureConv2d
from lightning_weights.modules.mixture_linear import MixtureLinear
from lightning_weights.modules.mixturize import materialize, mixturize
from lightning_weights.modules.mlp import MLP
from lightning_weights.modules.multi_objective_rl import MultiObjectiveRL
from lightning_weights.modules.parametrized import find_parametrizations
from lightning_weights.modules.patched import patched
from lightning_weights.modules.per_sample_lm import PerSampleLM
from lightning_weights.modules.permanent_pruning import make_pruning_permanent
from lightning_weights.modules.ponita import (
    GraphInputs,
    KernelBasis,
    Ponita,
    PonitaBlock,
    PonitaOutput,
    SeparableFiberConv,
    graph_inputs,
)
from lightning_weights.modules.ponita_tasks import (
    Denoised,
    DiffusionSamples,
    EnergyForces,
    PonitaClassifier,
    PonitaDiffusion,
    PonitaDynamics,
    PonitaPotential,
    PonitaRegressor,
    WarmupCosine,
    linear_decay_groups,
)
from lightning_weights.modules.pooled_conv_net_1d import PooledConvNet1d
from lightning_weights.modules.predicted_weights import read_predicted, write_predicted
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
from lightning_weights.modules.redundancy_projector import RedundancyProjector
from lightning_weights.modules.regressor import Regressor
from lightning_weights.modules.regularized_stacking import RegularizedStacking
from lightning_weights.modules.residual_mlp import ResidualBlock, ResidualMLP
from lightning_weights.modules.reward_weighting import RewardWeighting
from lightning_weights.modules.rewards import AccuracyReward, BrevityReward, ClarityReward
from lightning_weights.modules.robust_classifier import RobustClassifier
from lightning_weights.modules.robust_weight_signature import RobustWeightSignature
from lightning_weights.modules.rws_controller import RWSController
from lightning_weights.modules.score_mask import ScoreMask, refresh_masks
from lightning_weights.modules.shallow_selector import ShallowSelector
from lightning_weights.modules.share_stages import share_stages
from lightning_weights.modules.snapshots import Snapshot, check_forgetting, read_snapshots, write_snapshot
from lightning_weights.modules.stack_state import StackOutput, StackState
from lightning_weights.modules.stacking_ensemble import StackingEnsemble
from lightning_weights.modules.stage_shared_stack import StageSharedStack
from lightning_weights.modules.stats_quantizer import StatsQuantizer
from lightning_weights.modules.sws_distillation import SWSDistillation
from lightning_weights.modules.synapse_conv import SynapseConv2d
from lightning_weights.modules.synapse_linear import SynapseLinear
from lightning_weights.modules.synapse_settings import SynapseSettings
from lightning_weights.modules.template_bank import TemplateBank
from lightning_weights.modules.text_encoder import TextEncoder
from lightning_weights.modules.trades_loss import TradesLoss
from lightning_weights.modules.vgg import VGG
from lightning_weights.modules.vision_transformer import CompactViT, SelfAttention, TransformerBlock
from lightning_weights.modules.weight_generator import WeightGenerator
from lightning_weights.modules.weight_kinds import kind_of_shape, weight_kinds
from lightning_weights.modules.wide_resnet import WideResNet

__all__ = [
    "CNN7",
    "KNOWN",
    "MLP",
    "VGG",
    "AccuracyReward",
    "AdaptedBackbone",
    "BetaChoice",
    "BoneAdapter",
    "BoneLinear",
    "BrevityReward",
    "CVElasticNet",
    "CVLasso",
    "CVRidge",
    "CausalLM",
    "CertifiedClassifier",
    "CertifiedLoss",
    "CertifiedLossOutput",
    "Certifier",
    "ClarityReward",
    "ClassIncrementalModule",
    "Classifier",
    "CompactViT",
    "Compander",
    "ConvNet1d",
    "Corruption",
    "Denoised",
    "DeviceModel",
    "DiffusionSamples",
    "EnergyForces",
    "EpsilonSchedule",
    "ExpertGroup",
    "FakeQuantAttention",
    "FakeQuantConv2d",
    "FakeQuantLinear",
    "FakeQuantized",
    "FunctionalMemory",
    "GLOWLoss",
    "GLOWStep",
    "GRULanguageModel",
    "GeneratedLinear",
    "GeneratedLoRA",
    "GradNormLoRPLinear",
    "GraphInputs",
    "HardConcreteGate",
    "IncrementalLinear",
    "InputBox",
    "InputQuantizer",
    "InverseRMSEBlender",
    "KDLoss",
    "KNOWNBank",
    "KNOWNMeta",
    "KernelBasis",
    "LSQQuantizer",
    "LanguageModelOutput",
    "LayerReport",
    "LayerTargets",
    "Learngene",
    "LinearExtrapolation",
    "LoRATokenizer",
    "MetaFeatureAugmenter",
    "MixtureBatchNorm1d",
    "MixtureBatchNorm2d",
    "MixtureConv1d",
    "MixtureConv2d",
    "MixtureLinear",
    "MultiObjectiveRL",
    "PerSampleLM",
    "Ponita",
    "PonitaBlock",
    "PonitaClassifier",
    "PonitaDiffusion",
    "PonitaDynamics",
    "PonitaOutput",
    "PonitaPotential",
    "PonitaRegressor",
    "PooledConvNet1d",
    "QKRAttention",
    "QuantizationReport",
    "QuantizedLinear",
    "QuantizedMultiheadAttention",
    "QuantizedViTAttention",
    "RWSController",
    "RedundancyProjector",
    "Regressor",
    "RegularizedStacking",
    "ResidualBlock",
    "ResidualMLP",
    "RewardWeighting",
    "RobustClassifier",
    "RobustWeightSignature",
    "SWSDistillation",
    "ScoreMask",
    "SelfAttention",
    "SeparableFiberConv",
    "ShallowSelector",
    "Snapshot",
    "StackOutput",
    "StackState",
    "StackingEnsemble",
    "StageSharedStack",
    "StatsQuantizer",
    "SynapseConv2d",
    "SynapseLinear",
    "SynapseSettings",
    "TemplateBank",
    "TextEncoder",
    "TradesLoss",
    "TransformerBlock",
    "WarmupCosine",
    "WeightGenerator",
    "WideResNet",
    "adapt_layers",
    "attention_obstacle",
    "behind_gelu",
    "bone_adapter_of",
    "calibrating",
    "check_forgetting",
    "compand_layers",
    "copy_templates",
    "expand",
    "export_codes",
    "export_lora",
    "extract_learngene",
    "extract_rws",
    "fake_quantized",
    "find_parametrizations",
    "find_targets",
    "graph_inputs",
    "grow",
    "idle_parameters",
    "inject",
    "is_attention",
    "keep_injected",
    "kind_of_shape",
    "language_model",
    "linear_decay_groups",
    "make_pruning_permanent",
    "make_room",
    "materialize",
    "merge_companders",
    "merge_quantized",
    "mixture_param_groups",
    "mixture_parts",
    "mixturize",
    "patched",
    "plain_layers",
    "plain_state_dict",
    "predict_overflowed",
    "quantize",
    "quantize_attention",
    "read_bone_adapter",
    "read_gptq",
    "read_predicted",
    "read_snapshots",
    "reestimate_batch_norm",
    "refresh_masks",
    "samples_of_rows",
    "set_mode",
    "share_stages",
    "sweep_beta",
    "unmerge_companders",
    "warn_about_zero_rows",
    "wc_param_groups",
    "weight_kinds",
    "write_bone_adapter",
    "write_gptq",
    "write_predicted",
    "write_snapshot",
]
