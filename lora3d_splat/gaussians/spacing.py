"""How far apart points lie, for the size that Gaussians start with."""

from __future__ import annotations

import torch
from torch import Tensor


def neighbour_distance(points: Tensor, neighbours: int = 3) -> Tensor:
    """(N,) root mean squared distance to the nearest `neighbours` points (3D Gaussian Splatting's start), float32.

    Infinite where there are no other points.
    """
    from scipy.spatial import cKDTree

    count = min(neighbours, len(points) - 1)
    if count < 1:
        return torch.full((len(points),), torch.inf)
    distances, _ = cKDTree(points.numpy()).query(points.numpy(), k=count + 1, workers=-1)
    return torch.from_numpy(distances[:, 1:]).square().mean(dim=1).sqrt().float()
