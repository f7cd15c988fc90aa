"""The command line: what it prints, how it ends, and that it hands each command what the command takes."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from sentinel import __version__
from sentinel.commands import app as cli
from sentinel.errors import ConfigError, DataError
from sentinel.logs import configure_logs

LOGIN = ["--username", "me", "--password-file", "secret", "--ca", "ca.pem"]
COMMANDS = {
    "run": ["--config", "s.toml", "--broker", "mqtt://h", "--topic", "a/{x}", "--http-port", "0", *LOGIN],
    "demo": ["--for", "180", "--json", "d.json", "--seed", "7"],
    "discover": ["--broker", "mqtt://h", "--for", "5", "--out", "s.toml", *LOGIN],
    "train": ["a.csv", "b.csv", "--config", "s.toml", "--profile", "p", "--label-column", "l", "--seed", "1"],
    "backtest": ["a.csv", "--train", "b.csv", "--train", "c.csv", "--out", "o", "--json", "j", "--label-column", "l"],
    "replay": [
        "a.csv",
        "--broker",
        "mqtt://h",
        "--topic",
        "a/{x}",
        "--rate",
        "5",
        "--qos",
        "0",
        "--device",
        "d",
        *LOGIN,
    ],
    "simulate": [
        "--devices",
        "3",
        "--rate",
        "2",
        "--for",
        "9",
        "--broker",
        "mqtts://h",
        "--seed",
        "1",
        "--faults",
        *LOGIN,
    ],
    "check-config": ["--config", "s.toml"],
    "health": ["--config", "s.toml"],
    "models": ["--config", "s.toml", "--json", "j"],
    "devices": ["--config", "s.toml", "show", "d", "--json", "j"],
    "inspect": ["d", "--config", "s.toml", "--profile", "p", "--last", "9", "--json", "j", "--out", "o.html"],
    "bench": ["--json", "j"],
}


def sentinel(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("SENTINEL_")}
    return subprocess.run(
        [sys.executable, "-m", "sentinel", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=inherited | environment,
        timeout=60,
    )


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    calls: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(cli, "call", lambda command, **options: calls.setdefault(command, options))
    return calls


def standing_in(monkeypatch: pytest.MonkeyPatch, command: str, function: Callable[..., Any]) -> None:
    module = SimpleNamespace(**{command: function})
    monkeypatch.setattr(cli, "import_module", lambda name: module)


class TestProgram:
    def test_version(self) -> None:
        done = sentinel("--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"sentinel {__version__}\n", "")

    def test_help_names_every_command(self) -> None:
        done = sentinel("--help")
        assert done.returncode == 0
        assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
        assert "\x1b" not in done.stdout

    def test_help_and_version_load_nothing_heavy(self) -> None:
        code = (
            "import sys; from sentinel.commands.app import app\n"
            "try: app(['--help'])\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'numba', 'scipy', 'numpy', 'pydantic', 'paho', 'pydantic_settings', 'prometheus_client', 'rich', 'structlog'}\n"
            "print('loaded:', *heavy & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1].strip() == "loaded:"

    def test_the_daemon_loads_what_takes_seconds_after_it_said_that_it_starts(self) -> None:
        code = "import sys; import sentinel.commands.run; print('loaded:', *{'torch', 'numba'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "loaded:\n"

    def test_a_good_configuration_ends_with_0(self, tmp_path: Path) -> None:
        (tmp_path / "s.toml").write_text('[profiles.pump]\ntopic = "plant/{device}"\n')
        done = sentinel("check-config", "--config", str(tmp_path / "s.toml"))
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(
            rf'^topic = "plant/{{device}}" +# {re.escape(str(tmp_path))}/s.toml:2$', done.stdout, re.MULTILINE
        )

    def test_a_bad_configuration_ends_with_2_and_plain_lines(self, tmp_path: Path) -> None:
        (tmp_path / "s.toml").write_text("[mqtt]\nhots = 1\n")
        done = sentinel("check-config", "--config", str(tmp_path / "s.toml"), SENTINEL_HTTP__PROT="1")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "error: SENTINEL_HTTP__PROT: unknown name; did you mean SENTINEL_HTTP__PORT?\n"
            f"error: {tmp_path}/s.toml:2: mqtt.hots: unknown key; did you mean mqtt.host?\n"
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["rnu"], "No such command 'rnu'"),
            (["check-config", "--confg", "x"], "No such option: --confg"),
            (["train", "a.csv", "--config", "s.toml"], "Missing option '--profile'"),
            (["replay", "--broker", "mqtt://h", "--topic", "t"], "Missing argument 'DATA…'"),
            (["demo", "--for", "soon"], "Invalid value for '--for'"),
            (["replay", "a", "--broker", "h", "--topic", "t", "--speed", "1", "--rate", "1"], "--speed and --rate"),
            (["backtest", "a", "--train-rows", "5", "--train", "b"], "give one of --train-rows, --train-fraction"),
            (["backtest", "a", "--config", "s.toml"], "give --config and --profile together"),
            (["simulate"], "give one of --broker and --out"),
            (["devices", "--config", "s.toml", "show"], "show needs the device's ID"),
            (["devices", "--config", "s.toml", "list", "d"], "list takes no ID"),
        ],
    )
    def test_wrong_usage_ends_with_2_and_says_what(self, arguments: list[str], message: str) -> None:
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 2
        assert message in done.output
        assert "Traceback" not in done.output


class TestCommands:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_has_an_example(self, command: str) -> None:
        done = CliRunner().invoke(cli.app, [command, "--help"])
        assert done.exit_code == 0
        assert f"Examples:\n    sentinel {command}" in done.output

    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_function_takes_what_its_command_line_gives(
        self, command: str, called: dict[str, dict[str, Any]]
    ) -> None:
        done = CliRunner().invoke(cli.app, [command, *COMMANDS[command]])
        assert done.exit_code == 0, done.output
        name = command.replace("-", "_")
        if importlib.util.find_spec(f"sentinel.commands.{name}") is None:
            pytest.skip(f"needs sentinel.commands.{name}")
        function = getattr(importlib.import_module(f"sentinel.commands.{name}"), name)
        inspect.signature(function).bind(**called[name])

    def test_options_arrive_under_their_names(self, called: dict[str, dict[str, Any]]) -> None:
        for command, arguments in COMMANDS.items():
            assert CliRunner().invoke(cli.app, [command, *arguments]).exit_code == 0
        login = {"username": "me", "password_file": Path("secret"), "ca": Path("ca.pem")}
        assert called["run"] == {
            "config": Path("s.toml"),
            "broker": "mqtt://h",
            "topic": "a/{x}",
            "http_port": 0,
            **login,
        }
        assert all(login.items() <= called[command].items() for command in ("discover", "replay", "simulate"))
        assert called["demo"] == {"seconds": 180.0, "json_file": Path("d.json"), "seed": 7}
        assert called["train"] == {
            "data": [Path("a.csv"), Path("b.csv")],
            "from_journal": False,
            "since": None,
            "until": None,
            "config": Path("s.toml"),
            "profile": "p",
            "label_column": "l",
            "seed": 1,
            "json_file": None,
        }
        assert called["backtest"]["train"] == [Path("b.csv"), Path("c.csv")]
        assert (called["replay"]["speed"], called["replay"]["rate"], called["replay"]["qos"]) == (None, 5.0, 0)
        assert called["simulate"]["faults"] is True
        assert called["devices"] == {"config": Path("s.toml"), "action": "show", "device": "d", "json_file": Path("j")}


class TestEnds:
    """How a command's end becomes the process's."""

    @pytest.mark.parametrize(
        ("raised", "code", "printed"),
        [
            (None, 0, ""),
            (ConfigError(["one", "two"]), 2, "error: one\nerror: two\n"),
            (DataError("a.csv:3: no such column"), 1, "error: a.csv:3: no such column\n"),
            (KeyboardInterrupt(), 130, ""),
        ],
    )
    def test_errors_are_one_plain_line_each(
        self, monkeypatch: pytest.MonkeyPatch, raised: BaseException | None, code: int, printed: str
    ) -> None:
        def bench(json_file: Path | None) -> None:
            if raised:
                raise raised

        standing_in(monkeypatch, "bench", bench)
        done = CliRunner().invoke(cli.app, ["bench"])
        assert (done.exit_code, done.stdout, done.stderr) == (code, "", printed)

    def test_a_returned_number_is_the_exit_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        standing_in(monkeypatch, "bench", lambda json_file: 3)
        assert CliRunner().invoke(cli.app, ["bench"]).exit_code == 3

    def test_a_bug_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def bench(json_file: Path | None) -> None:
            raise KeyError(json_file)

        standing_in(monkeypatch, "bench", bench)
        assert isinstance(CliRunner().invoke(cli.app, ["bench"]).exception, KeyError)

    def test_ctrl_c_ends_quietly_with_130(self) -> None:
        code = (
            "import sys, time\n"
            "from types import SimpleNamespace\n"
            "from sentinel.commands import app as cli\n"
            "def bench(json_file):\n"
            "    print('ready', flush=True)\n"
            "    time.sleep(60)\n"
            "cli.import_module = lambda name: SimpleNamespace(bench=bench)\n"
            "from sentinel.__main__ import main\n"
            "sys.argv = ['sentinel', 'bench']\n"
            "main()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (130, "", "")

    def test_a_reader_that_goes_away_is_no_traceback(self, tmp_path: Path) -> None:
        (tmp_path / "s.toml").write_text('[profiles.pump]\ntopic = "plant/{device}"\n')
        with subprocess.Popen(
            [sys.executable, "-m", "sentinel", "check-config", "--config", str(tmp_path / "s.toml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.stderr is not None
            err = process.stderr.read()
        assert process.returncode == 1
        assert err == ""


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    yield configure_logs
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("command", ["run", "check-config"])
def test_a_certificate_that_is_none_ends_the_start_with_2_and_says_where(tmp_path: Path, command: str) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n")
    (tmp_path / "s.toml").write_text('[mqtt]\ntls = { ca = "ca.pem" }\n[profiles.a]\ntopic = "a/{device}"\n')
    done = subprocess.run(
        [sys.executable, "-m", "sentinel", command, "--config", "s.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    told = f'error: s.toml:2: mqtt.tls.ca = "{tmp_path}/ca.pem": holds no certificate in PEM form\n'
    assert done.stderr == told


def raise_with_a_local(password: str) -> None:
    secret = password
    raise ValueError(len(secret))


class TestLogs:
    def test_machines_get_json(self, logs: Callable[..., None]) -> None:
        stream = StringIO()
        logs(stream)
        structlog.get_logger().info("turn", messages=3)
        line = json.loads(stream.getvalue())
        assert (line["event"], line["level"], line["messages"]) == ("turn", "info", 3)
        assert line["timestamp"].endswith("Z")

    def test_people_get_text(self, logs: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
        stream = Terminal()
        monkeypatch.setenv("NO_COLOR", "1")
        logs(stream)
        structlog.get_logger().info("turn", messages=3)
        assert "turn" in stream.getvalue()
        assert "messages=3" in stream.getvalue()
        assert "\x1b" not in stream.getvalue()

    def test_what_a_device_calls_itself_does_not_steer_a_terminal(self, logs: Callable[..., None]) -> None:
        people, machine, odd = Terminal(), StringIO(), "a\x1b]0;owned\x07\u202eb"
        logs(people)
        structlog.get_logger().warning(odd, device=odd)
        assert people.getvalue().count(r"a\x1b]0;owned\x07\u202eb") == 2
        assert "\x07" not in people.getvalue()
        logs(machine)
        structlog.get_logger().warning(odd, device=odd)
        assert json.loads(machine.getvalue())["device"] == odd

    def test_a_traceback_shows_no_local_variable(
        self, logs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        password = os.urandom(8).hex()
        for stream in (Terminal(), StringIO()):
            logs(stream)
            try:
                raise_with_a_local(password)
            except ValueError:
                structlog.get_logger().exception("failed")
                logging.getLogger("library").exception("failed")
            assert stream.getvalue().count("Traceback") == 2
            assert password not in stream.getvalue()

    def test_colours_unless_no_color_is_set(self, logs: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm")
        stream = Terminal()
        logs(stream)
        structlog.get_logger().info("turn")
        assert "\x1b[" in stream.getvalue()

    def test_a_terminal_that_knows_no_colours_gets_none(
        self, logs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = Terminal()
        monkeypatch.setenv("TERM", "dumb")
        logs(stream)
        structlog.get_logger().info("turn")
        assert "\x1b" not in stream.getvalue()

    def test_systemd_gets_json_even_on_a_terminal(
        self, logs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = Terminal()
        monkeypatch.setenv("JOURNAL_STREAM", "8:1")
        logs(stream)
        structlog.get_logger().info("turn")
        assert json.loads(stream.getvalue())["event"] == "turn"

    def test_other_packages_warnings_look_alike_and_their_chatter_is_left_out(self, logs: Callable[..., None]) -> None:
        stream = StringIO()
        logs(stream)
        logging.getLogger("uvicorn").info("chatter")
        logging.getLogger("uvicorn").warning("port %d", 5)
        line = json.loads(stream.getvalue())
        assert (line["event"], line["level"]) == ("port 5", "warning")

    def test_an_exception_is_one_line(self, logs: Callable[..., None]) -> None:
        stream = StringIO()
        logs(stream)
        structlog.get_logger().error("failed", exc_info=DataError("broken"))
        (line,) = stream.getvalue().splitlines()
        assert "DataError: broken" in json.loads(line)["exception"]
