"""mp4 flights through a finished scene: along the photographs, and in a circle before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.export.splat import Splat
from lora3d_splat.files import atomic_file
from lora3d_splat.geometry.transforms import invert_rigid, rigid, rotation_to_wxyz, wxyz_to_rotation

PathName = Literal["inputs", "orbit"]


@dataclass(frozen=True)
class VideoConfig:
    """How a flight is filmed."""

    seconds: float = 6.0
    """Length."""
    fps: int = 24
    """Pictures a second."""
    long_side: int = 640
    """Longest side in pixels."""

    def __post_init__(self) -> None:
        if self.seconds * self.fps < 2 or self.long_side < 16:
            raise InputError(
                f"{self.seconds} s at {self.fps} a second, {self.long_side} pixels",
                "at least two pictures of at least 16 pixels",
                "leave the defaults",
            )


def write_mp4(
    path: Path, splat: Splat, cameras: Sequence[PhotographCamera], name: PathName, config: VideoConfig
) -> None:
    """Film the Gaussians along a path given by the registered cameras, through the first one's lens."""
    import imageio.v2 as imageio

    kept = [camera for camera in cameras if camera.registered]
    if not kept:
        raise InputError("no registered camera", "at least one", "export another format")
    frames = round(config.seconds * config.fps)
    poses = PATHS[name](kept, frames, splat)
    with atomic_file(path) as temporary:
        # Macro blocks of 2: x264 takes even sizes, and the default of 16 would resize the picture.
        video = imageio.get_writer(temporary, fps=config.fps, codec="libx264", quality=8, macro_block_size=2)
        with video:
            for picture in film(splat, kept[0], poses, config.long_side):
                video.append_data(picture)


def film(splat: Splat, camera: PhotographCamera, poses: Tensor, long_side: int) -> Iterator[np.ndarray]:
    """Pictures (h, w, 3) uint8 from the poses (F, 4, 4), with even sides."""
    from lora3d_splat.rasterize import rasterization

    ratio = min(1.0, long_side / max(camera.width, camera.height))
    width, height = (max(2, round(0.5 * ratio * side) * 2) for side in (camera.width, camera.height))
    sx, sy = width / camera.width, height / camera.height
    K = torch.tensor([[camera.fx * sx, 0, camera.cx * sx], [0, camera.fy * sy, camera.cy * sy], [0, 0, 1]])
    harmonics = torch.from_numpy(np.concatenate([splat.sh_dc[:, None], splat.sh_rest], axis=1))
    gaussians = {
        "means": torch.from_numpy(splat.means),
        "quats": torch.from_numpy(splat.quaternion_wxyz),
        "scales": torch.from_numpy(splat.log_scale).exp(),
        "opacities": torch.from_numpy(splat.opacity_logit).sigmoid(),
        "colors": harmonics,
        "sh_degree": int(np.sqrt(harmonics.shape[1])) - 1,
    }
    for pose in poses:
        with torch.no_grad():
            view = invert_rigid(pose).float()[None]
            image, _, _ = rasterization(**gaussians, viewmats=view, Ks=K.float()[None], width=width, height=height)
        yield (image[0].clamp(0, 1) * 255).round().byte().numpy()


def through_inputs(cameras: Sequence[PhotographCamera], frames: int, _: Splat) -> Tensor:
    """(F, 4, 4) a smooth path through the cameras in their order."""
    from scipy.interpolate import CubicSpline
    from scipy.spatial.transform import Rotation, RotationSpline

    poses = np.stack([camera.T_world_camera for camera in cameras])
    if len(poses) == 1:
        return torch.from_numpy(poses).repeat(frames, 1, 1)
    knots, times = np.arange(len(poses)), np.linspace(0, len(poses) - 1, frames)
    rotations = RotationSpline(knots, Rotation.from_matrix(poses[:, :3, :3]))(times).as_matrix()
    centres = CubicSpline(knots, poses[:, :3, 3], bc_type="natural")(times)
    return rigid(torch.from_numpy(rotations), torch.from_numpy(centres))


def orbit(cameras: Sequence[PhotographCamera], frames: int, splat: Splat) -> Tensor:
    """(F, 4, 4) a circle as wide as the photographs' path around the mean camera, looking at the scene's middle."""
    poses = torch.stack([torch.from_numpy(camera.T_world_camera) for camera in cameras])
    quaternions = rotation_to_wxyz(poses[:, :3, :3])
    aligned = torch.where((quaternions @ quaternions[0] < 0)[:, None], -quaternions, quaternions)
    mean = wxyz_to_rotation(aligned.mean(0))
    centre, forward = poses[:, :3, 3].mean(0), mean[:, 2]
    depth = (torch.from_numpy(splat.means).double() - centre) @ forward
    distance = float(depth[depth > 0].median()) if bool((depth > 0).any()) else 1.0
    target = centre + distance * forward
    spread = float((poses[:, :3, 3] - centre).norm(dim=1).mean())
    radius = min(max(spread, 0.02 * distance), 0.5 * distance)
    turn = torch.linspace(0, 2 * torch.pi, frames + 1, dtype=torch.float64)[:-1]
    centres = centre + radius * (turn.cos()[:, None] * mean[:, 0] + 0.5 * turn.sin()[:, None] * mean[:, 1])
    ahead = torch.nn.functional.normalize(target - centres, dim=1)
    right = torch.nn.functional.normalize(torch.linalg.cross(mean[:, 1].expand_as(ahead), ahead), dim=1)
    down = torch.linalg.cross(ahead, right)
    return rigid(torch.stack([right, down, ahead], dim=-1), centres)


PATHS = {"inputs": through_inputs, "orbit": orbit}
