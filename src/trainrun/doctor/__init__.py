"""`trainrun doctor`: what on this machine would keep a run from working, asked in processes that may hang or die."""
