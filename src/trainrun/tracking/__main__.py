"""`python -m trainrun.tracking`: the process that sends to one tracker."""

from __future__ import annotations

from trainrun.tracking.process import main

if __name__ == "__main__":
    main()
