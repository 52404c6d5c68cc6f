"""Which keywords each `torch.optim` class takes, so that a recipe is checked without importing torch.

A test compares this table with the installed torch. A name that is not in it may be a class of a newer
torch or belong to a plugin's `build_optimizer`: its keywords are then left to that.
"""

from __future__ import annotations

_EVERY = frozenset({"lr", "weight_decay", "maximize", "foreach"})
_CAPTURE = frozenset({"capturable", "differentiable"})
_ADAM = _EVERY | _CAPTURE | {"betas", "eps"}

KEYWORDS: dict[str, frozenset[str]] = {
    "adadelta": _EVERY | _CAPTURE | {"rho", "eps"},
    "adafactor": _EVERY | {"beta2_decay", "eps", "d"},
    "adagrad": _EVERY | {"lr_decay", "initial_accumulator_value", "eps", "differentiable", "fused"},
    "adam": _ADAM | {"amsgrad", "fused", "decoupled_weight_decay"},
    "adamax": _ADAM,
    "adamw": _ADAM | {"amsgrad", "fused"},
    "asgd": _EVERY | _CAPTURE | {"lambd", "alpha", "t0"},
    "muon": frozenset(
        {"lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"}
    ),
    "nadam": _ADAM | {"momentum_decay", "decoupled_weight_decay"},
    "radam": _ADAM | {"decoupled_weight_decay"},
    "rmsprop": _EVERY | _CAPTURE | {"alpha", "eps", "momentum", "centered"},
    "rprop": frozenset({"lr", "etas", "step_sizes", "maximize", "foreach"}) | _CAPTURE,
    "sgd": _EVERY | {"momentum", "dampening", "nesterov", "differentiable", "fused"},
    "sparseadam": frozenset({"lr", "betas", "eps", "maximize"}),
}

NEEDS_CLOSURE = frozenset({"lbfgs"})
NOT_SHARDED = frozenset({"adafactor", "rprop", "sparseadam"})  # some of their operations know no DTensor
