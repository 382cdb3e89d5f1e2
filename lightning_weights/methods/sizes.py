"""Cards of methods for networks that grow, or come in several sizes."""

from lightning_weights.methods.card import MethodCard

CARDS: tuple[MethodCard, ...] = (
    MethodCard(
        key="mixture_growth",
        title="MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters",
        authors="Chau Pham, Piotr Teterwak, Soren Nelson, Bryan A. Plummer",
        year=2024,
        arxiv="2311.04251",
        classes=(
            "lightning_weights.callbacks.MixtureGrowth",
            "lightning_weights.modules.MixtureConv1d",
            "lightning_weights.modules.MixtureConv2d",
            "lightning_weights.modules.MixtureLinear",
            "lightning_weights.modules.MixtureBatchNorm1d",
            "lightning_weights.modules.MixtureBatchNorm2d",
            "lightning_weights.modules.TemplateBank",
        ),
        config="configs/mixture_growth.yaml",
        example="examples/mixture_growth.py",
        ops=("mix_templates",),
        measured=(
            "MNIST-1D, 5 seeds, width 16 out of two of width 8, each at its best rates: 97.5 ± 0.2 % beginning with "
            "zeros, 97.3 ± 0.2 % as in the paper (Net2Wider 96.7 ± 0.2, random padding 96.7 ± 0.4, from scratch with "
            "as many operations 97.7 ± 0.1); width 8, same rates: 90.5 ± 1.5 as in the paper (86.0 ± 1.0, "
            "86.7 ± 1.5, 92.8 ± 2.8); growth takes milliseconds"
        ),
    ),
    MethodCard(
        key="learngene_sws",
        title="Exploring Learngene via Stage-wise Weight Sharing for Initializing Variable-sized Models",
        authors="Shi-Yu Xia, Wenxuan Zhu, Xu Yang, Xin Geng",
        year=2024,
        arxiv="2404.16897",
        classes=(
            "lightning_weights.modules.SWSDistillation",
            "lightning_weights.modules.StageSharedStack",
            "lightning_weights.modules.Learngene",
            "lightning_weights.callbacks.LearngeneInit",
        ),
        config="configs/learngene_sws.yaml",
        example="examples/learngene_sws.py",
        ops=("distillation_loss",),
        measured=(
            "digits, 3 seeds, vision transformers of 3 to 12 layers: 95.0 ± 0.1 % after 3 epochs (94.4 ± 0.4 after 24 "
            "from scratch), 94.3 ± 0.2 after 1 (77.1 ± 3.9 after 8); six depths from 111 kB instead of 1543"
        ),
    ),
)
