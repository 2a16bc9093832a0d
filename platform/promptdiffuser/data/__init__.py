"""Episodes on storage and in memory: the dataset folder, its manifest, windows and prompts cut from it."""

from promptdiffuser.data.store import open_dataset

__all__ = ["open_dataset"]
