"""Splatfacto from aligned points: a fixed set of Gaussians, cameras optimised with them (InstantSplat's settings).

Only what differs from nerfstudio's model is overridden. The number of Gaussians is that of the seeds unless `densify`
is enabled: there is no culling and no opacity reset, so Splatfacto's options for these have no effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Type  # noqa: UP035

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.models.splatfacto import RGB2SH, SplatfactoModel, SplatfactoModelConfig, num_sh_bases
from nerfstudio.utils.colors import get_color
from torch import Tensor
from torch.nn import Parameter, ParameterDict

from lora3d_splat.errors import InputError
from lora3d_splat.gaussians.spacing import neighbour_distance
from lora3d_splat.metrics.image import decibels, image_metrics
from lora3d_splat.metrics.lpips import Lpips, LpipsMode
from lora3d_splat.photometric import photo_loss
from lora3d_splat.plugin.averaging import AveragingConfig, RunningAverage
from lora3d_splat.plugin.camera_poses import CameraPoses, CameraPosesConfig
from lora3d_splat.plugin.counted import counted_pixels, overlook
from lora3d_splat.plugin.densify import CAP, DensifyConfig, explore, grow, relocate
from lora3d_splat.plugin.depth_prior import DepthPrior, depth_loss
from lora3d_splat.plugin.dropout import some_left_out, usual_share
from lora3d_splat.plugin.held_crops import EarlyStopConfig, HeldCrops
from lora3d_splat.plugin.optimisation import Progress


@dataclass
class Lora3DSplatModelConfig(SplatfactoModelConfig):
    """Gaussians at aligned points, optimised together with the cameras."""

    _target: Type = field(default_factory=lambda: Lora3DSplatModel)  # noqa: UP006
    """target class to instantiate"""
    background_color: Literal["random", "black", "white"] = "black"
    """Colour behind the Gaussians."""
    num_downscales: int = 0
    """Train at full size from the start: a run of 1000 steps would never leave Splatfacto's reduced sizes."""
    initial_opacity: tuple[float, float] = (0.03, 0.2)
    """Opacity at the start of the least and of the most trusted Gaussians (InstantSplat: 0.1 for all)."""
    confidence_rates: bool = True
    """Let doubtful points move faster: position rate times 1 + 99 (1 - sigmoid(confidence)) (InstantSplat)."""
    camera_optimizer: CameraPosesConfig = field(default_factory=CameraPosesConfig)
    """Joint optimisation of the training cameras."""
    depth_weight: float = 0.0
    """Weight of the difference, in log depth, to the calibrated depth; 0 leaves depth to the photographs."""
    densify: DensifyConfig = field(default_factory=DensifyConfig)
    """Growing the set of Gaussians."""
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    """Stopping before the training fits errors of the poses."""
    dropout: float | None = None
    """Share of the Gaussians left out of a step, rising to this along the training (DropGaussian); None: 0.3 with three
    training photographs, less with more, none from seven on."""
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    """Scoring and keeping the running average of the Gaussians."""
    lpips: LpipsMode = "auto"
    """LPIPS backbones: auto takes cached ones or downloads them, cached never downloads, off leaves LPIPS out."""


