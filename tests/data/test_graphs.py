"""The base of the data sets of graphs: choosing, batches, orders, workers, copies and resuming."""

import copy
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer

from lightning_weights.callbacks import ExactResume
from lightning_weights.data._graphs import GraphData, GraphDataset, Graphs

SIZES = (2, 1, 4, 3)
EDGES = ([(0, 1), (1, 0)], [], [(3, 0), (0, 2), (1, 1)], [(2, 1)])


def lists():
    """Return four graphs as plain lists: values of nodes, edges, and the graph's own value."""
    starts = [sum(SIZES[:graph]) for graph in range(len(SIZES))]
    return [
        ([float(start + node) for node in range(size)], edges, 10 * graph)
        for graph, (start, size, edges) in enumerate(zip(starts, SIZES, EDGES, strict=True))
    ]


def packed():
    edges = [edge for _, edges, _ in lists() for edge in edges]
    return Graphs(
        torch.tensor(SIZES),
        {"x": torch.arange(10.0)[:, None]},
        {"y": torch.arange(4) * 10},
        torch.tensor(edges).T,
        torch.tensor([len(edges) for _, edges, _ in lists()]),
    )


@settings(max_examples=30, deadline=None)
@given(chosen=st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_batches_hold_the_chosen_graphs(chosen):
    batch = GraphDataset(packed()).__getitems__(chosen)
    x, edges, y, owner = [], [], [], []
    for place, graph in enumerate(chosen):
        values, own, label = lists()[graph]
        edges += [(sender + len(x), receiver + len(x)) for sender, receiver in own]
        x += values
        y.append(label)
        owner += [place] * len(values)
    assert batch["x"].flatten().tolist() == x
    assert list(map(tuple, batch["edge_index"].T.tolist())) == edges
    assert batch["y"].tolist() == y
    assert batch["batch"].tolist() == owner
    assert (batch["batch"].dtype, batch["edge_index"].dtype) == (torch.int64, torch.int64)


def test_choosing_twice_is_choosing_once():
    twice = packed().take(torch.tensor([3, 0, 2])).take(torch.tensor([2, 0]))
    once = packed().take(torch.tensor([2, 3]))
    assert all(torch.equal(values, once.batch()[name]) for name, values in twice.batch().items())


def test_graphs_without_edges_have_none_in_the_batch():
    graphs = Graphs(torch.tensor(SIZES), {"x": torch.arange(10.0)})
    assert set(graphs.take(torch.tensor([1, 2])).batch()) == {"x", "batch"}
    assert GraphDataset(graphs)[2]["x"].tolist() == [3.0, 4.0, 5.0, 6.0]


class Four(GraphData):
    """Four graphs to train on, two and one for validation and test."""

    def __init__(self, batch_size=2, seed=0, shuffle=True, num_workers=0, drop_last=False):
        super().__init__(batch_size, seed, shuffle, num_workers, drop_last)

    def load(self):
        return packed(), packed().take(torch.tensor([1, 2])), packed().take(torch.tensor([0]))


def labels(loader):
    return [batch["y"].tolist() for batch in loader]


def test_loaders_serve_the_parts_and_only_training_is_shuffled():
    data, before = Four(seed=1), torch.get_rng_state()
    epochs = [labels(data.train_dataloader()) for _ in range(8)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(sorted(label for batch in epoch for label in batch) == [0, 10, 20, 30] for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) > 2
    again = Four(seed=1)
    assert epochs == [labels(again.train_dataloader()) for _ in range(8)]
    assert labels(data.val_dataloader()) == [[10, 20]]
    assert labels(data.test_dataloader()) == labels(data.predict_dataloader()) == [[0]]
    assert labels(Four(shuffle=False).train_dataloader()) == [[0, 10], [20, 30]]
    assert labels(Four(batch_size=3, shuffle=False, drop_last=True).train_dataloader()) == [[0, 10, 20]]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_copies_serve_the_same_batches(duplicate):
    data = Four()
    labels(data.train_dataloader())
    copied = duplicate(data)
    assert labels(data.train_dataloader()) == labels(copied.train_dataloader())


class Seen(LightningModule):
    """Remembers the labels of every training batch."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["y"].tolist())
        return self.layer(batch["x"]).sum()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("steps", [3, 5])
def test_a_resumed_run_sees_the_same_batches(tmp_path, steps):
    def train(max_steps, checkpoint=None):
        trainer = Trainer(
            max_steps=max_steps,
            max_epochs=5,
            callbacks=[ExactResume()],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        model = Seen()
        trainer.fit(model, Four(batch_size=1), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{max_steps}.ckpt")
        return model.seen

    straight, before = train(12), train(steps)
    assert before + train(12, tmp_path / f"{steps}.ckpt") == straight


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("seed", -1), ("num_workers", None)])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; allowed is a whole number in [")):
        Four(**{name: value})
