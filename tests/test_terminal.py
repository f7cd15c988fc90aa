"""What commands print: on a terminal, with NO_COLOR, and where nobody watches; names from outside stay text."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from sentinel.commands import _completion, backtest, demo
from sentinel.commands._terminal import say, show_facts, show_table, sparkline
from sentinel.commands.app import app
from sentinel.logs import printable
from sentinel.model import learn as learning
from tests import fleets
from tests.test_devices import CONFIG, Plant
from tests.test_report import made_up

NASTY = "a[/b]\x1b[31m\x07"
SAID = "a[/b]\\x1b[31m\\x07"
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38;5;\d+|9[0-7])(?:;\d+)*m")

Terminal = Callable[[Callable[[], Any]], str]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Calls a function with standard output and error on a terminal; what a person would have seen."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("LINES", "40")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(function: Callable[[], Any]) -> str:
        master, slave = os.openpty()
        seen: list[bytes] = []

        def read() -> None:
            try:
                while part := os.read(master, 65536):
                    seen.append(part)
            except OSError:  # the other end is closed
                pass

        reader = threading.Thread(target=read)
        reader.start()
        with open(slave, "w", encoding="utf-8") as end, monkeypatch.context() as patch:  # noqa: PTH123 - a descriptor
            patch.setattr("sys.stdout", end)
            patch.setattr("sys.stderr", end)
            function()
        reader.join()
        os.close(master)
        return b"".join(seen).decode()

    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "STEPS", 20)
    monkeypatch.setattr(learning, "STAGE_STEPS", 5)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """300 rows of a device and channels whose names are meant to do harm."""
    rows = fleets.healthy(300)
    lines = [f"{1.7e9 + at},{NASTY},{','.join(f'{v:.4f}' for v in row)}" for at, row in enumerate(rows)]
    path = tmp_path / "data.csv"
    path.write_text("\n".join([f"time,device,pressure,{NASTY},heat", *lines]), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "sentinel.toml"
    path.write_text(CONFIG.replace('"flow", "heat"]', '"heat"]').replace("room", "pump2"), encoding="utf-8")
    path.write_text(re.sub(r"channels = .*", 'channels = "auto"', path.read_text()), encoding="utf-8")
    return path


def invoked(*arguments: object) -> Callable[[], Any]:
    return lambda: app([str(each) for each in arguments], standalone_mode=False)


class TestText:
    def test_controls_are_escaped_and_the_rest_stays(self) -> None:
        assert printable(NASTY) == SAID
        assert printable("Pumpe 7 µm\n") == "Pumpe 7 µm\\n"

    def test_brackets_are_no_markup_and_long_lines_stay_whole(self, capsys: pytest.CaptureFixture[str]) -> None:
        say(f"[red]{NASTY}", "x " * 100)
        assert capsys.readouterr().out == f"[red]{SAID}\n{'x ' * 100}\n"

    def test_a_sparkline_follows_the_numbers(self) -> None:
        assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
        assert sparkline([0, np.nan, 7]) == "▁ █"
        assert sparkline([0.0, 9.0, 0.0, 0.0], 2, highest=True) == "█▁"
        assert (sparkline([]), sparkline([np.nan]), sparkline([3, 3])) == ("", "", "▁▁")


class TestTables:
    def draw(self) -> None:
        show_table(
            ["device", "score"], [[NASTY, "1.5"], ["d2", "0.3"]], title=NASTY, right=("score",), styles=["red", ""]
        )
        show_facts([("name", NASTY), ("longer name", "[b]")])

    def test_a_terminal_gets_columns_and_colours(self, terminal: Terminal) -> None:
        seen = terminal(self.draw)
        assert COLOUR.search(seen)
        assert seen.count(SAID) == 3
        assert "\x1b[31m\\x07" not in seen
        assert "\t" not in seen

    def test_no_color_means_none(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        seen = terminal(self.draw)
        assert not COLOUR.search(seen)
        assert seen.count(SAID) == 3

    def test_where_nobody_watches_lines_are_plain(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.draw()
        assert capsys.readouterr().out.splitlines() == [
            f"# {SAID}",
            "device\tscore",
            f"{SAID}\t1.5",
            "d2\t0.3",
            f"name         {SAID}",
            "longer name  [b]",
        ]


class TestCommands:
    def test_train_shows_progress_and_what_it_learned(
        self, terminal: Terminal, quick: None, recording: Path, config: Path
    ) -> None:
        seen = terminal(invoked("train", recording, "--config", config, "--profile", "pump"))
        assert re.search(r"\w+ .*━.* \d+ %", seen), seen[:3000]
        assert f"pressure, {SAID}, heat" in seen
        assert "300 ticks of 1 device" in seen

    def test_train_is_plain_where_nobody_watches(
        self, quick: None, recording: Path, config: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        invoked("train", recording, "--config", config, "--profile", "pump")()
        out, err = capfd.readouterr()
        assert "\x1b" not in out
        assert err == ""
        assert f"channels      pressure, {SAID}, heat\n" in out

    def test_a_training_that_diverges_ends_with_a_sentence_and_exit_code_1(
        self, monkeypatch: pytest.MonkeyPatch, quick: None, recording: Path, config: Path
    ) -> None:
        real = learning._loss
        monkeypatch.setattr(learning, "_loss", lambda *given: (real(*given)[0] * math.nan, *real(*given)[1:]))
        done = CliRunner().invoke(app, ["train", str(recording), "--config", str(config), "--profile", "pump"])
        assert done.exit_code == 1
        assert re.fullmatch(r"error: training diverged at step \d+ of \d+ \(nan\): train again.*\n", done.stderr)

    def test_backtest_shows_episodes_and_the_course_of_scores(
        self, terminal: Terminal, capsys: pytest.CaptureFixture[str]
    ) -> None:
        result = made_up((NASTY, "d2"), ("pressure", NASTY))
        result.channels = (NASTY, "flow")
        seen = terminal(lambda: backtest._show(result.summary(), result, None))
        assert "score over time" in seen
        assert "▁" in seen
        assert "█" in seen
        assert "\x1b[31m\\x07" not in seen
        assert f"{SAID}: pressure 8 bar" in seen
        backtest._show(result.summary(), result, None)
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "▁" not in out
        assert f"{SAID}: pressure 8 bar" in out

    def test_devices_are_a_table_or_columns(
        self, terminal: Terminal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        plant = Plant(tmp_path)
        plant.config.write_text(CONFIG)
        plant.start()
        plant.run(**{"x[red]": fleets.healthy(3)})
        plant.stop()
        assert "x[red]" in terminal(invoked("devices", "--config", plant.config))
        capsys.readouterr()
        invoked("devices", "--config", plant.config)()
        assert "\npump\tx[red]\tlearning\t3\t" in capsys.readouterr().out

    def test_the_demo_draws_a_live_picture_or_plain_lines(
        self, terminal: Terminal, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def show() -> None:
            scene = demo.Scene(began=1000.0, page="http://127.0.0.1:1/metrics")
            with demo._view(Console(), scene) as tell:
                tell(f"ALERT {NASTY}")
            demo._summarise(scene)

        seen = terminal(show)
        assert "Ctrl-C ends with a summary" in seen
        assert f"ALERT {SAID}" in seen
        show()
        out = capsys.readouterr().out
        assert f"ALERT {SAID}\n" in out
        assert "fault\tinjected\tfound\tmissed\tmedian delay\n" in out
        assert "\x1b" not in out


class TestCompletion:
    @pytest.fixture
    def plant(self, tmp_path: Path) -> Plant:
        plant = Plant(tmp_path)
        plant.config.write_text(CONFIG)
        plant.start()
        plant.run(d0=fleets.healthy(1), e0=fleets.healthy(1))
        plant.stop()
        return plant

    def test_profiles_and_devices_are_suggested(self, plant: Plant) -> None:
        def completed(line: str) -> list[str]:
            words = {"_SENTINEL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
            done = CliRunner().invoke(app, [], prog_name="sentinel", env=words)
            return done.stdout.split()

        assert completed("sentinel insp") == ["inspect"]
        assert completed(f"sentinel train --config {plant.config} --profile pu") == ["pump"]
        assert completed(f"sentinel inspect --config {plant.config} --profile pump d") == ["d0"]
        assert completed(f"sentinel devices --config {plant.config} show ") == ["d0", "e0"]

    def test_what_is_missing_suggests_nothing(self, tmp_path: Path) -> None:
        assert _completion.profiles(tmp_path / "none.toml", "") == []
        assert _completion.profiles(None, "") == []
        assert _completion.devices(tmp_path / "none.toml", None, "") == []
