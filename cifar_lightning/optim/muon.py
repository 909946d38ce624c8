"""Muon: momentum with orthogonal updates, for the filters of convolutions; and SGD for all other parameters."""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.sgd import sgd as sgd_step

from cifar_lightning.device import multiplies_bf16

KINDS = ("muon", "sgd")


def newton_schulz(
    matrices: Float[Tensor, "b m n"], *, steps: int = 3, dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "b m n"]:
    """Move the singular values of each matrix near 1 and keep its singular vectors: roughly its polar factor.

    Each step maps every singular value s to a s + b s^3 + c s^5. The coefficients make small values grow as fast as
    possible (3.4-fold a step). The values do not converge to 1: large ones stay within [0.68, 1.21].

    Args:
        matrices: Batch of matrices.
        steps: Number of iterations, at least 0; 3 are enough for a short training, 5 are usual.
        dtype: Precision of the iterations.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Bernstein and Newhouse 2024
    (arXiv:2409.20325) for the use of the iteration.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # the Frobenius norm bounds the largest singular value
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x  # so that the Gram matrix is the smaller of the two
    for _ in range(steps):
        gram = x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G^2
        x = torch.baddbmm(x, factor, x, beta=a)  # a X + (b G + c G^2) X
    return (x.mT if is_tall else x).to(matrices.dtype)


@functools.cache
def _compiled_newton_schulz(**options: Any) -> Callable[..., Tensor]:
    """Return one compiled function for all optimizers of the process, so that a new one reuses the compiled code."""
    return torch.compile(newton_schulz, **options)


class Muon(torch.optim.Optimizer):
    """Muon and SGD with Nesterov momentum in one optimizer; the ``kind`` of a parameter group selects one.

    A ``muon`` group holds filters, as matrices (out channels x all other dimensions). First, the weights of each
    convolution are scaled to a norm of sqrt(out channels), so an average filter has a norm of 1. Then the update is the
    Nesterov momentum, made orthogonal by ``newton_schulz``. So the scale of gradients and weights does not matter, and
    ``lr`` is the relative size of a step. A batch norm should follow the filters, so that their scale has no effect on
    the output. These groups have no weight decay.

    An ``sgd`` group does the same as ``torch.optim.SGD`` with ``nesterov=True``.

    A group whose learning rate is 0 does not change, and neither does its momentum.

    Args:
        params: Parameters or groups; a group may have its own value of each argument below.
        lr: Learning rate.
        momentum: Share of the momentum that each step keeps, in [0, 1).
        weight_decay: As in ``torch.optim.SGD``; for ``sgd`` groups.
        ns_steps: Iterations of ``newton_schulz``; for ``muon`` groups.
        kind: ``muon`` or ``sgd``.

    Raises:
        ValueError: If a group's kind is unknown, or a ``muon`` group holds a parameter of rank 0 or 1.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", in the form that the author
    gave it for CIFAR-10.
    """

    _newton_schulz: Callable[..., Tensor] = staticmethod(newton_schulz)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.6,
        weight_decay: float = 0.0,
        ns_steps: int = 3,
        kind: str = "muon",
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "ns_steps": ns_steps, "kind": kind}
        super().__init__(params, defaults)

    def compile(self, **options: Any) -> None:
        """Compile ``newton_schulz`` with these options of ``torch.compile``.

        Do not use a mode with CUDA graphs. Each call would count as a new iteration, and could overwrite the gradients,
        which are outputs of the network's graph.
        """
        self._newton_schulz = _compiled_newton_schulz(**options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["kind"] not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {group['kind']!r}")
        if group["kind"] == "muon" and any(parameter.ndim < 2 for parameter in group["params"]):
            raise ValueError("parameters of a muon group must be of rank 2 at least, got one of rank 0 or 1")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["lr"] == 0 or not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            buffers = [self._momentum_buffer(parameter) for parameter in parameters]
            if group["kind"] == "muon":
                self._muon_step(group, parameters, gradients, buffers)
            else:
                sgd_step(
                    parameters,
                    gradients,
                    list(buffers),
                    lr=group["lr"],
                    momentum=group["momentum"],
                    weight_decay=group["weight_decay"],
                    dampening=0.0,
                    nesterov=True,
                    maximize=False,
                    fused=parameters[0].is_cuda,
                )
        return loss

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]

    def _muon_step(
        self, group: dict[str, Any], filters: list[Tensor], gradients: list[Tensor], buffers: list[Tensor]
    ) -> None:
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        nesterov = torch._foreach_add(gradients, buffers, alpha=group["momentum"])
        directions = self._orthogonal(nesterov, ns_steps=group["ns_steps"], fill_up=filters[0].is_cuda)
        scales = torch._foreach_norm(filters)
        torch._foreach_add_(scales, 1e-7)
        torch._foreach_reciprocal_(scales)
        torch._foreach_mul_(scales, [math.sqrt(len(weight)) for weight in filters])
        torch._foreach_mul_(filters, scales)
        torch._foreach_add_(filters, directions, alpha=-group["lr"])

    def _orthogonal(self, filters: Sequence[Tensor], *, ns_steps: int, fill_up: bool) -> list[Tensor]:
        """Apply ``newton_schulz`` to the filters of each convolution as a matrix; equal shapes form one batch.

        With ``fill_up``, matrices with equal numbers of rows form one batch. The narrower ones get columns of zeros,
        which change no singular value. On a GPU one larger batch takes less time than two calls.
        """
        together: dict[Any, list[int]] = defaultdict(list)
        for index, weight in enumerate(filters):
            together[len(weight) if fill_up else weight.shape].append(index)
        directions = list(filters)
        for indices in together.values():
            banks = [filters[index] for index in indices]
            matrices = banks[0].new_zeros(len(banks), len(banks[0]), max(bank[0].numel() for bank in banks))
            torch._foreach_copy_(_as_filters(matrices, banks), banks)
            dtype = torch.bfloat16 if multiplies_bf16(matrices.device.type) else torch.float32
            orthogonal = self._newton_schulz(matrices, steps=ns_steps, dtype=dtype)
            for index, direction in zip(indices, _as_filters(orthogonal, banks), strict=True):
                directions[index] = direction
        return directions


def _as_filters(matrices: Float[Tensor, "b m n"], banks: list[Tensor]) -> list[Tensor]:
    """Reshape the matrices to the shapes of the filters as torch views, without the columns that were filled up."""
    pairs = zip(matrices, banks, strict=True)
    return [matrix[:, : bank[0].numel()].unflatten(1, bank.shape[1:]) for matrix, bank in pairs]
