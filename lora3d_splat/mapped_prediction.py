"""A pair prediction that lies on disk: its tensors are mapped each time they are asked for, and let go after use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora3d_splat.errors import InputError
from lora3d_splat.records import ImagePair


@dataclass(frozen=True)
class MappedPrediction:
    """Stands in for a `PairPrediction` of the same fields; memory holds no more than what is in use.

    The file is an artefact of the stage cache, whose content was verified when it was written or found. Fields raise
    InputError where it has gone since.
    """

    pair: ImagePair
    file: Path

    @property
    def points_reference(self) -> Tensor:
        """As in PairPrediction, as the other fields are."""
        return self._map("points_reference")

    @property
    def confidence_reference(self) -> Tensor:
        return self._map("confidence_reference")

    @property
    def points_other(self) -> Tensor:
        return self._map("points_other")

    @property
    def confidence_other(self) -> Tensor:
        return self._map("confidence_other")

    def _map(self, name: str) -> Tensor:
        try:
            with safe_open(self.file, framework="pt") as stored:
                return stored.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise InputError(
                found=f"the stored prediction {self.file}, which cannot be read any more ({error})",
                accepted="a cache folder that stays as it is while it is used",
                remedy="run the same command again; what is missing is predicted again",
            ) from error
