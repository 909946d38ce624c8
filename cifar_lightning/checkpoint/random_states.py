"""The random generators that torch uses by default, such as for dropout: their states, and going on from them."""

import torch
from torch import Tensor


def default_generators(device: torch.device) -> dict[str, Tensor]:
    """States of torch's default generators: the CPU's, and that of another device where one is used."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def set_default_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Go on from such states; of a device of another kind than the present one there is nothing to take over."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type])
