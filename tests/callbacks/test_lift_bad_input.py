"""What LIFTFinetuning refuses or warns about, and that it leaves the module as it was."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn

from lightning_weights.callbacks import LIFTFinetuning
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import Classifier
from tests.callbacks.lift_cases import classifier, fit
from tests.helpers.battery import NOISE, SaveAt

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.filterwarnings("ignore:.*update_interval")]


def frozen() -> Classifier:
    model = classifier()
    model.network.head.weight.requires_grad_(False)
    return model


def quantized() -> Classifier:
    model = classifier()
    model.network.head.weight = nn.Parameter(torch.zeros(15, 1, dtype=torch.uint8), requires_grad=False)
    return model


def parametrized() -> Classifier:
    model = classifier()
    nn.utils.parametrizations.weight_norm(model.network.head)
    return model


def plain_adamw() -> Classifier:
    model = classifier()
    model.optimizer = torch.optim.AdamW
    return model


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (classifier, {"target_modules": ["q_proj"]}, "target_modules has 'q_proj', which names no module"),
        (classifier, {"exclude_modules": ["body.*", "head"]}, "leaves no layer"),
        (
            classifier,
            {"exclude_modules": ["head", "haed"]},
            "exclude_modules has 'haed', which names no module of network",
        ),
        (frozen, {}, r"network\.head is frozen"),
        (quantized, {}, r"uint8: a quantized matrix .* Bone or LoRA"),
        (parametrized, {}, "has a parametrization; remove it"),
        (plain_adamw, {}, r"which no LIFTAdamW trains; the optimizers are AdamW\. Return"),
        (classifier, {"save_delta": True, "train_other": True}, "are both True, and a delta holds matrices alone"),
        (partial(classifier, selector="gradient"), {"save_delta": True}, "their original values are not known"),
    ],
)
def test_what_cannot_be_trained_is_told_and_nothing_stays_changed(model, arguments, message):
    model = model()
    flags = [param.requires_grad for param in model.parameters()]
    with pytest.raises(ValueError, match=message):
        fit(model, LIFTFinetuning(**arguments))
    assert [param.requires_grad for param in model.parameters()] == flags
    assert "configure_model" not in vars(model)
    assert not any(vars(param) for param in model.parameters())


def tied() -> nn.Module:
    model = nn.ModuleDict({"embedding": nn.Embedding(6, 4), "out": nn.Linear(4, 6), "body": nn.Linear(4, 4)})
    model.out.weight = model.embedding.weight
    return model


def test_shared_weights_are_warned_about_if_named_and_left_out_otherwise():
    with pytest.warns(LightningWeightsWarning, match="out is shared by embedding and out, which all change"):
        LIFTFinetuning(["out"]).attach(tied())
    model = tied()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=LightningWeightsWarning)
        LIFTFinetuning().attach(model)
    assert [name for name, param in model.named_parameters() if param.requires_grad] == ["body.weight"]


def test_a_checkpoint_of_other_matrices_is_refused(tmp_path):
    fit(classifier(), LIFTFinetuning(), [SaveAt("on_train_batch_end", 3, tmp_path / "ckpt")])
    with pytest.raises(
        ValueError, match=r"the checkpoint fine-tunes .*head\.weight, but .* resume with the same choice"
    ):
        fit(classifier(), LIFTFinetuning(exclude_modules=["head"]), ckpt=tmp_path / "ckpt")
    with pytest.raises(ValueError, match="the checkpoint was saved without it, and does not know the original values"):
        fit(classifier(), LIFTFinetuning(save_delta=True), ckpt=tmp_path / "ckpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_modules": 3}, "target_modules is 3"),
        ({"target_modules": ""}, "target_modules is ''"),
        (
            {"exclude_modules": "lm_head"},
            r"^exclude_modules is 'lm_head'; allowed is a list of names such as .* or None$",
        ),
        ({"target_modules": None}, "^target_modules is None; allowed is a list of names, one name, or 'all-linear'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LIFTFinetuning(**arguments)


def test_nothing_can_be_exported_without_original_values(tmp_path):
    with pytest.raises(ValueError, match=r"use LIFTFinetuning\(save_delta=True\)"):
        LIFTFinetuning().export_delta(classifier(), tmp_path / "delta")


def test_other_targets_than_those_that_are_marked_are_refused():
    model = classifier()
    LIFTFinetuning(exclude_modules=["head"]).attach(model)
    with pytest.raises(ValueError, match=r"^target_modules='head' asks for network\.head, .* at network\.body\.1, "):
        LIFTFinetuning(target_modules="head").attach(model)
    LIFTFinetuning(target_modules=["body.1", "body.4"]).attach(model)


def test_an_output_layer_need_not_be_there_to_be_left_out():
    model = classifier()
    LIFTFinetuning().attach(model)
    assert model.network.head.weight._lw_sparse
