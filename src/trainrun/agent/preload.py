"""The first module that the fork server imports: it ties the server to the agent before anything slow happens."""

from __future__ import annotations

import os

from trainrun.worker.parent import die_with_parent

die_with_parent()

SERVER_PID = os.getpid()  # forked workers compare their parent with it: it may have died before they could ask
