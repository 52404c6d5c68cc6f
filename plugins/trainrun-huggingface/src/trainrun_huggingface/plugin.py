"""The plugin `huggingface`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pydantic

from trainrun import Field
from trainrun.tracking import RunPaths, ServerOptions, Tracker, TrackerPlugin
from trainrun_huggingface.tracker import HubTracker

if TYPE_CHECKING:
    from trainrun import Recipe

# The hub's own rule: up to 96 characters, no two hyphens or dots in a row, none at the ends.
_PART = r"[A-Za-z0-9_]+([-.](?![-.])|[A-Za-z0-9_])*(?<![-.])"
_REPOSITORY = re.compile(rf"({_PART}/)?{_PART}(?<!\.git)")


class HuggingFaceOptions(ServerOptions):
    """Which repository, and what goes into it."""

    repo: str | None = Field(
        None,
        max_length=96,
        description="Repository, as `owner/name`, or only the name of one of your own; by default, the run's name.",
    )
    create: bool = Field(True, description="Create the repository if it does not exist.")
    private: bool = Field(True, description="Create the repository as private.")
    weights: str = Field(
        "newest",
        pattern=r"^[\w.-]+$",
        description="Weights to upload: `newest` for those of the newest checkpoint, `none`, or a link to a checkpoint "
        "or to weights, such as `best`.",
    )
    code: bool = Field(False, description="Also upload the snapshot of the task's code.")
    unfinished: bool = Field(False, description="Also upload if the run failed or was stopped from outside.")
    deadline: float = Field(
        600.0,
        gt=0,
        description="Time limit in seconds for the upload at the end of a launch; `trainrun sync` resumes it.",
    )

    @pydantic.field_validator("repo")
    @classmethod
    def _as_the_hub_has_them(cls, repo: str | None) -> str | None:
        if repo is not None and not _REPOSITORY.fullmatch(repo):
            raise ValueError(f"got {repo!r}; give owner/name, of letters, digits, and single - . _ between them")
        return repo


class HuggingFace(TrackerPlugin):
    """Upload the trained model to the model hub of Hugging Face when the run has ended: one commit, with a model card.

    Only a separate process next to the client imports the package.
    """

    Options = HuggingFaceOptions
    plugin = "huggingface"
    needs = {"huggingface_hub": "huggingface-hub"}  # noqa: RUF012 - read only

    def make_tracker(self, name: str, paths: RunPaths) -> Tracker:
        del paths
        return HubTracker(self.options, name)

    @classmethod
    def place(cls, options: HuggingFaceOptions, recipe: Recipe) -> str:
        return f"the repository {options.repo or recipe.run.name}"
