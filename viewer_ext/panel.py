"""A tab in the nerfstudio viewer with the numbers of the run's self-calibration."""

from __future__ import annotations

from typing import Any

from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl

from lora3d_splat.records import Calibration, CalibrationRow


class CalibrationPanel(ViewerControl):
    """Listed under its own tab; set as an attribute of the pipeline, where the viewer finds it."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self._text = panel_text(pipeline.scene.calibration)

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        gui = viewer.viser_server.gui
        # The tab group is reachable by a private name alone, which differs between versions; a folder always works.
        names = ("_container_handle_from_uuid", "_container_handle_from_id")
        table = next((found for name in names if (found := getattr(gui, name, None))), {})
        children = getattr(table.get("root"), "_children", {})
        tabs = next((handle for handle in children.values() if type(handle).__name__ == "GuiTabGroupHandle"), None)
        with tabs.add_tab("LoRA3D") if tabs else gui.add_folder("LoRA3D"):
            gui.add_markdown(self._text)


def panel_text(calibration: Calibration) -> str:
    """Markdown: network, decision, the three rows, what was left out."""
    lines = [
        "### Self-calibration",
        f"network `{calibration.network}` ({calibration.licence})",
        "",
        f"{sum(calibration.scene.registered)} of {len(calibration.views)} views registered; {calibration.decision}",
        "",
        *(_row(row) for row in calibration.rows),
        *(f"- left out: {file}: {reason}" for file, reason in calibration.left_out),
        "",
        f"{sum(calibration.seconds.values()):.0f} s in all",
    ]
    return "\n".join(lines)


def _row(row: CalibrationRow) -> str:
    if row.reason is not None and row.residual is None:
        return f"- **{row.name}**: not computed, {row.reason}"
    focal = "unknown" if row.focal is None else f"{row.focal:.0f} px"
    residual = "unknown" if row.residual is None else f"{100 * row.residual:.2f} % of the depth"
    return f"- **{row.name}**: residual {residual}, focal {focal}, {row.registered} views, {row.seconds:.0f} s"
