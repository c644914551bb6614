"""What a procedural scene is made of, and the builder that puts it together. World frame: metres, z up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lora3d_splat.synthetic.raycast import BOX, CONE, CYLINDER, SPHERE
from lora3d_splat.synthetic.textures import TextureAtlas

CORNER_RADIUS = {BOX: 3**0.5, SPHERE: 1.0, CYLINDER: 2**0.5, CONE: 2**0.5}


@dataclass(frozen=True)
class Look:
    """Surface of one primitive."""

    texture: int
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    """texture repeats per metre"""
    gloss: float = 0.0
    """strength of the highlight"""
    mirror: float = 0.0
    """share of the light that is mirrored, seen head-on"""


@dataclass(frozen=True)
class World:
    """Arrays that the ray caster reads; P primitives."""

    shapes: np.ndarray
    """(P,) int64 shape codes"""
    matrices: np.ndarray
    """(P, 3, 4) float64 T_local_world: world -> canonical shape, scale included"""
    bounds: np.ndarray
    """(P, 4) float64 bounding sphere: centre, squared radius"""
    halves: np.ndarray
    """(P, 3) float64 half extents, metres"""
    textures: np.ndarray
    """(P, 6) int64 per face"""
    tints: np.ndarray
    """(P, 6, 3) float64"""
    scales: np.ndarray
    """(P, 6) float64"""
    shifts: np.ndarray
    """(P, 2) float64 texture offset"""
    gloss: np.ndarray
    """(P,) float64"""
    mirror: np.ndarray
    """(P,) float64 share of the light that is mirrored"""
    light: np.ndarray
    """(4, 4) float64: sun (direction, 0) or lamp (position, intensity m^2); direct, ambient, fog (colour, 1/m)"""
    sky: np.ndarray
    """(3, 3) float64 linear colours at horizon and zenith, cloud amount"""

    @property
    def geometry(self) -> tuple[np.ndarray, ...]:
        """Arguments of the ray caster that say where things are."""
        return self.shapes, self.matrices, self.bounds, self.halves

    @property
    def looks(self) -> tuple[np.ndarray, ...]:
        """Arguments of the ray caster that say how things look."""
        return self.textures, self.tints, self.scales, self.shifts, self.gloss, self.mirror

    def first(self, count: int) -> World:
        """The world of its first `count` primitives alone."""
        if count == len(self.shapes):
            return self
        each = ("shapes", "matrices", "bounds", "halves", "textures", "tints", "scales", "shifts", "gloss", "mirror")
        return replace(self, **{name: getattr(self, name)[:count] for name in each})

    def moved(self, primitives: slice, T_after_before: np.ndarray) -> World:
        """The world with some primitives carried along by a rigid world transform (4, 4)."""
        matrices, bounds = self.matrices.copy(), self.bounds.copy()
        back = np.linalg.inv(T_after_before)
        turned = matrices[primitives, :, :3] @ back[:3, :3]
        shifted = matrices[primitives, :, :3] @ back[:3, 3] + matrices[primitives, :, 3]
        matrices[primitives] = np.concatenate([turned, shifted[..., None]], -1)
        bounds[primitives, :3] = bounds[primitives, :3] @ T_after_before[:3, :3].T + T_after_before[:3, 3]
        return replace(self, matrices=matrices, bounds=bounds)


def turn(axis: int, angle: float) -> np.ndarray:
    """Rotation matrix (3, 3) about a coordinate axis, radians."""
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    rotation = np.eye(3)
    rotation[[i, j], [i, j]] = np.cos(angle)
    rotation[i, j], rotation[j, i] = -np.sin(angle), np.sin(angle)
    return rotation


class WorldBuilder:
    """Collects primitives; every random choice comes from `rng`, but whether a look mirrors, from `polish`."""

    def __init__(
        self,
        rng: np.random.Generator,
        atlas: TextureAtlas,
        polish: np.random.Generator | None = None,
        mirrors: float = 0.0,
    ) -> None:
        self.rng = rng
        self.atlas = atlas
        self.polish, self.mirrors = polish, mirrors
        self._primitives: list[tuple] = []
        self.light = np.zeros((4, 4))
        self.sky = np.zeros((3, 3))

    def look(self, *groups: str, scale: tuple[float, float] = (0.4, 2.5)) -> Look:
        """A random texture of the named groups (any when none is named), tinted."""
        rng = self.rng
        group = rng.choice(groups) if groups else None
        texture = int(rng.choice(self.atlas.groups[group])) if group else int(rng.integers(self.atlas.count))
        tint = np.exp(rng.normal(0, 0.25)) * np.exp(rng.normal(0, 0.12, 3))
        low, high = np.log(scale[0]), np.log(scale[1])
        gloss = float(rng.uniform(0, 0.5)) if rng.uniform() < 0.3 else 0.0
        size = float(np.exp(rng.uniform(low, high)))
        return Look(texture, tuple(np.clip(tint, 0.25, 1.3)), size, gloss, self._mirror())

    def _mirror(self) -> float:
        """Mostly none; varnish and tiles, and now and then a looking-glass."""
        if self.polish is None or self.polish.uniform() >= self.mirrors:
            return 0.0
        return float(self.polish.uniform(0.6, 0.9) if self.polish.uniform() < 0.2 else self.polish.uniform(0.05, 0.3))

    @property
    def count(self) -> int:
        """Primitives so far."""
        return len(self._primitives)

    def add(self, shape: int, centre, half, look: Look | list[Look], rotation: np.ndarray | None = None) -> None:
        """A shape with half extents `half` (3,), turned by R_world_local, moved to `centre` (3,)."""
        centre, half = np.asarray(centre, float), np.asarray(half, float)
        rotation = np.eye(3) if rotation is None else rotation
        linear = rotation.T / half[:, None]
        matrix = np.concatenate([linear, -(linear @ centre)[:, None]], 1)
        radius = (half**2).sum() if shape == BOX else (half[:2].max() ** 2 + half[2] ** 2)
        radius = half.max() ** 2 if shape == SPHERE else radius
        looks = [look] * 6 if isinstance(look, Look) else look
        self._primitives.append(
            (shape, matrix, np.append(centre, radius * 1.001), half, looks, self.rng.uniform(size=2))
        )

    def box(self, centre, half, look: Look | list[Look], yaw: float = 0.0) -> None:
        """A box turned about the vertical."""
        self.add(BOX, centre, half, look, turn(2, yaw))

    def lamp(self, position, intensity: float, ambient: float) -> None:
        """A point light with inverse-square fall-off, and even fill light."""
        warmth = np.exp(self.rng.normal(0, 0.1, 3))
        self.light[0] = [*position, intensity]
        self.light[1, :3], self.light[2, :3] = warmth, ambient / warmth

    def sun(self, direction, strength: float, ambient: float) -> None:
        """A distant light towards `direction` (3,), and sky fill."""
        direction = np.asarray(direction, float)
        warmth = np.exp(self.rng.normal(0, 0.1, 3))
        self.light[0, :3] = direction / np.linalg.norm(direction)
        self.light[1, :3], self.light[2, :3] = strength * warmth, ambient / warmth

    def fog(self, colour, density: float) -> None:
        """Haze of `density` per metre."""
        self.light[3, :3], self.light[3, 3] = colour, density

    def finish(self) -> World:
        """Freeze."""
        shapes, matrices, bounds, halves, looks, shifts = zip(*self._primitives, strict=True)
        faces = [[(look.texture, look.tint, look.scale) for look in six] for six in looks]
        return World(
            shapes=np.array(shapes, np.int64),
            matrices=np.stack(matrices),
            bounds=np.stack(bounds),
            halves=np.stack(halves),
            textures=np.array([[face[0] for face in six] for six in faces], np.int64),
            tints=np.array([[face[1] for face in six] for six in faces], float),
            scales=np.array([[face[2] for face in six] for six in faces], float),
            shifts=np.stack(shifts),
            gloss=np.array([six[0].gloss for six in looks], float),
            mirror=np.array([six[0].mirror for six in looks], float),
            light=self.light,
            sky=self.sky,
        )
