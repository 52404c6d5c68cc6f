"""Plugins on both sides of a run: finding, describing, ordering and guarding them. Without torch and click."""
