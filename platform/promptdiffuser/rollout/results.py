"""Per-episode results on storage: one Parquet file for each block as soon as it is done, joined in order at the end.

BLOCK.parquet  BLOCK.sha256     (the checksum is written last; Parquet's own do not cover every byte)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from promptdiffuser.files import sha256, writing


@dataclass(frozen=True)
class BlockResults:
    """A folder of finished blocks; a process that died leaves no half-written one."""

    folder: Path

    def path(self, block: str) -> Path:
        """Return where a block's episodes are."""
        return self.folder / f"{block}.parquet"

    def has(self, block: str) -> bool:
        """Tell whether a block is finished and every byte of it is as it was written."""
        path = self.path(block)
        try:
            return path.with_suffix(".sha256").read_bytes() == sha256(path).encode()
        except FileNotFoundError:
            return False

    def write(self, block: str, episodes: pd.DataFrame) -> None:
        """Keep a finished block."""
        path = self.path(block)
        with writing(path) as temporary:
            episodes.to_parquet(temporary, index=False)
        with writing(path.with_suffix(".sha256")) as temporary:
            temporary.write_text(sha256(path))

    def join(self, blocks: Sequence[str], target: Path) -> None:
        """Write the episodes of all blocks into one file, a row group for each, holding one block at a time."""
        schema: pa.Schema = pq.read_schema(self.path(blocks[0])).remove_metadata()
        with writing(target) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for block in blocks:
                writer.write_table(pq.read_table(self.path(block)).replace_schema_metadata())
