"""What goes wrong in a training, at given steps of given attempts."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from trainrun import Field, PluginOptions, Run, hookimpl


class Chaos:
    """`FOLDER/down` comes and goes; workers and clients are killed."""

    class Options(PluginOptions):
        folder: Path = Field(description="The server's.")
        down: int = Field(0, description="The step at which the server goes.")
        up: int = Field(0, description="The step of the second attempt at which it is back.")
        kill: int = Field(0, description="The step of the first attempt at which rank 0 dies.")
        kill_client: int = Field(0, description="The same for its client.")

    def __init__(self, options: Options) -> None:
        self.options = options

    @hookimpl(ranks="zero")
    def on_step_end(self, run: Run, step: int) -> None:
        options = self.options
        if step == options.down:
            (options.folder / "down").touch()
        if step == options.up and run.attempt == 2:
            (options.folder / "down").unlink(missing_ok=True)
        if step == options.kill and run.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == options.kill_client and run.attempt == 1:
            os.kill(int((options.folder / "client").read_text()), signal.SIGKILL)
            signal.pause()