class Lora3DSplatModel(SplatfactoModel):
    """Gaussians at aligned points."""

    config: Lora3DSplatModelConfig
    camera_optimizer: CameraPoses

    def populate_modules(self) -> None:
        """Parameters from the seed points that the dataparser hands over; nothing here touches CUDA or the network."""
        if self.config.dropout is not None and not 0 <= self.config.dropout < 1:
            raise InputError(f"dropout={self.config.dropout}", "a share in [0, 1)", "use 0.2 to 0.4, or leave it out")
        means, colours, scale, confidence = self._seeds()
        count = len(means)
        harmonics = num_sh_bases(self.config.sh_degree)
        base = RGB2SH(colours) if self.config.sh_degree > 0 else torch.logit(colours, eps=1e-4)
        self.gauss_params = ParameterDict(
            {
                "means": Parameter(means),
                "scales": Parameter(scale.log()[:, None].repeat(1, 3)),
                "quats": Parameter(torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(count, 1)),
                "features_dc": Parameter(base),
                "features_rest": Parameter(torch.zeros(count, harmonics - 1, 3)),
                "opacities": Parameter(initial_opacity(confidence, *self.config.initial_opacity).logit()),
            }
        )
        self.register_buffer("position_rate", position_rate(confidence, self.config.confidence_rates))
        self.camera_optimizer = self.config.camera_optimizer.setup(num_cameras=self.num_train_data, device="cpu")
        self.camera_optimizer.fix_gauge(self._extras().get("train_camera_to_worlds"))
        if (tracked := self._extras().get("train_camera_tracked")) is not None:
            self.camera_optimizer.hold_tracked(tracked)
        self.depth_priors: tuple[DepthPrior, ...] = self._extras().get("depth_priors", ())
        self.held_crops: HeldCrops | None = None
        self._dropout = usual_share(self.num_train_data) if self.config.dropout is None else self.config.dropout
        self.average = RunningAverage(self.config.averaging.decay)
        self.progress = Progress(1)
        self.lpips_networks = Lpips(self.config.lpips)
        self.background_color = get_color(
            "black" if self.config.background_color == "random" else self.config.background_color
        )
        self.step = 0
        self.crop_box = None
        self._means_before: Tensor | None = None

    def get_outputs(self, camera: Cameras) -> dict[str, Any]:
        """Render one camera; training views with their optimised pose, in evaluation as well."""
        if not isinstance(camera, Cameras):
            raise InputError("a bundle of rays", "a camera", "render whole pictures; Gaussians are not ray-traced")
        return self.render(camera, self.camera_optimizer.apply_to_camera(camera))

    def render(self, camera: Cameras, camera_to_worlds: Tensor, with_depth: bool | None = None) -> dict[str, Any]:
        """Render with the camera's intrinsics from the pose (1, 3, 4), OpenGL; gradients reach both.

        `with_depth` None: in evaluation, and in training if the configuration says so.

        Returns rgb (H, W, 3), accumulation (H, W, 1), depth (H, W, 1) or None in training, background.
        """
        from lora3d_splat.rasterize import rasterization

        width, height = int(camera.width.item()), int(camera.height.item())
        background = self._get_background_color()
        chosen = (
            self.crop_box.within(self.means).squeeze(-1) if self.crop_box is not None and not self.training else None
        )
        if chosen is not None and not bool(chosen.any()):
            return self.get_empty_outputs(width, height, self.background_color.to(self.device))
        gaussians = {name: value if chosen is None else value[chosen] for name, value in self.gauss_params.items()}
        if with_depth is None:
            with_depth = self.config.output_depth_during_training or not self.training or self._uses_depth()
        colours, degree = self._colours(gaussians)
        opacities = gaussians["opacities"].sigmoid().squeeze(-1)
        if self.training:
            opacities = some_left_out(opacities, self._dropout * self.progress.share(self.step))
        view = view_matrix(camera_to_worlds.to(self.device))
        if (factor := self.camera_optimizer.focal_factor(camera)) is not None:
            # A longer focal length is the same as a scene that is wider and higher before the camera.
            view = torch.cat([view[:, :2] * factor, view[:, 2:]], dim=1)
        render, alpha, self.info = rasterization(
            means=gaussians["means"],
            quats=gaussians["quats"],
            scales=gaussians["scales"].exp(),
            opacities=opacities,
            colors=colours,
            viewmats=view,
            Ks=camera.get_intrinsics_matrices().to(self.device),
            width=width,
            height=height,
            packed=False,
            near_plane=0.01,
            far_plane=1e10,
            render_mode="RGB+ED" if with_depth else "RGB",
            sh_degree=degree,
            rasterize_mode=self.config.rasterize_mode,
        )
        rgb = render[0, ..., :3]
        if bool((background > 0).any()):
            rgb = rgb + (1 - alpha[0]) * background
        depth = None
        if with_depth:
            depth = torch.where(alpha[0] > 0, render[0, ..., 3:4], render[..., 3].detach().max())
        return {
            "rgb": rgb.clamp(0.0, 1.0),
            "depth": depth,
            "accumulation": alpha[0],
            "background": background if self.training else background.expand(height, width, 3),
        }

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """PSNR of the training picture and how far the cameras have moved."""
        photo = self.composite_with_background(self.get_gt_img(batch["image"]), outputs["background"])
        value = decibels(outputs["rgb"].detach(), photo, counted_pixels(batch, self.device))
        metrics: dict[str, Any] = {"psnr": value, "gaussian_count": self.num_points}
        self.camera_optimizer.get_metrics_dict(metrics)
        return metrics

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """(1 - lambda) L1 + lambda (1 - SSIM), lambda = 0.2 (3D Gaussian Splatting); masked pixels count as right."""
        photo = self.composite_with_background(self.get_gt_img(batch["image"]), outputs["background"])
        rendered = overlook(outputs["rgb"], photo, counted_pixels(batch, self.device))
        view = batch.get("image_idx", -1)
        if self.training and self.held_crops is not None:
            rendered = self.held_crops.hide(view, rendered, photo)
        losses = {"main_loss": photo_loss(rendered, photo, self.config.ssim_lambda)}
        if self.training:
            self.camera_optimizer.get_loss_dict(losses)
            if self._uses_depth() and 0 <= view < len(self.depth_priors):
                losses["depth"] = self.config.depth_weight * depth_loss(outputs["depth"], self.depth_priors[view])
            if self.config.densify.enabled:
                losses["opacity"] = self.config.densify.opacity_penalty * self.opacities.sigmoid().mean()
                losses["scale"] = self.config.densify.scale_penalty * self.scales.exp().mean()
        return losses

    @torch.no_grad()
    def get_image_metrics_and_images(
        self, outputs: dict[str, Any], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and the LPIPS that can be had; nerfstudio's writers take numbers only, so others are left out."""
        photo = self.composite_with_background(self.get_gt_img(batch["image"]), outputs["background"])
        self.lpips_networks.device = self.device
        values = image_metrics(outputs["rgb"], photo, self.lpips_networks, counted_pixels(batch, self.device))
        numbers = {name: value.number for name, value in values.items() if value.number is not None}
        return numbers, {"img": torch.cat([photo, outputs["rgb"]], dim=1)}

    def step_cb(self, optimizers: Optimizers, step: int) -> None:
        """Before a step: remember the positions, whose rate differs from point to point."""
        self.step = step
        self.optimizers = optimizers.optimizers
        self._means_before = self.means.detach().clone() if self.config.confidence_rates else None

    @torch.no_grad()
    def step_post_backward(self, step: int) -> None:
        """After a step: scale each point's move; Adam normalises gradients away, so a rate acts on the step only.
        Then the running average takes the Gaussians in."""
        if self._means_before is not None:
            self.means.data = torch.addcmul(self._means_before, self.position_rate, self.means - self._means_before)
        if self.config.densify.enabled:
            self._densify(step)
        if self.config.averaging.enabled:
            self.average.take(self.gauss_params)

    def _densify(self, step: int) -> None:
        """One step of the Monte Carlo densification; the moved and the new Gaussians count as trusted."""
        settings = self.config.densify
        share = self.progress.share(step)
        due = step > settings.start and step % settings.every == 0 and share < settings.stop
        optimizers = {name: self.optimizers[name] for name in self.gauss_params}
        if due:
            self.average.forget()
            relocate(self.gauss_params, optimizers, settings.min_opacity)
            cap = settings.cap or CAP["cuda" if self.means.is_cuda else "cpu"]
            room = min(cap, int((1 + settings.growth) * self.num_points)) - self.num_points
            if room > 0:
                originals = grow(self.gauss_params, optimizers, room, settings.min_opacity)
                self.position_rate = torch.cat([self.position_rate, self.position_rate[originals]])
        explore(self.gauss_params, settings.noise * self.optimizers["means"].param_groups[0]["lr"])

    def load_state_dict(self, state: dict[str, Tensor], **kwargs: Any) -> Any:  # type: ignore[override]
        """Take over a checkpoint of any number of Gaussians.

        The Parameter objects stay the same: the Trainer has given them to the optimisers already, and with new ones a
        resumed training would move nothing.
        """
        count = len(state["gauss_params.means"])
        self.average.forget()
        for parameter in (*self.gauss_params.values(),):
            parameter.data = torch.zeros((count, *parameter.shape[1:]), device=parameter.device)
        self.position_rate = torch.ones((count, 1), device=self.position_rate.device)
        return torch.nn.Module.load_state_dict(self, state, **kwargs)

    def update_to_step(self, step: int) -> None:
        """Spherical harmonics of a loaded checkpoint are those active at its step."""
        self.step = step

    def _seeds(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Positions (N, 3), colours (N, 3) in [0, 1], scale (N,) and log-confidence (N,) in the normalised frame."""
        if self.seed_points is None:
            raise InputError(
                found="a dataset without points",
                accepted="the dataparser lora3d-data",
                remedy="leave the dataparser out, or name lora3d-data last on the command line",
            )
        means, rgb = self.seed_points[0].float(), self.seed_points[1].float() / 255.0
        extra = self._extras()
        scale = extra["points3D_scale"] if "points3D_scale" in extra else neighbour_distance(means).clamp_max(0.1)
        confidence = extra.get("points3D_conf", torch.full((len(means),), 10.0))
        return means.clone(), rgb, scale.float().clamp_min(1e-7), confidence.float()

    def _extras(self) -> dict[str, Any]:
        """What the dataparser `lora3d-data` hands over beyond points and colours."""
        return self.kwargs.get("metadata") or {}

    def _uses_depth(self) -> bool:
        return self.training and self.config.depth_weight > 0 and len(self.depth_priors) > 0

    def _colours(self, gaussians: dict[str, Tensor]) -> tuple[Tensor, int | None]:
        """What the rasteriser takes as colours, and the spherical-harmonics degree active at this step."""
        base, rest = gaussians["features_dc"], gaussians["features_rest"]
        if self.config.sh_degree == 0:
            return base.sigmoid(), None
        degree = min(self.step // self.config.sh_degree_interval, self.config.sh_degree)
        if degree == 0:
            return base[:, None], 0
        return torch.cat([base[:, None], rest[:, : num_sh_bases(degree) - 1]], dim=1), degree


def initial_opacity(log_confidence: Tensor, least: float, most: float) -> Tensor:
    """(N, 1) opacities between `least` and `most`, by the rank of the confidence (N,); equal ones are all trusted."""
    low, high = torch.quantile(sample(log_confidence), torch.tensor([0.05, 0.95]))
    trust = ((log_confidence - low) / (high - low)).clamp(0, 1) if high > low else torch.ones_like(log_confidence)
    return (least + (most - least) * trust)[:, None]


def sample(values: Tensor, count: int = 100_000) -> Tensor:
    """At most about `count` of the values (N,), evenly taken; torch's quantiles refuse millions."""
    return values[:: max(1, len(values) // count)]


def position_rate(log_confidence: Tensor, by_confidence: bool) -> Tensor:
    """(N, 1) factor on the position's learning rate: 1 + 99 (1 - sigmoid(C)), C the raw confidence exp(log C)."""
    if not by_confidence:
        return torch.ones(len(log_confidence), 1)
    return (1.0 + 99.0 * torch.sigmoid(-log_confidence.exp()))[:, None]


def view_matrix(camera_to_worlds: Tensor) -> Tensor:
    """World-to-camera (V, 4, 4) in OpenCV axes from OpenGL camera_to_worlds (V, 3, 4)."""
    rotation = camera_to_worlds[:, :3, :3] * camera_to_worlds.new_tensor([1.0, -1.0, -1.0])
    inverse = rotation.transpose(1, 2)
    top = torch.cat([inverse, -inverse @ camera_to_worlds[:, :3, 3:]], dim=2)
    return torch.cat([top, top.new_tensor([[[0.0, 0.0, 0.0, 1.0]]]).expand(len(top), 1, 4)], dim=1)
