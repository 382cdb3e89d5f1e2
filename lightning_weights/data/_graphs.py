"""Graphs held in memory: what every data set of them shares."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from lightning_weights.errors import check_number

Batch = dict[str, Tensor]


@dataclass
class Graphs:
    """Graphs that lie in memory one after another.

    Attributes:
        sizes: Number of nodes of each graph, of shape (G,), int64.
        nodes: Tensors with one row per node, by the name they have in a batch.
        graphs: Tensors with one row per graph.
        edges: Senders and receivers of all graphs, of shape (2, E), each graph's nodes numbered from 0; ``None`` if
            there are no edges.
        edge_sizes: Number of edges of each graph.
    """

    sizes: Tensor
    nodes: dict[str, Tensor]
    graphs: dict[str, Tensor] = field(default_factory=dict)
    edges: Tensor | None = None
    edge_sizes: Tensor | None = None

    def take(self, chosen: Tensor) -> "Graphs":
        """Return the graphs of these numbers, in this order."""
        rows, _ = _rows(self.sizes, chosen)
        edges = edge_sizes = None
        if self.edges is not None:
            edges = self.edges[:, _rows(self.edge_sizes, chosen)[0]]
            edge_sizes = self.edge_sizes[chosen]
        nodes = {name: values[rows] for name, values in self.nodes.items()}
        graphs = {name: values[chosen] for name, values in self.graphs.items()}
        return Graphs(self.sizes[chosen], nodes, graphs, edges, edge_sizes)

    def batch(self) -> Batch:
        """Return all graphs as one batch, under torch_geometric's names."""
        numbers = torch.arange(len(self.sizes))
        batch = {**self.nodes, **self.graphs, "batch": numbers.repeat_interleave(self.sizes)}
        if self.edges is not None:
            starts = self.sizes.cumsum(0) - self.sizes
            batch["edge_index"] = self.edges + starts.repeat_interleave(self.edge_sizes)
        return batch


def _rows(sizes: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows that belong to the chosen graphs, and the place of each row's graph among the chosen."""
    starts = sizes.cumsum(0) - sizes
    counts = sizes[chosen]
    owner = torch.arange(len(chosen)).repeat_interleave(counts)
    within = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    return starts[chosen][owner] + within, owner


class GraphDataset(Dataset[Batch]):
    """Serve batches of graphs; loaders call ``__getitems__`` instead of fetching one by one."""

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs

    def __len__(self) -> int:
        return len(self.graphs.sizes)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return one batch of the graphs of these numbers."""
        return self.graphs.take(torch.as_tensor(indices)).batch()


class GraphData(LightningDataModule, ABC):
    """Base of data modules of graphs that fit into memory; a subclass says how to load them.

    The loaders have generators of their own that go on from epoch to epoch, and nothing draws from the global ones.
    """

    def __init__(self, batch_size: int, seed: int, shuffle: bool, num_workers: int, drop_last: bool) -> None:
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("seed", seed, low=0, high=2**32, whole=True)
        check_number("num_workers", num_workers, low=0, whole=True)
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.drop_last = drop_last
        self._train: GraphDataset | None = None

    @abstractmethod
    def load(self) -> tuple[Graphs, Graphs, Graphs]:
        """Return the graphs for training, validation and test; called once."""

    def setup(self, stage: str | None = None) -> None:
        """Load the data, once for all stages; loaders requested before do it themselves.

        Args:
            stage: Ignored; the data is the same in every stage.
        """
        if self._train is not None:
            return
        train, validation, test = map(GraphDataset, self.load())
        # the loaders of later epochs go on drawing where the earlier ones stopped
        self._order = torch.Generator().manual_seed(self.seed)
        self._evaluation = torch.Generator().manual_seed(self.seed)
        self._validation, self._test, self._train = validation, test, train

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the training graphs."""
        self.setup()
        return self._loader(self._train, self._order, self.shuffle, self.drop_last)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the validation graphs, in their order."""
        self.setup()
        return self._loader(self._validation, self._evaluation, False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the test graphs, in their order."""
        self.setup()
        return self._loader(self._test, self._evaluation, False)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the test graphs, in their order."""
        return self.test_dataloader()

    def _loader(
        self, dataset: GraphDataset, generator: torch.Generator, shuffle: bool, drop_last: bool = False
    ) -> DataLoader[Batch]:
        # every iterator draws a seed for its workers: without a generator of its own it would be a global draw
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=default_convert,
            generator=generator,
        )
