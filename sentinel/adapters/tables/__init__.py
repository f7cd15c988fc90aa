"""Recordings: reading CSV and Parquet files, and writing scores beside them."""

from sentinel.adapters.tables.reading import Recording, read_table, read_tables
from sentinel.adapters.tables.scores import ScoresWriter

__all__ = ["Recording", "ScoresWriter", "read_table", "read_tables"]
