"""The recipe's tables as pydantic models: the one place for names, types, ranges, defaults and meanings.

The recipe reference in the documentation, the JSON Schema for editors, and the checks of the command line all come from
here. A field that this version accepts without acting on it carries `x-planned` (noted when it is set). One that would
change what a run means carries `x-unavailable` (an error).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from trainrun.recipe import duration, rules
from trainrun.recipe.plain import SLUG, dotted, json_form

Slug = Annotated[str, Field(pattern=SLUG, max_length=64)]
PositiveInt = Annotated[int, Field(ge=1, le=2**53)]
OnSignal = Literal["checkpoint", "stop", "ignore"]
Keyword = bool | int | float | str | list[bool | int | float | str]

_DURATION_TEXT = {"type": "string", "pattern": duration.PATTERN}
Duration = Annotated[
    float,
    Field(ge=0),
    BeforeValidator(lambda value: duration.seconds(value) if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, _DURATION_TEXT], "x-type": "duration"}),
]
DurationText = Annotated[str, Field(pattern=duration.PATTERN, json_schema_extra={"x-type": "duration"})]

_CONTROL: dict[str, Any] = {"x-planned": "live control is not part of this version"}


def _unavailable(why: str, *values: Any) -> dict[str, Any]:
    return {"x-unavailable": {"why": why, "values": list(values)} if values else {"why": why}}


class Table(BaseModel):
    """What all tables share: nothing is converted, nothing is ignored, nothing changes afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class RunTable(Table):
    """The run's name, folder, seed and determinism."""

    name: Slug = Field(
        default="train", description="Short name of the run: lower-case letters, digits, and . _ - between them."
    )
    dir: str = Field(default="runs", min_length=1, description="Folder that holds the run directories.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of weights, data order and all random generators.")
    deterministic: bool = Field(default=True, description="Ask torch for deterministic algorithms.")
    autoload: bool = Field(
        default=False,
        description="Enable every installed plugin that needs no options, not only those that the recipe names.",
    )


class TaskTable(Table):
    """The training code. Keys other than `use` are the task's own options."""

    model_config = ConfigDict(extra="allow")

    use: str = Field(
        min_length=1,
        description="Name of an installed task, `module`, `module:Class`, or a path such as `tasks/digits.py`.",
    )

    @property
    def options(self) -> dict[str, Any]:
        """Return the task's own options."""
        return dict(self.model_extra or {})


class LaunchTable(Table):
    """How workers are started, stopped and restarted."""

    backend: Slug = Field(default="local", description="What starts the workers: `local`, or a backend plugin.")
    workers: PositiveInt | Literal["auto"] = Field(
        default="auto", description="Workers per node; `auto` is one per GPU, or one without GPUs."
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="Number of machines.",
    )
    start: Literal["warm", "cold"] = Field(
        default="warm",
        description="`warm` forks workers from a process that has imported torch; `cold` starts each as a new process.",
    )
    preload: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[],
        description="Modules that the warm process also imports; they must not start threads or use CUDA.",
    )
    max_restarts: int = Field(default=3, ge=0, le=1000, description="Maximum number of restarts after workers crash.")
    max_preemptions: int = Field(
        default=10, ge=0, le=1000, description="Maximum number of restarts after workers are stopped from outside."
    )
    max_node_losses: int = Field(
        default=10, ge=0, le=1000, description="Maximum number of restarts after a node is lost."
    )
    grace: Duration = Field(default=30.0, description="Time between a stop request and killing the workers.")
    timeout: Duration = Field(
        default=600.0, description="End the attempt as hung if no rank advances for this long; 0 disables this."
    )
    straggler: float = Field(
        default=1.5, ge=0, description="Report a rank whose own work takes this many times the median; 0 disables this."
    )
    node_timeout: Duration = Field(default=300.0, description="How long to wait for missing nodes.")
    output_limit: int = Field(
        default=64, ge=1, le=1_000_000, description="MiB of output to keep for each worker; older output is dropped."
    )
    on_usr1: OnSignal = Field(default="checkpoint", description="Action on SIGUSR1 to the launching process.")
    on_usr2: OnSignal = Field(default="stop", description="Action on SIGUSR2 to the launching process.")


class DataTable(Table):
    """How workers load data."""

    workers: int = Field(
        default=0, ge=0, le=1024, description="Loader processes per worker; 0 loads in the worker itself."
    )
    pin_memory: bool | Literal["auto"] = Field(
        default="auto", description="Put batches into page-locked memory; `auto` does so with CUDA."
    )
    shuffle: bool = Field(
        default=True, description="Shuffle the training data anew in each epoch, seeded by `run.seed`."
    )
    drop_last: bool = Field(default=False, description="Drop the last batch of an epoch if it is smaller.")


