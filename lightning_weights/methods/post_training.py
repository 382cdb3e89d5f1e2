"""Cards of methods for language models after their pre-training."""

from lightning_weights.methods.card import MethodCard

CARDS: tuple[MethodCard, ...] = (
    MethodCard(
        key="glow",
        title="Learning from Mistakes: Negative Reasoning Samples Enhance Out-of-Domain Generalization",
        authors="Xueyun Tian, Minghua Ma, Bingbing Xu, Nuoyan Lyu, Wei Li, Heng Dong, Zheng Chu, Yuanzhuo Wang, "
        "Huawei Shen",
        year=2026,
        arxiv="2601.04992",
        classes=(
            "lightning_weights.modules.GLOWLoss",
            "lightning_weights.callbacks.GLOW",
            "lightning_weights.modules.PerSampleLM",
            "lightning_weights.data.IndexedDataset",
            "lightning_weights.data.ChainOfThought",
        ),
        config="configs/glow.yaml",
        example="examples/glow.py",
        ops=("weighted_cross_entropy",),
        measured=(
            "chains of additions, half of them a weak model's mistakes, 5 seeds, tiny Llama from scratch: 31.9 ± 3.9 % "
            "out of domain (plainly 28.6 ± 3.1, weights shuffled 30.5 ± 3.1, turned around 27.5 ± 2.4, right chains "
            "alone 43.5 ± 3.6); loss and gradient at 49 152 classes in bf16 4.4 times as fast, in 21 % of the memory"
        ),
    ),
    MethodCard(
        key="dynamic_reward",
        title="Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting",
        authors="Lu, Wang, Li, Liu, Yu, Yin, Shi, Zhang, Jiang",
        year=2025,
        arxiv="2509.11452",
        classes=(
            "lightning_weights.callbacks.GradientRewardWeights",
            "lightning_weights.callbacks.HypervolumeMetaReward",
            "lightning_weights.modules.MultiObjectiveRL",
            "lightning_weights.modules.RewardWeighting",
            "lightning_weights.metrics.Hypervolume",
        ),
        config="configs/dynamic_reward.yaml",
        example="examples/dynamic_reward.py",
        ops=("policy_loss", "gradient_gram"),
        measured=(
            "two digits added, three rewards, 5 seeds: from weights of .02/.49/.49 with RLOO, weights that follow "
            "gradients win 0.080 of hypervolume over fixed ones (0.398 against 0.319; balanced ones: 0.421); with "
            "GRPO nothing; the meta-reward wins nothing anywhere; SmolLM2 gets a quarter shorter at the same accuracy"
        ),
    ),
    MethodCard(
        key="hy_wu",
        title="HY-WU (Part I): An Extensible Functional Neural Memory Framework and An Instantiation in Text-Guided "
        "Image Editing",
        authors="Tencent HY Team",
        year=2026,
        arxiv="2603.07236",
        classes=(
            "lightning_weights.modules.WeightGenerator",
            "lightning_weights.modules.LoRATokenizer",
            "lightning_weights.modules.AdaptedBackbone",
            "lightning_weights.modules.FunctionalMemory",
            "lightning_weights.modules.TextEncoder",
            "lightning_weights.callbacks.ConditionShuffleProbe",
            "lightning_weights.data.DigitEdits",
            "lightning_weights.data.StyledSentences",
        ),
        config="configs/hy_wu.yaml",
        example="examples/hy_wu.py",
        ops=("per_sample_lora",),
        measured=(
            "six opposite edits of digits, 3 seeds, 1200 steps: error × 1000 of 12.7 at rank 4, 11.6 for a shared "
            "LoRA of rank 4, tuned (3.5 with equal parameters), 6.7 for an MLP hypernetwork; 17 times with another "
            "sample's weights, 7 times with their mean. SmolLM2, styles by instruction: loss 0.12, 0.45 with another's "
            "weights, 0.47 with the mean, 2.09 without"
        ),
    ),
)
