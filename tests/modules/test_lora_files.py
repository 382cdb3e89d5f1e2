"""One sample's matrices as files: peft gives the same outputs."""

import json

import pytest
import torch

from lightning_weights.modules import AdaptedBackbone, export_lora
from tests.helpers.edits import awake, backbone, batch, generator


def test_peft_reads_what_is_exported(tmp_path):
    peft = pytest.importorskip("peft")
    model, data = AdaptedBackbone(backbone(), awake(generator())), batch()
    adapters = model.adapters(data["condition"]).detach()
    y = model(adapters, data["inputs"])
    export_lora(adapters, 3, tmp_path, base_model="here")
    loaded = peft.PeftModel.from_pretrained(backbone(), tmp_path)
    torch.testing.assert_close(loaded(data["inputs"][3:4]), y[3:4], rtol=1e-5, atol=1e-5)
    plain = loaded.merge_and_unload()
    torch.testing.assert_close(plain(data["inputs"][3:4]), y[3:4], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain(data["inputs"][2:3]), y[2:3])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 4.0, "here")


def test_samples_that_are_not_there(tmp_path):
    adapters = generator()(batch()["condition"])
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f"index is {index}; allowed are 0 to 5"):
            export_lora(adapters, index, tmp_path)