class TrainTable(Table):
    """How long and in what batches training runs. Exactly one of `steps` and `epochs` is required."""

    steps: PositiveInt | None = Field(default=None, description="Number of optimizer updates.")
    epochs: PositiveInt | None = Field(default=None, description="Number of passes over the training data.")
    batch_size: PositiveInt = Field(default=64, description="Samples per optimizer update, over all workers.")
    micro_batch_size: PositiveInt | None = Field(
        default=None,
        description="Samples per forward and backward on a worker; by default, its whole share of the batch.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="`bf16` and `fp16` use autocast; `fp16` also scales gradients."
    )
    clip_grad_norm: float | None = Field(
        default=None, gt=0, description="Clip gradients to this 2-norm; by default, no clipping."
    )
    compile: bool = Field(default=False, description="Compile the model with `torch.compile`.")
    log_every: PositiveInt = Field(default=10, description="Number of steps between two logs of metrics.")
    nonfinite: Literal["fail", "warn"] = Field(
        default="fail", description="Fail or warn if a logged loss, or a value to save, is not finite."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`auto` is CUDA if there is a GPU, otherwise the CPU."
    )
    init_from: str | None = Field(
        default=None,
        min_length=1,
        description="Checkpoint or safetensors file to load initial weights from.",
        json_schema_extra=_unavailable("this version cannot load weights"),
    )


class EvaluateTable(Table):
    """When to evaluate the model, and on which data."""

    every: PositiveInt | Literal["epoch"] | None = Field(
        default=None,
        description="Number of steps between two evaluations, or `epoch`; by default, only at the end of training.",
    )
    splits: list[Annotated[str, Field(min_length=1)]] = Field(
        default=["eval"], description="Splits to evaluate; those for which the task has no data are skipped."
    )
    batch_size: PositiveInt | None = Field(
        default=None,
        description="Samples per evaluation batch on a worker; by default, the micro-batch size of training.",
    )


