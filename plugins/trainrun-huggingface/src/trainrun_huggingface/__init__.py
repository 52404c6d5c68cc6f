"""The model hub of Hugging Face for trainrun: the plugin `huggingface`."""

from __future__ import annotations

from trainrun_huggingface.plugin import HuggingFace, HuggingFaceOptions

__all__ = ["HuggingFace", "HuggingFaceOptions"]
