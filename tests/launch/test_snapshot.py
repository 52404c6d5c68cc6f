from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainrun.launch import snapshot
from trainrun.plugin.description import Description
from trainrun.plugin.instance import Instance


def resolved(files: list[Path], **changes: Any) -> Any:
    instance = Instance("task", "task", "tasks/mine.py", **changes)
    description = Description("tasks/mine.py", files=tuple(map(str, files)))
    return SimpleNamespace(instances=(instance,), descriptions={"tasks/mine.py": description})


def test_own_sources_are_copied(tmp_path: Path) -> None:
    (tmp_path / "code" / "parts").mkdir(parents=True)
    files = [tmp_path / "code" / "mine.py", tmp_path / "code" / "parts" / "model.py"]
    for file in files:
        file.write_text(file.name)
    target = tmp_path / "source"
    copies = snapshot.take(resolved([*files, tmp_path / "gone.py"]), target)
    assert sorted(path.relative_to(target).as_posix() for path in copies) == ["mine.py", "parts/model.py"]
    assert (target / "parts" / "model.py").read_text() == "model.py"


def test_installed_code_is_known_by_its_version(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("")
    assert snapshot.take(resolved([file], distribution="tasks"), tmp_path / "source") == []
    assert snapshot.take(resolved([Path(json.__file__)]), tmp_path / "source") == []
    assert snapshot.take(resolved([Path(sysconfig.get_path("purelib"))]), tmp_path / "source") == []


def test_data_is_not_copied(tmp_path: Path) -> None:
    file = tmp_path / "big.py"
    file.write_bytes(b"#" * 5_000_000)
    assert snapshot.take(resolved([file]), tmp_path / "source") == []
