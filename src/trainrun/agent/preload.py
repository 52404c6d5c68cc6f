"""The first module that the fork server imports: it ties the server to the agent before anything slow happens."""

from __future__ import annotations

import gc
import os

from trainrun.worker.parent import die_with_parent

die_with_parent()

# As Python's documentation advises for processes that will be forked: no collection while modules are imported, and
# what they have made is frozen afterwards, so that workers do not copy pages only to look for garbage in them.
gc.disable()

SERVER_PID = os.getpid()  # forked workers compare their parent with it: it may have died before they could ask
