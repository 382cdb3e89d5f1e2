"""Classes of graphs."""

from functools import partial

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from lightning_weights.modules import PonitaClassifier
from tests.helpers.battery import NOISE
from tests.helpers.tasks import make_trainer
from tests.modules.ponita_tasks.cases import collate, fit, loader, net

pytestmark = pytest.mark.filterwarnings(NOISE)


def by_size(graphs):
    """Molecules that are to be told apart by their number of atoms."""
    sizes = torch.tensor([len(graph["x"]) for graph in graphs])
    return {**collate(graphs), "y": sizes - 3}


def classifier(**options):
    return PonitaClassifier(net(out_scalars=2, pooling="sum"), num_classes=2, **options)


def test_logged_values_match_sklearn():
    module, batches = classifier(), loader(make=by_size, batch_size=4)
    (logged,) = make_trainer([]).validate(module, batches, verbose=False)
    logits = torch.cat([module(batch) for batch in batches]).detach()
    labels = torch.cat([batch["y"] for batch in batches])
    assert logged["val/accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert logged["val/loss"] == pytest.approx(log_loss(labels, logits.double().softmax(1)), rel=1e-5)


def test_learns():
    module = classifier(optimizer=partial(torch.optim.Adam, lr=3e-2), test_time_rotations=1)
    trainer = fit(module, train=loader(make=by_size, batch_size=6), max_epochs=15)
    (logged,) = trainer.test(module, loader(make=by_size), verbose=False)
    assert logged.keys() == {"test/loss", "test/accuracy"}
    assert logged["test/accuracy"] == 1.0


def test_bad_input():
    with pytest.raises(ValueError, match="num_classes is 1"):
        PonitaClassifier(net(pooling="sum"), num_classes=1)
    with pytest.raises(ValueError, match="out_scalars=2; allowed is 10"):
        PonitaClassifier(net(out_scalars=2, pooling="sum"))
    batch = next(iter(loader(make=by_size)))
    with pytest.raises(ValueError, match=r"y has shape \(1,\); allowed is \(2,\)"):
        classifier().training_step({**batch, "y": batch["y"][:1]}, 0)
