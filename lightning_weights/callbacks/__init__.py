"""Callbacks: when and where a method acts in training."""

from lightning_weights.callbacks.bone import BoneFinetuning
from lightning_weights.callbacks.calibrate_on_first_batch import CalibrateOnFirstBatch
from lightning_weights.callbacks.classp import CLASSPPhases
from lightning_weights.callbacks.collect_oof import CollectOOF
from lightning_weights.callbacks.compensation_quantization import CompensationQuantization
from lightning_weights.callbacks.condition_shuffle_probe import ConditionShuffleProbe
from lightning_weights.callbacks.confidence_guided_annealing import ConfidenceGuidedAnnealing
from lightning_weights.callbacks.exact_resume import ExactResume
from lightning_weights.callbacks.finetune_pruned import FinetunePruned
from lightning_weights.callbacks.foem import FOEM
from lightning_weights.callbacks.glow import GLOW
from lightning_weights.callbacks.gradient_reward_weights import GradientRewardWeights
from lightning_weights.callbacks.gradnorm_lorp import GradNormLoRP
from lightning_weights.callbacks.hardware_synapses import HardwareSynapses
from lightning_weights.callbacks.hypervolume_meta_reward import HypervolumeMetaReward
from lightning_weights.callbacks.ibp_warmup import IBPWarmup
from lightning_weights.callbacks.knowledge_overflow_init import KnowledgeOverflowInit
from lightning_weights.callbacks.learngene_sws import LearngeneInit
from lightning_weights.callbacks.lift import LIFTFinetuning
from lightning_weights.callbacks.mixture_growth import MixtureGrowth
from lightning_weights.callbacks.ofq import OFQ
from lightning_weights.callbacks.oscillation_tracker import OscillationTracker
from lightning_weights.callbacks.progressive_forgetting import ProgressiveForgetting
from lightning_weights.callbacks.rescomp import GPTAQ, GPTQ, ResComp
from lightning_weights.callbacks.rotate_batch import RotateBatch
from lightning_weights.callbacks.rws import RWSPatch
from lightning_weights.callbacks.score_pruning import ScorePruning
from lightning_weights.callbacks.task_stream import TaskStream
from lightning_weights.callbacks.tscnc import TSCNC
from lightning_weights.callbacks.weight_align import WeightAligning
from lightning_weights.callbacks.weight_compander import WeightCompander

__all__ = [
    "FOEM",
    "GLOW",
    "GPTAQ",
    "GPTQ",
    "OFQ",
    "TSCNC",
    "BoneFinetuning",
    "CLASSPPhases",
    "CalibrateOnFirstBatch",
    "CollectOOF",
    "CompensationQuantization",
    "ConditionShuffleProbe",
    "ConfidenceGuidedAnnealing",
    "ExactResume",
    "FinetunePruned",
    "GradNormLoRP",
    "GradientRewardWeights",
    "HardwareSynapses",
    "HypervolumeMetaReward",
    "IBPWarmup",
    "KnowledgeOverflowInit",
    "LIFTFinetuning",
    "LearngeneInit",
    "MixtureGrowth",
    "OscillationTracker",
    "ProgressiveForgetting",
    "RWSPatch",
    "ResComp",
    "RotateBatch",
    "ScorePruning",
    "TaskStream",
    "WeightAligning",
    "WeightCompander",
]
