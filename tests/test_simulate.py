"""The simulated fleet: healthy behaviour, faults with ground truth, recordings, and publishing."""

from __future__ import annotations

import csv
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sentinel.commands._publisher import Publisher
from sentinel.commands.simulate import publish_fleets, simulate
from sentinel.errors import DataError, Unavailable
from sentinel.records import Floats
from sentinel.settings import MqttSettings
from sentinel.simulate import (
    FAULT_KINDS,
    PERIOD,
    PUMP,
    ROOM,
    Fault,
    FaultKind,
    Faults,
    Firing,
    Fleet,
    Machine,
    tally,
    write_recording,
)
from tests.brokers import Mosquitto, free_port, plain_client, wait_until


def record(fleet: Fleet, ticks: int, start: float = 0.0) -> Floats:
    """(T, N, F); NaN where a device doesn't send."""
    out = []
    for number in range(ticks):
        tick = fleet.step(start + number * fleet.interval)
        out.append(np.where(tick.sends[:, None], tick.values, np.nan))
    return np.stack(out)


def noise(machine: Machine) -> Floats:
    return np.array([quantity.noise for quantity in machine.quantities])


@pytest.mark.parametrize("machine", [PUMP, ROOM], ids=lambda machine: machine.name)
class TestAHealthyFleet:
    def test_is_the_same_for_the_same_seed_and_another_for_another(self, machine: Machine) -> None:
        one, same, other = (record(Fleet(machine, 5, interval=1.0, seed=seed), 50) for seed in (3, 3, 4))
        np.testing.assert_array_equal(one, same)
        assert not np.allclose(one, other)

    def test_keeps_its_level_from_day_to_day(self, machine: Machine) -> None:
        values = record(Fleet(machine, 20, interval=1.0), 20 * PERIOD)
        first, last = values[: 10 * PERIOD].mean(axis=(0, 1)), values[10 * PERIOD :].mean(axis=(0, 1))
        assert (np.abs(first - last) < 0.1 * values.std(axis=0).mean(axis=0)).all()

    def test_repeats_its_days(self, machine: Machine) -> None:
        values = record(Fleet(machine, 20, interval=1.0), 10 * PERIOD)
        for of_device in np.moveaxis(values, 1, 0):
            for column in of_device.T:
                assert np.corrcoef(column[:-PERIOD], column[PERIOD:])[0, 1] > 0.5

    def test_moves_by_little_more_than_its_noise_from_tick_to_tick(self, machine: Machine) -> None:
        values = record(Fleet(machine, 20, interval=1.0), 5 * PERIOD)
        assert (np.abs(np.diff(values, axis=0)).mean(axis=(0, 1)) < 3 * noise(machine)).all()

    def test_has_devices_that_differ(self, machine: Machine) -> None:
        levels = record(Fleet(machine, 20, interval=1.0), PERIOD).mean(axis=0)
        assert (levels.std(axis=0) > noise(machine)).all()


def test_a_step_of_ten_thousand_devices_takes_milliseconds() -> None:
    fleet = Fleet(PUMP, 10_000, interval=1.0)
    began = time.process_time()
    for number in range(20):
        fleet.step(float(number))
    assert (time.process_time() - began) / 20 < 0.05


class TestFaults:
    START, END = 200.0, 260.0

    def spoiled(self, kind: FaultKind, channel: str, size: float = 25.0) -> tuple[Floats, Floats]:
        """One device's (T, F) with the fault, and the same fleet's without."""
        runs = []
        for faulty in (True, False):
            fleet = Fleet(PUMP, 3, interval=1.0, seed=1)
            if faulty:
                fleet.faults.append(Fault(kind, "pump", fleet.devices[0], channel, self.START, self.END, size))
            runs.append(record(fleet, 400)[:, 0])
        return runs[0], runs[1]

    @pytest.mark.parametrize("kind", ["spike", "drift", "stuck", "level_shift", "broken_correlation", "dropout"])
    def test_show_only_on_their_channel_and_within_their_time(self, kind: FaultKind) -> None:
        with_fault, without = self.spoiled(kind, "flow")
        differs = with_fault != without
        assert differs[200:260, 1].any()
        assert not differs[:200].any()
        assert not differs[260:].any()
        if kind != "dropout":
            assert not differs[:, [0, 2, 3]].any()

    def test_level_shift_and_drift_reach_their_size(self) -> None:
        sd = noise(PUMP)[1]
        shifted, without = self.spoiled("level_shift", "flow")
        np.testing.assert_allclose((shifted - without)[200:260, 1], 25 * sd)
        drifted, _ = self.spoiled("drift", "flow")
        offset = (drifted - without)[200:260, 1]
        assert offset[0] == 0
        assert (np.diff(offset) > 0).all()
        assert offset[-1] == pytest.approx(25 * sd, rel=0.02)

    def test_stuck_holds_the_last_value(self) -> None:
        with_fault, without = self.spoiled("stuck", "flow")
        assert set(with_fault[200:260, 1]) == {without[199, 1]}

    def test_noise_is_many_times_the_healthy_noise(self) -> None:
        with_fault, without = self.spoiled("noise", "flow", size=10.0)
        assert (with_fault - without)[200:260, 1].std() > 5 * noise(PUMP)[1]

    @pytest.mark.parametrize("channel", PUMP.channels)
    def test_broken_correlation_keeps_the_channels_range_but_not_its_ties_to_the_others(self, channel: str) -> None:
        with_fault, without = self.spoiled("broken_correlation", channel)
        column = PUMP.channels.index(channel)
        offset = np.abs(with_fault - without)[200:260, column]
        assert offset.max() > 15 * noise(PUMP)[column]
        margin = 0.25 * np.ptp(without[:, column])
        assert with_fault[:, column].min() > without[:, column].min() - margin
        assert with_fault[:, column].max() < without[:, column].max() + margin

    def test_dropout_silences_the_device_alone(self) -> None:
        fleet = Fleet(PUMP, 3, interval=1.0)
        fleet.faults.append(Fault("dropout", "pump", fleet.devices[0], "", 2.0, 4.0, 0.0))
        sends = [fleet.step(float(number)).sends.tolist() for number in range(5)]
        assert sends == [[True] * 3, [True] * 3, [False, True, True], [False, True, True], [True] * 3]


