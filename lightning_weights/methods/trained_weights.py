"""Cards of methods that calculate with weights and models that are trained already."""

from lightning_weights.methods.card import MethodCard

CARDS: tuple[MethodCard, ...] = (
    MethodCard(
        key="know",
        title="Learning from Oblivion: Predicting Knowledge-Overflowed Weights via Retrodiction of Forgetting",
        authors="Jinhyeok Jang, Jaehong Kim, Jung Uk Kim",
        year=2026,
        arxiv="2508.05059",
        classes=(
            "lightning_weights.callbacks.ProgressiveForgetting",
            "lightning_weights.callbacks.KnowledgeOverflowInit",
            "lightning_weights.modules.KNOWN",
            "lightning_weights.modules.KNOWNBank",
            "lightning_weights.modules.KNOWNMeta",
            "lightning_weights.data.TrajectoryDataModule",
        ),
        config="configs/know.yaml",
        example="examples/know.py",
        ops=("nowcast",),
        measured=(
            "the next weight of 32 unseen networks: 3 to 9 % less error than the best rule; few shots on digits and "
            "mnist1d, 5 seeds, three tasks: 0.5 ± 0.2 points behind the weights as trained with one recursion, "
            "2.5 ± 0.5 with three (on one task 2.3 ± 0.4 ahead, of which shrinking has 70 %); with batch normalisation "
            "0.4 ± 0.2 and 1.7 ± 0.2 behind"
        ),
    ),
    MethodCard(
        key="rws",
        title="Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?",
        authors="Ruisi Cai, Zhenyu Zhang, Zhangyang Wang",
        year=2023,
        arxiv="2302.12480",
        classes=(
            "lightning_weights.callbacks.RWSPatch",
            "lightning_weights.modules.RobustWeightSignature",
            "lightning_weights.modules.ShallowSelector",
            "lightning_weights.modules.RWSController",
            "lightning_weights.modules.Corruption",
            "lightning_weights.data.Corrupted",
            "lightning_weights.runners.SignatureTrainer",
        ),
        config="configs/rws.yaml",
        example="examples/rws.py",
        ops=("apply_signature",),
        measured=(
            "five corruptions, 3 seeds. VGG, 16 x 16 digits: corrupted accuracy 81.0 ± 3.3 % clean, 85.7 ± 5.1 patched "
            "in three layers (54 times smaller at 16 levels, same accuracy), 93.6 ± 1.8 in all, 96.2 robust; wrong "
            "signature 81.3, plain difference 89.4 and 95.6. VGG, mnist1d: 30.1 clean, 32.1 and 36.3 patched, 57.1 "
            "robust, at half of the clean accuracy. ResNets: nothing without batch norm re-estimated, 10 and 18 points "
            "more with it than by that alone. No transfer to other classes or from digits to printed letters, no gain "
            "from sums"
        ),
    ),
    MethodCard(
        key="regularized_stacking",
        title="Regularized Meta-Learning for Improved Generalization",
        authors="Noor Islam S. Mohammad, Md Muntaqim Meherab",
        year=2026,
        arxiv="2602.12469",
        classes=(
            "lightning_weights.modules.RegularizedStacking",
            "lightning_weights.callbacks.CollectOOF",
            "lightning_weights.runners.KFoldRunner",
            "lightning_weights.runners.StackingRunner",
            "lightning_weights.modules.StackingEnsemble",
            "lightning_weights.modules.Regressor",
            "lightning_weights.data.StudentScores",
        ),
        config="configs/regularized_stacking.yaml",
        example="examples/regularized_stacking.py",
        ops=("coordinate_descent",),
        measured=(
            "72 models on three tables, 3 seeds: 16 ± 7 % less error than their mean, 39 ± 10 % less than least "
            "squares, level with ridge (1.3 ± 1.3 %), NNLS and greedy selection (both -0.1 ± 0.9 %), which need 7 to 9 "
            "models; 48 to 54 of 72 kept, no stage helps beyond noise. 20 000 rows, 30 columns kept: 33 times as fast "
            "as scikit-learn's parts"
        ),
    ),
)
