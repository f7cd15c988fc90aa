"""The generated tables of the README: `python -m tests.docs` writes them, a test checks that they are current."""

import sys
from pathlib import Path

from sentinel.adapters.metrics import metrics_reference
from sentinel.settings import settings_reference

README = Path(__file__).parent.parent / "README.md"


def tables() -> dict[str, str]:
    """Each generated part by its name."""
    settings = ["| key | default | what |", "| --- | --- | --- |"]
    settings += [
        f"| `{r.key}` | {f'`{r.default}`' if r.default else ''} | {_cell(r.description)} |"
        for r in settings_reference()
    ]
    metrics = ["| metric | labels | what, and what to do |", "| --- | --- | --- |"]
    metrics += [f"| `{r.name}` | {_cell(r.labels)} | {_cell(r.help)} |" for r in metrics_reference()]
    return {"settings": "\n".join(settings), "metrics": "\n".join(metrics)}


def rendered(text: str) -> str:
    """The README with its tables up to date."""
    for name, table in tables().items():
        head, _, rest = text.partition(f"<!-- {name} -->\n")
        _, _, tail = rest.partition(f"<!-- /{name} -->")
        text = f"{head}<!-- {name} -->\n{table}\n<!-- /{name} -->{tail}"
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
    sys.exit(0)
