"""The states of torch's default random generators, which decide for example what dropout drops."""

import torch
from torch import Tensor


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of torch's default generators: the CPU's, and that of another device where one is used."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore such states; of a device of another kind than the present one there is nothing to restore."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type])
