"""Errors that say what was found, what is accepted and what to do next."""

from __future__ import annotations


class Lora3DError(Exception):
    """A failure that a user can act on; its text is one readable sentence per part."""

    def __init__(self, found: str, accepted: str, remedy: str) -> None:
        self.found = found
        self.accepted = accepted
        self.remedy = remedy
        super().__init__(f"found {found}; accepted: {accepted}; what to do: {remedy}")

    def __reduce__(self) -> tuple[type[Lora3DError], tuple[str, str, str]]:
        return type(self), (self.found, self.accepted, self.remedy)


class InputError(Lora3DError):
    """The photographs, paths or settings that were given cannot be used."""


class CheckpointError(Lora3DError):
    """A network checkpoint does not hold what its architecture needs."""


class AlignmentError(Lora3DError):
    """No scene can be built from the pair predictions."""


class MissingPartError(Lora3DError):
    """An optional part (weights, program, library) is needed and not installed."""
