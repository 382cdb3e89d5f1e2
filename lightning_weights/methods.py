"""One card per method: the paper, the classes, the files, and what was measured."""

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class MethodCard:
    """Facts about one method, from which listings and completeness tests are made.

    Args:
        key: File name of the method everywhere.
        title: Title of the paper.
        authors: Authors of the paper.
        year: Year of publication.
        arxiv: arXiv identifier.
        classes: Import paths of the public classes.
        config: Config file, relative to the repository.
        example: Example script, relative to the repository.
        ops: Operators of ``lightning_weights.kernels``.
        measured: What the example showed, with numbers.
    """

    key: str
    title: str
    authors: str
    year: int
    arxiv: str
    classes: tuple[str, ...]
    config: str
    example: str
    ops: tuple[str, ...]
    measured: str


METHODS: tuple[MethodCard, ...] = (
    MethodCard(
        key="classp",
        title=(
            "CLASSP: a Biologically-Inspired Approach to Continual Learning through Adjustment Suppression and "
            "Sparsity Promotion"
        ),
        authors="Oswaldo Ludwig",
        year=2024,
        arxiv="2405.09637",
        classes=(
            "lightning_weights.optimizers.CLASSP",
            "lightning_weights.callbacks.CLASSPPhases",
            "lightning_weights.callbacks.TaskStream",
            "lightning_weights.metrics.TaskAccuracyMatrix",
            "lightning_weights.data.PermutedDigits",
            "lightning_weights.data.SplitDigits",
        ),
        config="configs/classp.yaml",
        example="examples/classp.py",
        ops=("classp_step",),
        measured=(
            "3 permuted-digits tasks, 5 seeds, every method at its best setting of a grid: average accuracy "
            "85.1 ± 3.0 % (SGD 65.4 ± 1.6, Adam 68.7 ± 2.0, Adagrad 72.9 ± 1.9, SI 85.4 ± 1.7, EWC 90.5 ± 0.8), "
            "forgetting 14.4 ± 4.4 points (SGD 44.2 ± 2.3, EWC 4.7 ± 1.6), one state tensor per parameter"
        ),
    ),
    MethodCard(
        key="ibp_warmup",
        title="Fast Certified Robust Training with Short Warmup",
        authors="Zhouxing Shi, Yihan Wang, Huan Zhang, Jinfeng Yi, Cho-Jui Hsieh",
        year=2021,
        arxiv="2103.17268",
        classes=(
            "lightning_weights.callbacks.IBPWarmup",
            "lightning_weights.modules.CertifiedClassifier",
            "lightning_weights.modules.CertifiedLoss",
            "lightning_weights.modules.EpsilonSchedule",
            "lightning_weights.metrics.VerifiedError",
        ),
        config="configs/ibp_warmup.yaml",
        example="examples/ibp_warmup.py",
        ops=("interval_affine",),
        measured=(
            "digits MLP, ε 0.1, ramp of 3 of 40 epochs, 5 seeds, verified error 46.8 ± 2.5 %: at the same "
            "learning rate vanilla IBP 84.3 ± 3.6 and BatchNorm alone 77.5 ± 4.3 (reproduced), at learning rates "
            "of their own 51.2 ± 3.0 and 52.6 ± 2.2; after a ramp of 40 of 80 epochs all are level (21.3, 23.8, "
            "22.0). BatchNorm and initialisation do it together, the regularisers nothing measurable"
        ),
    ),
    MethodCard(
        key="tscnc",
        title=("Lipschitz Constant Meets Condition Number: Learning Robust and Compact Deep Neural Networks"),
        authors="Yangqi Feng, Shing-Ho J. Lin, Baoyuan Gao, Xian Wei",
        year=2025,
        arxiv="2503.20454",
        classes=(
            "lightning_weights.callbacks.TSCNC",
            "lightning_weights.callbacks.ScorePruning",
            "lightning_weights.callbacks.FinetunePruned",
            "lightning_weights.modules.HardConcreteGate",
            "lightning_weights.modules.TradesLoss",
            "lightning_weights.modules.RobustClassifier",
            "lightning_weights.metrics.ConditionNumber",
            "lightning_weights.metrics.AdversarialAccuracy",
        ),
        config="configs/tscnc.yaml",
        example="examples/tscnc.py",
        ops=("transformed_l1",),
        measured=(
            "digits MLP under PGD-20 at ε 0.1, 5 paired seeds: with 3 % of the weights 66.4 ± 1.6 % for learned "
            "scores (magnitude with the same training 54.0 ± 2.0), with 10 % level at 80. CNC brings the condition "
            "number of the classifier from 4.3 ± 0.2 to 1.4 ± 0.0, but adds no robustness (3 %: -3.1 ± 1.9 "
            "points), and TSC with CNC loses 12.2 ± 4.3: not reproduced at this scale"
        ),
    ),
    MethodCard(
        key="weight_align",
        title="Maintaining Discrimination and Fairness in Class Incremental Learning",
        authors="Bowen Zhao, Xi Xiao, Guojun Gan, Bin Zhang, Shu-Tao Xia",
        year=2020,
        arxiv="1911.07053",
        classes=(
            "lightning_weights.modules.ClassIncrementalModule",
            "lightning_weights.modules.IncrementalLinear",
            "lightning_weights.callbacks.WeightAligning",
            "lightning_weights.data.ClassIncremental",
            "lightning_weights.data.ExemplarMemory",
        ),
        config="configs/weight_align.yaml",
        example="examples/weight_align.py",
        ops=("distillation_loss",),
        measured=(
            "digits in 5 groups of 2 classes, 50 exemplars, 5 seeds: accuracy after the last group 82.3 ± 3.1 % "
            "(distillation alone 72.8 ± 1.4, BiC 83.5 ± 1.3); aligning one and the same network +10.1 ± 1.1 "
            "points, without clipping -21.2 ± 3.7. MNIST-1D: +4.3 ± 1.8, but level with distillation alone, and "
            "BiC is better"
        ),
    ),
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


def describe_methods(width: int = 80) -> str:
    """Return the cards as text.

    Args:
        width: Columns of the terminal.

    Examples:
        >>> print(describe_methods().splitlines()[0])
        classp
    """
    blocks = []
    for card in METHODS:
        fields = {
            "paper": f"{card.title}. {card.authors}, {card.year}, arXiv:{card.arxiv}",
            "classes": " ".join(card.classes),
            "operators": " ".join(card.ops),
            "try": f"lightning-weights fit --config {card.config}",
            "example": f"python {card.example}",
            "measured": card.measured,
        }
        lines = [
            textwrap.fill(
                text, width, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12, break_on_hyphens=False
            )
            for name, text in fields.items()
        ]
        blocks.append("\n".join([card.key, *lines]))
    return "\n\n".join(blocks)
