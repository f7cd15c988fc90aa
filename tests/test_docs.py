"""The README says what the code does."""

import re

from tests import docs


def test_the_readmes_tables_of_settings_and_metrics_are_current() -> None:
    text = docs.README.read_text()
    assert docs.rendered(text) == text, "run `python -m tests.docs`"


def test_every_test_that_the_readme_names_exists() -> None:
    named = re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", docs.README.read_text())
    assert named
    for file, name in named:
        text = (docs.README.parent / file).read_text()
        assert not name or re.search(rf"^(?:def|class) {name}\b", text, re.MULTILINE), f"{file}::{name}"
