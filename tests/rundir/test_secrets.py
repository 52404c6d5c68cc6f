from __future__ import annotations

from trainrun.recipe import redact
from trainrun.rundir import secrets

DATA = {
    "task": {"use": "x", "token": "abc"},
    "plugins": {"tracker": {"api_key": "k", "hosts": [{"password": "p", "name": "a"}]}},
}


def test_secrets_come_back_from_the_environment() -> None:
    environment = secrets.pack({"recipe": (DATA, redact(DATA)), "plain": ({"a": 1}, {"a": 1})})
    shown = redact(DATA)
    assert "abc" not in str(shown)
    assert secrets.restore("recipe", shown, environment) == DATA
    assert secrets.restore("plain", {"a": 1}, environment) == {"a": 1}
    assert shown == redact(DATA), "the redacted form was changed in place"


def test_without_secrets_nothing_is_carried() -> None:
    assert secrets.pack({"recipe": ({"a": 1}, {"a": 1})}) == {}
    assert secrets.restore("recipe", {"a": 1}, {}) == {"a": 1}
