"""What all tests share."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.browsers import Browser, chromium

torch.set_num_threads(1)  # as the daemon runs; results do not depend on it, speed on a busy machine does


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Under CI nothing may be skipped for want of a program; only a GPU may be missing."""
    if not os.environ.get("CI"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [] if reporter is None else reporter.stats.get("skipped", [])
    reasons = {str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple)}
    missing = sorted(reason for reason in reasons if "needs " in reason and "CUDA" not in reason)
    if missing:
        print("\nskipped for want of a program, which CI must have:", *missing, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
