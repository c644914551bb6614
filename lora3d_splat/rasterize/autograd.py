"""The CPU rasteriser as three differentiable steps: project, shade, blend.

Projection and blending are separate so that ``means2d`` exists between them: densification strategies call
``retain_grad`` on it and read ``.absgrad``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora3d_splat.errors import InputError
from lora3d_splat.rasterize import blend, blend_backward, lists, projection, projection_backward, sh_kernels
from lora3d_splat.rasterize.numerics import PIXELS, TILE
from lora3d_splat.rasterize.rules import Rules
from lora3d_splat.rasterize.threads import get_num_threads, run_ranges

GAUSSIAN_GRAIN = 4096
"""Gaussians per range; part of the arithmetic, because per-range sums are added up in order."""


@dataclass(frozen=True)
class Frame:
    """What the projection needs to know besides tensors; lengths in scene units, sizes in pixels."""

    width: int
    height: int
    eps2d: float
    near_plane: float
    far_plane: float
    radius_clip: float
    antialiased: bool
    rules: Rules


@dataclass(frozen=True)
class TileLists:
    """Splats of one camera in depth order and the list of each tile."""

    order: np.ndarray
    """Gaussian index by depth rank [M]."""
    splats: np.ndarray
    """Packed splat by depth rank [M, 12]."""
    pair_starts: np.ndarray
    """First pair of each rank [M + 1]."""
    offsets: np.ndarray
    """First list entry of each tile [tiles + 1]."""
    ranks: np.ndarray
    """Depth rank of each list entry [pairs]."""
    slots: np.ndarray
    """Pair index of each list entry [pairs]."""


def array(tensor: Tensor) -> np.ndarray:
    """A contiguous numpy view of a tensor."""
    return tensor.detach().contiguous().numpy()


def ranges(count: int) -> int:
    """Number of ranges that a kernel over ``count`` Gaussians is split into."""
    return -(-count // GAUSSIAN_GRAIN)


def reject_non_finite(invalid: np.ndarray, what: str) -> None:
    """Raise if a kernel marked a Gaussian as not finite."""
    if invalid.any():
        raise InputError(
            found=f"a NaN or infinite value in the {what} of Gaussian {int(invalid[invalid > 0][0]) - 1}",
            accepted="finite values only",
            remedy="lower the learning rate of that parameter or drop the Gaussian before rendering",
        )


class Project(torch.autograd.Function):
    """Gaussians in the world to splats on every image."""

    @staticmethod
    def forward(ctx, means, quats, scales, opacities, viewmats, Ks, frame: Frame):
        cameras, count = viewmats.shape[0], means.shape[0]
        inputs = [array(t) for t in (means, quats, scales, opacities, viewmats, Ks)]
        means2d = means.new_empty(cameras, count, 2)
        depths, compensations = means.new_empty(cameras, count), means.new_empty(cameras, count)
        conics = means.new_empty(cameras, count, 3)
        radii = torch.empty(cameras, count, 2, dtype=torch.int32)
        outputs = [t.numpy() for t in (means2d, depths, conics, compensations, radii)]
        invalid = np.zeros(ranges(count), np.int64)
        for camera in range(cameras):
            run_ranges(
                projection.project, count, GAUSSIAN_GRAIN, *inputs[:4], inputs[4][camera], inputs[5][camera],
                frame.width, frame.height, float(frame.eps2d), float(frame.near_plane), float(frame.far_plane),
                float(frame.radius_clip), frame.rules.square_radius, frame.antialiased,
                float(frame.rules.compensation_min), *(output[camera] for output in outputs), invalid, GAUSSIAN_GRAIN,
            )  # fmt: skip
            reject_non_finite(invalid, "mean, quaternion, scale or opacity")
        ctx.frame = frame
        ctx.mark_non_differentiable(radii)
        ctx.save_for_backward(means, quats, scales, viewmats, Ks, conics, compensations, radii)
        return means2d, depths, conics, compensations, radii

    @staticmethod
    @once_differentiable
    def backward(ctx, v_means2d, v_depths, v_conics, v_compensations, _):
        means, quats, scales, viewmats, Ks, conics, compensations, radii = ctx.saved_tensors
        cameras, count = radii.shape[:2]
        v_means, v_quats, v_scales = (t.new_zeros(t.shape) for t in (means, quats, scales))
        v_viewmats = torch.zeros_like(viewmats)
        inputs = [array(t) for t in (means, quats, scales, viewmats, Ks)]
        saved = [array(t) for t in (conics, compensations, radii)]
        incoming = [array(t) for t in (v_means2d, v_depths, v_conics, v_compensations)]
        outputs = [t.numpy() for t in (v_means, v_quats, v_scales)]
        for camera in range(cameras):
            partial = np.zeros((ranges(count), 12))
            run_ranges(
                projection_backward.project_backward, count, GAUSSIAN_GRAIN, *inputs[:3], inputs[3][camera],
                inputs[4][camera], ctx.frame.width, ctx.frame.height, float(ctx.frame.eps2d),
                *(t[camera] for t in saved), *(t[camera] for t in incoming), *outputs, partial, GAUSSIAN_GRAIN,
            )  # fmt: skip
            v_viewmats[camera, :3] = torch.from_numpy(partial.sum(0).reshape(3, 4)).to(viewmats.dtype)
        return v_means, v_quats, v_scales, None, v_viewmats, None, None


class Shade(torch.autograd.Function):
    """Spherical-harmonics coefficients to colours seen from every camera centre."""

    @staticmethod
    def forward(ctx, means, centres, coefficients, radii, degree: int):
        cameras, count = radii.shape[:2]
        colours = means.new_empty(cameras, count, 3)
        inputs = [array(t) for t in (means, centres, coefficients, radii)]
        invalid = np.zeros(ranges(count), np.int64)
        for camera in range(cameras):
            run_ranges(
                sh_kernels.shade, count, GAUSSIAN_GRAIN, inputs[0], inputs[1][camera],
                Shade.rows(inputs[2], camera), inputs[3][camera], degree, colours[camera].numpy(), invalid,
                GAUSSIAN_GRAIN,
            )  # fmt: skip
            reject_non_finite(invalid, "colour coefficients")
        ctx.degree = degree
        ctx.save_for_backward(means, centres, coefficients, radii, colours)
        return colours

    @staticmethod
    def rows(coefficients: np.ndarray, camera: int) -> np.ndarray:
        """Coefficients [(C,) N, K, 3] of one camera as [N, 3 K]."""
        own = coefficients[camera] if coefficients.ndim == 4 else coefficients
        return own.reshape(own.shape[0], own.shape[1] * 3)

    @staticmethod
    @once_differentiable
    def backward(ctx, v_colours):
        means, centres, coefficients, radii, colours = ctx.saved_tensors
        cameras, count = radii.shape[:2]
        v_means = means.new_zeros(means.shape)
        v_centres = torch.zeros_like(centres)
        v_coefficients = coefficients.new_empty(coefficients.shape)
        inputs = [array(t) for t in (means, centres, coefficients, radii, colours, v_colours)]
        for camera in range(cameras):
            partial = np.zeros((ranges(count), 3))
            fresh = camera == 0 or coefficients.ndim == 4
            run_ranges(
                sh_kernels.shade_backward, count, GAUSSIAN_GRAIN, inputs[0], inputs[1][camera],
                Shade.rows(inputs[2], camera), inputs[3][camera], ctx.degree, inputs[4][camera], inputs[5][camera],
                v_means.numpy(), Shade.rows(v_coefficients.numpy(), camera), partial, fresh, GAUSSIAN_GRAIN,
            )  # fmt: skip
            v_centres[camera] = torch.from_numpy(partial.sum(0)).to(means.dtype)
        return v_means, v_centres, v_coefficients, None, None


class Blend(torch.autograd.Function):
    """Splats to images: colours [C, H, W, 3 (+ depth)] and alphas [C, H, W, 1]."""

    @staticmethod
    def forward(
        ctx, means2d, conics, colours, opacities, depths, backgrounds, radii,
        width: int, height: int, with_depth: bool, expected: bool, absgrad: bool, rules: Rules,
    ):  # fmt: skip
        cameras = means2d.shape[0]
        depth_flag = True if with_depth else None
        image = means2d.new_empty(cameras, height, width, 4 if with_depth else 3)
        alphas = means2d.new_empty(cameras, height, width, 1)
        inputs = [array(t) for t in (means2d, conics, opacities, colours, depths, radii)]
        background = array(backgrounds)
        ctx.lists, ctx.residues = [], []
        for camera in range(cameras):
            tile_lists = build_lists(*(t[camera] for t in inputs), rules.square_radius, width, height)
            tiles_x, tiles = tile_grid(width, height)
            residue = np.empty((2, tiles, PIXELS), background.dtype)
            run_ranges(
                blend.blend_tiles, tiles, tiles_x, tiles_x, width, height, tile_lists.offsets, tile_lists.ranks,
                tile_lists.splats, background[camera], expected, rules.alpha_max, image[camera].numpy(),
                alphas[camera, ..., 0].numpy(), residue[0], residue[1], depth_flag,
            )  # fmt: skip
            ctx.lists.append(tile_lists)
            ctx.residues.append(residue)
        ctx.settings = (width, height, depth_flag, expected, absgrad, rules.alpha_max)
        ctx.save_for_backward(means2d, backgrounds, image, alphas)
        return image, alphas

    @staticmethod
    @once_differentiable
    def backward(ctx, v_image, v_alphas):
        means2d, backgrounds, image, alphas = ctx.saved_tensors
        width, height, depth_flag, expected, absgrad, alpha_max = ctx.settings
        v_means2d, v_abs = torch.zeros_like(means2d), torch.zeros_like(means2d) if absgrad else None
        v_conics, v_colours = means2d.new_zeros(*means2d.shape[:2], 3), means2d.new_zeros(*means2d.shape[:2], 3)
        v_opacities, v_depths = means2d.new_zeros(means2d.shape[:2]), means2d.new_zeros(means2d.shape[:2])
        outputs = [t.numpy() for t in (v_means2d, v_conics, v_opacities, v_colours, v_depths)]
        incoming, background = [array(t) for t in (v_image, v_alphas)], array(backgrounds)
        tiles_x, tiles = tile_grid(width, height)
        for camera, (tile_lists, residue) in enumerate(zip(ctx.lists, ctx.residues, strict=True)):
            pairs = np.empty((tile_lists.ranks.size, blend_backward.PAIR_COLUMNS + 2 * absgrad), background.dtype)
            run_ranges(
                blend_backward.unblend_tiles, tiles, tiles_x, tiles_x, width, height, tile_lists.offsets,
                tile_lists.ranks, tile_lists.slots, tile_lists.splats, background[camera], expected,
                alpha_max, image[camera].numpy(), alphas[camera, ..., 0].numpy(), residue[0], residue[1],
                incoming[0][camera], incoming[1][camera, ..., 0], pairs, depth_flag, True if absgrad else None,
            )  # fmt: skip
            run_ranges(
                blend_backward.gather_splats, tile_lists.order.size, GAUSSIAN_GRAIN, tile_lists.order,
                tile_lists.pair_starts, pairs, tile_lists.splats, *(t[camera] for t in outputs),
                None if v_abs is None else v_abs[camera].numpy(),
            )  # fmt: skip
        if v_abs is not None:
            means2d.absgrad = v_abs
        v_backgrounds = (v_image[..., :3] * (1 - alphas)).sum((1, 2)) if ctx.needs_input_grad[5] else None
        return v_means2d, v_conics, v_colours, v_opacities, v_depths, v_backgrounds, *(None,) * 7


def tile_grid(width: int, height: int) -> tuple[int, int]:
    """Tiles per row, and in all."""
    tiles_x = -(-width // TILE)
    return tiles_x, tiles_x * -(-height // TILE)


def build_lists(means2d, conics, opacities, colours, depths, radii, square_radius: bool, width: int, height: int):
    """The :class:`TileLists` of one camera: visible splats sorted, packed and distributed; arrays [N, ...]."""
    tiles_x, tiles = tile_grid(width, height)
    tiles_y = tiles // tiles_x
    order = lists.sort_by_depth(depths, radii)
    splats = np.empty((order.size, lists.SPLAT_COLUMNS), means2d.dtype)
    boxes, pair_counts = np.empty((order.size, 4), np.int16), np.empty(order.size, np.int32)
    invalid = np.zeros(max(ranges(order.size), 1), np.int64)
    run_ranges(
        lists.pack, order.size, GAUSSIAN_GRAIN, order, means2d, conics, opacities, colours, depths, radii,
        square_radius, tiles_x, tiles_y, splats, boxes, pair_counts, invalid, GAUSSIAN_GRAIN,
    )  # fmt: skip
    reject_non_finite(invalid, "opacity or colour")
    pair_starts, offsets = np.empty(order.size + 1, np.int64), np.empty(tiles + 1, np.int64)
    lists.exclusive_sum(pair_counts, pair_starts)
    tile_counts = np.zeros(tiles, np.int64)
    band = -(-tiles_y // get_num_threads())
    run_ranges(lists.count_pairs, tiles_y, band, boxes, tiles_x, tile_counts)
    lists.exclusive_sum(tile_counts, offsets)
    ranks, slots = np.empty(pair_starts[-1], np.int32), np.empty(pair_starts[-1], np.int32)
    run_ranges(lists.fill_lists, tiles_y, band, boxes, tiles_x, pair_starts, offsets[:-1].copy(), ranks, slots)
    return TileLists(order, splats, pair_starts, offsets, ranks, slots)
