"""Views that lead no pair: their own depth from where the pairs that others lead put their points (robust PnP)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

TOLERANCE = 0.02
"""Slope by which a point may miss its ray and still vote."""
ROUNDS = 500
"""Most samples of three points (AP3P), the same at every call."""
FEWEST = 12
"""Agreeing points without which nothing is believed."""


def resected_depth(slopes: Tensor, points: Tensor, votes: Tensor) -> Tensor:
    """(S,) z-depth in a camera's own frame of points (S, 3) that another camera's frame holds; zero where unknown.

    `slopes` (S, 2) are the camera's pixels over its focal; only points with votes (S,) say where it stands.
    """
    depth = torch.zeros_like(votes)
    known = votes > 0
    cloud, rays = points[known].cpu().numpy(), np.ascontiguousarray(slopes[known].cpu().numpy())
    if len(cloud) < FEWEST:
        return depth
    # The units of the cloud are any; cv2 works with numbers about one.
    unit = float(np.median(np.linalg.norm(cloud - np.median(cloud, axis=0), axis=1))) or 1.0
    cloud, pinhole, undistorted = cloud / unit, np.eye(3), np.zeros(5)
    cv2.setRNGSeed(0)
    done, turn, shift, inliers = cv2.solvePnPRansac(
        cloud, rays, pinhole, undistorted, iterationsCount=ROUNDS, reprojectionError=TOLERANCE, confidence=0.9999,
        flags=cv2.SOLVEPNP_AP3P,
    )  # fmt: skip
    kept = np.zeros(0, np.int64) if inliers is None else np.asarray(inliers, dtype=np.int64).ravel()
    if not done or len(kept) < FEWEST:
        return depth
    turn, shift = cv2.solvePnPRefineLM(cloud[kept], rays[kept], pinhole, undistorted, turn, shift)
    ahead = unit * (cloud @ cv2.Rodrigues(turn)[0][2] + shift.ravel()[2])
    depth[known] = torch.from_numpy(np.maximum(ahead, 0.0)).to(depth)
    return depth
