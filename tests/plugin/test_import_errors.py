"""The place in the user's own code that an import error is told with."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.plugin.import_errors import place_of, summary, user_traceback

Raised = Callable[..., BaseException]


@pytest.fixture
def raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Raised:
    """Writes files, imports a module and returns what that raised."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "mine"), str(tmp_path / "site-packages"), *sys.path])
    before = set(sys.modules)

    def importing(module: str, files: dict[str, str]) -> BaseException:
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        importlib.invalidate_caches()
        try:
            importlib.import_module(module)
        except BaseException as error:
            trace = error.__traceback__
            return error.with_traceback(trace and trace.tb_next)  # without the frame of this test
        finally:
            for name in set(sys.modules) - before:
                del sys.modules[name]
        raise AssertionError("it was imported")

    return importing


def test_the_deepest_line_of_the_users_files(raised: Raised) -> None:
    files = {"mine/top_a.py": "import helper_a\n", "mine/helper_a.py": "def go():\n    import no_such_module\n\ngo()\n"}
    error = raised("top_a", files)
    assert summary(error) == "ModuleNotFoundError: No module named 'no_such_module' (helper_a.py:2)"
    trace = user_traceback(error)
    assert trace is not None
    assert trace.splitlines()[1].endswith('top_a.py", line 1, in <module>')
    assert "importlib" not in trace


def test_what_a_library_raises_is_told_at_the_line_that_calls_it(raised: Raised) -> None:
    files = {
        "mine/top_b.py": "import library_b\n\nlibrary_b.go()\n",
        "site-packages/library_b.py": "def go():\n    1 / 0\n",
    }
    assert place_of(raised("top_b", files)) == "top_b.py:3"
    assert place_of(raised("json_b", {"mine/json_b.py": "import json\njson.loads('{')\n"})) == "json_b.py:2"


def test_an_installed_plugin_is_its_own_package_and_nobody_elses(raised: Raised) -> None:
    files = {
        "site-packages/package_c/__init__.py": "from package_c import inner\n",
        "site-packages/package_c/inner.py": "import other_c\n\nother_c.go()\n",
        "site-packages/other_c.py": "def go():\n    raise ValueError('odd')\n",
    }
    assert summary(raised("package_c", files)) == "ValueError: odd (package_c/inner.py:3)"
    alone = {"site-packages/alone_c.py": "import other_c\nother_c.go()\n"}
    assert place_of(raised("alone_c", alone)) == "alone_c.py:2"


def test_an_exit_a_syntax_error_and_an_exception_without_a_text(raised: Raised) -> None:
    assert (
        summary(raised("exit_d", {"mine/exit_d.py": "import sys\nsys.exit(3)\n"}))
        == "it called sys.exit(3) (exit_d.py:2)"
    )
    assert summary(raised("syntax_d", {"mine/syntax_d.py": "def ("})).startswith("SyntaxError in ")
    mute = "class Mute(BaseException):\n    def __str__(self): raise RuntimeError\n\nraise Mute\n"
    told = "Mute: (no message: its __str__ raised RuntimeError) (mute_d.py:4)"
    assert summary(raised("mute_d", {"mine/mute_d.py": mute})) == told
    assert place_of(ImportError("not raised by anybody's code")) is None
