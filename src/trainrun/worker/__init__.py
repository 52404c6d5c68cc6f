"""The training processes: one for each device. The only part of trainrun, with `agent`, that imports torch."""
