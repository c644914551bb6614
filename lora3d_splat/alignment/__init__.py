"""Robust multi-view alignment of pair predictions, with confidence calibration (LoRA3D)."""

from .align import Alignment as Alignment
from .align import align as align
from .config import AlignmentConfig as AlignmentConfig
from .judge import pair_residual as pair_residual
from .priors import CameraPriors as CameraPriors
from .priors import PoseSigma as PoseSigma
from .register import register_views as register_views
from .solve import AlignmentStep as AlignmentStep
