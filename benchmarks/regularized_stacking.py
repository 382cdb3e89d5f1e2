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

Out-of-fold predictions are compared with four of scikit-learn's: with its default tolerance, 1e-4, and with 1e-8, at
which it has converged; each with the penalties that it chooses, and with those that ours has chosen. The times are
those of the default.
"""

import warnings
from typing import Any

import numpy as np
import torch
from _measure import arguments, conclude, cpu_seconds, prepare
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, ElasticNetCV, LassoCV, Ridge, RidgeCV
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.regularized_stacking import greedy_selection, meta_features, nnls_stack
from lightning_weights.modules import RegularizedStacking

MODELS, FAMILIES, FOLDS, SEED = 72, 7, 10, 42
RIDGE, L1 = np.logspace(-3, 5, 50), np.logspace(-5, 1, 30)
RATIOS = [0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0]
LEARNERS = ("ridge", "lasso", "elasticnet")
STOPS = {"default": {"tol": 1e-4, "max_iter": 10_000}, "converged": {"tol": 1e-8, "max_iter": 1_000_000}}
BAR = 2e-3  # difference of predictions, for a target of about unit variance


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


def splits(rows: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the training sets and the rows held out: of the outer folds, and, last, all rows and none."""
    every = np.arange(rows)
    return [*KFold(FOLDS, shuffle=True, random_state=SEED).split(every), (every, every[:0])]


def choosing(learner: str, stop: dict[str, float]) -> Any:
    """Return scikit-learn's model that chooses its penalty."""
    if learner == "ridge":
        return RidgeCV(RIDGE, cv=3, scoring="neg_root_mean_squared_error")
    if learner == "lasso":
        return LassoCV(alphas=L1, cv=3, **stop)
    return ElasticNetCV(l1_ratio=RATIOS, alphas=L1, cv=3, **stop)


def fitted(features: np.ndarray, target: np.ndarray, place: int, model: Any) -> tuple[Any, np.ndarray]:
    """Fit to a training set, and return the model and what it predicts for the rows held out."""
    train, held = splits(len(target))[place]
    scaler = StandardScaler().fit(features[train])
    model.fit(scaler.transform(features[train]), target[train])
    return model, model.predict(scaler.transform(features[held])) if len(held) else target[held]


def compare(
    features: np.ndarray, target: np.ndarray, fits: int, stack: RegularizedStacking, stop: str
) -> dict[str, Any]:
    """Return scikit-learn's CPU seconds, and how far its predictions are from ours, with its choices and with ours."""
    seconds, gaps, other = {}, {"own choices": {}, "equal penalties": {}}, {}
    folds = range(min(fits, FOLDS))
    held = [part for _, part in splits(len(target))]
    for learner in LEARNERS:
        found: list[Any] = []

        def run(learner: str = learner, found: list[Any] = found) -> None:
            found += [fitted(features, target, place, choosing(learner, STOPS[stop])) for place in range(fits)]

        seconds[learner] = cpu_seconds(run)
        ours, report = stack.learner_oof_[learner], stack.report_["learners"][learner]
        chosen = list(zip(report["fold_penalties"], report["fold_l1_ratios"], strict=True))
        same = []
        for place in folds:
            penalty, ratio = chosen[place]
            model = ElasticNet(penalty, l1_ratio=ratio, **STOPS[stop]) if learner != "ridge" else Ridge(penalty)
            same.append(fitted(features, target, place, model)[1] - ours[held[place]])
        gaps["equal penalties"][learner] = np.concatenate(same)
        gaps["own choices"][learner] = np.concatenate([found[place][1] - ours[held[place]] for place in folds])
        models = [found[place][0] for place in folds]
        theirs = [(float(m.alpha_), float(getattr(m, "l1_ratio_", chosen[i][1]))) for i, m in enumerate(models)]
        other[learner] = [
            {"fold": place, "ours": chosen[place], "theirs": theirs[place], "tie": tie(found[place][0], *chosen[place])}
            for place in folds
            if not np.isclose(theirs[place][0], chosen[place][0])
            or (learner == "elasticnet" and theirs[place][1] != chosen[place][1])
        ]
    largest = {
        how: {**{name: float(np.abs(gap).max()) for name, gap in of.items()},
              "mean of the three": float(np.abs(sum(of.values()) / len(LEARNERS)).max())}
        for how, of in gaps.items()
    }  # fmt: skip
    return {"seconds": seconds, "differences": largest, "other choices": other}


def tie(model: Any, penalty: float, ratio: float) -> float | None:
    """Return by what share of the error scikit-learn finds its choice better than ours."""
    if isinstance(model, RidgeCV):
        return None
    scores = model.mse_path_.mean(-1).reshape(-1, len(L1))
    row = RATIOS.index(ratio) if len(scores) > 1 else 0
    here = scores[row, np.abs(model.alphas_ / penalty - 1).argmin()]
    return float(here / scores.min() - 1)


def measure(rows: int, fits: int) -> dict[str, Any]:
    """Return times and the largest differences of predictions."""
    predictions, target = pool(rows)
    stack = RegularizedStacking(n_folds=FOLDS, seed=SEED)
    ours = cpu_seconds(lambda: stack.fit(predictions, target))
    selected = list(stack.state_.retained)
    features = meta_features(torch.from_numpy(predictions[:, selected])).numpy()
    given, wanted = torch.from_numpy(predictions), torch.from_numpy(target)
    return {
        "rows": rows,
        "selected": len(selected),
        "fits": fits,
        "ours": ours,
        "scikit-learn": {stop: compare(features, target, fits, stack, stop) for stop in STOPS},
        "greedy": min(cpu_seconds(lambda: greedy_selection(given, wanted)) for _ in range(3)),
        "nnls": min(cpu_seconds(lambda: nnls_stack(given, wanted)) for _ in range(3)),
    }


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    theirs, fits = result["scikit-learn"]["default"]["seconds"], result["fits"]
    whole = sum(theirs.values())
    some = "" if fits == FOLDS + 1 else f" of {fits} of the {FOLDS + 1} training sets, a lower bound"
    print(f"\n{result['rows']} rows, {MODELS} models, {result['selected']} kept; CPU seconds")
    print(f"  RegularizedStacking             {result['ours']:9.2f}")
    print(f"  scikit-learn                    {whole:9.2f}, {whole / result['ours']:.1f} times as long{some}")
    for learner, seconds in theirs.items():
        print(f"    {learner:29} {seconds:9.2f}")
    print(f"  greedy selection, 50 rounds     {result['greedy']:9.4f}")
    print(f"  non-negative least squares      {result['nnls']:9.4f}")
    print("largest differences of out-of-fold predictions from scikit-learn's")
    for stop, found in result["scikit-learn"].items():
        for how, largest in found["differences"].items():
            listed = ", ".join(f"{name} {value:.1e}" for name, value in largest.items())
            over = [name for name, value in largest.items() if value > BAR]
            verdict = f"above {BAR:g}: {', '.join(over)}" if over else f"all within {BAR:g}"
            print(f"  {stop}, tolerance {STOPS[stop]['tol']:g}, {how}: {listed}; {verdict}")
        for learner, places in found["other choices"].items():
            for place in places:
                taken = f"it takes {place['theirs']}, ours {place['ours']}"
                by = "" if place["tie"] is None else f", whose error it finds larger by a share of {place['tie']:.1e}"
                print(f"    {learner}, fold {place['fold']}: {taken}{by}")


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
