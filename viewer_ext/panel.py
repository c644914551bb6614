"""The tab "Self-calibration" in the nerfstudio viewer: what was believed, what was trusted, what changed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl

from lora3d_splat.errors import Lora3DError
from lora3d_splat.plugin.pipeline import Lora3DPipeline
from lora3d_splat.report.run_results import read_run
from viewer_ext.exports import EXPORTS
from viewer_ext.layers import COLOURS, Layers, Shown
from viewer_ext.panel_text import calibration_text, count_text, psnr_text

TITLE = "Self-calibration"
SECONDS = 1.0
"""Between two looks at the numbers of the training."""
TRAINING_SHARE = 0.98
"""Of the time that training and rendering for idle visitors take together; nerfstudio's own 0.9 costs a ninth."""


class CalibrationPanel(ViewerControl):
    """Found by the viewer as an attribute of the pipeline.

    Nothing of it runs in the thread that trains: callbacks only note that something has changed, and a thread of the
    panel's own draws and reads numbers, without the training's lock.
    """

    def __init__(self, pipeline: Lora3DPipeline) -> None:
        super().__init__()
        # A private name, so that the viewer's scan for elements does not walk the pipeline in circles.
        self._pipeline = pipeline
        self._changed = threading.Event()
        self._adjusted = False

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        self._layers = Layers(self._pipeline, viewer.viser_server)
        self._run = viewer.log_filename.parent
        with _own_tab(viewer.viser_server.gui):
            self._add_controls(viewer.viser_server.gui)
        viewer.viser_server.on_client_connect(self._layers.greet)
        self._changed.set()
        threading.Thread(target=self._work, name="self-calibration panel", daemon=True).start()

    def _add_controls(self, gui: Any) -> None:
        self._numbers = gui.add_markdown("")
        if self._layers.names:
            self._pass = gui.add_dropdown("Pass", self._layers.names, initial_value=self._layers.kept)
            self._colour = gui.add_dropdown("Colour by", tuple(COLOURS))
            high = self._layers.high("calibrated")
            self._threshold = gui.add_slider(
                "Confidence above",
                min=0.0,
                max=high,
                step=high / 100,
                initial_value=0.0,
                hint="Hides points whose calibrated confidence is lower.",
            )
            self._points = gui.add_checkbox("Points", False, hint="The aligned points of the pass, over the rendering.")
            self._count = gui.add_markdown("")
            for control in (self._pass, self._colour, self._threshold):
                control.on_update(self._show_points)
            self._points.on_update(self._note)
        self._cameras = gui.add_checkbox("Cameras of the pass", True, hint="Click one to look from there.")
        self._before = gui.add_checkbox("Cameras before (plain alignment)", False)
        self._now = gui.add_checkbox("Cameras as optimised now", False)
        self._heldout = gui.add_checkbox("Held-out cameras", True)
        self._graph = gui.add_checkbox(
            "Pair graph by residual", False, hint="Dark: the pairs that agree best with the scene; bright: worst."
        )
        for control in (self._cameras, self._before, self._now, self._heldout, self._graph):
            control.on_update(self._note)
        with gui.add_folder("Write to the run folder"):
            for title in EXPORTS:
                gui.add_button(title).on_click(self._exporter(title))
            self._written = gui.add_markdown("")
        with gui.add_folder("Numbers"):
            gui.add_markdown(calibration_text(self._pipeline.scene.calibration))

    def _note(self, _: Any = None) -> None:
        self._changed.set()

    def _show_points(self, _: Any = None) -> None:
        """A change of pass, colour or threshold is of no use while the points are hidden."""
        if not self._points.value:
            self._points.value = True
        self._changed.set()

    def _exporter(self, title: str) -> Callable[[Any], None]:
        def export(_: Any) -> None:
            self._written.content = f"{title}: writing ..."
            try:
                paths = EXPORTS[title](self._pipeline, self._run, self._layers.shown_points(self._shown()))
            except (Lora3DError, OSError) as error:
                self._written.content = f"{title}: {error}"
                return
            self._written.content = "Written: " + ", ".join(f"`{path}`" for path in paths)

        return export

    def _shown(self) -> Shown:
        """What the controls ask for."""
        passes = bool(self._layers.names)
        return Shown(
            name=self._pass.value if passes else "",
            colour=COLOURS[self._colour.value] if passes else "rgb",
            threshold=float(self._threshold.value) if passes else 0.0,
            points=passes and self._points.value,
            cameras=self._cameras.value,
            before=self._before.value,
            now=self._now.value,
            heldout=self._heldout.value,
            graph=self._graph.value,
        )

    def _work(self) -> None:
        """The panel's own thread."""
        while True:
            if self._changed.wait(SECONDS):
                self._changed.clear()
                shown = self._shown()
                count = self._layers.draw(shown)
                self._put_behind(shown.points)
                if self._layers.names:
                    self._count.content = count_text(count, self._layers.total(shown.name), self._layers.pixels)
            if self.viser_server.get_clients():
                self._adjust_viewer()
                self._layers.follow_training()
                text = psnr_text(self._pipeline.training_log, self._finished_scores)
                if text != self._numbers.content:
                    self._numbers.content = text

    def _finished_scores(self) -> dict[str, Any] | None:
        """Scores of a finished run that is only looked at."""
        folder = Path(self._run)
        return read_run(folder).scores if self.viewer.trainer is None and folder.is_dir() else None

    def _put_behind(self, points: bool) -> None:
        """Let the rendering be a mere background while points are shown, or most of them hide behind its surfaces."""
        composite = getattr(self.viewer.control_panel, "_layer_depth", None)
        if composite is not None and composite.value == points:
            composite.value = not points

    def _adjust_viewer(self) -> None:
        """Once the viewer's scene is there: let the training have its share, and hide nerfstudio's own frusta.

        They stand where ours do, and turn the wrong way as poses change.
        """
        if self._adjusted or not getattr(self.viewer, "camera_handles", None):
            return
        self._adjusted = True
        self.viewer.train_util = TRAINING_SHARE
        self.viewer.set_camera_visibility(False)
        self.viewer.toggle_cameravis_button()


def _own_tab(gui: Any) -> Any:
    """A tab beside nerfstudio's; a folder where the group of tabs cannot be found.

    The group is reachable by a private name alone, which differs between viser 0.2 and 1.x.
    """
    names = ("_container_handle_from_uuid", "_container_handle_from_id")
    table = next((found for name in names if (found := getattr(gui, name, None))), {})
    children = getattr(table.get("root"), "_children", {})
    tabs = next((handle for handle in children.values() if type(handle).__name__ == "GuiTabGroupHandle"), None)
    return tabs.add_tab(TITLE) if tabs else gui.add_folder(TITLE)
