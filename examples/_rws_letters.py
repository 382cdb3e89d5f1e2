"""Printed letters for the example of robust weight signatures: images in the shape of the digits, from fonts."""

import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

LETTERS = "ABCDEFGHIJ"
CANVAS, HEIGHT, PIXELS = 64, 44, 16
VARIANTS, TESTED = 8, 4  # images of every letter in a font; one font in four is for the test
TURN, SHIFT, SMALLEST, LARGEST = math.radians(15), 0.15, 0.8, 1.15
FONTS = (
    *(f"DejaVu{kind}" for kind in ("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique")),
    *(f"DejaVu{kind}" for kind in ("Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic")),
    *(f"DejaVuSansMono{kind}" for kind in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"STIXGeneral{kind}" for kind in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10", "cmmi10"),
)  # all come with matplotlib


def letters() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images (N, 1, 16, 16) in [0, 1] and labels, test images in other fonts and labels."""
    generator = torch.Generator().manual_seed(0)
    tests = [place % TESTED == 0 for place in range(len(FONTS))]
    found: list[Tensor] = []
    for test in (False, True):
        fonts = [font for font, chosen in zip(FONTS, tests, strict=True) if chosen == test]
        drawn = torch.stack([glyph(font, letter) for font in fonts for letter in LETTERS])
        labels = torch.arange(len(LETTERS)).repeat(len(fonts)).repeat_interleave(VARIANTS)
        images = varied(drawn.repeat_interleave(VARIANTS, dim=0), generator)
        order = torch.randperm(len(labels), generator=generator)
        found += [images[order], labels[order]]
    return found[0], found[1], found[2], found[3]


def glyph(font: str, letter: str) -> Tensor:
    """Return a letter (1, 64, 64), white on black."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    image = Image.new("L", (CANVAS, CANVAS))
    middle = (CANVAS / 2, CANVAS / 2)
    ImageDraw.Draw(image).text(middle, letter, 255, ImageFont.truetype(str(path), HEIGHT), anchor="mm")
    return torch.from_numpy(np.array(image))[None] / 255


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, shift and scale every image at random, and make it small."""
    turn, across, down, size = torch.rand(4, len(images), generator=generator)
    angle, size = (2 * turn - 1) * TURN, SMALLEST + size * (LARGEST - SMALLEST)
    rows = [angle.cos() / size, -angle.sin() / size, (2 * across - 1) * SHIFT]
    rows += [angle.sin() / size, angle.cos() / size, (2 * down - 1) * SHIFT]
    grid = affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return avg_pool2d(grid_sample(images, grid, align_corners=False), CANVAS // PIXELS)
