"""What the plugin's two specifications add to nerfstudio's own start-up: seconds, and the ratio to nerfstudio's import.

    python benchmarks/plugin_import.py [RUNS]

Accepted: a median of at most 0.5 s over nerfstudio's own configuration import.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

PROGRAM = """
import importlib.metadata, time
found = importlib.metadata.entry_points
class Nothing(dict):
    names = ()
importlib.metadata.entry_points = lambda **k: Nothing() if k.get("group", "").startswith("nerfstudio") else found(**k)
start = time.perf_counter()
import nerfstudio.configs.method_configs
middle = time.perf_counter()
from method_configs.lora3d_data import lora3d_data
from method_configs.lora3d_splat import lora3d_splat
print(middle - start, time.perf_counter() - middle)
"""


def measure() -> tuple[float, float]:
    """Seconds of nerfstudio's import and of ours after it, in a fresh process."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    theirs, ours = (float(number) for number in done.stdout.split()[-2:])
    return theirs, ours


def main() -> None:
    runs = [measure() for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)]
    theirs, ours = (statistics.median(column) for column in zip(*runs, strict=True))
    print(
        f"nerfstudio {theirs:.2f} s, lora3d-splat {ours:.3f} s more (ratio {ours / theirs:.3f}), median of {len(runs)}"
    )


if __name__ == "__main__":
    main()
