"""Imports point along the data flow, and optional or heavy packages stay in their rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "lora3d_splat"

ORDER = (
    ("errors", "console", "records", "files", "hardware", "memory", "offline", "checksums", "download", "watch"),
    ("geometry",),
    ("images",),
    ("matching",),
    ("pairs",),
    ("networks",),
    ("prediction", "batching", "precision"),
    ("alignment",),
    ("confidence", "pseudo_labels", "passes"),
    ("lora",),
    ("artifacts", "record_codec", "calibration_files", "mapped_prediction", "pair_cache"),
    ("metrics", "rasterize", "photometric", "gaussians", "synthetic"),
    ("export",),
    ("report",),
    ("pretraining",),  # draws with the report's charts and pictures
    ("preview",),
    (
        "known_cameras",
        "self_calibration",
    ),
    ("doctor", "outputs", "demo"),
    ("pose_test", "run_export"),
    ("cli",),
    ("plugin",),
)
"""Rooms from the left of the data flow to the right; a room may import its own row and every row before it."""

ALLOWED_AGAINST_THE_FLOW = {
    ("confidence", "pseudo_labels"),
    ("alignment", "confidence"),  # the aligner's last step states its weights as calibrated confidence
}

ONLY_IN = {
    "nerfstudio": ("lora3d_splat/plugin/", "method_configs/", "viewer_ext/"),
    "peft": ("lora3d_splat/lora/adapter.py",),
    "gsplat": ("lora3d_splat/rasterize/",),
    "numba": ("lora3d_splat/rasterize/", "lora3d_splat/synthetic/"),
    "ray": ("lora3d_splat/batch.py",),
    "viser": ("lora3d_splat/preview/", "viewer_ext/"),
}
"""Third-party packages and the only places that may import them."""


def sources() -> list[Path]:
    """Every Python file of the three packages."""
    return [p for package in ("lora3d_splat", "method_configs", "viewer_ext") for p in (ROOT / package).rglob("*.py")]


def imported_modules(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at the top or inside functions."""
    names: set[str] = set()
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def room_of(module: str) -> str | None:
    """The room of a dotted name inside the core, None for anything else."""
    parts = module.split(".")
    return parts[1] if parts[0] == "lora3d_splat" and len(parts) > 1 else None


def rank(room: str) -> int | None:
    """Position of a room in the data flow."""
    return next((index for index, row in enumerate(ORDER) if room in row), None)


def test_every_room_has_its_place_in_the_flow():
    """A new room must be entered in ORDER, so that nobody forgets where it belongs."""
    rooms = {
        p.stem if p.is_file() else p.name for p in CORE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert {room for room in rooms if rank(room) is None} - {"__init__"} == set()


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_along_the_data_flow(path: Path):
    """No room imports one to its right, and method_configs and viewer_ext are never imported by the core."""
    here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    modules = imported_modules(path)
    if path.is_relative_to(CORE):
        assert not {m for m in modules if m.split(".")[0] in ("method_configs", "viewer_ext")}
    if here is None or rank(here) is None:
        return
    backwards = {
        room
        for room in map(room_of, modules)
        if room is not None
        and rank(room) is not None
        and (rank(room) or 0) > (rank(here) or 0)
        and (here, room) not in ALLOWED_AGAINST_THE_FLOW
    }
    assert not backwards, f"{path.name} in room {here} imports {sorted(backwards)} against the flow"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_stay_in_their_rooms(path: Path):
    """peft, gsplat, numba, nerfstudio and ray are imported only where the architecture says."""
    relative = path.relative_to(ROOT).as_posix()
    tops = {module.split(".")[0] for module in imported_modules(path)}
    strays = {name for name, places in ONLY_IN.items() if name in tops and not relative.startswith(places)}
    assert not strays, f"{relative} imports {sorted(strays)}"
