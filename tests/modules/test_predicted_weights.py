"""Files of predicted weights."""

import pytest
import torch
from safetensors.torch import save_file

from lightning_weights.modules import read_predicted, write_predicted


def test_files_give_back_every_bit(tmp_path):
    shared = torch.randn(3, 2, dtype=torch.float64).T
    predicted = {"a.weight": shared, "b.weight": shared, "count": torch.tensor(3)}
    write_predicted(tmp_path / "folder" / "file", predicted, {"recursions": 3, "bank": "digits"})
    found, about = read_predicted(tmp_path / "folder" / "file")
    assert about == {"recursions": 3, "bank": "digits"}
    assert found.keys() == predicted.keys()
    for name, tensor in predicted.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
    assert found["a.weight"] is found["b.weight"]


def test_any_state_dict_will_do(tmp_path):
    network = torch.nn.Linear(2, 3)
    save_file(network.state_dict(), tmp_path / "file")
    found, about = read_predicted(tmp_path / "file")
    assert about == {}
    torch.nn.Linear(2, 3).load_state_dict(found)
    assert torch.equal(found["weight"], network.weight)


def test_odd_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not there; give a file of weights"):
        read_predicted(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(ValueError, match="can't be read as weights"):
        read_predicted(tmp_path / "file")
    with pytest.raises(ValueError, match="allowed are numbers, strings"):
        write_predicted(tmp_path / "file", {"a": torch.ones(1)}, {"bank": object()})
