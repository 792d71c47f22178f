"""What is equal for all agents of an experiment, so that trainers alone are compared."""

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qsm_bench.errors import UserError

MOST_STEPS, MOST_EPISODES, MOST_EVALUATIONS = 10**12, 10_000, 1_000_000
"""A larger number is a slip of the hand or a damaged file; a run would only find out by failing."""

Count = Annotated[int, Field(ge=1, le=MOST_STEPS, strict=True)]


class Protocol(BaseModel):
    """How every agent of an experiment is trained and evaluated.

    The command line has one option for each field but ``settings``. Raises UserError that names
    the field, its value and what would be right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Annotated[
        Count, Field(description="Steps of each seed; a step is one decision of the agent.")
    ] = 1_000_000
    warmup_steps: Annotated[
        Count, Field(description="Uniformly random steps before the first update.")
    ] = 10_000
    batch_size: Annotated[Count, Field(description="Transitions in an update.")] = 256
    updates_per_step: Annotated[
        Count, Field(description="Updates after each step, once the warm-up is over.")
    ] = 1
    replay_capacity: Annotated[
        Count, Field(description="Transitions of each seed that are kept at most.")
    ] = 1_000_000
    eval_every: Annotated[Count, Field(description="Steps between evaluations.")] = 5_000
    eval_episodes: Annotated[
        Count, Field(le=MOST_EPISODES, description="Episodes of an evaluation, for each seed.")
    ] = 10
    action_repeat: Annotated[
        Count, Field(description="Environment steps for which an action is held, in every step.")
    ] = 1
    settings: dict[str, Any] = {}
    """Settings that every agent has (see ``AgentConfig``) and that differ from the defaults here.
    An agent's own setting, or that of its preset, comes before them."""

    if not TYPE_CHECKING:  # an editor shows the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise UserError(_first_fault(values, error)) from error

    @model_validator(mode="after")
    def _refuse_what_does_not_fit(self) -> "Protocol":
        if self.steps <= self.warmup_steps:
            raise ValueError(
                f"--steps {self.steps} leaves nothing to learn after --warmup-steps "
                f"{self.warmup_steps}: give more steps or a shorter warm-up"
            )
        if self.steps / self.eval_every > MOST_EVALUATIONS:
            raise ValueError(
                f"--eval-every {self.eval_every} gives {self.steps // self.eval_every:,} "
                f"evaluations in --steps {self.steps}: {MOST_EVALUATIONS:,} at most are possible"
            )
        return self

    def but(self, **changes: Any) -> "Protocol":
        """This protocol with some fields changed. Raises UserError as the constructor does."""
        return Protocol(**{**self.model_dump(), **changes})

    @property
    def replay_size(self) -> int:
        """Transitions of each seed that there is room for: no run fills more than its steps."""
        return min(self.steps, self.replay_capacity)

    @property
    def updates(self) -> int:
        """Gradient updates of each seed in a whole run."""
        return self.updates_by(self.steps)

    def updates_by(self, step: int) -> int:
        """Gradient updates of each seed in the first ``step`` steps."""
        return self.updates_per_step * max(0, step - self.warmup_steps)

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation stands after that step."""
        return step > 0 and (step % self.eval_every == 0 or step == self.steps)

    def evaluated_steps(self, lengths: Iterable[int] = ()) -> list[int]:
        """The steps of all evaluations, in order.

        ``lengths`` are the earlier ends of a run that was given more steps: it was evaluated there.
        """
        return sorted({*range(self.eval_every, self.steps, self.eval_every), *lengths, self.steps})


def option(field: str) -> str:
    """The command line's name of a field."""
    return f"--{field.replace('_', '-')}"


def _first_fault(values: dict[str, Any], error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    field = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        from agents.protocol import AgentConfig  # it loads torch

        if field in (each.name for each in fields(AgentConfig)):
            return (
                f"a protocol has no {field!r}, which is a setting of every agent: give it as "
                f"settings={{{field!r}: {values[field]!r}}}"
            )
        return f"a protocol has no {field!r}: its fields are {', '.join(Protocol.model_fields)}"
    message = message[0].lower() + message[1:]
    return f"{option(field)} {values.get(field)!r} is not right: {message}"
