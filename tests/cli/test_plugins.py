from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import trainrun as trainrun_package
from trainrun.builtin import BUILTINS
from trainrun.testing.distribution import DistributionInstaller

Trainrun = Callable[..., "subprocess.CompletedProcess[str]"]

WATCHER = '''
    from trainrun import Field, PluginOptions, hookimpl

    class Watcher:
        """Watch. Nothing else."""

        class Options(PluginOptions):
            every: int = Field(10, ge=1)

        def __init__(self, options): ...

        @hookimpl
        def on_log(self, metrics): ...
'''


def test_another_copy_of_trainrun_is_described_by_itself(trainrun: Trainrun, tmp_path: Path) -> None:
    def files(**environment: str) -> list[str]:
        listed = json.loads(trainrun("plugins", "--json", **environment).stdout)["plugins"]
        return [one["file"] for one in listed if one["status"] == "built-in"]

    here = Path(trainrun_package.__file__).parent
    shutil.copytree(here, tmp_path / "copy" / "trainrun", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    assert all(file.startswith(str(here)) for file in files())
    assert all(file.startswith(str(tmp_path / "copy")) for file in files(PYTHONPATH=str(tmp_path / "copy")))


def test_lists_built_in_and_installed_plugins(trainrun: Trainrun, install: DistributionInstaller) -> None:
    install("watch-dist", {"watchers.py": WATCHER}, {"watcher": "watchers:Watcher"}, version="2.5")
    done = trainrun("plugins")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    status = {row[0]: row[1:] for row in rows if len(row) == 3}
    for name, _ in BUILTINS:
        assert status[name][0] == "built-in"
    assert status["watcher"] == ["installed", status["watcher"][1]]
    assert status["watcher"][1].startswith("watch-dist 2.5")
    assert status["watcher"][1].endswith("Watch.")


def test_json_tells_all_that_is_known(trainrun: Trainrun, install: DistributionInstaller) -> None:
    install("watch-dist", {"watchers.py": WATCHER}, {"watcher": "watchers:Watcher"})
    install("dance-dist", {}, {"dance": "dance:command"}, group="trainrun.commands")
    document = json.loads(trainrun("plugins", "--json").stdout)
    assert document["version"] == 1
    (watcher,) = [one for one in document["plugins"] if one["name"] == "watcher"]
    assert (watcher["status"], watcher["hooks"], watcher["error"]) == ("installed", ["on_log"], None)
    assert watcher["options"]["properties"]["every"]["default"] == 10
    assert watcher["file"].endswith("watchers.py")
    assert [one["name"] for one in document["commands"]] == ["dance"]


def test_a_name_that_a_built_in_has_is_a_clash(trainrun: Trainrun, install: DistributionInstaller) -> None:
    install("rude-dist", {"rude.py": "class Rude: ..."}, {"progress": "rude:Rude"})
    done = trainrun("plugins")
    assert done.returncode == 0
    assert "several distributions bring it: trainrun itself; rude-dist 1.0" in done.stdout


def test_refresh_looks_again(trainrun: Trainrun, install: DistributionInstaller, tmp_path: Path) -> None:
    log = tmp_path / "imports"
    install("count-dist", {"counted.py": f"open({str(log)!r}, 'a').write('.')\nclass C: ..."}, {"c": "counted:C"})
    for arguments in ([], [], ["--refresh"]):
        trainrun("plugins", *arguments)
    assert log.read_text() == ".."
