"""How parameters move: Adam on many losses at once, and the Polyak average of a target network.

Both are elementwise in the parameters, so no seed's numbers reach another's, and keep all that
changes in tensors, so that a whole update can be compiled, or captured in a CUDA graph.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Adam (Kingma, Ba; 2015; arXiv 1412.6980) of S independent losses at once.

    ``decay_updates`` > 0 lowers the step size to 0 along a half cosine over that many updates.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, decay_updates: int = 0
    ) -> None:
        self.parameters: list[Tensor] = [*parameters]
        self.learning_rate = learning_rate
        self.decay_updates = decay_updates
        self.first_moments = [torch.zeros_like(p) for p in self.parameters]
        self.second_moments = [torch.zeros_like(p) for p in self.parameters]
        self.updates = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)

    def minimize(self, loss: Tensor) -> Tensor:
        """Move the parameters down the gradient of each seed's own ``loss``, [S], once.

        Returns the norm of each member's gradient, [M].
        """
        squares = torch._foreach_pow(self.descend(loss), 2)
        return torch.stack([x.flatten(1).sum(dim=1) for x in squares]).sum(dim=0).sqrt()

    def descend(self, loss: Tensor) -> tuple[Tensor, ...]:
        """Do as ``minimize`` does, without the work of a norm; returns the gradients."""
        gradients = torch.autograd.grad(loss.sum(), self.parameters)
        self._move(gradients)
        return gradients

    @torch.no_grad()
    def _move(self, gradients: tuple[Tensor, ...]) -> None:
        step_size = self._step_size()
        self.updates += 1
        torch._foreach_lerp_(self.first_moments, gradients, 1 - FIRST_DECAY)
        torch._foreach_mul_(self.second_moments, SECOND_DECAY)
        torch._foreach_addcmul_(self.second_moments, gradients, gradients, 1 - SECOND_DECAY)
        # The moments began at zero; these are the corrections for it. As exponentials, and not as
        # powers, torch computes them once when it compiles, and not at every parameter again.
        first = step_size / (1 - (self.updates * math.log(FIRST_DECAY)).exp())
        second = (1 - (self.updates * math.log(SECOND_DECAY)).exp()).sqrt()
        # Of step_size m / (sqrt(v) / second + EPSILON), with a division less.
        moves = torch._foreach_sqrt(self.second_moments)
        # Under its plain name torch reads the number on the host first: a GPU would be waited for.
        torch.ops.aten._foreach_add_.Tensor(moves, (EPSILON * second).to(moves[0].dtype))
        torch._foreach_reciprocal_(moves)
        torch._foreach_mul_(moves, (first * second).to(moves[0].dtype))
        torch._foreach_addcmul_(self.parameters, self.first_moments, moves, -1.0)

    def _step_size(self) -> Tensor:
        step_size = torch.full_like(self.updates, self.learning_rate)
        if self.decay_updates:
            progress = (self.updates / self.decay_updates).clamp(max=1.0)
            step_size = step_size * 0.5 * (1.0 + (math.pi * progress).cos())
        return step_size

    def state_dict(self) -> dict[str, Any]:
        """Return the moments and the number of updates."""
        return {
            "first_moments": self.first_moments,
            "second_moments": self.second_moments,
            "updates": self.updates,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned. Raises ValueError if it has other shapes."""
        for name in ("first_moments", "second_moments"):
            for mine, saved in zip(getattr(self, name), state[name], strict=True):
                if mine.shape != saved.shape:
                    raise ValueError(f"{name} of {tuple(saved.shape)}, not {tuple(mine.shape)}")
                mine.copy_(saved)
        self.updates.copy_(state["updates"])


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """Move the target's parameters the share ``rate`` of the way to the online network's."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)
