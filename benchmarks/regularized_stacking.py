"""How long does a regularized stack take to fit, against the same stack made of scikit-learn's parts?

    python benchmarks/regularized_stacking.py            # 20 000 rows of 72 models: minutes, nearly all of them theirs
    python benchmarks/regularized_stacking.py --fits 3   # scikit-learn fits 3 of the 11 training sets only
    python benchmarks/regularized_stacking.py --quick    # 2000 rows

Both get the same 72 predictions, near-copies within seven families, of a target of unit variance. Theirs is KFold,
StandardScaler, RidgeCV, LassoCV and ElasticNetCV with the same grids, on the columns that ours selects; the selection
is not part of their time. There are 11 training sets: those of 10 outer folds, and all rows. Where scikit-learn fits
only some of them, its time is that of those alone, and the ratio compares them with all 11 of ours: it is a lower
bound. Beside it stand the two simplest rivals: greedy selection with replacement, 50 rounds, and non-negative least
squares.
"""

import warnings
from typing import Any

import numpy as np
import torch
from _measure import arguments, conclude, cpu_seconds, prepare
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNetCV, LassoCV, RidgeCV
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.regularized_stacking import greedy_selection, meta_features, nnls_stack
from lightning_weights.modules import RegularizedStacking

MODELS, FAMILIES, FOLDS, SEED = 72, 7, 10, 42
RIDGE, L1 = np.logspace(-3, 5, 50), np.logspace(-5, 1, 30)
RATIOS = [0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0]


def pool(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions of models in families, and the target."""
    random = np.random.default_rng(0)
    signal = random.normal(size=rows)
    target = 0.9 * signal + 0.45 * random.normal(size=rows)
    family = np.arange(MODELS) % FAMILIES
    slopes, errors = random.uniform(0.7, 0.92, FAMILIES), random.uniform(0.08, 0.3, FAMILIES)
    shared = signal[:, None] * slopes + random.normal(size=(rows, FAMILIES)) * errors
    own = random.uniform(0.01, 0.12, MODELS)
    return shared[:, family] + random.normal(size=(rows, MODELS)) * own, target


def scikit_learn(features: np.ndarray, target: np.ndarray, fits: int) -> tuple[np.ndarray, dict[str, float]]:
    """Return out-of-fold predictions of three learners, NaN where there was no fit, and the CPU seconds of each."""
    found = np.full((len(target), 3), np.nan)
    every = np.arange(len(target))
    splits = [*KFold(FOLDS, shuffle=True, random_state=SEED).split(features), (every, every[:0])]
    seconds = {}
    for place, learner in enumerate(("ridge", "lasso", "elasticnet")):

        def run(place: int = place, learner: str = learner) -> None:
            for train, held in splits[:fits]:
                scaler = StandardScaler().fit(features[train])
                model = {
                    "ridge": RidgeCV(RIDGE, cv=3, scoring="neg_root_mean_squared_error"),
                    "lasso": LassoCV(alphas=L1, cv=3, max_iter=10_000),
                    "elasticnet": ElasticNetCV(l1_ratio=RATIOS, alphas=L1, cv=3, max_iter=10_000),
                }[learner].fit(scaler.transform(features[train]), target[train])
                if len(held):
                    found[held, place] = model.predict(scaler.transform(features[held]))

        seconds[learner] = cpu_seconds(run)
    return found, seconds


def measure(rows: int, fits: int) -> dict[str, Any]:
    """Return times and the largest difference of predictions."""
    predictions, target = pool(rows)
    stack = RegularizedStacking(n_folds=FOLDS, seed=SEED)
    ours = cpu_seconds(lambda: stack.fit(predictions, target))
    selected = list(stack.state_.retained)
    features = meta_features(torch.from_numpy(predictions[:, selected])).numpy()
    found, seconds = scikit_learn(features, target, fits)
    there = ~np.isnan(found[:, 0])
    own = np.stack([stack.learner_oof_[name] for name in seconds], axis=1)
    given, wanted = torch.from_numpy(predictions), torch.from_numpy(target)
    return {
        "rows": rows,
        "selected": len(selected),
        "fits": fits,
        "ours": ours,
        "theirs": seconds,
        "difference": dict(zip(seconds, np.abs(own - found)[there].max(axis=0).tolist(), strict=True)),
        "blend": float(np.abs((own - found)[there].mean(axis=1)).max()),
        "greedy": min(cpu_seconds(lambda: greedy_selection(given, wanted)) for _ in range(3)),
        "nnls": min(cpu_seconds(lambda: nnls_stack(given, wanted)) for _ in range(3)),
    }


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    theirs, fits = sum(result["theirs"].values()), result["fits"]
    some = "" if fits == FOLDS + 1 else f" of {fits} of the {FOLDS + 1} training sets, a lower bound"
    print(f"\n{result['rows']} rows, {MODELS} models, {result['selected']} kept; CPU seconds")
    print(f"  RegularizedStacking             {result['ours']:9.2f}")
    print(f"  scikit-learn                    {theirs:9.2f}, {theirs / result['ours']:.1f} times as long{some}")
    for learner, seconds in result["theirs"].items():
        print(f"    {learner:29} {seconds:9.2f}")
    print(f"  greedy selection, 50 rounds     {result['greedy']:9.4f}")
    print(f"  non-negative least squares      {result['nnls']:9.4f}")
    differences = ", ".join(f"{name} {value:.1e}" for name, value in result["difference"].items())
    print(f"largest difference of out-of-fold predictions: {differences}; of their mean {result['blend']:.1e}")


def main() -> None:
    """Measure, print and write."""
    parser = arguments("regularized_stacking", __doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="rows (%(default)s)")
    parser.add_argument("--fits", type=int, default=FOLDS + 1, help="training sets that scikit-learn fits")
    options = parser.parse_args()
    prepare()
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", LightningWeightsWarning)
    conclude(options, measure(2000 if options.quick else options.rows, min(options.fits, FOLDS + 1)), report)


if __name__ == "__main__":
    main()
