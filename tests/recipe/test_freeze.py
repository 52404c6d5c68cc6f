from __future__ import annotations

import math
from datetime import date, datetime, time
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from trainrun.recipe import freeze, redact
from trainrun.recipe.secret import REDACTED, is_secret, mask

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.dates()
    | st.times()
    | st.datetimes(max_value=datetime(9999, 1, 1))
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=10
)


@given(st.dictionaries(texts, values, max_size=4))
def test_what_is_frozen_reads_back_the_same(data: dict[str, Any]) -> None:
    assert tomli.loads(freeze(data)) == redact(data)


def test_numbers_that_are_none() -> None:
    again = tomli.loads(freeze({"a": math.nan, "b": -math.inf}))

    assert math.isnan(again["a"])
    assert again["b"] == -math.inf


def test_how_it_looks() -> None:
    data = {
        "run": {"name": "digits"},
        "plugins": {"a": {"x": [{"y": 1}], "when": date(2026, 1, 2), "at": time(1, 2)}, "b": {}},
        "note": 'say "hi"\n\x00',
        "nothing": None,
    }
    assert freeze(data) == (
        'note = "say \\"hi\\"\\n\\u0000"\n\n[run]\nname = "digits"\n\n'
        "[plugins.a]\nx = [{ y = 1 }]\nwhen = 2026-01-02\nat = 01:02:00\n\n[plugins.b]\n"
    )


def test_what_toml_cannot_hold() -> None:
    with pytest.raises(TypeError, match="TOML cannot hold set"):
        freeze({"a": {1, 2}})


@pytest.mark.parametrize(
    "key",
    ["password", "api_key", "apikey", "wandb-api-key", "TOKEN", "hf_token", "client_secret", "credentials", "secrets"],
)
def test_secrets_are_redacted_however_deep(key: str) -> None:
    text = freeze({"plugins": {"a": {"x": [{key: "hunter2"}], key: {"deep": "hunter2"}}}})

    assert "hunter2" not in text
    assert text.count(REDACTED) == 2


@pytest.mark.parametrize("key", ["tokens_per_step", "max_tokens_seen", "keys", "monitor", "author", "tokenizer", "key"])
def test_harmless_keys_are_kept(key: str) -> None:
    assert not is_secret(key)


def test_secrets_are_masked_in_lines_of_toml() -> None:
    assert mask('x = { name = "a", api_key = "hunter2", y = 1 }') == 'x = { name = "a", api_key = <redacted>'
    assert mask("steps = 3") == "steps = 3"
