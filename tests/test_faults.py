"""The fault suite in short: every row's fault happens a few times, and the books are checked. See tests/faults."""

from pathlib import Path

import pytest

from tests.faults import broker, disk, hostile, kill, network, overload, soak
from tests.servers import binary


@pytest.fixture(autouse=True)
def _mosquitto() -> None:
    binary("mosquitto")


def test_no_reading_is_lost_or_scored_twice_where_the_daemon_is_killed_again_and_again(tmp_path: Path) -> None:
    kill.run(tmp_path)


def test_no_reading_is_lost_over_restarts_of_a_broker_that_saves_its_queues_and_what_a_killed_one_loses_is_its_own(
    tmp_path: Path,
) -> None:
    broker.run(tmp_path)


def test_no_reading_is_lost_where_the_network_is_cut_half_open_or_slow(tmp_path: Path) -> None:
    network.run(tmp_path)


def test_under_overload_memory_is_bounded_the_lag_is_told_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    overload.run(tmp_path)


def test_no_reading_is_lost_where_the_disk_is_full(tmp_path: Path) -> None:
    disk.full(tmp_path)


def test_the_daemon_ends_where_its_store_is_removed_and_loses_nothing_that_came_later(tmp_path: Path) -> None:
    disk.removed(tmp_path)


def test_every_hostile_message_is_counted_and_none_does_harm(tmp_path: Path) -> None:
    hostile.run(tmp_path)


def test_descriptors_threads_and_log_stay_bounded_under_a_steady_load(tmp_path: Path) -> None:
    soak.run(tmp_path)
