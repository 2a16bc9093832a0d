"""Per-episode results on storage: one Parquet file a block as soon as it is done, joined in order at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class BlockResults:
    """A folder of finished blocks; a process that died leaves no half-written one."""

    folder: Path

    def path(self, block: str) -> Path:
        """Return where a block's episodes are."""
        return self.folder / f"{block}.parquet"

    def has(self, block: str) -> bool:
        """Tell whether a block is finished."""
        return self.path(block).is_file()

    def write(self, block: str, episodes: pd.DataFrame) -> None:
        """Keep a finished block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.path(block).with_suffix(".writing")
        episodes.to_parquet(temporary, index=False)
        temporary.rename(self.path(block))

    def join(self, blocks: Sequence[str], target: Path) -> None:
        """Write the episodes of all blocks into one file, a row group a block, holding one block at a time."""
        temporary = target.with_suffix(".writing")
        schema: pa.Schema = pq.read_schema(self.path(blocks[0])).remove_metadata()
        with pq.ParquetWriter(temporary, schema) as writer:
            for block in blocks:
                writer.write_table(pq.read_table(self.path(block)).replace_schema_metadata())
        temporary.rename(target)
