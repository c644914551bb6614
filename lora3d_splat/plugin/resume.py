"""Finding the run that was broken off, so that the same command goes on from its last checkpoint."""

from __future__ import annotations

from pathlib import Path

from lora3d_splat.report.run_results import CONFIG_FILE, SCORES_FILE


def unfinished_checkpoint(run: Path, checkpoints: str) -> Path | None:
    """The newest checkpoint of an unfinished run with the settings of `run`, in its folder or beside it.

    `checkpoints` is the name of the folder that holds them. A run is finished when it has its scores.
    """
    own = _settings(run)
    if own is None or not run.parent.is_dir():
        return None
    found = [
        path
        for other in run.parent.iterdir()
        if not (other / SCORES_FILE).exists() and _settings(other) == own
        for path in (other / checkpoints).glob("step-*.ckpt")
    ]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _settings(run: Path) -> str | None:
    """config.yml without the time that tells runs of the same command apart."""
    path = run / CONFIG_FILE
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("timestamp:"))
