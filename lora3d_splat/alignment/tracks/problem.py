"""Cameras, points and their marks in the photographs: the quantities of a bundle adjustment, and how they project.

Image coordinates are relative to the photograph's centre and divided by its diagonal, so that one focal length and one
distortion serve portrait and landscape photographs and photographs of different sizes. float64 NumPy throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Rig:
    """V cameras in G groups; a group shares its focal length and distortion."""

    rotation: np.ndarray
    """(V, 3, 3) world to camera"""
    translation: np.ndarray
    """(V, 3) world to camera"""
    group: np.ndarray
    """(V,)"""
    focal: np.ndarray
    """(G,) over the photograph's diagonal"""
    radial: np.ndarray
    """(G,) k of y = focal * s * (1 + k |s|^2), s being the slopes (X / Z, Y / Z)"""
    placed: np.ndarray
    """(V,) bool: the others have no pose yet"""
    ruler: np.ndarray
    """(V,) log of the world's units in one unit of the view's pointmap"""

    @property
    def centre(self) -> np.ndarray:
        """(V, 3) camera centres, world frame."""
        return -np.einsum("vij,vi->vj", self.rotation, self.translation)

    def place(self, view: int, rotation: np.ndarray, translation: np.ndarray) -> Rig:
        """The same with one more camera."""
        rotations, translations, placed = self.rotation.copy(), self.translation.copy(), self.placed.copy()
        rotations[view], translations[view], placed[view] = rotation, translation, True
        return replace(self, rotation=rotations, translation=translations, placed=placed)

    def with_focal(self, focal: np.ndarray) -> Rig:
        """The same lens otherwise."""
        return replace(self, focal=np.array(focal, dtype=float))


def unplaced(group: np.ndarray, focal: np.ndarray, radial: np.ndarray) -> Rig:
    """Cameras (V,) of the lenses (G,), none of which has a pose."""
    views = len(group)
    nowhere = np.zeros((views, 3))
    return Rig(np.tile(np.eye(3), (views, 1, 1)), nowhere, group, focal, radial, np.zeros(views, bool), np.zeros(views))


@dataclass(frozen=True)
class Marks:
    """M observations of points."""

    track: np.ndarray
    """(M,) the point"""
    view: np.ndarray
    """(M,)"""
    image: np.ndarray
    """(M, 2) image coordinates"""
    sigma: np.ndarray
    """(M,) standard deviation of each coordinate, image units"""
    depth: np.ndarray
    """(M,) depth by the view's pointmap, up to a factor per view; NaN where unknown"""

    def where(self, mask: np.ndarray) -> Marks:
        """Those of a mask (M,)."""
        return Marks(self.track[mask], self.view[mask], self.image[mask], self.sigma[mask], self.depth[mask])


def camera_points(rig: Rig, points: np.ndarray, marks: Marks) -> np.ndarray:
    """(M, 3) the marked points in the frames of their cameras."""
    rotated = np.einsum("mij,mj->mi", rig.rotation[marks.view], points[marks.track])
    return rotated + rig.translation[marks.view]


def project(rig: Rig, inside: np.ndarray, view: np.ndarray) -> np.ndarray:
    """(M, 2) image coordinates of points (M, 3) in camera frames; points behind are put far outside."""
    depth = np.where(inside[:, 2] > 1e-9, inside[:, 2], np.nan)
    slopes = inside[:, :2] / depth[:, None]
    group = rig.group[view]
    stretch = rig.focal[group] * (1 + rig.radial[group] * (slopes**2).sum(1))
    return np.nan_to_num(slopes * stretch[:, None], nan=1e3)


def errors(rig: Rig, points: np.ndarray, marks: Marks) -> np.ndarray:
    """(M,) reprojection errors in standard deviations."""
    found = project(rig, camera_points(rig, points, marks), marks.view)
    return np.sqrt(((found - marks.image) ** 2).sum(1)) / marks.sigma


def slopes_of(rig: Rig, image: np.ndarray, view: np.ndarray) -> np.ndarray:
    """(M, 2) slopes (X / Z, Y / Z) seen at image coordinates (M, 2); inverts the distortion by fixed-point steps."""
    group = rig.group[view]
    flat = image / rig.focal[group][:, None]
    slopes = flat
    for _ in range(8):
        slopes = flat / (1 + rig.radial[group] * (slopes**2).sum(1)).clip(0.2, 5.0)[:, None]
    return slopes
