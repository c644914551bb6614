"""One call with gsplat's arguments and results: gsplat itself on CUDA tensors, compiled kernels on CPU tensors."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lora3d_splat.errors import InputError, MissingPartError
from lora3d_splat.rasterize.rules import get_rules

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
RasterizeMode = Literal["classic", "antialiased"]

CHANNELS = 3
"""Colour channels that one pass of the CPU kernels blends."""


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,
    render_mode: RenderMode = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: RasterizeMode = "classic",
    channel_chunk: int = 32,
    **gsplat_only: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render N Gaussians into C pinhole cameras; differentiable in everything but ``Ks``.

    Args:
        means: centres in the world [N, 3].
        quats: rotations, wxyz, any length [N, 4].
        scales: standard deviations along the axes, scene units [N, 3].
        opacities: in [0, 1] [N].
        colors: spherical-harmonics coefficients [(C,) N, K, 3] when ``sh_degree`` is set, else colours [(C,) N, D].
        viewmats: T_camera_world, OpenCV axes [C, 4, 4].
        Ks: intrinsics, corner-based pixels [C, 3, 3].
        width: image width in pixels.
        height: image height in pixels.
        near_plane: Gaussians whose z lies before this are culled.
        far_plane: Gaussians whose z lies beyond this are culled.
        radius_clip: splats of this radius in pixels or less are culled.
        eps2d: blur added to the 2D covariance, square pixels.
        sh_degree: degree to evaluate, 0 to 3 on a CPU.
        packed: memory layout on CUDA; CPU results always have the layout of ``packed=False``.
        tile_size: 16 on a CPU.
        backgrounds: colours behind everything [C, D].
        render_mode: colours, accumulated depth (D), expected depth (ED), or both, the depth in the last channel.
        sparse_grad: CUDA only.
        absgrad: leave the sums of absolute image-plane gradients in ``meta["means2d"].absgrad``.
        rasterize_mode: ``antialiased`` scales opacities to undo the energy that ``eps2d`` adds.
        channel_chunk: CUDA only.
        gsplat_only: any further argument of gsplat's function; CUDA only.

    Returns:
        Images [C, H, W, D (+ 1)], alphas [C, H, W, 1], and what gsplat's strategies read: ``means2d`` [C, N, 2] px,
        ``radii`` int32 px ([C, N] by the rules of gsplat 1.4, [C, N, 2] later), ``depths``, ``conics``, ``opacities``,
        sizes and counts.

    Raises:
        InputError: an argument has the wrong shape, or a Gaussian a value that is not finite.
        MissingPartError: CUDA tensors without gsplat, or CPU tensors without numba.
    """
    if means.is_cuda:
        return _gsplat()(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane=near_plane,
            far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d, sh_degree=sh_degree, packed=packed,
            tile_size=tile_size, backgrounds=backgrounds, render_mode=render_mode, sparse_grad=sparse_grad,
            absgrad=absgrad, rasterize_mode=rasterize_mode, channel_chunk=channel_chunk, **gsplat_only,
        )  # fmt: skip
    _check_supported(tile_size, sparse_grad, render_mode, rasterize_mode, sh_degree, gsplat_only)
    _check_shapes(means, quats, scales, opacities, colors, viewmats, Ks, sh_degree, backgrounds)
    steps = _cpu_steps()
    quats, scales, opacities, colors, viewmats, Ks = (
        t.to(means) for t in (quats, scales, opacities, colors, viewmats, Ks)
    )
    cameras, count = viewmats.shape[0], means.shape[0]
    antialiased, rules = rasterize_mode == "antialiased", get_rules()
    frame = steps.Frame(width, height, eps2d, near_plane, far_plane, radius_clip, antialiased, rules)
    means2d, depths, conics, compensations, radii = steps.Project.apply(
        means, quats, scales, opacities, viewmats, Ks, frame
    )
    opacities = opacities.expand(cameras, count)
    if antialiased:
        opacities = opacities * compensations
    if sh_degree is not None:
        centres = torch.inverse(viewmats)[:, :3, 3]
        colors = steps.Shade.apply(means, centres, colors, radii, sh_degree)
    colors = colors.expand(cameras, count, colors.shape[-1])

    def blend(chunk: Tensor, background: Tensor | None, depth: bool) -> tuple[Tensor, Tensor]:
        if background is None:
            background = means.new_zeros(cameras, CHANNELS)
        return steps.Blend.apply(
            means2d, conics, chunk, opacities, depths, background.to(means), radii,
            width, height, depth, render_mode.endswith("ED"), absgrad, rules,
        )  # fmt: skip

    image, alphas = _blend_channels(blend, colors, backgrounds, render_mode, absgrad)
    meta = {
        "camera_ids": None,
        "gaussian_ids": None,
        "radii": radii[..., 0] if rules.square_radius else radii,
        "means2d": means2d,
        "depths": depths,
        "conics": conics,
        "opacities": opacities,
        "tile_width": math.ceil(width / tile_size),
        "tile_height": math.ceil(height / tile_size),
        "tile_size": tile_size,
        "width": width,
        "height": height,
        "n_cameras": cameras,
        "n_batches": 1,
    }
    return image, alphas, meta


