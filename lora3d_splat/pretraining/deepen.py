"""More blocks for trained weights: a deeper network that says at first what the shallower one said."""

from __future__ import annotations

from dataclasses import replace

import torch

from lora3d_splat.errors import InputError
from lora3d_splat.networks.compact import CompactArchitecture, CompactNetwork

LAST = ("attn.proj.", "cross_attn.proj.", "mlp.fc2.")
"""what a block adds to the residual stream comes through one of these layers"""


@torch.no_grad()
def deepen(network: CompactNetwork, architecture: CompactArchitecture) -> CompactNetwork:
    """A network of `architecture` with the weights of `network`; blocks that it lacks come last and add nothing yet.

    Raises InputError where more than the number of blocks differs, or where there would be fewer of them.
    """
    has = network.architecture
    fits = replace(has, encoder_depth=architecture.encoder_depth, decoder_depth=architecture.decoder_depth)
    fewer = architecture.encoder_depth < has.encoder_depth or architecture.decoder_depth < has.decoder_depth
    if fits != architecture or fewer:
        raise InputError(
            f"weights of {has}",
            f"weights of {architecture}, or of as wide a network with fewer blocks",
            "set the architecture to that of the weights, or leave --initial out",
        )
    deeper = CompactNetwork(architecture)
    known = network.state_dict()
    deeper.load_state_dict(known, strict=False)
    for name, parameter in deeper.named_parameters():
        if name not in known and any(f".{last}" in f".{name}" for last in LAST):
            parameter.zero_()
    return deeper
