from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from trainrun.plugin.cache import Store
from trainrun.plugin.describe import Target, describe, validate_options
from trainrun.plugin.description import Description
from trainrun.testing.distribution import DistributionInstaller

GOOD = """
    print("a plugin that talks while it is imported")
    from trainrun import hookimpl

    class Good:
        @hookimpl
        def on_log(self, metrics): ...
"""
EVEN = """
    import pydantic
    from trainrun import PluginOptions

    class Even:
        class Options(PluginOptions):
            count: int

            @pydantic.field_validator("count")
            @classmethod
            def check(cls, value):
                if value % 2:
                    raise ValueError("an even number is wanted")
                return value

        def __init__(self, options): ...
"""


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def look(*targets: str, timeout: float = 20.0, **options: bool) -> dict[str, Description]:
    return describe([Target(target) for target in targets], "fingerprint", timeout=timeout, **options)


def test_each_way_to_fail_is_told_and_stops_no_other(install: DistributionInstaller, tmp_path: Path) -> None:
    modules = {
        "bad_import.py": "import no_such_package",
        "bad_syntax.py": "def (",
        "bad_exit.py": "raise SystemExit(3)",
        "bad_end.py": "import os; os._exit(7)",
        "bad_memory.py": "import ctypes; ctypes.string_at(0)",
        "good.py": GOOD,
    }
    install("mixed", modules, {})
    found = look("bad_import", "bad_syntax", "bad_exit", "bad_end", "bad_memory", "good:Good", "good:Better")
    errors = {target: description.error or "" for target, description in found.items()}
    assert "ModuleNotFoundError: No module named 'no_such_package'" in errors["bad_import"]
    assert "SyntaxError in" in errors["bad_syntax"]
    assert "bad_syntax.py, line 1" in errors["bad_syntax"]
    assert "it called sys.exit(3)" in errors["bad_exit"]
    assert "ended the process with exit code 7" in errors["bad_end"]
    assert "crashed Python: SIGSEGV" in errors["bad_memory"]
    assert "good has no 'Better'" in errors["good:Better"]
    assert found["good:Good"].ok
    assert "bad_import.py" in (found["bad_import"].traceback or "")


