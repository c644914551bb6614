"""What this machine has and lacks for the program, each with the remedy; nothing is loaded, compiled or downloaded."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

State = Literal["ok", "optional", "missing"]


@dataclass(frozen=True)
class Check:
    """One finding: `optional` parts are absent but not needed for everything, `missing` ones stop the program."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine() -> tuple[Check, ...]:
    """All checks, in the order in which a user meets the parts; a check that itself fails is reported, not raised."""
    checks: list[Callable[[], Check]] = [
        check_python, check_torch, check_gpu, check_gsplat, check_numba, check_peft, check_weights,
        lambda: check_backbone("lpips_alex", "alexnet-owt-7be5be79.pth"),
        lambda: check_backbone("lpips_vgg", "vgg16-397923af.pth"),
        check_ffmpeg, check_libusb, check_nerfstudio, check_cache,
    ]  # fmt: skip
    return tuple(_guarded(check) for check in checks)


def check_python() -> Check:
    version = platform.python_version()
    if sys.version_info >= (3, 12):
        return Check("Python", "ok", f"{version}; nerfstudio's dependencies have no wheels for it", "use 3.10 or 3.11")
    return Check("Python", "ok", version)


def check_torch() -> Check:
    return _package("torch", "torch", needed=True)


def check_gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("GPU", "ok", torch.cuda.get_device_name(0))
    if torch.version.cuda is None:
        return Check("GPU", "optional", "torch was built without CUDA", "install a CUDA build of torch")
    return Check("GPU", "optional", "no CUDA device answers; the CPU works", "use a machine with an NVIDIA GPU")


def check_gsplat() -> Check:
    """gsplat's CUDA extension, prebuilt or compilable; its CPU replacement needs numba alone."""
    import torch

    if importlib.util.find_spec("gsplat") is None:
        return Check("gsplat", "missing", "not installed", "pip install gsplat")
    version = metadata.version("gsplat")
    if not torch.cuda.is_available():
        return Check("gsplat", "ok", f"{version}; without a GPU the CPU kernels render instead")
    if importlib.util.find_spec("gsplat.csrc") is not None:
        return Check("gsplat", "ok", f"{version} with a prebuilt CUDA extension")
    if shutil.which("nvcc") is not None:
        return Check("gsplat", "ok", f"{version}; its CUDA extension is compiled at the first use (minutes, once)")
    remedy = "install a prebuilt wheel (https://docs.gsplat.studio/whl) or the CUDA toolkit, so that nvcc is found"
    return Check("gsplat", "missing", f"{version} without a CUDA extension, and no nvcc to compile it", remedy)


def check_numba() -> Check:
    return _package("numba (CPU kernels)", "numba", needed=True)


def check_peft() -> Check:
    return _package("peft (LoRA)", "peft", needed=True)


def check_weights() -> Check:
    from lora3d_splat.networks import compact, weights

    found = ["compact"] if compact.CHECKPOINT.is_file() else []
    found += [name for name in weights.PUBLIC if weights.find_on_disk(name) is not None]
    if not found:
        return Check("network weights", "missing", "none", "reinstall the package, which ships `compact`")
    absent = ", ".join(name for name in weights.PUBLIC if name not in found)
    remedy = f"the public ones ({absent}) are downloaded when asked for by --network" if absent else ""
    return Check("network weights", "ok", ", ".join(found), remedy)


def check_backbone(metric: str, file_name: str) -> Check:
    """The torchvision weights below an LPIPS variant, in torch hub's cache."""
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if path.exists():
        return Check(metric, "ok", str(path))
    remedy = f"download https://download.pytorch.org/models/{file_name} to {path.parent}"
    return Check(metric, "optional", "backbone weights absent, so the metric is reported as null", remedy)


def check_ffmpeg() -> Check:
    found = shutil.which("ffmpeg")
    if found is not None:
        return Check("ffmpeg (ns-render mp4)", "ok", found)
    remedy = "pip install imageio-ffmpeg, or apt-get install ffmpeg"
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return Check("ffmpeg (ns-render mp4)", "optional", "absent", remedy)
    import imageio_ffmpeg

    return Check("ffmpeg (ns-render mp4)", "ok", f"imageio-ffmpeg's: {imageio_ffmpeg.get_ffmpeg_exe()}")


def check_libusb() -> Check:
    found = ctypes.util.find_library("usb-1.0")
    if found is not None:
        return Check("libusb-1.0 (ns-export)", "ok", found)
    remedy = "apt-get install libusb-1.0-0; until then use `ns-lora3d export`"
    return Check("libusb-1.0 (ns-export)", "optional", "absent; open3d, which ns-export imports, needs it", remedy)


def check_nerfstudio() -> Check:
    """nerfstudio is there and finds this package's method and dataparser."""
    if importlib.util.find_spec("nerfstudio") is None:
        return Check("nerfstudio", "optional", "not installed; calibrate and export work", "pip install nerfstudio")
    methods = {entry.name for entry in metadata.entry_points(group="nerfstudio.method_configs")}
    parsers = {entry.name for entry in metadata.entry_points(group="nerfstudio.dataparser_configs")}
    absent = [name for name, known in (("lora3d-splat", methods), ("lora3d-data", parsers)) if name not in known]
    version = metadata.version("nerfstudio")
    if absent:
        remedy = "install this package into the same environment"
        return Check("nerfstudio", "missing", f"{version} without {', '.join(absent)}", remedy)
    return Check("nerfstudio", "ok", f"{version} with lora3d-splat and lora3d-data")


def check_cache() -> Check:
    from lora3d_splat.files import default_cache_folder, folder_bytes

    folder = default_cache_folder()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(nearest, os.W_OK) or not nearest.is_dir():
        remedy = "set LORA3D_SPLAT_CACHE to a folder that can be written to"
        return Check("cache", "missing", f"{folder} cannot be written to", remedy)
    return Check("cache", "ok", f"{folder}, {folder_bytes(folder) / 1e6:.0f} MB (may be deleted at any time)")


def _package(name: str, distribution: str, needed: bool) -> Check:
    try:
        return Check(name, "ok", metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return Check(name, "missing" if needed else "optional", "not installed", f"pip install {distribution}")


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        name = getattr(check, "__name__", "check").removeprefix("check_").replace("_", " ")
        return Check(name, "missing", f"{type(error).__name__}: {error}", "reinstall this part")
