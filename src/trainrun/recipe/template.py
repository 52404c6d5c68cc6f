"""The recipe that `trainrun init` writes: it passes `check`, and it trains."""

from __future__ import annotations

TEMPLATE = """\
# A recipe for trainrun. Check it with `trainrun check train.toml`, show what its hooks run with
# `trainrun hooks train.toml`, train with `trainrun launch train.toml`.

[run]
name = "digits"             # the run directory is named after it: runs/DATE-digits-WORDS
seed = 0

[task]
use = "trainrun.examples.digits"    # your own: "tasks/mine.py", "package.module", or an installed task's name

[launch]
workers = 2                 # processes on this machine; "auto" is one per GPU

[train]
steps = 300                 # or: epochs = 5
batch_size = 64             # samples per update, over all workers
# micro_batch_size = 16     # accumulate gradients over smaller batches
# precision = "bf16"        # fp32, bf16, fp16
# clip_grad_norm = 1.0
log_every = 10

[evaluate]
every = 100                 # steps, or "epoch"

[checkpoint]
every = "15m"               # time or steps between two; "never": only at the end
keep = 2                    # the newest good ones

[optimizer]
name = "adamw"              # any class of torch.optim, with its keywords as keys
lr = 3e-3

# [[optimizer.groups]]      # settings for some of the parameters
# match = ["*.bias"]
# weight_decay = 0.0

[scheduler]
name = "cosine"             # constant, linear, cosine, polynomial, exponential, step
warmup = 20

# Plugins run in the order of their tables; `trainrun plugins` lists what is installed.
# [plugins.early-stopping]
# monitor = "eval/accuracy"
"""