class OptimizerKeywords(Table):
    """What the whole optimizer and each of its groups may set: any keyword of the `torch.optim` class."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Keyword] = Field(init=False)

    lr: float | None = Field(default=None, ge=0, description="Learning rate; by default, that of the optimizer class.")
    weight_decay: float | None = Field(
        default=None, ge=0, description="Weight decay; by default, that of the optimizer class."
    )
    momentum: float | None = Field(default=None, ge=0, description="Momentum, for optimizers that have it.")
    betas: list[float] | None = Field(
        default=None, min_length=2, max_length=2, description="The two decay rates of the Adam family."
    )

    @property
    def keywords(self) -> dict[str, Any]:
        """Return the keyword arguments that the recipe sets."""
        own = {"name", "groups", "match"}
        return {key: value for key, value in self.model_dump(exclude_none=True).items() if key not in own}


class OptimizerGroup(OptimizerKeywords):
    """Parameters with their own settings."""

    match: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1,
        description="Shell patterns of parameter names; a parameter belongs to the first group that matches.",
    )


class OptimizerTable(OptimizerKeywords):
    """The optimizer: a class of `torch.optim` by name, and any of its keywords."""

    name: str = Field(
        default="adamw",
        pattern=r"^[A-Za-z][A-Za-z0-9_-]*$",
        description="Name of the class, case-insensitive: adamw, sgd, rmsprop, …",
    )
    groups: list[OptimizerGroup] = Field(default=[], description="Groups of parameters with their own settings.")


class SchedulerTable(Table):
    """How the learning rate changes from step to step."""

    name: Literal["constant", "linear", "cosine", "polynomial", "exponential", "step"] = Field(
        default="constant", description="Shape of the schedule after the warm-up."
    )
    warmup: int = Field(
        default=0, ge=0, le=2**53, description="Number of steps in which the learning rate rises linearly from 0."
    )
    min_lr: float = Field(default=0.0, ge=0, description="Lower bound of the learning rate.")
    power: float | None = Field(default=None, gt=0, description="`polynomial`: the exponent; by default 1.")
    gamma: float | None = Field(
        default=None, gt=0, le=1, description="`exponential`, `step`: the factor of each decay."
    )
    step_size: PositiveInt | None = Field(default=None, description="`step`: number of steps between two decays.")


class ParallelTable(Table):
    """How the model is spread over the workers."""

    strategy: Literal["none", "ddp", "fsdp"] = Field(
        default="ddp",
        description="`ddp` keeps a replica on each worker; `fsdp` (FSDP2) shards parameters, gradients and optimizer "
        "state; `none` does not wrap the model.",
    )
    wrap: list[Annotated[str, Field(min_length=1)]] | None = Field(
        default=None,
        description="`fsdp`: modules whose parameters are gathered together, by name (`blocks.*`) or class (`Block`); "
        "by default, the children of the model's module lists.",
    )
    find_unused_parameters: bool = Field(
        default=False,
        description="`ddp`: find parameters that a forward does not use; otherwise such a parameter is an error.",
    )
    check_replicas: PositiveInt | Literal["checkpoint", "never"] = Field(
        default="checkpoint",
        description="`ddp`: when to compare the parameters of all ranks bit for bit: before each checkpoint, never, "
        "or also every N steps. A difference is an error.",
    )


class CheckpointTable(Table):
    """When to write checkpoints, how many to keep, and which one to resume from."""

    every: PositiveInt | DurationText | Literal["never"] = Field(
        default="15m",
        description="Steps or time between two checkpoints; `never`: only those that `at_end` and plugins request.",
    )
    keep: int = Field(default=2, ge=2, le=2**53, description="Number of newest good checkpoints to keep, at least 2.")
    at_end: bool = Field(default=True, description="Write a checkpoint when training ends or is stopped.")
    background: bool = Field(default=True, description="Write in the background; training waits only for the copy.")
    max_failures: PositiveInt = Field(
        default=3, description="Stop, to be resumed later, after this many failed saves in a row."
    )
    resume: str = Field(
        default="auto",
        min_length=1,
        description="`auto`: from the run's newest good checkpoint; `never`: from step 0; or the path of a checkpoint.",
    )


class ControlTable(Table):
    """Live commands to a running job."""

    mode: Literal["open", "frozen"] = Field(
        default="open", description="`frozen` rejects all commands.", json_schema_extra=_CONTROL
    )


class PluginTable(Table):
    """An enabled plugin. All other keys are the plugin's own options."""

    model_config = ConfigDict(extra="allow")

    use: str | None = Field(
        default=None, min_length=1, description="Name of the plugin; by default, the name of the table."
    )
    enabled: bool | dict[str, Any] = Field(
        default=True,
        description="`false` disables the plugin; a table of recipe keys enables it only if all have these values.",
    )
    on_error: Literal["fail", "disable", "warn"] | None = Field(
        default=None, description="Action if one of its event hooks raises; by default, the plugin's own choice."
    )
    before: list[str] = Field(default=[], description="Instances that this one runs before.")
    after: list[str] = Field(default=[], description="Instances that this one runs after.")
    queue: PositiveInt = Field(default=1000, description="Maximum number of calls that wait for its background hooks.")
    when_full: Literal["drop", "block"] = Field(
        default="drop", description="If the queue is full, drop the oldest call or block training."
    )

    @property
    def options(self) -> dict[str, Any]:
        """Return the plugin's own options."""
        return dict(self.model_extra or {})


class Recipe(Table):
    """A validated recipe. Immutable; workers get the one that the launch resolved."""

    run: RunTable = Field(default_factory=RunTable, description="Name, folder and seed of the run.")
    task: TaskTable = Field(description="The training code and its options.")
    launch: LaunchTable = Field(default_factory=LaunchTable, description="Starting and stopping workers.")
    data: DataTable = Field(default_factory=DataTable, description="Loading of data.")
    train: TrainTable = Field(default_factory=TrainTable, description="Length, batches and precision of training.")
    evaluate: EvaluateTable = Field(default_factory=EvaluateTable, description="Evaluation.")
    optimizer: OptimizerTable = Field(default_factory=OptimizerTable, description="The optimizer.")
    scheduler: SchedulerTable = Field(default_factory=SchedulerTable, description="The learning-rate schedule.")
    parallel: ParallelTable = Field(default_factory=ParallelTable, description="Parallel training.")
    checkpoint: CheckpointTable = Field(default_factory=CheckpointTable, description="Checkpoints.")
    control: ControlTable = Field(default_factory=ControlTable, description="Live control.")
    plugins: dict[str, PluginTable] = Field(default_factory=dict, description="Plugins, one table each.")
    providers: dict[str, str] = Field(
        default_factory=dict, description="Which instance to use for a provider hook that several implement."
    )

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Return the recipe of a plain document, for example a saved recipe. Raises pydantic's ValidationError."""
        return cls.model_validate_json(json.dumps(json_form(data)))

    @model_validator(mode="after")
    def _rules(self) -> Self:
        broken = rules.broken(self.model_dump(exclude_none=True))
        if broken:
            raise ValueError("; ".join(f"{dotted(found.key)}: {found.what}" for found in broken))
        return self
