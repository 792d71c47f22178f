"""Neural networks of M independent members, computed together.

A member is one seed's network, or one of a seed's twin critics. Every layer is a single batched
matrix product over the members; that is where lockstep training gets its speed from.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.common.streams import SeedStreams
from agents.protocol import PLAIN, NetworkOptions

Activation = Callable[[Tensor], Tensor]


class _Mish(torch.autograd.Function):
    """mish(x) = x tanh(softplus(x)) with a single exponential in each direction.

    With e = exp(x) and n = e (e + 2): tanh(softplus(x)) = n / (n + 2). The exponent is capped at
    20, where the quotient is 1 in float32 and an overflow of e^2 is far away.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        e, gate = _mish_gate(x)
        ctx.save_for_backward(x, e, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        x, e, gate = ctx.saved_tensors
        # d gate / dx = 2 n' / (n + 2)^2 with n' = 2 e (e + 1); and 2 / (n + 2) = 1 - gate.
        slope = (1.0 - gate).square_().mul_(e * (e + 1.0))
        grad: Tensor = grad_outputs[0] * slope.mul_(x).add_(gate)
        return grad


def _mish_gate(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(x), capped, and tanh(softplus(x))."""
    e = x.clamp(max=20.0).exp_()
    n = e * (e + 2.0)
    return e, n / (n + 2.0)


def mish(x: Tensor) -> Tensor:
    """Compute the mish activation (Misra, 2019), elementwise; faster than torch's on a CPU."""
    if not torch.is_grad_enabled():  # a function with a gradient of its own costs a call more
        return x * _mish_gate(x)[1]
    out: Tensor = _Mish.apply(x)  # type: ignore[no-untyped-call]
    return out


NARROW = 16
"""With fewer columns, MKL's batched product of tall matrices is slower than that of transposes."""


class _NarrowAffine(torch.autograd.Function):
    """b + x w for few columns of w: [M, 1, N], [M, B, K], [M, K, N] -> [M, B, N].

    The same products as of a wide w, each in the order that a CPU does fast: with 256 rows, 256
    inputs and 2 members this takes a quarter of the time at N = 6, and an eighth at N = 1.
    """

    @staticmethod
    def forward(ctx: Any, b: Tensor, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return _narrow_affine(b, x, w)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, w = ctx.saved_tensors
        (g,) = grad_outputs
        grad_x = g * w.mT if w.shape[-1] == 1 else g @ w.mT
        return g.sum(dim=1, keepdim=True), grad_x, (g.mT @ x).mT


def _narrow_affine(b: Tensor, x: Tensor, w: Tensor) -> Tensor:
    if w.shape[-1] == 1:
        return (x * w.mT).sum(dim=-1, keepdim=True) + b
    return torch.bmm(w.mT, x.mT).mT + b


WIDE = 128
"""With fewer columns, a product takes less time than a function's call with its own gradient."""


class _ProductOfFew(torch.autograd.Function):
    """x w for few columns of x: [M, B, K], [M, K, N] -> [M, B, N].

    The gradient of x is a product with few columns, made in the order that a CPU does fast: with
    256 rows, 256 outputs and 2 members in 0.6 of the time at K = 6 or 30.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return torch.bmm(x, w)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        (g,) = grad_outputs
        grad_x = torch.bmm(w, g.mT).mT if ctx.needs_input_grad[0] else None
        return grad_x, torch.bmm(x.mT, g) if ctx.needs_input_grad[1] else None


def product_of_few(x: Tensor, w: Tensor) -> Tensor:
    """Return x w for few columns of x, such as an action's: [M, B, K], [M, K, N] -> [M, B, N]."""
    if w.shape[-1] < WIDE or not torch.is_grad_enabled():  # as in mish
        return torch.bmm(x, w)
    out: Tensor = _ProductOfFew.apply(x, w)  # type: ignore[no-untyped-call]
    return out


class _RoundedProduct(torch.autograd.Function):
    """x w of factors rounded to bfloat16, both ways: [M, B, K], [M, K, N] -> [M, B, N].

    The sums within a product are float32; the result is rounded once more, to bfloat16. What is
    kept for the way back are the rounded factors: half the bytes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        x_rounded, w_rounded = x.bfloat16(), w.bfloat16()
        ctx.save_for_backward(x_rounded, w_rounded)
        return torch.bmm(x_rounded, w_rounded).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        (g,) = grad_outputs
        rounded = g.bfloat16()
        return torch.bmm(rounded, w.mT).to(g.dtype), torch.bmm(x.mT, rounded).to(g.dtype)


def rounded_product(x: Tensor, w: Tensor) -> Tensor:
    """Return x w of factors rounded to bfloat16: [M, B, K] and [M, K, N] -> [M, B, N] as x is.

    The sums are float32. The result is rounded to bfloat16 once more, and so are both gradients.
    """
    out: Tensor = _RoundedProduct.apply(x, w)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Module):
    """M affine maps as one batched matrix product: [M, B, inputs] -> [M, B, outputs].

    Each member's weights and biases start as ``options`` say, from its own seed's stream.
    ``members`` is a multiple of the number of streams: member m belongs to seed m mod S. ``heads``
    is how many layers of equal size stand side by side in this one: each starts as one of its own.
    A layer ``between_hidden`` layers, from one to the next, is the one whose factors are rounded
    where the options ask for bfloat16.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        streams: SeedStreams,
        options: NetworkOptions = PLAIN,
        *,
        between_hidden: bool = False,
        twins: int = 1,
        heads: int = 1,
    ) -> None:
        super().__init__()
        self.twins = twins
        self.rounded = between_hidden and options.matmul_precision == "bfloat16"
        weight_bound = bias_bound = 1.0 / math.sqrt(inputs)
        if options.initialization == "xavier":
            weight_bound, bias_bound = math.sqrt(6.0 / (inputs + outputs // heads)), 0.0

        def start(rows: int, bound: float) -> nn.Parameter:
            drawn = [streams.uniform(rows, outputs, low=-bound, high=bound) for _ in range(twins)]
            return nn.Parameter(torch.cat(drawn))

        self.weight = start(inputs, weight_bound)
        self.bias = start(1, bias_bound)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.twins > 1 and self.twins * len(x) == len(weight):
            # The first of the twins alone.
            weight, bias = weight[: len(x)], bias[: len(x)]
        if weight.shape[-1] < NARROW and not self.rounded:
            if not torch.is_grad_enabled():  # as in mish
                return _narrow_affine(bias, x, weight)
            out: Tensor = _NarrowAffine.apply(bias, x, weight)  # type: ignore[no-untyped-call]
            return out
        if self.rounded:
            return rounded_product(x, weight) + bias
        return torch.bmm(x, weight) + bias


class MLP(nn.Module):
    """A multilayer perceptron of M members: [M, B, inputs] -> [M, B, outputs]; linear output.

    ``heads`` is how many outputs of equal size the last layer's are: see ``Linear``. With
    ``of_hidden`` the inputs are themselves a hidden layer.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        streams: SeedStreams,
        options: NetworkOptions = PLAIN,
        *,
        activation: Activation = functional.relu,
        of_hidden: bool = False,
        twins: int = 1,
        heads: int = 1,
    ) -> None:
        super().__init__()
        self.activation = activation
        last = len(sizes) - 2
        self.layers = nn.ModuleList(
            Linear(
                inputs,
                outputs,
                streams,
                options,
                between_hidden=(of_hidden or layer > 0) and layer < last,
                twins=twins,
                heads=heads if layer == last else 1,
            )
            for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes))
        )

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        out: Tensor = last(x)
        return out


class TwinCritic(nn.Module):
    """Two Q networks per seed, as one network of 2 S members.

    ([S, B, obs], [S, B, act]) -> [2, S, B]. With several ``outputs`` a subclass says what they are.
    ``twins`` is another number of networks than two.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int],
        streams: SeedStreams,
        options: NetworkOptions = PLAIN,
        *,
        outputs: int = 1,
        twins: int = 2,
    ) -> None:
        super().__init__()
        sizes = (observation_size + action_size, *hidden_sizes, outputs)
        self.inputs = [observation_size, action_size]
        self.twins = twins
        self.mlp = MLP(sizes, streams, options, twins=twins, heads=outputs)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.value(self.all_outputs(observation, action))

    def value(self, outputs: Tensor) -> Tensor:
        """Return the value that the outputs of a network stand for: [..., outputs] -> [...]."""
        return outputs.squeeze(-1)

    def all_outputs(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return the outputs of both networks, [2, S, B, outputs]."""
        seeds, batch, _ = action.shape
        x = torch.cat([observation, action], dim=-1).repeat(self.twins, 1, 1)
        out: Tensor = self.mlp(x).view(self.twins, seeds, batch, -1)
        return out

    def at_observation(
        self, observation: Tensor, twins: int | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Fix the observations [S, B, obs]; the result values actions: [S, B, act] -> [2, S, B].

        What the first layer makes of the observations is computed once for all actions to come.
        Gradients run to the actions, and not to that layer. With ``twins`` = 1 it is the first
        network alone, at half the cost: [1, S, B].
        """
        twins = twins or self.twins
        members = twins * len(observation)
        weight, bias = (x[:members].detach() for x in self.mlp.layers[0].parameters())
        for_observation, for_action = weight.split(self.inputs, dim=1)
        shared = torch.bmm(observation.repeat(twins, 1, 1), for_observation) + bias

        def values(action: Tensor) -> Tensor:
            x = product_of_few(action.repeat(twins, 1, 1), for_action) + shared
            for layer in self.mlp.layers[1:]:
                x = layer(self.mlp.activation(x))
            return self.value(x.view(twins, *action.shape[:2], -1))

        return values
