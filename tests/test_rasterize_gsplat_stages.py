"""Projection and harmonics against gsplat's own torch code, stage by stage, in float64."""

from __future__ import annotations

import pytest
import torch
from rasterize_scenes import make_scene

from lora3d_splat.rasterize.autograd import Frame, Project, Shade
from lora3d_splat.rasterize.rules import RULES

gsplat_torch = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed")

SCENE = make_scene(41, count=400, size=(96, 72))
FRAME = Frame(
    SCENE.width,
    SCENE.height,
    eps2d=0.3,
    near_plane=0.01,
    far_plane=1e10,
    radius_clip=0.0,
    antialiased=False,
    rules=RULES["1.4"],
)


def project_both(leaves: dict[str, torch.Tensor], others: dict[str, torch.Tensor]):
    """Results of our kernel on ``leaves`` and of gsplat's torch code on ``others``, reordered alike."""
    ours = Project.apply(*(leaves[k] for k in ("means", "quats", "scales", "opacities", "viewmats", "Ks")), FRAME)
    covariances, _ = gsplat_torch._quat_scale_to_covar_preci(others["quats"], others["scales"], compute_preci=False)
    radii, means2d, depths, conics, compensations = gsplat_torch._fully_fused_projection(
        others["means"], covariances, others["viewmats"], others["Ks"], FRAME.width, FRAME.height,
        calc_compensations=True,
    )  # fmt: skip
    return ours, (means2d, depths, conics, compensations, radii)


def test_projection_equals_gsplat():
    """Expected: equal radii, values within 1e-9 and gradients within 1e-6 (gsplat's kernels add 1e-6 to a divisor)."""
    leaves, others = SCENE.leaves(torch.float64), SCENE.leaves(torch.float64)
    ours, theirs = project_both(leaves, others)
    assert torch.equal(ours[-1][..., 0], theirs[-1])
    visible = theirs[-1] > 0
    assert visible.sum() > 300
    generator = torch.Generator().manual_seed(2)
    losses = [0.0, 0.0]
    for mine, reference in zip(ours[:4], theirs[:4], strict=True):
        torch.testing.assert_close(mine[visible], reference[visible], rtol=1e-9, atol=1e-9)
        weights = torch.randn(mine[visible].shape, generator=generator, dtype=torch.float64)
        losses = [losses[0] + (mine[visible] * weights).sum(), losses[1] + (reference[visible] * weights).sum()]
    losses[0].backward()
    losses[1].backward()
    for name in ("means", "quats", "scales", "viewmats"):
        wanted = others[name].grad
        assert (leaves[name].grad - wanted).norm() < 1e-5 * wanted.norm(), name


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_equal_gsplat(degree: int):
    """Expected: colours and gradients within rounding, zero above the chosen degree."""
    leaves, others = SCENE.leaves(torch.float64), SCENE.leaves(torch.float64)
    radii = torch.ones(1, 400, 2, dtype=torch.int32)
    centre = torch.tensor([[0.1, -0.4, 0.2]], dtype=torch.float64)
    ours = Shade.apply(leaves["means"], centre, leaves["colors"], radii, degree)[0]
    directions = others["means"] - centre
    theirs = gsplat_torch._spherical_harmonics(degree, directions, others["colors"])
    theirs = torch.clamp_min(theirs + 0.5, 0.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    weights = torch.randn(400, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(leaves["colors"].grad, others["colors"].grad, rtol=1e-9, atol=1e-10)
    wanted = others["means"].grad if degree else torch.zeros(400, 3, dtype=torch.float64)
    torch.testing.assert_close(leaves["means"].grad, wanted, rtol=1e-8, atol=1e-9)
    assert not leaves["colors"].grad[:, (degree + 1) ** 2 :].any()
