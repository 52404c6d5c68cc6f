from __future__ import annotations

from pathlib import Path

from trainrun.rundir import RunPaths
from trainrun.rundir.paths import former


def test_every_path_is_within_the_run() -> None:
    paths = RunPaths(Path("/runs/one"))
    properties = [name for name, value in vars(RunPaths).items() if isinstance(value, property) and name != "run_id"]
    found = [getattr(paths, name) for name in properties]
    found += [paths.rank_log(3), paths.rank_output(3), paths.worker_record(2, 3), paths.start(2), paths.decisions(2, 0)]
    found += [former(paths.recipe, 2), former(paths.source, 2)]
    found += [paths.rank_log_old(3), paths.rank_output_old(3), paths.output_pipe(2, 3)]
    assert all(path.is_relative_to("/runs/one") for path in found)
    assert len(set(found)) == len(found)
    assert paths.run_id == "one"
