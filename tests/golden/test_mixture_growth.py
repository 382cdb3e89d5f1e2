"""MixtureGrowth against vectors from the authors' code."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.mixture_growth import new_coefficients
from lightning_weights.modules import MixtureBatchNorm2d, MixtureConv2d, MixtureLinear, grow, set_mode
from tests.helpers import golden

VECTORS = golden.load("mixture_growth")
SCALE = float(VECTORS["hp"][-1])
MODES = golden.cases(VECTORS, "conv_", ".y_grown")
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def tensor(name):
    return torch.from_numpy(VECTORS[name])


def mixture(prefix, sets=(0, 1, 0, 1)):
    """Return a layer with the templates and coefficients of a case; which sides are split is in its shapes."""
    templates = [tensor(f"{prefix}.templates{which}") for which in (0, 1)]
    count, o, i, *kernel = templates[0].shape
    blocks = len([name for name in VECTORS if name.startswith(f"{prefix}.coef")])
    case = prefix.partition(".")[0]
    split_in, split_out = case != "stem", case != "head"
    options = {"num_templates": count, "split_in": split_in, "split_out": split_out, "template_sets": sets}
    channels = (i * (1 + split_in), o * (1 + split_out))
    layer = MixtureConv2d(*channels, tuple(kernel), padding=1, **options) if kernel else None
    layer = MixtureLinear(*channels, **options) if layer is None else layer
    layer.double()
    with torch.no_grad():
        for own, given in zip(layer.bank.sets, templates, strict=True):
            own.copy_(given)
        for block, own in enumerate(layer.coefficients):
            own.copy_(tensor(f"{prefix}.coef{block}"))
    assert len(layer.coefficients) == blocks
    return layer


def close(found, name):
    np.testing.assert_allclose(found.detach().numpy(), VECTORS[name], **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_members_and_the_grown_network(mode):
    layer = mixture(f"conv_{mode}.before")
    for member in (0, 1):
        set_mode(layer, f"member{member}")
        close(layer.weight, f"conv_{mode}.W_member{member}")
        close(layer(tensor(f"conv_{mode}.x_small")), f"conv_{mode}.y_member{member}")
    layer = mixture(f"conv_{mode}.after")
    set_mode(layer, "grown")
    close(layer.weight, f"conv_{mode}.W_grown")
    close(layer(tensor(f"conv_{mode}.x_big")), f"conv_{mode}.y_grown")


@pytest.mark.parametrize("mode", MODES)
def test_new_coefficients(mode):
    before = [tensor(f"conv_{mode}.before.coef{block}") for block in range(4)]
    after = [tensor(f"conv_{mode}.after.coef{block}") for block in range(4)]
    found = new_coefficients(before, mode, SCALE)
    if mode == "copy":  # its noise is of no generator of ours, but the same for both, and as long as the scale
        noise = [alpha - base for alpha, base in zip(after[2:], before[:2], strict=True)]
        torch.testing.assert_close(noise[0], noise[1], **TOLERANCE)
        ours = [alpha - base for alpha, base in zip(found, before[:2], strict=True)]
        torch.testing.assert_close(ours[0].norm(), noise[0].norm(), **TOLERANCE)
    else:
        if mode == "orthogonal":
            assert float(found[1].norm()) == pytest.approx(float(after[3].norm()), abs=1e-10)
            overlaps = [float((torch.stack(before[:3]) @ alpha).norm()) for alpha in (found[1], after[3])]
            assert overlaps[0] == pytest.approx(overlaps[1], abs=1e-10)
            # up to the sign, and with five templates or more to much else
            unique = len(after[3]) < 5
            found = found[0], found[1] * (found[1] @ after[3]).sign() if unique else after[3]
        for alpha, given in zip(found, after[2:], strict=True):
            torch.testing.assert_close(alpha, given, **TOLERANCE)


def test_copies_of_the_other_layout():
    layer = mixture("conv_copy0110.before", sets=(0, 1, 1, 0))
    grow(layer, "copy", coefficient_scale=0.0)
    for block, alpha in enumerate(layer.coefficients):
        close(alpha, f"conv_copy0110.after.coef{block}")
    close(layer.weight, "conv_copy0110.W_grown")


@pytest.mark.parametrize("case", ["stem", "head"])
def test_unsplit_layers(case):
    layer = mixture(f"{case}.before")
    for member in (0, 1):
        if f"{case}.W_member{member}" in VECTORS:
            set_mode(layer, f"member{member}")
            close(layer.weight, f"{case}.W_member{member}")
    grow(layer)
    for block, alpha in enumerate(layer.coefficients):
        close(alpha, f"{case}.after.coef{block}")
    close(layer.weight, f"{case}.W_grown")


def test_norms_are_put_side_by_side():
    halves = [{name: tensor(f"bn.before{m}.{name}") for name in ("weight", "bias")} for m in (0, 1)]
    norm = MixtureBatchNorm2d(len(VECTORS["bn.after.weight"])).double()
    with torch.no_grad():
        for member, half in enumerate(halves):
            norm.weights[member].copy_(half["weight"])
            norm.biases[member].copy_(half["bias"])
            set_mode(norm, f"member{member}")
            for name in ("running_mean", "running_var"):
                getattr(norm, name)[norm._half(norm.num_features)] = tensor(f"bn.before{member}.{name}")
    set_mode(norm, "grown")
    plain = norm.plain()
    for name in ("weight", "bias", "running_mean", "running_var"):
        close(getattr(plain, name), f"bn.after.{name}")


def test_gradients():
    layer = mixture("grad.params")
    set_mode(layer, "grown")
    layer(tensor("grad.x")).backward(tensor("grad.gy"))
    for block, alpha in enumerate(layer.coefficients):
        close(alpha.grad, f"grad.coef{block}")
    for which, templates in enumerate(layer.bank.sets):
        close(templates.grad, f"grad.templates{which}")
