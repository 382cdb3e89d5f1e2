"""Cards of methods for weights of a few bits, or in devices."""

from lightning_weights.methods.card import MethodCard

CARDS: tuple[MethodCard, ...] = (
    MethodCard(
        key="ofq",
        title="Oscillation-free Quantization for Low-bit Vision Transformers",
        authors="Shih-Yang Liu, Zechun Liu, Kwang-Ting Cheng",
        year=2023,
        arxiv="2302.02210",
        classes=(
            "lightning_weights.callbacks.OFQ",
            "lightning_weights.callbacks.ConfidenceGuidedAnnealing",
            "lightning_weights.callbacks.OscillationTracker",
            "lightning_weights.modules.StatsQuantizer",
            "lightning_weights.modules.LSQQuantizer",
            "lightning_weights.modules.QKRAttention",
            "lightning_weights.metrics.OscillationRate",
        ),
        config="configs/ofq.yaml",
        example="examples/ofq.py",
        ops=("statsq",),
        measured=(
            "digits, vision transformer, 2 bits: annealing leaves 0.023 ± 0.003 % of the codes flipping per step "
            "(0.076 ± 0.004 without) and 0.48 ± 0.04 % of the weights oscillating (1.8 ± 0.1), at +0.4 ± 0.2 points of "
            "accuracy, on 5 seeds not looked at before (0.026 and 0.078 % flips on the first 3); on those 3, scales "
            "from statistics wander 0.4 to 0.5 times as much as learned ones; accuracy 94.2 ± 0.8 % (LSQ 93.8 ± 0.5, "
            "torchao 94.0 ± 0.8): level, and StatsQ alone flips no less than LSQ"
        ),
    ),
    MethodCard(
        key="rescomp",
        title="Rethinking Residual Errors in Compensation-based LLM Quantization",
        authors="Shuaiting Li and others; GPTAQ: Yuhang Li and others; GPTQ: Elias Frantar and others",
        year=2026,
        arxiv="2604.07955",
        classes=(
            "lightning_weights.callbacks.ResComp",
            "lightning_weights.callbacks.GPTAQ",
            "lightning_weights.callbacks.GPTQ",
            "lightning_weights.callbacks.CompensationQuantization",
            "lightning_weights.modules.QuantizedLinear",
        ),
        config="configs/rescomp.yaml",
        example="examples/rescomp.py",
        ops=("compensate_columns",),
        measured=(
            "SmolLM2-135M, 3 bits in groups of 64, 3 calibration seeds, perplexity 19.5 before: RTN 59.7, GPTQ "
            "35.1 ± 0.7 (4 seeds), GPTAQ 31.5 ± 1.1, ResComp on GPTAQ 31.9 ± 0.2, each below GPTQ on every seed; "
            "ResComp against GPTAQ +0.4 ± 1.2: not reproduced. 2 bits destroy a network of this size. One made-up "
            "layer, 5 seeds, error on held-out inputs: GPTQ 0.1210, GPTAQ 0.0996 ± 0.0008 (0.0762 with alpha 1 and "
            "the derived outer mode), ResComp on GPTAQ 0.1006"
        ),
    ),
    MethodCard(
        key="foem",
        title="First-Order Error Matters: Accurate Compensation for Quantized Large Language Models",
        authors=(
            "Xingyu Zheng, Haotong Qin, Yuye Li, Haoran Chu, Jiakai Wang, Jinyang Guo, Michele Magno, Xianglong Liu"
        ),
        year=2026,
        arxiv="2507.11017",
        classes=("lightning_weights.callbacks.FOEM",),
        config="configs/foem.yaml",
        example="examples/foem.py",
        ops=("compensate_columns",),
        measured=(
            "SmolLM2-135M, 3 bits in groups of 64, perplexity with beta 0.1: 33.9 ± 0.3, GPTQ 35.1 ± 0.7, lower on "
            "3 of 4 calibration seeds; on GPTAQ 31.0 ± 0.6, GPTAQ 31.5 ± 1.1. One made-up layer of 256 inputs, 3 "
            "bits, 5 seeds, error on held-out inputs: 10 % below GPTQ with 128 calibration tokens, 4 % with 384, 1 "
            "% with 2048, reproduced"
        ),
    ),
    MethodCard(
        key="hw_synapse",
        title="Adaptive Learning Rule for Hardware-based Deep Neural Networks Using Electronic Synapse Devices",
        authors="Suhwan Lim, Jong-Ho Bae, Jai-Ho Eum, Sungtae Lee, Chul-Heung Kim, Dongseok Kwon, Byung-Gook Park, "
        "Jong-Ho Lee",
        year=2017,
        arxiv="1707.06381",
        classes=(
            "lightning_weights.optimizers.PulseSGD",
            "lightning_weights.callbacks.HardwareSynapses",
            "lightning_weights.modules.DeviceModel",
            "lightning_weights.modules.SynapseLinear",
            "lightning_weights.modules.SynapseConv2d",
        ),
        config="configs/hw_synapse.yaml",
        example="examples/hw_synapse.py",
        ops=("pulse_update",),
        measured=(
            "digits, 5 seeds, devices of 128 states: linear ones 0.7 ± 0.3 points below float SGD; at ν = 5 and a rate "
            "of 0.2 unidirectional 89.5 ± 2.2 %, split 87.6 ± 3.0, single 67.6 ± 4.9, bidirectional 13.6 ± 2.2; each "
            "at the better of two rates +1.5 ± 0.2 on split, +2.2 ± 0.7 on bidirectional, +3.2 ± 0.8 on single; on "
            "linear devices no advantage; devices that differ (σ = 0.3) cost 1.1 ± 0.3 points. Rule and devices "
            "inferred from the abstract"
        ),
    ),
)
