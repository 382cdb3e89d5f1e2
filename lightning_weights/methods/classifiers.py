"""Cards of methods for classifiers that go on learning, are proved, compressed or extended."""

from lightning_weights.methods.card import MethodCard

CARDS: tuple[MethodCard, ...] = (
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
)
