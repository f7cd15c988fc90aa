"""The README says what the code does."""

from tests import docs


def test_the_readmes_tables_of_settings_and_metrics_are_current() -> None:
    text = docs.README.read_text()
    assert docs.rendered(text) == text, "run `python -m tests.docs`"