def test_an_endless_import_is_given_up_and_leaves_nothing_running(
    install: DistributionInstaller, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    source = f"""
        import os, subprocess, time
        child = subprocess.Popen(["sleep", "1000"])
        open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
        while True: time.sleep(0.01)
    """
    install("endless", {"endless.py": source}, {})
    # Long enough for a busy machine to get as far as the loop.
    (description,) = look("endless", timeout=3.0).values()
    assert "takes longer than the time limit, in" in (description.error or "")
    assert "endless.py, line" in (description.error or "")
    assert all(ends(int(pid)) for pid in pids.read_text().split())


def ends(pid: int) -> bool:
    """Whether the process is gone, or goes in the seconds that a kill may take."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(watched):
        return bool(select.select([watched], [], [], 10.0)[0])


def test_what_worked_is_remembered_until_a_source_changes(install: DistributionInstaller, tmp_path: Path) -> None:
    log = tmp_path / "imports"
    counted = f"open({str(log)!r}, 'a').write('.')\nclass C: ...\n"
    site = install("counting", {"counting.py": counted}, {})
    for _ in range(2):
        assert look("counting:C")["counting:C"].ok
    assert log.read_text() == "."
    (site / "counting.py").touch()
    look("counting:C")
    assert log.read_text() == ".", "the same text at another time is no change"
    (site / "counting.py").write_text(counted + "class D: ...\n")
    look("counting:C")
    look("counting:C", refresh=True)
    assert log.read_text() == "..."


def test_what_failed_is_remembered_until_something_is_installed(install: DistributionInstaller, tmp_path: Path) -> None:
    log = tmp_path / "imports"
    install("failing", {"failing.py": f"open({str(log)!r}, 'a').write('.')\nimport nothing_here\n"}, {})
    target = [Target("failing")]
    for fingerprint in ("one", "one", "two"):
        assert not describe(target, fingerprint)["failing"].ok
    assert log.read_text() == ".."
    describe(target, "two", retry_broken=True)
    assert log.read_text() == "..."


def test_another_installation_of_the_same_version_is_described_anew(tmp_path: Path) -> None:
    keys = {
        Target("m:C", location, "dist", "1.0").key for location in ("/a/dist-1.0.dist-info", "/b/dist-1.0.dist-info")
    }
    assert len(keys) == 2


def test_a_damaged_or_missing_cache_is_no_cache(install: DistributionInstaller, fresh_cache: Path) -> None:
    install("good-dist", {"good.py": GOOD}, {})
    look("good:Good")
    for file in fresh_cache.iterdir():
        file.write_text("{damaged")
    assert look("good:Good")["good:Good"].ok


def test_a_cache_that_cannot_be_written_is_no_cache(
    install: DistributionInstaller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    install("good-dist", {"good.py": GOOD}, {})
    assert look("good:Good")["good:Good"].ok


def test_validators_of_a_plugin_are_asked_once_for_each_table(install: DistributionInstaller) -> None:
    install("even-dist", {"even.py": EVEN}, {})
    target = Target("even:Even")
    description = look("even:Even")["even:Even"]
    assert description.has_validators
    for _ in range(2):
        ((key, message),) = validate_options(target, description, {"count": 3})
        assert key == ("count",)
        assert "an even number is wanted" in message
    assert validate_options(target, description, {"count": 4}) == []


def test_store_forgets_when_a_file_goes(tmp_path: Path) -> None:
    store, source = Store(tmp_path / "store"), tmp_path / "source"
    source.write_text("x")
    store.put({"a": 1}, [str(source)], "key")
    assert store.get("key") == {"a": 1}
    assert store.get("other") is None
    source.unlink()
    assert Store(tmp_path / "store").get("key") is None


@pytest.fixture
def opened_store(tmp_path: Path) -> Path:
    """A cache's folder in which others' files lie too."""
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "notes-12345678.json").write_text("somebody's own")
    return folder


def test_entries_are_for_this_user_only(opened_store: Path, request: pytest.FixtureRequest) -> None:
    before = os.umask(0)
    request.addfinalizer(lambda: os.umask(before))
    Store(opened_store).put(1, [], "describe", "a")
    (file,) = opened_store.glob("describe-*")
    assert file.stat().st_mode & 0o777 == 0o600


def test_entries_of_an_older_format_are_removed(opened_store: Path) -> None:
    """They held options in clear."""
    for name in ("validate-0a1b2c3d.json", "describe-1-0a1b2c3d.json", "recipe-schema-0a1b2c3d.json"):
        (opened_store / name).write_text("{}")
    Store(opened_store).put(1, [], "describe", "a")
    assert len(list(opened_store.iterdir())) == 2
    assert (opened_store / "notes-12345678.json").exists()


def test_entries_that_are_not_used_are_removed(opened_store: Path) -> None:
    Store(opened_store).put(1, [], "describe", "old")
    (old,) = opened_store.glob("describe-*")
    os.utime(old, (1e9, 1e9))
    assert Store(opened_store).get("describe", "old") == 1  # it is used again
    Store(opened_store).put(2, [], "describe", "new")
    assert old.exists()
    os.utime(old, (1e9, 1e9))
    Store(opened_store).put(2, [], "describe", "newer")
    assert not old.exists()


def test_of_many_entries_the_oldest_are_removed(opened_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainrun.plugin.cache._MOST", 3)
    for number in range(6):
        Store(opened_store).put(number, [], "describe", str(number))
        for file in opened_store.glob("describe-*"):
            os.utime(file, (file.stat().st_mtime - 10, file.stat().st_mtime - 10))
    found = [number for number in range(6) if Store(opened_store).get("describe", str(number)) == number]
    assert found == [3, 4, 5]
