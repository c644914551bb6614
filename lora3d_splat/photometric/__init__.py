"""The loss between a rendering and its photograph, as fast as the rasteriser on a CPU."""

from lora3d_splat.photometric.loss import photo_loss as photo_loss
