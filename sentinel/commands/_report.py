"""report.html (stub until written)."""
from pathlib import Path
from typing import Any
from sentinel.backtest import Result
def write_report(path: Path, result: Result, summary: dict[str, Any]) -> None:
    path.write_text("<html></html>")
