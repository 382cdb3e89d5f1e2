"""All corruptions: no dependence on the batch, no surprise for the generators, and refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional import corruptions
from lightning_weights.functional.corruptions import (
    corrupt,
    corruption_names,
    corruption_rule,
    corruption_strength,
    register_corruption,
    registry,
    relative_size,
)

CIFAR_C = {
    "noise": ["gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"],
    "blur": ["defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"],
    "color": ["brightness", "contrast", "saturate"],
    "weather": ["fog", "frost_texture", "snow", "spatter"],
    "digital": ["elastic_transform", "jpeg_compression", "pixelate"],
}
NAMES = sorted(name for names in CIFAR_C.values() for name in names)
FIXED = [
    "brightness",
    "contrast",
    "defocus_blur",
    "gaussian_blur",
    "jpeg_compression",
    "pixelate",
    "saturate",
    "zoom_blur",
]
RANDOM = [name for name in NAMES if name not in FIXED]
SIGNALS = ["brightness", "contrast", "gaussian_blur", *CIFAR_C["noise"], "pixelate"]
MONOTONE = [*CIFAR_C["noise"], "gaussian_blur", "defocus_blur", "zoom_blur", "contrast", "brightness", "fog"]
MONOTONE += ["jpeg_compression", "pixelate", "motion_blur"]


def pictures(count=4, channels=3, height=16, width=12, seed=0):
    """Return smooth shapes with some texture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (0.8 * smooth + 0.2 * torch.rand(count, channels, height, width, generator=generator)).clamp(0, 1)


def channels_of(name):
    return (3,) if name == "saturate" else (1, 3)


