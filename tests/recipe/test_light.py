"""Checking a recipe must not cost what pydantic's models, torch or logging cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys
from trainrun.recipe import check, complete, freeze, merge, read
schema = json.loads(sys.stdin.read())
document = read(sys.argv[1])
assert not check(document, merge(schema, None, {}))
freeze(complete(document.data, schema))
print(*sorted(sys.modules))
"""


def test_checking_imports_no_models(tmp_path: Path, schema: dict[str, object]) -> None:
    import json

    path = tmp_path / "train.toml"
    path.write_text('task.use = "x"\ntrain.steps = 3\n')
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path],
        input=json.dumps(schema),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    modules = set(done.stdout.split())

    assert modules.isdisjoint(
        {"pydantic", "pydantic.main", "torch", "structlog", "rich", "difflib", "importlib.metadata", "click"}
    )