def warmup() -> None:
    """Compile (or load from the cache) every CPU kernel, when the caller chooses rather than in the first step."""
    means = torch.tensor([[0.0, 0.0, 2.0]], requires_grad=True)
    camera = torch.eye(4)[None]
    K = torch.tensor([[[8.0, 0.0, 4.0], [0.0, 8.0, 4.0], [0.0, 0.0, 1.0]]])
    for mode in ("RGB", "RGB+ED"):
        image, _, _ = rasterization(
            means, torch.ones(1, 4), torch.ones(1, 3), torch.ones(1), torch.ones(1, 16, 3), camera, K, 8, 8,
            sh_degree=3, render_mode=mode,
        )  # fmt: skip
        image.sum().backward()


def _blend_channels(blend: Any, colors: Tensor, backgrounds: Tensor | None, render_mode: str, absgrad: bool):
    """Blend any number of channels, three at a time; the depth rides along with the last three."""
    if render_mode in ("D", "ED"):
        image, alphas = blend(colors.new_zeros(*colors.shape[:2], CHANNELS), None, True)
        return image[..., CHANNELS:], alphas
    channels = colors.shape[-1]
    if channels == CHANNELS:
        return blend(colors, backgrounds, render_mode != "RGB")
    if absgrad:
        raise InputError(
            found=f"absgrad=True with {channels} colour channels",
            accepted="absgrad with three channels on a CPU",
            remedy="render the further channels in a second call without absgrad",
        )
    missing = -channels % CHANNELS
    colors = torch.nn.functional.pad(colors, (0, missing))
    if backgrounds is not None:
        backgrounds = torch.nn.functional.pad(backgrounds, (0, missing))
    parts = []
    for first in range(0, channels, CHANNELS):
        depth = render_mode != "RGB" and first + CHANNELS >= channels
        chosen = slice(first, first + CHANNELS)
        part, alphas = blend(colors[..., chosen], None if backgrounds is None else backgrounds[:, chosen], depth)
        parts.append(part)
    image = torch.cat([*(part[..., :CHANNELS] for part in parts)], dim=-1)[..., :channels]
    return torch.cat([image, parts[-1][..., CHANNELS:]], dim=-1), alphas


def _check_supported(
    tile_size: int, sparse_grad: bool, render_mode: str, rasterize_mode: str, sh_degree: int | None, gsplat_only: dict
) -> None:
    """Refuse what only the CUDA backend offers."""
    refused = {
        f"tile_size={tile_size}": tile_size != 16,
        "sparse_grad=True": sparse_grad,
        f"render_mode={render_mode!r}": render_mode not in ("RGB", "D", "ED", "RGB+D", "RGB+ED"),
        f"rasterize_mode={rasterize_mode!r}": rasterize_mode not in ("classic", "antialiased"),
        f"sh_degree={sh_degree}": sh_degree is not None and not 0 <= sh_degree <= 3,
    }
    defaults = {"distributed": False, "camera_model": "pinhole", "covars": None}
    for name, value in gsplat_only.items():
        refused[f"{name}={value!r}"] = name not in defaults or value != defaults[name]
    for found, wrong in refused.items():
        if wrong:
            raise InputError(
                found=f"{found} with CPU tensors",
                accepted="16 px tiles, dense gradients, pinhole cameras, degrees 0 to 3, gsplat's five render modes",
                remedy="use the default, or move the tensors to a CUDA device",
            )


def _check_shapes(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    sh_degree: int | None, backgrounds: Tensor | None,
) -> None:  # fmt: skip
    """Compare every shape with N Gaussians and C cameras."""
    count, cameras = means.shape[0], viewmats.shape[0]
    tail = colors.shape[-1:] if sh_degree is None else (colors.shape[-2] if colors.dim() > 2 else 0, 3)
    wanted = {
        "means": (means, [(count, 3)]),
        "quats": (quats, [(count, 4)]),
        "scales": (scales, [(count, 3)]),
        "opacities": (opacities, [(count,)]),
        "colors": (colors, [(count, *tail), (cameras, count, *tail)]),
        "viewmats": (viewmats, [(cameras, 4, 4)]),
        "Ks": (Ks, [(cameras, 3, 3)]),
    }
    if backgrounds is not None:
        wanted["backgrounds"] = (backgrounds, [(cameras, colors.shape[-1])])
    for name, (tensor, shapes) in wanted.items():
        if tuple(tensor.shape) not in shapes:
            raise InputError(
                found=f"{name} of shape {tuple(tensor.shape)} for {count} Gaussians and {cameras} cameras",
                accepted=" or ".join(map(str, shapes)),
                remedy="pass gsplat's shapes; colors are coefficients [N, K, 3] if and only if sh_degree is set",
            )
    if sh_degree is not None and colors.shape[-2] < (sh_degree + 1) ** 2:
        raise InputError(
            found=f"{colors.shape[-2]} coefficients per channel for sh_degree={sh_degree}",
            accepted=f"at least {(sh_degree + 1) ** 2}",
            remedy="lower sh_degree or pad the coefficients with zeros",
        )
    if means.dtype not in (torch.float32, torch.float64):
        raise InputError(f"means of type {means.dtype}", "float32 or float64", "convert the Gaussians with .float()")


def _gsplat() -> Any:
    """gsplat's own function."""
    try:
        from gsplat import rasterization as gsplat_rasterization
    except ImportError as error:
        raise MissingPartError("CUDA tensors but no gsplat", "gsplat >= 1.4", "pip install gsplat") from error
    return gsplat_rasterization


def _cpu_steps() -> Any:
    """The CPU steps; numba is imported here, at the first call."""
    try:
        from lora3d_splat.rasterize import autograd
    except ImportError as error:
        raise MissingPartError(
            f"CPU tensors but the kernels cannot be compiled ({error})", "numba >= 0.60", "pip install numba"
        ) from error
    return autograd
