"""Frames as files: what a page shows, for a spreadsheet and for the next script."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd


def write_tables(tables: Mapping[str, pd.DataFrame | str], folder: Path) -> list[Path]:
    """Write each frame as NAME.csv and NAME.parquet, its index as columns; return the files.

    A table that is the reason why it was not computed is left out.
    """
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        if isinstance(frame, str):
            continue
        flat = frame.reset_index() if any(frame.index.names) else frame
        for suffix, write in ((".csv", flat.to_csv), (".parquet", flat.to_parquet)):
            write(folder / f"{name}{suffix}", index=False)
            written.append(folder / f"{name}{suffix}")
    return written
