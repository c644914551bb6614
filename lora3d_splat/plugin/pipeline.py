"""The run as a whole: train, then score the held-out views and leave the results, whatever the viewer setting is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Type  # noqa: UP035

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from lora3d_splat.console import note
from lora3d_splat.errors import InputError
from lora3d_splat.metrics.heldout_pose import PoseAlignmentConfig
from lora3d_splat.metrics.image import psnr
from lora3d_splat.outputs import write_outputs, write_report
from lora3d_splat.plugin.camera_poses import bake
from lora3d_splat.plugin.counted import counted_pixels, overlook
from lora3d_splat.plugin.crops import crop_camera
from lora3d_splat.plugin.datamanager import Lora3DDatamanager, Lora3DDatamanagerConfig
from lora3d_splat.plugin.dataparser import Lora3DDataParser, PlacedScene
from lora3d_splat.plugin.evaluation import ViewScore, flat_means, reduced_camera, score_views
from lora3d_splat.plugin.ffmpeg import provide_ffmpeg
from lora3d_splat.plugin.held_crops import HeldCrops
from lora3d_splat.plugin.model import Lora3DSplatModel, Lora3DSplatModelConfig
from lora3d_splat.plugin.protocols import PROTOCOLS, ProtocolName, pose_alignment
from lora3d_splat.plugin.run_files import name_calibration, write_comparison, write_run_files
from lora3d_splat.plugin.scores_file import print_scores, scores_document, write_scores
from lora3d_splat.plugin.trainer import Lora3DTrainer
from lora3d_splat.plugin.training_log import TrainingLog
from lora3d_splat.rasterize import spare_cores_for_kernels
from lora3d_splat.report.run_results import CALIBRATION_FOLDER, CURVE_FILE, SCORES_FILE

LOOKS = 6
"""How often the held-out views are looked at while training."""
FIRST_REDUCTION = 8
"""The first rendering is smaller by this much in both directions."""
LOOKED_AT = 4
"""At most so many of them."""


@dataclass
class Lora3DPipelineConfig(VanillaPipelineConfig):
    """Self-calibrated photographs, Gaussians, scores."""

    _target: Type = field(default_factory=lambda: Lora3DPipeline)  # noqa: UP006
    """target class to instantiate"""
    datamanager: Lora3DDatamanagerConfig = field(default_factory=Lora3DDatamanagerConfig)
    """specifies the datamanager config"""
    model: Lora3DSplatModelConfig = field(default_factory=Lora3DSplatModelConfig)
    """specifies the model config"""
    heldout_pose: PoseAlignmentConfig = field(default_factory=PoseAlignmentConfig)
    """Photometric alignment of held-out cameras before the second scoring."""
    protocol: ProtocolName = "standard"
    """standard, or instantsplat: its 500 steps of alignment, whatever heldout-pose says."""


class Lora3DPipeline(VanillaPipeline):
    """nerfstudio's pipeline with held-out scores that count for a method that finds its own poses."""

    config: Lora3DPipelineConfig
    datamanager: Lora3DDatamanager
    panels: ClassVar[tuple[Callable[[Lora3DPipeline], Any], ...]] = ()
    """What the viewer shows of the calibration beyond nerfstudio's own controls; the method's registration fills it,
    because the core does not know of viewers."""

    def __init__(
        self,
        config: Lora3DPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        **kwargs: Any,
    ) -> None:
        if test_mode != "val":
            provide_ffmpeg()
        super().__init__(config, device, test_mode, **kwargs)
        if torch.device(device).type == "cpu":
            spare_cores_for_kernels()
        if self.scene.settings.offline and self._splats.lpips_networks.mode == "auto":
            self._splats.lpips_networks.mode = "cached"
        self.training_log = TrainingLog()
        self._render_once()
        # The viewer finds its elements by scanning the pipeline's attributes.
        for index, panel in enumerate(self.panels):
            setattr(self, f"panel_{index}", panel(self))

    @torch.no_grad()
    def _render_once(self) -> None:
        """Load what rendering needs before the viewer renders.

        The viewer breaks a rendering off, by an exception at any line of Python, as soon as the visitor moves. In the
        middle of the first import of numba that would leave half a package behind, and the training would die of it.
        """
        camera = self.datamanager.train_dataset.cameras[:1].to(self.device)
        training = self._splats.training
        self._splats.eval().get_outputs(reduced_camera(camera, FIRST_REDUCTION))
        self._splats.train(training)

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint; the tools that only look get training cameras with their optimised poses."""
        super().load_pipeline(loaded_state, step)
        if self.test_mode != "val":
            bake(self._splats.camera_optimizer, self.datamanager.train_dataset.cameras)

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """nerfstudio's, a look at the held-out views now and then, and the scoring at the end."""
        callbacks = super().get_training_callbacks(attributes)
        trainer, start = attributes.trainer, time.perf_counter()
        if isinstance(trainer, Lora3DTrainer):
            # Written before the first step, so that a run that crashes can be reported.
            write_outputs(self.scene.calibration, trainer.base_dir / CALIBRATION_FOLDER, self.scene.settings)
            self.training_log.open(trainer.base_dir / CURVE_FILE)
            every = max(1, trainer.config.max_num_iterations // LOOKS)
            after = [TrainingCallbackLocation.AFTER_TRAIN_ITERATION]
            callbacks.append(TrainingCallback(after, self._look, update_every_num_iters=every))
            self._splats.progress = trainer.progress
            self._splats.held_crops = self._hold_crops()
            callbacks.append(TrainingCallback(after, self._end_in_time, kwargs={"trainer": trainer}))
            finish = TrainingCallback(
                [TrainingCallbackLocation.AFTER_TRAIN], self._finish, kwargs={"trainer": trainer, "start": start}
            )
            callbacks.append(finish)
        return callbacks

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
        """nerfstudio's, with the PSNR noted down."""
        outputs, losses, metrics = super().get_train_loss_dict(step)
        self.training_log.trained(step, metrics["psnr"])
        return outputs, losses, metrics

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """Mean scores, raw and after pose alignment; used by `ns-eval` and by evaluation steps in training."""
        scores = self._score()
        if output_path is not None:
            output_path.mkdir(parents=True, exist_ok=True)
            for index, score in enumerate(scores):
                write_comparison(output_path / f"eval_img_{index:04d}.png", score)
        return flat_means(scores, get_std)

    def _finish(self, step: int, trainer: Lora3DTrainer, start: float) -> None:
        """Score, tell, and leave the results; the lock keeps the viewer from rendering in between."""
        seconds = {**self.scene.seconds, "training": time.perf_counter() - start}
        begin = time.perf_counter()
        with trainer.train_lock:
            scores = self._score()
            write_run_files(trainer.base_dir, self._splats, self.scene, scores)
        self.training_log.flush()
        seconds["scoring"] = time.perf_counter() - begin
        facts = {
            "steps": step + 1,
            "kept_step": self._kept_step(step),
            "budget": trainer.config.budget,
            "gaussians": self._splats.num_points,
            "calibration_seconds_this_run": self.scene.calibration_wall,
            "seed_candidates": self.scene.seeds.candidates,
            "splat_frame": "splat.ply and cameras.json: world frame of the calibration",
        }
        device_type = torch.device(self.device).type
        document = scores_document(
            self.scene, scores, self._alignment, PROTOCOLS[self.config.protocol], device_type, facts, seconds
        )
        write_scores(trainer.base_dir / SCORES_FILE, document)
        name_calibration(trainer.base_dir)  # not earlier: a broken-off run is found again by its config.yml
        print_scores(document)
        note(f"results: {trainer.base_dir}")
        note(f"report: {write_report(trainer.base_dir)}")

    def _kept_step(self, step: int) -> int:
        """How many steps the state that is kept has seen."""
        crops = self._splats.held_crops
        return step + 1 if crops is None or crops.kept_step < 0 else crops.kept_step + 1

    def _hold_crops(self) -> HeldCrops | None:
        """The crops of the training views, None where they are not wanted."""
        settings = self._splats.config.early_stop
        if not settings.enabled:
            return None
        photographs = [view.photograph for view in self.scene.train]
        crops = HeldCrops(settings, [(photograph.width, photograph.height) for photograph in photographs])
        return crops if any(crops.crops) else None

    def _end_in_time(self, step: int, trainer: Lora3DTrainer) -> None:
        """After a step: end the training when the budget is up or the held-out crops get worse; keep the best state.

        What is judged and kept are the averaged Gaussians."""
        splats, crops = self._splats, self._splats.held_crops
        stop = last = trainer.progress.spent() or step >= trainer.last_step
        if crops is not None and (last or crops.due(step)):
            with splats.average.shown(splats.gauss_params):
                stop = crops.look(step, self._crop_loss(crops), splats) or last
            if stop:
                crops.restore(splats)
                if crops.kept_step < step:
                    note(f"held-out crops have got worse since step {crops.kept_step + 1}: that state is kept")
        elif last:
            splats.average.keep(splats.gauss_params)
        if stop and step < trainer.last_step:
            trainer.stop_training = True

    @torch.no_grad()
    def _crop_loss(self, crops: HeldCrops) -> float:
        """Of all training views' crops, from the poses as optimised so far."""
        dataset, rendered, photos = self.datamanager.train_dataset, [], []
        self._splats.eval()
        for view, crop in enumerate(crops.crops):
            if crop is None:
                continue
            whole = dataset.cameras[view : view + 1].to(self.device)
            pose = self._splats.camera_optimizer.apply_to_camera(whole)
            outputs = self._splats.render(crop_camera(whole, crop), pose, with_depth=False)
            batch = self.datamanager.cached_train[view]
            photo = self._splats.get_gt_img(crop.of(batch["image"]))
            photo = self._splats.composite_with_background(photo, outputs["background"])
            counted = counted_pixels(batch, self.device)
            rendered.append(overlook(outputs["rgb"], photo, None if counted is None else crop.of(counted)))
            photos.append(photo)
        self._splats.train()
        return crops.loss(rendered, photos)

    @torch.no_grad()
    def _look(self, step: int) -> None:
        """Note the mean PSNR of the first held-out views from their registered poses."""
        if not self.scene.heldout:
            return
        splats, values = self._splats, []
        splats.eval()
        with splats.average.shown(splats.gauss_params):
            for camera, batch in self.datamanager.fixed_indices_eval_dataloader[:LOOKED_AT]:
                outputs = splats.render(camera, camera.camera_to_worlds, with_depth=False)
                photo = splats.get_gt_img(batch["image"])
                photo = splats.composite_with_background(photo, outputs["background"])
                values.append(psnr(outputs["rgb"], photo, counted_pixels(batch, self.device)))
        splats.train()
        self.training_log.looked(step, sum(values) / len(values))

    def _score(self) -> tuple[ViewScore, ...]:
        views = self.datamanager.fixed_indices_eval_dataloader
        return score_views(self._splats, views, self._alignment)

    @property
    def _alignment(self) -> PoseAlignmentConfig:
        return pose_alignment(self.config.protocol, self.config.heldout_pose)

    @property
    def _splats(self) -> Lora3DSplatModel:
        assert isinstance(self.model, Lora3DSplatModel)
        return self.model

    @property
    def scene(self) -> PlacedScene:
        """The calibrated scene that the run works on. Raises InputError for a dataparser that calibrates nothing."""
        dataparser = self.datamanager.dataparser
        if not isinstance(dataparser, Lora3DDataParser):
            raise InputError(
                f"the dataparser {type(dataparser).__name__}, which calibrates nothing",
                "the dataparser lora3d-data",
                "leave it out; give cameras that are known with its `--calibration.known.cameras`",
            )
        return dataparser.scene