class TestTheFaultSchedule:
    def run(self, seconds: int, **options: float) -> tuple[list[Fault], Counter[str]]:
        fleets = [Fleet(PUMP, 6, interval=0.1), Fleet(ROOM, 4, interval=0.1, seed=1)]
        faults = Faults(fleets, 5.0, 6.0, **options)  # type: ignore[arg-type]  # a seed and a stop
        begun: list[Fault] = []
        shown: Counter[str] = Counter()
        for number in range(seconds * 10):
            begun += faults.begin(number / 10)
            for fleet in fleets:
                tick = fleet.step(number / 10)
                shown.update(np.array(fleet.devices)[tick.faulty].tolist())
        return begun, shown

    def test_begins_one_at_a_time_at_the_interval_between_start_and_stop(self) -> None:
        begun, _ = self.run(60, stop=40.0)
        assert [fault.start for fault in begun] == pytest.approx([5, 11, 17, 23, 29, 35], abs=0.11)

    def test_takes_turns_over_all_kinds(self) -> None:
        begun, _ = self.run(60)
        assert {fault.kind for fault in begun[:7]} == set(FAULT_KINDS)

    def test_leaves_a_device_alone_during_a_fault_and_a_minute_after(self) -> None:
        begun, _ = self.run(600)
        assert len(begun) > 50
        of_device: dict[str, list[Fault]] = {}
        for fault in begun:
            of_device.setdefault(fault.device, []).append(fault)
        for faults in of_device.values():
            for earlier, later in itertools.pairwise(faults):
                assert later.start >= earlier.end + 60 - 1e-9

    def test_shows_each_fault_for_as_many_ticks_as_it_says(self) -> None:
        begun, shown = self.run(120)
        for fault in begun:
            if fault.end < 100:
                assert shown[fault.device] > 0
            if fault.kind == "spike":
                assert shown[fault.device] >= 3

    def test_is_the_same_for_the_same_seed(self) -> None:
        assert self.run(60, seed=5)[0] == self.run(60, seed=5)[0] != self.run(60, seed=6)[0]


