"""Grids of orientations: unit vectors, evenly spread, with the symmetries of their solids."""

import itertools

import pytest
import torch

from lightning_weights.functional.ponita import lift, orientation_grid, random_rotations, readout

GRIDS = [
    *((n, 3, method) for n in (1, 4, 7, 20) for method in ("fibonacci", "repulsion")),
    *((n, 3, "platonic") for n in (4, 6, 8, 12, 20)),
    *((n, 3, "antipodal") for n in (2, 4, 16)),
    *((n, 2, "fibonacci") for n in (1, 3, 8)),
]


def angles(grid):
    cosines = (grid @ grid.mT).clamp(-1, 1)
    return torch.rad2deg(cosines.acos().fill_diagonal_(torch.pi)).amin(1)


@pytest.mark.parametrize("spec", GRIDS, ids=str)
def test_unit_vectors(spec):
    n, dim, method = spec
    grid = orientation_grid(n, dim, method)
    assert grid.shape == (n, dim)
    torch.testing.assert_close(grid.norm(dim=-1), torch.ones(n, dtype=torch.float64))
    assert len(torch.unique(grid.round(decimals=8), dim=0)) == n


def test_points_are_spread():
    """No worse than half of what the best arrangement of 20 points is known to reach, 47.43 degrees."""
    for method, least in (("fibonacci", 30.0), ("repulsion", 30.0), ("antipodal", 30.0), ("platonic", 41.0)):
        nearest = angles(orientation_grid(20, method=method))
        assert nearest.min() > least, method
        assert nearest.min() < 47.44


@pytest.mark.parametrize(("n", "neighbours"), [(4, 109.47), (6, 90.0), (8, 70.53), (12, 63.43), (20, 41.81)])
def test_corners_have_the_angles_of_their_solids(n, neighbours):
    torch.testing.assert_close(
        angles(orientation_grid(n, method="platonic")), torch.full((n,), neighbours).double(), rtol=1e-4, atol=0.0
    )


def test_repulsion_is_reproducible_and_draws_from_nobody():
    state = torch.get_rng_state()
    first = orientation_grid(8, method="repulsion")
    assert torch.equal(first, orientation_grid(8, method="repulsion"))
    assert not torch.equal(first, orientation_grid(8, method="repulsion", seed=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("spec", [spec for spec in GRIDS if spec[2] == "antipodal"] + [(8, 2, "fibonacci")], ids=str)
def test_the_second_half_are_opposites_of_the_first(spec):
    first, second = orientation_grid(*spec).chunk(2)
    torch.testing.assert_close(first, -second)
    for corners in (6, 8, 12, 20):
        first, second = orientation_grid(corners, method="platonic").chunk(2)
        assert torch.equal(first, -second)


def octahedral_rotations():
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1.0, -1.0), repeat=3)):
        matrix = torch.diag(torch.tensor(signs, dtype=torch.float64))[list(order)]
        if torch.linalg.det(matrix) > 0:
            yield matrix


@pytest.mark.parametrize("n", [6, 8])
def test_the_octahedral_group_permutes_its_grids(n):
    grid = orientation_grid(n, method="platonic")
    rotations = [*octahedral_rotations()]
    assert len(rotations) == 24
    for rotation in rotations:
        cosines = grid @ rotation @ grid.mT
        torch.testing.assert_close(cosines.amax(1), torch.ones(n, dtype=torch.float64))


@pytest.mark.parametrize(
    "spec", [(3, 2, "fibonacci"), (5, 2, "fibonacci"), *((n, 3, "platonic") for n in (4, 6, 12, 20))]
)
def test_a_lifted_vector_comes_back_divided_by_the_dimension(spec):
    grid, dim = orientation_grid(*spec), spec[1]
    vectors = torch.randn(4, 2, dim, dtype=torch.float64)
    scalars = torch.randn(4, 3, dtype=torch.float64)
    back = readout(lift(scalars, vectors, grid), grid, 3)
    torch.testing.assert_close(back[0], scalars)
    torch.testing.assert_close(back[1], vectors / dim)


def test_lifting_at_own_orientations():
    looks = random_rotations(4)[:, :1]
    vectors = torch.randn(4, 2, 3, dtype=torch.float64)
    lifted = lift(torch.ones(4, 1, dtype=torch.float64), vectors, looks)
    torch.testing.assert_close(lifted[:, 0, 1:], torch.einsum("nd,ncd->nc", looks[:, 0], vectors))
    assert lift(torch.ones(4, 2), None, looks).shape == (4, 1, 2)


@pytest.mark.parametrize("own", [False, True])
def test_lifting_and_reading_out_round_no_products(own):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(5, 2, 3, generator=generator)
    looks = orientation_grid(7).float()
    looks = looks[:5, None] if own else looks
    with torch.autocast("cpu", torch.bfloat16):
        lifted = lift(torch.ones(5, 1), vectors, looks)
        scalars, back = readout(lifted, looks, 1)
    wide, wanted = looks.double().expand(5, -1, 3), vectors.double()
    torch.testing.assert_close(lifted[..., 1:].double(), torch.einsum("ncd,nod->noc", wanted, wide), rtol=0, atol=1e-6)
    moments = torch.einsum("nod,noe->nde", wide, wide) / wide.shape[1]
    torch.testing.assert_close(back.double(), torch.einsum("nde,nce->ncd", moments, wanted), rtol=0, atol=1e-6)
    assert torch.equal(scalars, torch.ones(5, 1))


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_random_rotations_are_rotations_and_even(dim):
    rotations = random_rotations(4000, dim, generator=torch.Generator().manual_seed(0))
    identity = torch.eye(dim, dtype=torch.float64).expand_as(rotations)
    torch.testing.assert_close(rotations @ rotations.mT, identity)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(4000, dtype=torch.float64))
    assert rotations.mean(0).abs().max() < 0.05
    torch.testing.assert_close(rotations.square().mean(0), torch.full_like(identity[0], 1 / dim), rtol=0, atol=0.03)


def test_lifting_is_what_e3nn_does_with_degree_one():
    o3 = pytest.importorskip("e3nn.o3")
    grid, vectors, rotation = orientation_grid(12), torch.randn(4, 1, 3).double(), o3.rand_matrix(dtype=torch.float64)
    harmonics = o3.spherical_harmonics(1, grid, normalize=True, normalization="norm")
    turned = vectors @ o3.Irreps("1o").D_from_matrix(rotation).mT
    lifted = lift(torch.ones(4, 0).double(), vectors @ rotation.mT, grid)
    torch.testing.assert_close(lifted, (turned @ harmonics.mT).mT, rtol=1e-5, atol=1e-5)  # its angles are not exact


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 4, "dim": 4}, "dim is 4; allowed are 2, 3"),
        ({"n": 4, "method": "even"}, "method is 'even'"),
        ({"n": 5, "method": "antipodal"}, "n is 5 for method='antipodal'; allowed are even numbers"),
        ({"n": 5, "method": "platonic"}, "regular solids have 4, 6, 8, 12, 20 corners"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        orientation_grid(**options)


def test_points_that_repel_each_other_are_the_same_wherever_new_tensors_are_made():
    with torch.device("meta"):  # stands for a GPU
        found = orientation_grid(4, method="repulsion", seed=1)
    assert torch.equal(found, orientation_grid(4, method="repulsion", seed=1))
