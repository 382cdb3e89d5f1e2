"""Rows of several processes, which a stand-in for the collective plays."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from lightning_weights.functional.rows_of_processes import rows_of_processes, several_processes


@pytest.mark.parametrize("sizes", [(3, 1), (0, 2), (2, 2), (0, 0), (1, 0, 4)])
def test_rows_come_in_the_order_of_the_ranks_whatever_their_number(sizes, monkeypatch):
    ranks = [torch.randn(size, 2, dtype=torch.float64) for size in sizes]

    def all_gather(parts, tensor, group=None):
        for part, rows in zip(parts, ranks, strict=True):
            sent = torch.tensor([len(rows)]) if tensor.ndim == 1 else F.pad(rows, (0, 0, 0, len(tensor) - len(rows)))
            assert part.shape == sent.shape == tensor.shape
            part.copy_(sent)

    monkeypatch.setattr(dist, "get_world_size", lambda group=None: len(ranks))
    monkeypatch.setattr(dist, "all_gather", all_gather)
    for rows in ranks:
        assert torch.equal(rows_of_processes(rows), torch.cat(ranks))


def test_without_a_group_there_is_one_process(monkeypatch):
    assert not several_processes()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for size in (1, 2):
        monkeypatch.setattr(dist, "get_world_size", lambda size=size: size)
        assert several_processes() == (size == 2)
