"""Cards of methods for networks whose outputs turn with their inputs."""

from lightning_weights.methods.card import MethodCard

CARDS: tuple[MethodCard, ...] = (
    MethodCard(
        key="ponita",
        title="Fast, Expressive SE(n) Equivariant Networks through Weight-Sharing in Position-Orientation Space",
        authors="Erik J. Bekkers, Sharvaree Vadgama, Rob D. Hesselink, Putri A. van der Linden, David W. Romero",
        year=2024,
        arxiv="2310.02970",
        classes=(
            "lightning_weights.modules.Ponita",
            "lightning_weights.modules.PonitaPotential",
            "lightning_weights.modules.PonitaDynamics",
            "lightning_weights.modules.PonitaRegressor",
            "lightning_weights.modules.PonitaClassifier",
            "lightning_weights.modules.PonitaDiffusion",
            "lightning_weights.callbacks.CalibrateOnFirstBatch",
            "lightning_weights.callbacks.RotateBatch",
            "lightning_weights.data.NBody",
            "lightning_weights.data.MoleculeEnergies",
            "lightning_weights.data.DigitSuperpixels",
            "lightning_weights.metrics.EquivarianceError",
        ),
        config="configs/ponita.yaml",
        example="examples/ponita.py",
        ops=("fiber_conv",),
        measured=(
            "charged particles, 3 seeds: squared error 9.2 ± 0.6 in 10⁻³, with EGNN 11.3 ± 0.6, with tensor products "
            "12.4 ± 0.6, with PNITA 26.9 ± 0.9; forces of ethanol after 500 steps: 3.6 ± 0.4 kcal/mol/Å, with PNITA "
            "2.7 ± 0.2"
        ),
    ),
)
