"""gsplat's image formation in plain torch, any dtype: the yardstick of the compiled kernels, far too slow to train.

Every Gaussian meets every pixel, so memory grows with their product; use it for small scenes. Gradients come from
autograd, hence from other arithmetic than the hand-written backward kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora3d_splat.rasterize.rules import Rules, get_rules

ALPHA_MIN, TRANSMITTANCE_MIN, TILE = 1.0 / 255.0, 1e-4, 16


@dataclass(frozen=True)
class Splats:
    """Gaussians projected into one camera; rows of culled Gaussians are not meaningful."""

    means2d: Tensor
    """Pixels [N, 2]."""
    depths: Tensor
    """z in the camera [N]."""
    conics: Tensor
    """Inverse blurred covariance, entries xx, xy, yy [N, 3]."""
    compensations: Tensor
    """Opacity factor of the antialiased mode [N]."""
    radii: Tensor
    """Pixels in x and y, 0 where culled [N, 2] int32."""


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3] of quaternions wxyz of any length."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def project(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, view: Tensor, K: Tensor, width: int, height: int,
    eps2d: float, near_plane: float, far_plane: float, radius_clip: float, antialiased: bool, rules: Rules,
) -> Splats:  # fmt: skip
    """EWA projection (Zwicker et al. 2001) of Gaussians [N, ...] into one camera ``view`` [4, 4], ``K`` [3, 3]."""
    points = means @ view[:3, :3].T + view[:3, 3]
    depths = points[:, 2]
    in_depth = (depths >= near_plane) & (depths <= far_plane)
    z = torch.where(in_depth, depths, torch.ones_like(depths))
    ray = points[:, :2] / z[:, None]
    focal = torch.stack([K[0, 0], K[1, 1]])
    centre = K[:2, 2]
    size = means.new_tensor([width, height])
    # Only the Jacobian sees the clamp, which keeps far off-axis splats from exploding.
    margin = 0.3 * 0.5 * size / focal
    clamped = torch.minimum(torch.maximum(ray, -centre / focal - margin), (size - centre) / focal + margin)
    J = means.new_zeros(len(means), 2, 3)
    J = J + torch.cat([torch.diag_embed(focal / z[:, None]), (-focal * clamped / z[:, None])[..., None]], -1)
    M = rotation_matrices(quats) * scales[:, None, :]
    U = J @ view[:3, :3] @ M
    covariance = U @ U.transpose(1, 2)
    xx, xy, yy = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
    sharp = xx * yy - xy * xy
    xx, yy = xx + eps2d, yy + eps2d
    det = xx * yy - xy * xy
    safe = torch.where(det > 0, det, torch.ones_like(det))
    compensations = (sharp / safe).clamp(min=0).sqrt().clamp(min=rules.compensation_min)
    radii, bright = splat_radii(xx, yy, det, opacities * compensations if antialiased else opacities, rules)
    means2d = ray * focal + centre
    on_image = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
    kept = in_depth & (det > 0) & bright & (radii > radius_clip).any(-1) & on_image
    return Splats(
        means2d=means2d,
        depths=depths,
        conics=torch.stack([yy, -xy, xx], -1) / safe[:, None],
        compensations=compensations,
        radii=torch.where(kept[:, None], radii, torch.zeros_like(radii)).to(torch.int32),
    )


@torch.no_grad()
def splat_radii(xx: Tensor, yy: Tensor, det: Tensor, opacities: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """Radii in x and y [N, 2] of blurred covariances, and which splats are bright enough to be kept [N] bool."""
    if rules.square_radius:
        middle = 0.5 * (xx + yy)
        radius = torch.ceil(3 * torch.sqrt(middle + torch.sqrt((middle * middle - det).clamp(min=0.01))))
        return torch.stack([radius, radius], -1), torch.ones_like(radius, dtype=torch.bool)
    reach = torch.sqrt(2 * torch.log((opacities / ALPHA_MIN).clamp(min=1))).clamp(max=3.33)
    return torch.ceil(reach[:, None] * torch.stack([xx, yy], -1).sqrt()), opacities >= ALPHA_MIN


def harmonics_basis(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics [N, (degree + 1)^2] at unit directions [N, 3], gsplat's signs (Sloan, JCGT 2013)."""
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, 0.2820947917738781)]
    if degree >= 1:
        values += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if degree >= 2:
        values += [
            1.092548430592079 * x * y,
            -1.092548430592079 * y * z,
            0.9461746957575601 * z * z - 0.3153915652525201,
            -1.092548430592079 * x * z,
            0.5462742152960395 * (x * x - y * y),
        ]
    if degree >= 3:
        values += [
            -0.5900435899266435 * y * (3 * x * x - y * y),
            2.890611442640554 * x * y * z,
            y * (0.4570457994644658 - 2.285228997322329 * z * z),
            z * (1.865881662950577 * z * z - 1.119528997770346),
            x * (0.4570457994644658 - 2.285228997322329 * z * z),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    return torch.stack(values, -1)


def shade(means: Tensor, view: Tensor, coefficients: Tensor, degree: int) -> Tensor:
    """Colours [N, 3] of coefficients [N, K, 3] seen from the camera centre, shifted by 1/2 and clamped at 0."""
    directions = torch.nn.functional.normalize(means - torch.inverse(view)[:3, 3], dim=-1)
    basis = harmonics_basis(directions, degree)
    return (torch.einsum("nk,nkc->nc", basis, coefficients[:, : basis.shape[1]]) + 0.5).clamp(min=0)


def tile_membership(splats: Splats, columns: Tensor, rows: Tensor, order: Tensor) -> Tensor:
    """Whether the tile of each pixel lies in each splat's box of the integer radii, snapped to tiles [P, M]."""
    centre, radius = splats.means2d[order] / TILE, splats.radii[order] / TILE
    low, high = torch.floor(centre - radius), torch.ceil(centre + radius)
    tile = torch.stack([columns // TILE, rows // TILE], -1)[:, None]
    return ((tile >= low) & (tile < high)).all(-1)


def blend(
    splats: Splats, opacities: Tensor, values: Tensor, width: int, height: int, rules: Rules, band: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Front-to-back blending of ``values`` [N, D] into [H, W, D], alphas [H, W] and doubtful pixels [H, W] bool.

    A pixel is doubtful if one of its decisions (alpha against 1/255 and its clamp, transmittance against 1e-4) is
    closer than the relative distance ``band``: rounding may then decide the other way, and images may differ visibly.
    """
    device = values.device
    order = torch.nonzero(splats.radii[:, 0] > 0)[:, 0]
    order = order[torch.argsort(splats.depths[order].float(), stable=True)]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )  # fmt: skip
    rows, columns = rows.flatten(), columns.flatten()
    pixels = torch.stack([columns, rows], -1).to(values) + 0.5
    dx, dy = (splats.means2d[order][None] - pixels[:, None]).unbind(-1)
    a, b, c = splats.conics[order].unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    raw = opacities[order] * torch.exp(-sigma)
    alpha = raw.clamp(max=rules.alpha_max)
    listed = tile_membership(splats, columns, rows, order) & (sigma >= 0)
    seen = listed & (alpha >= ALPHA_MIN)
    alpha = torch.where(seen, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=1)
    blends = seen & (after > TRANSMITTANCE_MIN)
    alpha = torch.where(blends, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1) if len(order) else after
    image = (alpha * before) @ values[order]
    transmittance = after[:, -1] if len(order) else torch.ones_like(pixels[:, 0])
    with torch.no_grad():
        reached = torch.cumprod(torch.where(seen, 1 - raw.clamp(max=rules.alpha_max), 1.0), dim=1)
        doubtful = listed & (
            ((raw / ALPHA_MIN - 1).abs() < band)
            | ((raw / rules.alpha_max - 1).abs() < band)
            | ((reached / TRANSMITTANCE_MIN - 1).abs() < band)
            | ((sigma.abs() < band) & (band > 0))
        )
    shape = (height, width)
    return image.reshape(*shape, -1), 1 - transmittance.reshape(shape), doubtful.any(1).reshape(shape)


def rasterization(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    width: int, height: int, near_plane: float = 0.01, far_plane: float = 1e10, radius_clip: float = 0.0,
    eps2d: float = 0.3, sh_degree: int | None = None, backgrounds: Tensor | None = None, render_mode: str = "RGB",
    rasterize_mode: str = "classic", band: float = 0.0,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
    """Arguments and results of :func:`lora3d_splat.rasterize.rasterization`; ``meta`` has radii and doubtful pixels."""
    images, alphas, radii, doubtful = [], [], [], []
    antialiased, rules = rasterize_mode == "antialiased", get_rules()
    for camera, (view, K) in enumerate(zip(viewmats, Ks, strict=True)):
        splats = project(
            means, quats, scales, opacities, view, K, width, height, eps2d, near_plane, far_plane, radius_clip,
            antialiased, rules,
        )  # fmt: skip
        own = colors[camera] if colors.dim() == (3 if sh_degree is None else 4) else colors
        values = own if sh_degree is None else shade(means, view, own, sh_degree)
        faded = opacities * splats.compensations if antialiased else opacities
        with_depth, only_depth = render_mode != "RGB", render_mode in ("D", "ED")
        if with_depth:
            values = torch.cat([values[:, : 0 if only_depth else None], splats.depths[:, None]], -1)
        image, alpha, unsure = blend(splats, faded, values, width, height, rules, band)
        if backgrounds is not None and not only_depth:
            behind = torch.nn.functional.pad(backgrounds[camera], (0, int(with_depth)))
            image = image + (1 - alpha)[..., None] * behind
        if render_mode.endswith("ED"):
            image = torch.cat([image[..., :-1], image[..., -1:] / alpha[..., None].clamp(min=1e-10)], -1)
        own_radii = splats.radii[:, 0] if rules.square_radius else splats.radii
        for target, item in zip((images, alphas, radii, doubtful), (image, alpha, own_radii, unsure), strict=True):
            target.append(item)
    meta = {"radii": torch.stack(radii), "doubtful": torch.stack(doubtful)}
    return torch.stack(images), torch.stack(alphas)[..., None], meta