def test_all_of_cifar_c_are_there():
    assert {*NAMES} <= {*corruption_names()}
    assert sorted(SIGNALS) == [name for name in corruption_names(signals=True) if name in NAMES]
    for file, names in CIFAR_C.items():
        assert all(corruption_rule(name).apply.__module__.endswith(f"corruptions.{file}") for name in names)
        assert all(getattr(corruptions, name) is corruption_rule(name).apply for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(name):
    for channels in channels_of(name):
        images = pictures(channels=channels, height=22, width=24)
        before = images.clone()
        together = corrupt(images, name, severity=5, seed=3, indices=[10, 11, 12, 13])
        order = [2, 0, 3]
        some = corrupt(images[order], name, severity=5, seed=3, indices=[12, 10, 13])
        assert torch.equal(together[order], some)
        assert torch.equal(images, before)
        assert together.shape == images.shape
        assert 0 <= together.amin() < together.amax() <= 1
        assert not torch.equal(together, images)


@pytest.mark.parametrize("name", NAMES)
def test_global_generators_are_left_alone(name):
    state = torch.get_rng_state()
    corrupt(pictures(1), name)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_index_and_seed_decide(name):
    same = pictures(1).expand(2, -1, -1, -1)
    first, second = corrupt(same, name, seed=0, indices=[1, 2])
    other = corrupt(same[:1], name, seed=1, indices=[1])[0]
    assert torch.equal(first, second) == (name not in RANDOM)
    assert torch.equal(first, other) == (name not in RANDOM)


@pytest.mark.parametrize("name", MONOTONE)
def test_higher_severities_change_more(name):
    images = pictures(3, height=32, width=32)
    changes = [float((corrupt(images, name, severity) - images).square().mean()) for severity in range(1, 6)]
    assert changes == sorted(changes)
    assert changes[0] < changes[-1]


@pytest.mark.parametrize("name", SIGNALS)
def test_signals_keep_their_shape(name):
    signals = pictures(3, height=16, width=40).flatten(1, 2)[:, :2]
    changed = corrupt(signals, name)
    assert changed.shape == (3, 2, 40)
    assert not torch.equal(changed, signals)
    assert torch.equal(changed[1:2], corrupt(signals[1:2], name, indices=[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_kept(dtype):
    images = pictures(1).to(dtype)
    changed = corrupt(images, "gaussian_blur")
    assert changed.dtype == dtype
    torch.testing.assert_close(changed.float(), corrupt(images.float(), "gaussian_blur"), atol=4e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_around_changes_nothing(name):
    images = pictures(2, height=8, width=9)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        inside = corrupt(images, name)
    assert torch.equal(inside, corrupt(images, name))


def test_an_empty_batch_stays_empty():
    assert corrupt(torch.zeros(0, 3, 8, 8), "fog").shape == (0, 3, 8, 8)


def test_rounding_outside_the_range_is_cut():
    assert corrupt(torch.full((1, 1, 8, 8), 1 + 1e-6), "contrast").amax() == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([name for name in NAMES if name != "saturate"]))
def test_images_of_any_size(height, width, name):
    changed = corrupt(torch.full((1, 1, height, width), 0.5), name)
    assert changed.shape == (1, 1, height, width)
    assert changed.isfinite().all()


def test_lengths_scale_with_the_image():
    assert relative_size(torch.zeros(1, 3, 64, 48)) == 1.5
    small, large = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 64, 64)
    small[..., 8, 8], large[..., 32, 32] = 1, 1
    spread = [
        float(x.sum(2).flatten() @ (torch.arange(x.shape[3]) - x.shape[3] // 2).float() ** 2)
        for x in (corrupt(small, "gaussian_blur", strength=4.0), corrupt(large, "gaussian_blur", strength=4.0))
    ]
    assert spread[0] == pytest.approx(2.0**2, rel=0.02)
    assert spread[1] == pytest.approx(8.0**2, rel=0.02)


def test_strengths_replace_severities():
    images = pictures()
    assert torch.equal(corrupt(images, "fog", strength=[0.5, 3]), corrupt(images, "fog", severity=2))
    assert corruption_strength("gaussian_noise", strength=0.6) == [0.6]
    assert corruption_strength("gaussian_noise", severity=2) == [0.06]
    small = images[..., :2, :2]
    torch.testing.assert_close(corrupt(small, "elastic_transform", strength=[0, 0, 0]), small)


def test_users_add_corruptions(monkeypatch):
    monkeypatch.setattr(registry, "_rules", dict(registry._rules))

    @register_corruption("stripes", severities=[(0.1, 2), (0.2, 2), (0.3, 2), (0.4, 2), (0.5, 2)])
    def stripes(images, noise, amount, period):
        changed = images.clone()
        changed[..., :: round(period)] += amount
        return changed

    assert "stripes" in corruption_names()
    assert "stripes" not in corruption_names(signals=True)
    changed = corrupt(torch.full((1, 1, 1, 4), 0.75), "stripes")
    assert changed.flatten().tolist() == [1.0, 0.75, 1.0, 0.75]
    with pytest.raises(ValueError, match=r"'stripes' is for images .* gaussian_noise"):
        corrupt(torch.zeros(1, 1, 8), "stripes")


@pytest.mark.parametrize("severities", [(1, 2, 3), ((1, 2), 3, 4, 5, 6), [(), (), (), (), ()]])
def test_severities_have_to_be_five_alike(severities):
    with pytest.raises(ValueError, match="allowed are five strengths"):
        register_corruption("bad", severities)


ONE = torch.full((1, 3, 8, 8), 0.5)
REFUSED = {
    "unknown": (ONE, {"name": "rain"}, "corruption is 'rain'; allowed are 'brightness'"),
    "severity 0": (ONE, {"severity": 0}, r"severity is 0; allowed is a whole number in \[1, 6\)"),
    "severity 6": (ONE, {"severity": 6}, "severity is 6"),
    "severity 2.5": (ONE, {"severity": 2.5}, "severity is 2.5"),
    "bytes": (ONE.byte(), {}, "images are torch.uint8; allowed are floats .* divide bytes by 255"),
    "above 1": (ONE * 510, {}, r"images go from 255 to 255; allowed is \[0, 1\]"),
    "below 0": (ONE - 1, {}, "images go from -0.5 to -0.5"),
    "not a number": (ONE * float("nan"), {}, "images go from nan to nan"),
    "channels": (torch.zeros(1, 4, 8, 8), {}, "images have 4 channels; allowed are 1 and 3"),
    "shape": (torch.zeros(8, 8), {}, r"images have the shape \(8, 8\); allowed are"),
    "signals": (torch.zeros(1, 1, 8), {}, "'fog' is for images of shape"),
    "indices": (ONE, {"indices": [1, 2]}, "there are 2 indices for 1 images"),
    "strength": (ONE, {"strength": 0.5}, r"strength of 'fog' is 0.5; allowed are 2 numbers such as \[1.5, 1.75\]"),
    "text": (ONE, {"strength": "much"}, "strength is 'much'"),
    "seed": (ONE, {"seed": -1}, "seed is -1"),
    "no photons": (ONE, {"name": "shot_noise", "strength": 0}, r"'shot_noise' makes numbers .* strength \[0.0\]"),
    "grey": (ONE[:, :1], {"name": "saturate"}, "1 channel, which has no saturation"),
}


@pytest.mark.parametrize(("images", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(images, options, message):
    with pytest.raises(ValueError, match=message):
        corrupt(images, **{"name": "fog", **options})
