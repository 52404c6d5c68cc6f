"""What a hook's chain is made of: live plugins, and their hookimpls in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainrun.plugin.description import ImplInfo
from trainrun.plugin.instance import Instance

Call = Callable[..., Any]


@dataclass(frozen=True)
class Member:
    """One live plugin: the instance, the object with its hookimpls, and the `run` handle bound to it."""

    instance: Instance
    plugin: Any
    impls: tuple[ImplInfo, ...]
    run: Any = None


@dataclass(frozen=True)
class Link:
    """One hookimpl in the chain of a hook."""

    member: Member
    impl: ImplInfo
    function: Call
