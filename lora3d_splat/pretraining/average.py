"""Weights between two trainings, of which the second went on from the first (Wortsman et al., CVPR 2022).

    python -m lora3d_splat.pretraining.average FIRST SECOND SHARE TARGET

Further training on procedural scenes can cost accuracy on photographs; a point on the line between both files keeps the
gain of the one and the generality of the other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from lora3d_splat.errors import InputError
from lora3d_splat.networks.compact import architecture_json, load_compact
from lora3d_splat.pretraining.deepen import deepen


def average_weights(first: Path, second: Path, share: float, target: Path) -> None:
    """Write (1 - share) first + share second in float16, with the first file's settings and the second's training.

    The metadata's `averaged` is [1 - share, share, the second's metadata], and last the first file's own, where it has
    one.

    Blocks that only the second has are taken as additions of nothing in the first (`deepen`).

    Raises InputError for a share outside [0, 1] and for networks of otherwise different architectures.
    """
    if not 0.0 <= share <= 1.0:
        raise InputError(f"a share of {share}", "a number from 0 to 1", "use 0.25 to 0.5")
    other = load_compact(second)
    one, added = deepen(load_compact(first), other.architecture), other.state_dict()
    weights = {name: value.lerp(added[name], share).half().contiguous() for name, value in one.state_dict().items()}
    base, earlier = _metadata(first), _metadata(first).get("averaged")
    history = [1 - share, share, _metadata(second), *([json.loads(earlier)] if earlier else [])]
    base |= {"averaged": json.dumps(history), "architecture": architecture_json(other)}
    save_file(weights, str(target), base)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as stored:
        return stored.metadata() or {}


if __name__ == "__main__":
    average_weights(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
