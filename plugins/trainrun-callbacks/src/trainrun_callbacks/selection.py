"""The type of an option that chooses names; free of torch, because options are looked at by the client."""

from __future__ import annotations

Choice = bool | list[str] | dict[str, str | list[str]]
"""True for all as one group; shell patterns, each a group of its own; or groups by name, of one or several patterns."""
