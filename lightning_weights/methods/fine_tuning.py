"""Cards of methods that train what is pretrained, or weights as functions of others."""

from lightning_weights.methods.card import MethodCard

CARDS: tuple[MethodCard, ...] = (
    MethodCard(
        key="gradnorm_lorp",
        title="Gradient Weight-normalized Low-rank Projection for Efficient LLM Training",
        authors="Jia-Hong Huang, Yixian Shen, Hongyi Zhu, Stevan Rudinac, Evangelos Kanoulas",
        year=2025,
        arxiv="2412.19616",
        classes=(
            "lightning_weights.optimizers.GradNormLoRPAdamW",
            "lightning_weights.callbacks.GradNormLoRP",
            "lightning_weights.modules.GradNormLoRPLinear",
        ),
        config="configs/gradnorm_lorp.yaml",
        example="examples/gradnorm_lorp.py",
        ops=("weight_norm_rows", "projected_adam"),
        measured=(
            "upright to turned digits, 5 seeds, each at its best rate: 92.4 ± 1.4 % (LoRA 91.1 ± 0.6, DoRA 91.4 ± 0.7, "
            "GaLore 92.0 ± 0.8), and at rate 0.03 10.8 ± 1.5 points above LoRA, and with p = r / 2 and 55 % of DoRA's "
            "state +0.3 ± 0.3 points. From scratch, mode full: MLP 94.3 ± 0.5 % (AdamW 95.8 ± 0.2, GaLore 92.6 ± 1.0) "
            "with 15 % of AdamW's state; a small Llama's loss 2.16 ± 0.09 (AdamW 2.31 ± 0.05, GaLore 2.07 ± 0.08). The "
            "paper's 89.5 % less memory does not come out: 72.9 to 85.9 % for LLaMA's shapes"
        ),
    ),
    MethodCard(
        key="lift",
        title=(
            "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused "
            "Supervised Fine-Tuning"
        ),
        authors=(
            "Zihang Liu, Tianyu Pang, Oleg Balabanov, Chaoqun Yang, Tianjin Huang, Lu Yin, Yaoqing Yang, Shiwei Liu"
        ),
        year=2025,
        arxiv="2506.00772",
        classes=(
            "lightning_weights.optimizers.LIFTAdamW",
            "lightning_weights.callbacks.LIFTFinetuning",
        ),
        config="configs/lift.yaml",
        example="examples/lift.py",
        ops=("sparse_adamw",),
        measured=(
            "digits, fine-tuned, 5 seeds, each method at its best learning rate: 92.9 ± 0.5 % with 7 % of the weights "
            "(LoRA of the same size 90.8 ± 0.3, all weights 93.9 ± 0.9), but the largest 92.7 ± 0.6 and random ones "
            "92.5 ± 0.7 do as well and forget less: not reproduced at this scale. SmolLM2-135M learning to add, one "
            "seed: perplexity of prose +1.3 (random entries +0.8, all weights +2.3, LoRA +4.9) at level losses"
        ),
    ),
    MethodCard(
        key="bone",
        title=(
            "Bone: Block Affine Transformation as Parameter Efficient Fine-tuning Methods for Large Language Models"
        ),
        authors="Jiale Kang",
        year=2024,
        arxiv="2409.15371",
        classes=(
            "lightning_weights.callbacks.BoneFinetuning",
            "lightning_weights.modules.BoneLinear",
            "lightning_weights.adapters.BoneConfig",
        ),
        config="configs/bone.yaml",
        example="examples/bone.py",
        ops=("block_affine",),
        measured=(
            "digits turned by 90 degrees, 300 images, 100 steps, 5 seeds: at a shared learning rate of 0.001 "
            "65.3 ± 1.9 % (LoRA 51.6 ± 2.4, PiSSA 61.0 ± 1.6) with 3072 parameters (LoRA 3520), at the best "
            "of five rates each 89.9 ± 0.7 (LoRA 91.6 ± 0.6, PiSSA 90.0 ± 0.6, MiSS 88.1 ± 0.6), at 0.03 70.7 ± 2.9 "
            "(LoRA 81.4 ± 5.1): ahead at a low shared rate, not beyond. SmolLM2-135M, 16 steps on "
            "additions, one seed: loss 1.48 (LoRA 1.56, PiSSA 1.45, MiSS 1.47)"
        ),
    ),
    MethodCard(
        key="weight_compander",
        title="Weight Compander: A Simple Weight Reparameterization for Regularization",
        authors="Rinor Cakaj, Jens Mehnert, Bin Yang",
        year=2023,
        arxiv="2306.16993",
        classes=(
            "lightning_weights.callbacks.WeightCompander",
            "lightning_weights.modules.Compander",
        ),
        config="configs/weight_compander.yaml",
        example="examples/weight_compander.py",
        ops=("compand",),
        measured=(
            "digits, 10 seeds: with 100 training images 5.4 % of the weights are near zero (plain 8.6), kurtosis 1.9 "
            "(7.8), lower for every seed; accuracy level with plain training (+0.3 ± 0.2 points over three tasks) and "
            "1.1 ± 0.3 below the best weight decay, to which it adds nothing (-0.1 ± 0.2). Functional form inferred "
            "from the abstract"
        ),
    ),
)
