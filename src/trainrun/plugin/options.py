"""What a plugin's table in the recipe may hold: a pydantic model that the plugin declares."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

import pydantic
from pydantic.fields import FieldInfo

from trainrun.plugin.description import METRIC
from trainrun.recipe.secret import REDACTED, is_secret, redact

LIVE = "x-live"


class PluginOptions(pydantic.BaseModel):
    """The base of a plugin's `Options`: strict, no unknown keys, and no NaN or infinity.

    Recipes are checked against the model's JSON Schema before anything is started, so an option has
    a type that JSON can hold, and gets what the recipe says without conversion: `"3"` is no number.
    """

    # An error does not show the value that it is about: that may be a secret.
    model_config = pydantic.ConfigDict(
        strict=True, extra="forbid", validate_assignment=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """Build the options from a recipe table, as `trainrun check` does.

        Uses JSON form, because strict mode then still takes a string for a path or an enumeration.
        """
        return cls.model_validate_json(json.dumps(dict(table), default=str))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield the options as `repr` shows them, without secrets."""
        for name, value in super().__repr_args__():
            yield name, REDACTED if _is_secret(name, type(self)) else redact(value)


def Field(  # noqa: N802 - pydantic's name
    default: Any = ...,
    *,
    live: bool = False,
    metric: bool = False,
    secret: bool | None = None,
    **pydantic_options: Any,
) -> Any:
    """Describe an option: pydantic's `Field`, plus `live`, `metric` and `secret`.

    live: the option may be set during the run, with `trainrun ctl set`; the plugin reads it
        from its options object each time, and so sees the new value.
    metric: the option names a metric of an evaluation, such as `eval/loss`. `trainrun check` refuses a name that
        the task's `evaluation_step` is seen not to return.
    secret: whether files, logs and messages leave the value out. Without it the option's name and type decide:
        `api_key` and `tokens` name secrets, and `SecretStr` is one.
    """
    marks: dict[str, Any] = {mark: True for mark, wanted in ((LIVE, live), (METRIC, metric)) if wanted}
    if secret is not None:
        marks["writeOnly"] = secret
    if marks:
        extra = pydantic_options.pop("json_schema_extra", None) or {}
        pydantic_options["json_schema_extra"] = {**extra, **marks}
    return pydantic.Field(default, **pydantic_options)


def live_fields(options: type[PluginOptions]) -> tuple[str, ...]:
    """Return the options that may be set while the run continues."""
    return tuple(name for name, field in options.model_fields.items() if _is_live(field))


def _is_secret(name: str | None, options: type[PluginOptions]) -> bool:
    field = options.model_fields.get(name or "")
    extra = field.json_schema_extra if field else None
    declared = extra.get("writeOnly") if isinstance(extra, dict) else None
    return declared if isinstance(declared, bool) else is_secret(name)


def _is_live(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get(LIVE) is True
