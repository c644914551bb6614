"""Differentiable Gaussian rasterisation with gsplat's semantics on any device."""

from lora3d_splat.rasterize.api import rasterization as rasterization
from lora3d_splat.rasterize.api import warmup as warmup
from lora3d_splat.rasterize.rules import get_rules as get_rules
from lora3d_splat.rasterize.rules import set_rules as set_rules
from lora3d_splat.rasterize.threads import get_num_threads as get_num_threads
from lora3d_splat.rasterize.threads import set_num_threads as set_num_threads
from lora3d_splat.rasterize.threads import spare_cores_for_kernels as spare_cores_for_kernels
