from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PACKAGES = Path(sys.prefix, "trackers", "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")

READER = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

found = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0})
found.Reload()
tags = found.Tags()

def hparams(tag):
    if tag not in tags["tensors"]:
        return None
    return plugin_data_pb2.HParamsPluginData.FromString(found.summary_metadata[tag].plugin_data.content)

start, end = hparams("_hparams_/session_start_info"), hparams("_hparams_/session_end_info")
plain = lambda value: getattr(value, value.WhichOneof("kind"))
print(json.dumps({
    "scalars": {tag: [[e.step, e.wall_time, e.value] for e in found.Scalars(tag)] for tag in tags["scalars"]},
    "texts": {
        tag: [one.tensor_proto.string_val[0].decode() for one in found.Tensors(tag)]
        for tag in tags["tensors"] if found.summary_metadata[tag].plugin_data.plugin_name == "text"
    },
    "hparams": start and {name: plain(value) for name, value in start.session_start_info.hparams.items()},
    "group": start and start.session_start_info.group_name,
    "status": end and end.session_end_info.status,
}))
"""


@pytest.fixture
def read() -> Callable[[Path], dict[str, Any]]:
    """Reads a folder of event files with TensorBoard's own EventAccumulator, in a process of its own."""

    def read_folder(folder: Path) -> dict[str, Any]:
        environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
        command = [sys.executable, "-c", READER, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return read_folder
