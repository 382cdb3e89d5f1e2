"""Templates that layers share."""

import pytest
import torch

from lightning_weights.modules import MixtureConv2d, MixtureLinear, TemplateBank


def test_banks_are_shared_and_start_otherwise():
    bank = TemplateBank((3, 4), num_templates=5)
    first, second = MixtureLinear(8, 6, bank=bank, start="normal"), MixtureLinear(8, 6, bank=bank, start="ones")
    assert first.bank is second.bank
    assert len(first.coefficients[0]) == 5
    assert not second.coefficients[0].requires_grad
    torch.testing.assert_close(second.weight, bank.sets[0].sum(0))
    with pytest.raises(ValueError, match=r"bank has blocks of shape \(3, 4\)"):
        MixtureLinear(8, 8, bank=bank)


def test_memory_formats_and_dtypes_of_weights_go_over_a_stack_of_them():
    """`to(memory_format=torch.channels_last)` refuses tensors of five dimensions."""
    layer = MixtureConv2d(4, 4, 3)
    before = [stack.detach().clone() for stack in layer.bank.sets]
    layer.to(dtype=torch.float64, memory_format=torch.channels_last)
    for stack, kept in zip(layer.bank.sets, before, strict=True):
        assert stack.is_contiguous()
        assert torch.equal(stack, kept.double())
    layer(torch.randn(1, 2, 5, 5).double().to(memory_format=torch.channels_last)).sum().backward()
    assert layer.bank.sets[0].grad.shape == (2, 2, 2, 3, 3)
    assert layer.to("meta").bank.sets[0].is_meta
