"""Checkpoints in the worker: taking a copy of the training's state, writing it, and putting it back.

What a checkpoint is made of, and how it becomes one, is in `trainrun.checkpoint`, which knows no torch.
"""
