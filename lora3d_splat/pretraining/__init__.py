"""Training of the bundled compact network on procedural scenes."""

from __future__ import annotations

from lora3d_splat.pretraining.config import PretrainConfig as PretrainConfig
from lora3d_splat.pretraining.evaluation import Accuracy as Accuracy
from lora3d_splat.pretraining.evaluation import evaluate as evaluate
from lora3d_splat.pretraining.preview import write_preview as write_preview
from lora3d_splat.pretraining.run import export_checkpoint as export_checkpoint
from lora3d_splat.pretraining.run import pretrain as pretrain
