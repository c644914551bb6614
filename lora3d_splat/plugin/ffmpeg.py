"""`ns-render` looks for a program named ffmpeg; where there is none, imageio-ffmpeg's binary stands in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lora3d_splat.files import default_cache_folder


def provide_ffmpeg() -> None:
    """Put a folder with a link named ffmpeg on this process's PATH, unless ffmpeg is found already."""
    if shutil.which("ffmpeg"):
        return
    try:
        import imageio_ffmpeg

        program = Path(imageio_ffmpeg.get_ffmpeg_exe())
        folder = default_cache_folder() / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "ffmpeg"
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(program)
    except (ImportError, RuntimeError, OSError):
        return  # nerfstudio says itself that ffmpeg is missing, and only where it is needed
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(folder)])
