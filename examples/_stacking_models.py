"""72 base models on three tables, each row predicted by models that have not seen it: kept on disk, since all need it.

Families of scikit-learn, most of them with settings next to each other, and small networks of this package: the
near-copies that a stack of a search over settings meets.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _harness import hush
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import ElasticNet, Lasso, Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, SplineTransformer, StandardScaler
from sklearn.svm import SVR
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.data import student_scores
from lightning_weights.functional.regularized_stacking import fold_ids
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules import MLP, Regressor
from lightning_weights.runners import cross_fit

FOLDS, FOLD_SEED = 5, 42
TESTS = {"digits": 597, "diabetes": 142, "scores": 3000}  # rows that nothing is fitted on
TRAINED = {"digits": 1200, "diabetes": 300, "scores": 1500}
NETWORKS = {"narrow": (16,), "wide": (64,)}  # each with two seeds
Table = tuple[Tensor, Tensor, Tensor, Tensor]


def table(data: str, seed: int) -> Table:
    """Return features and targets to train on, and features and targets to test on, divided at random."""
    if data == "scores":
        x, y = student_scores(TRAINED[data] + TESTS[data], seed=seed)
    else:
        found = (load_digits if data == "digits" else load_diabetes)(return_X_y=True)
        x, y = (torch.as_tensor(part, dtype=torch.float32) for part in found)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        x, y = x[order], y[order]
    rows = TRAINED[data]
    return x[:rows], y[:rows], x[rows : rows + TESTS[data]], y[rows : rows + TESTS[data]]


def models(seed: int, std: float) -> Iterator[tuple[str, Any]]:
    """Yield 68 names and models; penalties and widths that depend on the targets' units are multiples of ``std``."""
    for alpha in (0.1, 1.0, 10.0, 30.0, 100.0, 300.0, 1000.0):
        yield f"ridge {alpha:g}", Ridge(alpha)
    for share in (0.003, 0.01, 0.03, 0.1):
        yield f"lasso {share:g}", Lasso(share * std, max_iter=5000)
        yield f"elastic net {share:g}", ElasticNet(share * std, max_iter=5000)
    for neighbours in (3, 5, 8, 12, 20, 40):
        for weights in ("uniform", "distance"):
            yield f"{neighbours} neighbours, {weights}", KNeighborsRegressor(neighbours, weights=weights)
    for depth in (3, 5, 7, 10):
        yield f"tree {depth}", DecisionTreeRegressor(max_depth=depth, random_state=seed)
    for leaf in (1, 3, 6, 12):
        options = {"n_estimators": 25, "min_samples_leaf": leaf, "random_state": seed, "max_features": 0.5}
        yield f"forest {leaf}", RandomForestRegressor(**options)
        yield f"random trees {leaf}", ExtraTreesRegressor(**options)
    for rate in (0.05, 0.1, 0.2):
        options = {"learning_rate": rate, "random_state": seed, "subsample": 0.7, "max_features": 0.5}
        for depth in (2, 4):
            yield f"boosting {rate:g} {depth}", GradientBoostingRegressor(n_estimators=40, max_depth=depth, **options)
        leaves = {"learning_rate": rate, "max_iter": 40, "max_leaf_nodes": 8, "random_state": seed}
        yield f"binned boosting {rate:g}", HistGradientBoostingRegressor(early_stopping=False, **leaves)
    for alpha in (0.1, 1.0, 5.0):
        for scale in (0.3, 1.0):
            yield f"kernel ridge {alpha:g} {scale:g}", partial(kernel_ridge, alpha, scale)
    for penalty in (0.3, 1.0, 3.0):
        for width in (0.05, 0.2):
            yield f"support vectors {penalty:g} {width:g}", SVR(C=penalty * std, epsilon=width * std)
    for alpha in (10.0, 100.0, 1000.0, 3000.0):
        yield f"quadratic {alpha:g}", make_pipeline(PolynomialFeatures(2), Ridge(alpha))
    for knots in (3, 5):
        for alpha in (1.0, 30.0):
            yield f"spline {knots} {alpha:g}", make_pipeline(SplineTransformer(knots), Ridge(alpha))


def kernel_ridge(alpha: float, scale: float, features: int) -> KernelRidge:
    """Return a Gaussian kernel machine whose width goes with the number of features."""
    return KernelRidge(alpha=alpha, kernel="rbf", gamma=scale / features)


def fitted(model: Any, x: Any, y: Any) -> Callable[[Any], Tensor]:
    """Fit on standardised features and targets around 0, and return what predicts."""
    made = model(features=x.shape[1]) if isinstance(model, partial) else model
    centre = y.mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = make_pipeline(StandardScaler(), made).fit(x, y - centre)
    return lambda rows: torch.from_numpy(pipeline.predict(rows)).double() + float(centre)


def networks(data: str, seed: int, folder: Path) -> tuple[list[str], Tensor, Tensor]:
    """Return names of four networks, what they predict for rows not seen, and for the test rows."""
    hush()
    x, y, test_x, test_y = table(data, seed)
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)  # of features alone
    level, spread = float(y.mean()), float(y.std())

    def make(hidden: tuple[int, ...]) -> Regressor:
        network = MLP(x.shape[1], hidden, num_classes=1)
        return Regressor(network, level, spread, lambda params: torch.optim.Adam(params, lr=0.01, weight_decay=1e-4))

    makers = {name: partial(make, hidden) for name, hidden in NETWORKS.items()}
    loader = DataLoader(TensorDataset((x - mean) / std, y), batch_size=100, shuffle=True)
    test = DataLoader(TensorDataset((test_x - mean) / std, test_y), batch_size=1000)
    options = {"max_epochs": 12, "barebones": True, "accelerator": "cpu", "devices": 1, "limit_val_batches": 0}
    settings = {"n_folds": FOLDS, "fold_seed": FOLD_SEED, "test": "refit", "test_loader": test}
    found = cross_fit(makers, loader, options, str(folder), seeds=[0, 1], **settings)
    return [f"network {name}" for name in found.names], found.predictions, found.test


def columns(data: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return names, out-of-fold and test predictions of all models, and the targets, from disk if they are there."""
    path = folder / f"{data}_{seed}.pt"
    if path.is_file():
        return torch.load(path, weights_only=True)
    x, y, test_x, test_y = (part.double().numpy() for part in table(data, seed))
    folds = fold_ids(len(y), FOLDS, FOLD_SEED).numpy()
    names, oof, test = [], [], []
    for name, model in models(seed, float(y.std())):
        column = torch.empty(len(y), dtype=torch.float64)
        for fold in range(FOLDS):
            held = folds == fold
            column[torch.from_numpy(held)] = fitted(model, x[~held], y[~held])(x[held])
        names.append(name)
        oof.append(column)
        test.append(fitted(model, x, y)(test_x))
    more, more_oof, more_test = networks(data, seed, folder / f"{data}_{seed}")
    found = {
        "names": [*names, *more],
        "oof": torch.cat([torch.stack(oof, dim=1), more_oof], dim=1),
        "test": torch.cat([torch.stack(test, dim=1), more_test], dim=1),
        "y": torch.from_numpy(y),
        "test_y": torch.from_numpy(test_y),
    }
    with replacing_file(path) as part:
        torch.save(found, part)
    return found
