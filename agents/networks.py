"""Neural networks of M independent members, computed together.

A member is one seed's network, or one of a seed's twin critics. Every layer is a single batched
matrix product over the members; that is where lockstep training gets its speed from.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.streams import SeedStreams

Activation = Callable[[Tensor], Tensor]


class _Mish(torch.autograd.Function):
    """mish(x) = x tanh(softplus(x)) with a single exponential in each direction.

    With e = exp(x) and n = e (e + 2): tanh(softplus(x)) = n / (n + 2). The exponent is capped at
    20, where the quotient is 1 in float32 and an overflow of e^2 is far away.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        e = x.clamp(max=20.0).exp_()
        n = e * (e + 2.0)
        gate = n / (n + 2.0)
        ctx.save_for_backward(x, e, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        x, e, gate = ctx.saved_tensors
        # d gate / dx = 2 n' / (n + 2)^2 with n' = 2 e (e + 1); and 2 / (n + 2) = 1 - gate.
        slope = (1.0 - gate).square_().mul_(e * (e + 1.0))
        grad: Tensor = grad_outputs[0] * slope.mul_(x).add_(gate)
        return grad


def mish(x: Tensor) -> Tensor:
    """The mish activation (Misra, 2019), elementwise; a drop-in for torch's slow one on a CPU."""
    out: Tensor = _Mish.apply(x)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Module):
    """M affine maps as one batched matrix product: [M, B, inputs] -> [M, B, outputs].

    Weights and biases start uniform in +-1/sqrt(fan_in) (torch's own default). ``members`` is a
    multiple of the number of streams: member m belongs to seed m mod S.
    """

    def __init__(
        self, inputs: int, outputs: int, streams: SeedStreams, twins: int = 1, fan_in: int = 0
    ) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(fan_in or inputs)

        def start(rows: int) -> nn.Parameter:
            drawn = [streams.uniform(rows, outputs, low=-bound, high=bound) for _ in range(twins)]
            return nn.Parameter(torch.cat(drawn))

        self.weight = start(inputs)
        self.bias = start(1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class MLP(nn.Module):
    """A multilayer perceptron of M members: [M, B, inputs] -> [M, B, outputs]; linear output."""

    def __init__(
        self,
        sizes: Sequence[int],
        streams: SeedStreams,
        *,
        activation: Activation = functional.relu,
        twins: int = 1,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList(
            Linear(inputs, outputs, streams, twins) for inputs, outputs in itertools.pairwise(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        out: Tensor = last(x)
        return out


class TwinCritic(nn.Module):
    """Two Q networks per seed, as one network of 2 S members.

    ([S, B, obs], [S, B, act]) -> [2, S, B].
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int],
        streams: SeedStreams,
    ) -> None:
        super().__init__()
        sizes = (observation_size + action_size, *hidden_sizes, 1)
        self.mlp = MLP(sizes, streams, twins=2)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        seeds, batch, _ = action.shape
        x = torch.cat([observation, action], dim=-1).repeat(2, 1, 1)
        out: Tensor = self.mlp(x).view(2, seeds, batch)
        return out


def polyak_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """Move the target's parameters the share ``rate`` of the way to the online network's."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)


class Adam:
    """Adam over parameters of S seeds, minimising S independent losses at once.

    Every operation is elementwise in the parameters, so no seed's gradient reaches another's.
    ``decay_updates`` > 0 lowers the step size to 0 along a half cosine over that many updates.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, decay_updates: int = 0
    ) -> None:
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self.decay_updates = decay_updates
        self.updates = 0
        self._adam = torch.optim.Adam(self.parameters, lr=learning_rate, fused=True)

    def minimise(self, loss: Tensor) -> Tensor:
        """Take one step down the gradient of each seed's own ``loss``, [S].

        Returns the norm of each member's gradient, [M].
        """
        gradients = torch.autograd.grad(loss.sum(), self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.decay_updates:
            progress = min(self.updates / self.decay_updates, 1.0)
            self._adam.param_groups[0]["lr"] = (
                self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
            )
        self._adam.step()
        self.updates += 1
        squares = [gradient.flatten(1).square().sum(dim=1) for gradient in gradients]
        return torch.stack(squares).sum(dim=0).sqrt()

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts."""
        return {"updates": self.updates, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.updates = state["updates"]
        self._adam.load_state_dict(state["adam"])
