"""What can be done with generated matrices."""

import pytest
import torch

from lightning_weights.modules import GeneratedLoRA


def lora(samples=4, scale=0.5):
    return GeneratedLoRA(
        {
            "a": (torch.randn(samples, 2, 5), torch.randn(samples, 3, 2)),
            "b.c": (torch.randn(samples, 2, 3), torch.randn(samples, 4, 2)),
        },
        scale,
    )


def test_it_is_a_mapping():
    made = lora()
    assert list(made) == ["a", "b.c"]
    assert "a" in made
    assert "x" not in made
    assert (made.batch_size, made.rank, made.flatten().shape) == (4, 2, (4, 2 * 8 + 2 * 7))


def test_samples_are_chosen_and_averaged():
    made = lora()
    assert torch.equal(made.select(2)["a"][0], made["a"][0][2:3])
    assert torch.equal(made.select(torch.tensor([3, 0]))["b.c"][1], made["b.c"][1][[3, 0]])
    assert torch.equal(made.select(torch.tensor([True, False, False, True])).flatten(), made.flatten()[[0, 3]])
    torch.testing.assert_close(made.mean().flatten()[0], made.flatten().mean(0))
    assert made.mean().batch_size == 1


def test_updates_have_the_rank_and_are_linear_in_the_scale():
    made = lora()
    delta = made.delta_weight("a")
    assert all(torch.linalg.matrix_rank(own) <= 2 for own in delta)
    torch.testing.assert_close(GeneratedLoRA(dict(made), 1.0).delta_weight("a"), 2 * delta)
    torch.testing.assert_close(delta[1], 0.5 * made["a"][1][1] @ made["a"][0][1])


def test_interpolation_has_both_ends():
    first, second = lora(), lora()
    assert torch.equal(first.interpolate(second, 0.0).flatten(), first.flatten())
    torch.testing.assert_close(first.interpolate(second, 1.0).flatten(), second.flatten())
    middle = first.interpolate(second.mean(), 0.5)
    torch.testing.assert_close(middle.flatten(), (first.flatten() + second.mean().flatten()) / 2)
    with pytest.raises(ValueError, match="other layers or of another scale"):
        first.interpolate(lora(scale=1.0), 0.5)


def test_detached_ones_have_no_gradient():
    made = lora().map(lambda tensor: tensor.requires_grad_())
    assert made["a"][0].requires_grad
    assert not any(part.requires_grad for pair in made.detach().values() for part in pair)


def test_names_in_peft():
    made = lora()
    state = made.to_peft_state_dict(1)
    assert list(state)[:2] == ["base_model.model.a.lora_A.weight", "base_model.model.a.lora_B.weight"]
    assert torch.equal(state["base_model.model.b.c.lora_B.weight"], made["b.c"][1][1])


@pytest.mark.parametrize(
    ("matrices", "scale", "message"),
    [
        ({}, 1.0, "matrices has none"),
        ({"a": (torch.ones(2, 2, 5), torch.ones(3, 3, 2))}, 1.0, r"a has A of shape \(2, 2, 5\)"),
        ({"a": (torch.ones(2, 5), torch.ones(3, 2))}, 1.0, "allowed are"),
        ({"a": (torch.ones(2, 2, 5), torch.ones(2, 3, 1))}, 1.0, "B of shape"),
        ({n: (torch.ones(n, 2, 5), torch.ones(n, 3, 2)) for n in (1, 2)}, 1.0, r"of \[1, 2\] samples"),
        ({"a": (torch.ones(1, 2, 5), torch.ones(1, 3, 2))}, -1.0, "scale is -1.0"),
    ],
    ids=range(6),
)
def test_bad_input(matrices, scale, message):
    with pytest.raises(ValueError, match=message):
        GeneratedLoRA(matrices, scale)