class TestRecordings:
    def test_are_wide_csv_whose_label_is_the_ground_truth(self, tmp_path: Path) -> None:
        fleet = Fleet(PUMP, 12, interval=1.0)
        faults = write_recording(
            tmp_path / "out.csv", fleet, 600, start=1000.0, faults=Faults([fleet], 1100.0, 60.0, seed=2)
        )
        assert {fault.kind for fault in faults} > {"dropout"}
        with (tmp_path / "out.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["time", "device", *PUMP.channels, "label"]
        seen = {(row["device"], float(row["time"])): row["label"] for row in rows}
        for fault in faults:
            labels = {
                label
                for (device, at), label in seen.items()
                if device == fault.device and fault.start <= at < fault.end
            }
            assert labels == (set() if fault.kind == "dropout" else {"1"})
        inside = sum(
            any(fault.device == device and fault.start <= at < fault.end for fault in faults) for device, at in seen
        )
        assert Counter(seen.values())["1"] == inside

    def test_are_written_by_the_command_with_the_faults_on_stdout(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "fleet.csv"
        simulate(devices=5, rate=1.0, seconds=2000.0, broker=None, out=out, seed=1, faults=True)
        told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(told) > 4
        assert set(told[0]) == {"kind", "profile", "device", "channel", "start", "end", "size"}
        with out.open() as file:
            assert sum(line.rstrip().endswith(",1") for line in file) > 100

    def test_that_cannot_be_written_are_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no/such"):
            simulate(devices=1, rate=1.0, seconds=5.0, broker=None, out=tmp_path / "no/such", seed=0, faults=False)


class TestPublishing:
    def test_sends_each_device_once_a_tick_at_its_place_in_it(self, tmp_path: Path) -> None:
        with Mosquitto(tmp_path) as broker, plain_client(broker.port, "plant/#") as client:
            fleet = Fleet(PUMP, 10, interval=0.2)
            with Publisher(MqttSettings(port=broker.port)) as publisher:
                publish_fleets(publisher, [fleet], seconds=1.0, start=1000.0)
                assert publisher.acknowledged == 50
            wait_until(lambda: len(client.got) == 50)
            times = [json.loads(message.payload)["ts"] for message in client.got]
            assert times == pytest.approx((1000 + np.arange(50) * 0.02).tolist())
            assert {message.topic for message in client.got} == {
                f"plant/north/pump-{n}/telemetry" for n in range(1, 11)
            }
            assert set(json.loads(client.got[0].payload)) == {"ts", *PUMP.channels}
            # Evenly over the second, not in five bursts.
            assert np.diff(client.arrived).max() < 0.15

    def test_reaches_ten_thousand_messages_a_second(self, tmp_path: Path) -> None:
        with Mosquitto(tmp_path) as broker, Publisher(MqttSettings(port=broker.port)) as publisher:
            fleet = Fleet(PUMP, 500, interval=1 / 40)  # 20 000 a second
            began = time.monotonic()
            publish_fleets(publisher, [fleet], seconds=2.0, start=0.0)
            assert publisher.acknowledged == 40_000
            assert 40_000 / (time.monotonic() - began) > 10_000

    def test_at_qos_0_waits_for_no_acknowledgement(self, tmp_path: Path) -> None:
        with Mosquitto(tmp_path) as broker, plain_client(broker.port, "a/#") as client:
            with Publisher(MqttSettings(port=broker.port), qos=0) as publisher:
                publisher.publish([("a/b", b"1"), ("a/c", b"x" * 300_000)])
                publisher.drain()
            wait_until(lambda: len(client.got) == 2)
            assert [(message.topic, len(message.payload)) for message in client.got] == [("a/b", 1), ("a/c", 300_000)]

    def test_says_where_no_broker_is(self) -> None:
        port = free_port()
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: .* nothing listens there: start the broker"):
            Publisher(MqttSettings(port=port))

    def test_says_why_the_broker_refuses(self, tmp_path: Path) -> None:
        users = tmp_path / "users"
        users.write_text("")
        options = ("allow_anonymous false", f"password_file {users}")
        with (
            Mosquitto(tmp_path, options=options) as broker,
            pytest.raises(Unavailable, match="Not authorized; the broker takes no"),
        ):
            Publisher(MqttSettings(port=broker.port))

    def test_says_how_far_it_came_when_the_broker_goes_away(self, tmp_path: Path) -> None:
        with Mosquitto(tmp_path) as broker, Publisher(MqttSettings(port=broker.port)) as publisher:
            publisher.publish([("a", b"1")])
            publisher.drain()
            broker.kill()
            publisher.sent += 1  # as if it had just gone out
            with pytest.raises(Unavailable, match="1 of 2 messages were acknowledged"):
                publisher.drain()


class TestTally:
    FAULT = Fault("spike", "pump", "a", "flow", 100.0, 110.0, 20.0)

    @pytest.mark.parametrize(("at", "delay"), [(100.0, 0.0), (110.0, 10.0), (140.0, 40.0), (99.9, None), (140.1, None)])
    def test_finds_a_fault_from_its_start_to_30_s_after_its_end(self, at: float, delay: float | None) -> None:
        count = tally([self.FAULT], [Firing("pump", "a", at)])
        assert count.delays == (delay,)
        assert len(count.false_alarms) == (delay is None)

    def test_wants_the_alert_on_the_same_device_of_the_same_profile(self) -> None:
        firings = [Firing("pump", "b", 105.0), Firing("room", "a", 105.0)]
        count = tally([self.FAULT], firings)
        assert count.found == 0
        assert count.false_alarms == tuple(firings)

    def test_counts_the_first_of_several_alerts_and_none_of_them_as_false(self) -> None:
        count = tally([self.FAULT], [Firing("pump", "a", 120.0), Firing("pump", "a", 103.0)])
        assert (count.found, count.median_delay, count.false_alarms) == (1, 3.0, ())

    def test_leaves_out_a_fault_that_still_lasts_unless_it_is_found(self) -> None:
        assert tally([self.FAULT], [], now=109.0).delays == ()
        assert tally([self.FAULT], [], now=110.0).delays == (None,)
        assert tally([self.FAULT], [Firing("pump", "a", 102.0)], now=109.0).delays == (2.0,)

    def test_median_is_over_the_found_and_zero_without_any(self) -> None:
        faults = [Fault("drift", "pump", name, "flow", 0.0, 10.0, 20.0) for name in "abcd"]
        count = tally(faults, [Firing("pump", name, at) for name, at in zip("abc", (1.0, 2.0, 9.0), strict=True)])
        assert (count.found, count.median_delay) == (3, 2.0)
        assert tally(faults, []).median_delay == 0.0
        assert count.of("drift").delays == (1.0, 2.0, 9.0, None)
        assert count.of("spike").faults == ()
