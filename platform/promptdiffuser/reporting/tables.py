"""Frames as files: what a page shows, for a spreadsheet and for the next script."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write each frame as NAME.csv and NAME.parquet, its index as columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        flat = frame.reset_index() if any(frame.index.names) else frame
        flat.to_csv(folder / f"{name}.csv", index=False)
        flat.to_parquet(folder / f"{name}.parquet", index=False)
