"""A finished calibration on disk: scene.safetensors and adapter/, enough to go on with seeds, exports and reports.

scene.safetensors holds, for other programs too, `depth.N`, `confidence.N` (the network's, logarithm) and
`calibrated_confidence.N` (H, W) of view N at network resolution; its metadata names the views in order.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from lora3d_splat.artifacts import CorruptEntry, read_artifact, write_artifact
from lora3d_splat.errors import InputError
from lora3d_splat.files import atomic_folder
from lora3d_splat.records import Calibration

SCENE_FILE = "scene.safetensors"
ADAPTER_FOLDER = "adapter"
ADAPTER_CONFIG = "adapter_config.json"
_PUBLIC_NAMES = {
    "scene.depth.": "depth.",
    "confidence.view_raw_confidence.": "confidence.",
    "confidence.view_confidence.": "calibrated_confidence.",
}


def save_calibration(calibration: Calibration, folder: Path) -> Calibration:
    """Write a calibration into `folder` and return it with its paths pointing there.

    The weights of single pairs, which only the fine-tuning needs and which are larger than all the rest, stay behind.
    """
    adapter = _keep_adapter(calibration.adapter, folder / ADAPTER_FOLDER)
    kept = replace(
        calibration, folder=folder, adapter=adapter, confidence=replace(calibration.confidence, pair_weights=())
    )
    views = json.dumps([view.file for view in kept.views])
    facts = {"format": "1", "views": views, "network": kept.network, "licence": kept.licence}
    write_artifact(folder / SCENE_FILE, kept, facts, _public_name)
    return kept


def load_calibration(folder: Path) -> Calibration:
    """Read what `save_calibration` wrote, wherever the folder lies now; `confidence.pair_weights` is empty.

    Raises InputError where there is no whole calibration.
    """
    if not (folder / SCENE_FILE).is_file():
        raise _unusable(f"no {SCENE_FILE} in {folder}")
    try:
        calibration, _ = read_artifact(folder / SCENE_FILE)
    except CorruptEntry as error:
        raise _unusable(f"{folder / SCENE_FILE}, which is damaged ({error})") from error
    adapter = folder / ADAPTER_FOLDER if calibration.adapter is not None else None
    if adapter is not None and not (adapter / ADAPTER_CONFIG).is_file():
        raise _unusable(f"{folder} without its {ADAPTER_FOLDER}/")
    return replace(calibration, folder=folder, adapter=adapter)


def _keep_adapter(source: Path | None, target: Path) -> Path | None:
    """Copy the adapter; an adapter of an earlier calibration is removed when there is none now."""
    if source is None:
        if (target / ADAPTER_CONFIG).is_file():
            shutil.rmtree(target)
        return None
    if source.absolute() != target.absolute():
        with atomic_folder(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
    return target


def _public_name(place: str) -> str:
    prefix = next((prefix for prefix in _PUBLIC_NAMES if place.startswith(prefix)), None)
    return place if prefix is None else _PUBLIC_NAMES[prefix] + place.removeprefix(prefix)


def _unusable(found: str) -> InputError:
    return InputError(
        found, "an output folder of `ns-lora3d calibrate` or a run folder of `ns-train lora3d-splat`", "calibrate again"
    )
