"""Texts become states that depend on the text alone, in networks of any kind."""

import copy
import pickle
from pathlib import Path

import pytest
import torch

from lightning_weights.modules import TextEncoder
from tests.helpers.tiny_encoders import save_encoder

pytest.importorskip("transformers")
TEXTS = ["Shout it, please.", "Hush"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_states_do_not_depend_on_the_batch(kind, tmp_path):
    encoder = TextEncoder(save_encoder(tmp_path, kind))
    states, mask = encoder(TEXTS)
    assert states.shape == (2, 24, encoder.dim)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [len(text) + 1 for text in TEXTS]  # and the end
    alone, own = encoder(TEXTS[1:])
    assert alone.shape[1] == 8
    torch.testing.assert_close(states[1, :5], alone[0, :5], rtol=1e-5, atol=1e-6)
    assert own[0, :5].all()
    inputs = encoder.tokenizer(TEXTS[1], return_tensors="pt")
    expected = encoder.network(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    torch.testing.assert_close(alone[0, :5], expected[0], rtol=1e-5, atol=1e-6)


def test_long_texts_are_cut_and_lengths_rounded_up(folder):
    encoder = TextEncoder(folder, length=8, multiple=4)
    states, mask = encoder(TEXTS)
    assert states.shape[:2] == (2, 8)
    assert mask.sum(1).tolist() == [8, 5]


def test_types_copies_and_modes(folder):
    encoder = TextEncoder(folder, dtype="bfloat16")
    assert encoder(TEXTS)[0].dtype == torch.bfloat16
    assert not encoder.network.training
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(other(TEXTS)[0], encoder(TEXTS)[0])


def test_tokenizers_without_padding_take_the_end(folder, monkeypatch):
    import transformers

    tokenizer = transformers.ByT5Tokenizer()
    tokenizer.pad_token = None
    monkeypatch.setattr("lightning_weights.modules.text_encoder.load_tokenizer", lambda *_: tokenizer)
    encoder = TextEncoder(folder)
    assert encoder.tokenizer.pad_token == encoder.tokenizer.eos_token
    assert encoder(TEXTS)[1].sum(1).tolist() == [18, 5]


def test_a_model_inside_a_package(folder, tmp_path, monkeypatch):
    package = tmp_path / "tiny_encoder" / "model"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    for file in Path(folder).iterdir():
        (package / file.name).write_bytes(file.read_bytes())
    (package / "1_Pooling").mkdir()
    (package / "1_Pooling" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    assert torch.equal(TextEncoder("package:tiny_encoder")(TEXTS)[0], TextEncoder(folder)(TEXTS)[0])
    (package.parent / "other.gguf").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"exactly one \.gguf file .* finds .*other.gguf, .*model: give"):
        TextEncoder("package:tiny_encoder")


@pytest.mark.parametrize("change", [{"length": 0}, {"length": 12}, {"multiple": 1.5}, {"dtype": "int8"}], ids=str)
def test_bad_arguments(change, folder):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        TextEncoder(folder, **change)


def test_a_single_text_is_refused(folder):
    with pytest.raises(ValueError, match=r"texts is 'Hush'; allowed is a list of texts"):
        TextEncoder(folder)("Hush")
