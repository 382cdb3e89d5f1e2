"""Tables from which kernels read many tensors in one launch."""

import torch

from lightning_weights.kernels._launch_tables import address_table, task_tables


def test_tasks_cover_every_element_once():
    full, tails = task_tables((0, 5, 8, 20), 8, torch.device("cpu"))
    assert full.tolist() == [[2, 0, 8], [3, 0, 8], [3, 8, 8]]
    assert tails.tolist() == [[1, 0, 5], [3, 16, 4]]


def test_addresses_are_cached_by_stream():
    starts, cpu = (1 << 40, 7), torch.device("cpu")
    table = address_table(starts, cpu, 0)
    assert table.tolist() == list(starts)
    assert address_table(starts, cpu, 0) is table
    assert address_table(starts, cpu, 1) is not table
