"""The command line: names, options and help of all commands.

A command's module is imported when it is called, so that `--help` and `--version` load nothing heavy.
Exit codes: 0 ok, 1 failed, 2 usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from sentinel import __version__
from sentinel.errors import ConfigError, SentinelError

app = typer.Typer(
    help="Learns how every device of a fleet normally behaves, and raises an alert when one stops behaving so.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help: rich would double the time to show it
)

_CONFIG = "Configuration file (TOML)."
_BROKER = "Address of the broker: mqtt://host:1883, or mqtts://host:8883 for TLS."


def _profiles(ctx: typer.Context, incomplete: str) -> list[str]:
    from sentinel.commands._completion import profiles

    return profiles(ctx.params.get("config"), incomplete)


def _devices(ctx: typer.Context, incomplete: str) -> list[str]:
    from sentinel.commands._completion import devices

    return devices(ctx.params.get("config"), ctx.params.get("profile"), incomplete)


Config = Annotated[Path, typer.Option("--config", metavar="FILE", help=_CONFIG)]
MaybeConfig = Annotated[Path | None, typer.Option("--config", metavar="FILE", help=_CONFIG)]
Profile = Annotated[
    str, typer.Option("--profile", metavar="NAME", help="Profile of the configuration.", autocompletion=_profiles)
]
MaybeProfile = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="Profile of the configuration.", autocompletion=_profiles),
]
Data = Annotated[list[Path], typer.Argument(metavar="DATA…", help="CSV or Parquet files.")]
MaybeData = Annotated[list[Path] | None, typer.Argument(metavar="DATA…", help="CSV or Parquet files.")]
FromJournal = Annotated[
    bool, typer.Option("--from-journal", help="From the store's journal instead; a daemon may be running.")
]
Broker = Annotated[str, typer.Option("--broker", metavar="URL", help=_BROKER)]
MaybeBroker = Annotated[str | None, typer.Option("--broker", metavar="URL", help=_BROKER)]
Username = Annotated[
    str | None, typer.Option("--username", metavar="NAME", help="User name for the broker; or mqtt://NAME@host.")
]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", metavar="FILE", help="File that holds the broker's password.")
]
Ca = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="Certificate authorities for mqtts://; else the system's.")
]
Label = Annotated[
    str | None, typer.Option("--label-column", metavar="NAME", help="Column that labels anomalies; never a channel.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of all that is random.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there as JSON.")]
Qos = Annotated[int, typer.Option("--qos", min=0, max=1, help="Quality of service to publish with.")]


class DevicesAction(StrEnum):
    list = "list"
    show = "show"
    forget = "forget"


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _one_source(data: list[Path] | None, from_journal: bool) -> None:
    if bool(data) == from_journal:
        raise typer.BadParameter("give DATA or --from-journal, one of them")


def _moment(option: str, text: str | None) -> float | None:
    from sentinel.settings.values import parse_moment  # loads what `--help` has no need of

    try:
        return None if text is None else parse_moment(text, time.time())
    except ValueError as error:
        raise typer.BadParameter(f"{option} {error}") from None


def call(command: str, **options: Any) -> None:
    """Import `sentinel.commands.<command>`, call its function of that name, and exit with what it returns.

    Raises:
        typer.Exit: always.
    """
    try:
        code = getattr(import_module(f"sentinel.commands.{command}"), command)(**options)
        sys.stdout.flush()
    except ConfigError as error:
        for problem in error.problems:
            _complain(problem)
        code = 2
    except SentinelError as error:
        _complain(str(error))
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # as in `sentinel … | head`: point stdout elsewhere, so that the exit's flush is quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    raise typer.Exit(code or 0)


def _complain(problem: str) -> None:
    from sentinel.logs import printable  # loads what `--help` has no need of

    typer.echo("\n".join(map(printable, f"error: {problem}".splitlines())), err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sentinel {__version__}")
        raise typer.Exit


@app.callback()
def sentinel(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog=_examples(
        "sentinel run --config sentinel.toml",
        "sentinel run --broker mqtt://127.0.0.1 --topic 'plant/{device}/telemetry'",
    )
)
def run(
    config: MaybeConfig = None,
    broker: MaybeBroker = None,
    topic: Annotated[
        str | None,
        typer.Option("--topic", metavar="TEMPLATE", help="Topics of one more profile, named default; channels: auto."),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option("--http-port", min=0, max=65535, metavar="PORT", help="Of page and metrics; 0: any free one."),
    ] = None,
    username: Username = None,
    password_file: PasswordFile = None,
    ca: Ca = None,
) -> None:
    """Watch a broker's devices: learn, score, alert."""
    call(
        "run",
        config=config,
        broker=broker,
        topic=topic,
        http_port=http_port,
        username=username,
        password_file=password_file,
        ca=ca,
    )


@app.command(epilog=_examples("sentinel demo", "sentinel demo --for 180 --json result.json"))
def demo(
    seconds: Annotated[
        float | None, typer.Option("--for", min=1, metavar="SECONDS", help="End after so long; else at Ctrl-C.")
    ] = None,
    json_file: Json = None,
    seed: Seed = 0,
) -> None:
    """Show it all in one command: broker, plant, faults, daemon."""
    call("demo", seconds=seconds, json_file=json_file, seed=seed)


@app.command(
    epilog=_examples(
        "sentinel discover --broker mqtt://127.0.0.1",
        "sentinel discover --broker mqtts://me@broker.lan --ca ca.pem --for 300 --out sentinel.toml",
        "sentinel discover --broker mqtt://127.0.0.1 --topic 'plant/#'",
    )
)
def discover(
    broker: Broker,
    seconds: Annotated[float, typer.Option("--for", min=1, metavar="SECONDS", help="How long to watch.")] = 60.0,
    topic: Annotated[
        str, typer.Option("--topic", metavar="FILTER", help="Topics to watch, where the broker forbids others.")
    ] = "#",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the configuration there; else to the terminal.")
    ] = None,
    username: Username = None,
    password_file: PasswordFile = None,
    ca: Ca = None,
) -> None:
    """Watch a broker's traffic and write a configuration for it.

    A password that no file holds is asked for.
    """
    call(
        "discover",
        broker=broker,
        seconds=seconds,
        topic=topic,
        out=out,
        username=username,
        password_file=password_file,
        ca=ca,
    )


@app.command(
    epilog=_examples(
        "sentinel train --config sentinel.toml --profile pump normal.csv",
        "sentinel train --config sentinel.toml --profile pump january.csv february.csv --json trained.json",
        "sentinel train --config sentinel.toml --profile pump --from-journal --since 7d",
        "sentinel train --config sentinel.toml --profile pump --from-journal --since 2026-05-01 --until 2026-05-06T08:00",
    )
)
def train(
    *,
    data: MaybeData = None,
    config: Config,
    profile: Profile,
    from_journal: FromJournal = False,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help="With --from-journal: what came since, as 7d ago or 2026-05-01."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="WHEN", help="And before, as 12h ago or 2026-05-06T08:00 (UTC).")
    ] = None,
    label_column: Label = None,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Train a profile's model on normal data, into the store."""
    _one_source(data, from_journal)
    for option, given in (("--since", since), ("--until", until)):
        if given is not None and not from_journal:
            raise typer.BadParameter(f"{option} goes with --from-journal")
    begin, end = _moment("--since", since), _moment("--until", until)
    if begin is not None and end is not None and begin >= end:
        raise typer.BadParameter("--since must be before --until")
    call(
        "train",
        data=data or [],
        from_journal=from_journal,
        since=begin,
        until=end,
        config=config,
        profile=profile,
        label_column=label_column,
        seed=seed,
        json_file=json_file,
    )


@app.command(
    epilog=_examples(
        "sentinel backtest pump.csv --out report",
        "sentinel backtest pump.csv --train normal.csv --label-column anomaly --json summary.json",
        "sentinel backtest pump.csv --config sentinel.toml --profile pump",
        "sentinel backtest --from-journal --config sentinel.toml --profile pump --out report",
    )
)
def backtest(
    *,
    data: MaybeData = None,
    from_journal: FromJournal = False,
    config: MaybeConfig = None,
    profile: MaybeProfile = None,
    train_rows: Annotated[
        int | None, typer.Option("--train-rows", min=1, help="Learn from the first so many rows.")
    ] = None,
    train_fraction: Annotated[
        float | None, typer.Option("--train-fraction", min=0.0, max=1.0, help="Learn from the first share of the rows.")
    ] = None,
    train: Annotated[
        list[Path] | None, typer.Option("--train", metavar="FILE", help="Learn from this file; may be given again.")
    ] = None,
    label_column: Label = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write scores, alerts, summary and report there.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Run the daemon's pipeline over past data; write a report."""
    _one_source(data, from_journal)
    if sum(given is not None for given in (train_rows, train_fraction, train or None)) > 1:
        raise typer.BadParameter("give one of --train-rows, --train-fraction and --train")
    if (config is None) != (profile is None):
        raise typer.BadParameter("give --config and --profile together")
    if from_journal:
        if config is None:
            raise typer.BadParameter("--from-journal needs --config and --profile")
        if train_rows is not None or train_fraction is not None or train or label_column is not None:
            raise typer.BadParameter(
                "--from-journal runs the models that the daemon ran: no --train…, no --label-column"
            )
    call(
        "backtest",
        data=data or [],
        from_journal=from_journal,
        config=config,
        profile=profile,
        train_rows=train_rows,
        train_fraction=train_fraction,
        train=train or [],
        label_column=label_column,
        seed=seed,
        out=out,
        json_file=json_file,
    )


@app.command(
    epilog=_examples(
        "sentinel replay pump.csv --broker mqtt://127.0.0.1 --topic 'plant/{device}/telemetry' --speed 60",
        "sentinel replay pump.csv --broker mqtt://127.0.0.1 --topic 'plant/{device}/{channel}' --rate 1000",
    )
)
def replay(
    *,
    data: Data,
    broker: Broker,
    topic: Annotated[
        str, typer.Option("--topic", metavar="TEMPLATE", help="Where to publish, for example plant/{device}/telemetry.")
    ],
    speed: Annotated[
        float | None,
        typer.Option("--speed", min=0.0, help="Times as fast as recorded; 0: no waiting. Without --rate: 1."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.0, help="Messages per second, evenly spaced; 0: no waiting.")
    ] = None,
    qos: Qos = 1,
    label_column: Label = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Device of a file without a device column.")
    ] = None,
    username: Username = None,
    password_file: PasswordFile = None,
    ca: Ca = None,
) -> None:
    """Publish recordings to a broker, as they came or faster.

    Payloads are JSON with the event time under time, in seconds since 1970: time = { path = "time" }.
    """
    if speed is not None and rate is not None:
        raise typer.BadParameter("give one of --speed and --rate")
    call(
        "replay",
        data=data,
        broker=broker,
        topic=topic,
        speed=speed,
        rate=rate,
        qos=qos,
        label_column=label_column,
        device=device,
        username=username,
        password_file=password_file,
        ca=ca,
    )


@app.command(
    epilog=_examples(
        "sentinel simulate --devices 1000 --rate 1 --for 600 --broker mqtt://127.0.0.1",
        "sentinel simulate --devices 5 --for 86400 --faults --out fleet.csv",
    )
)
def simulate(
    *,
    devices: Annotated[int, typer.Option("--devices", min=1, help="Devices in the fleet.")] = 20,
    rate: Annotated[float, typer.Option("--rate", metavar="HZ", help="Readings per second and device.")] = 1.0,
    seconds: Annotated[float, typer.Option("--for", min=1, metavar="SECONDS", help="How long, in event time.")] = 60.0,
    broker: MaybeBroker = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the readings there as CSV.")] = None,
    seed: Seed = 0,
    faults: Annotated[bool, typer.Option("--faults", help="Inject faults, and print each.")] = False,
    username: Username = None,
    password_file: PasswordFile = None,
    ca: Ca = None,
) -> None:
    """Make a fleet's readings and faults, with ground truth.

    Payloads are JSON with the event time under ts, in seconds since 1970: time = { path = "ts" }.
    """
    if (broker is None) == (out is None):
        raise typer.BadParameter("give one of --broker and --out")
    call(
        "simulate",
        devices=devices,
        rate=rate,
        seconds=seconds,
        broker=broker,
        out=out,
        seed=seed,
        faults=faults,
        username=username,
        password_file=password_file,
        ca=ca,
    )


@app.command(
    "check-config",
    epilog=_examples("sentinel check-config --config sentinel.toml", "sentinel check-config"),
)
def check_config(config: MaybeConfig = None) -> None:
    """Check a configuration; print where each value is from."""
    call("check_config", config=config)


@app.command(epilog=_examples("sentinel health --config sentinel.toml"))
def health(config: MaybeConfig = None) -> None:
    """Ask the daemon whether it works: exit code 0, or 1."""
    call("health", config=config)


@app.command(epilog=_examples("sentinel models --config sentinel.toml"))
def models(config: Config, json_file: Json = None) -> None:
    """List the models in the store."""
    call("models", config=config, json_file=json_file)


@app.command(
    epilog=_examples(
        "sentinel devices --config sentinel.toml",
        "sentinel devices --config sentinel.toml show north/pump-7",
        "sentinel devices --config sentinel.toml forget north/pump-7",
    )
)
def devices(
    config: Config,
    action: Annotated[DevicesAction, typer.Argument(help="What to do.")] = DevicesAction.list,
    device: Annotated[
        str | None, typer.Argument(metavar="ID", help="The device, for show and forget.", autocompletion=_devices)
    ] = None,
    json_file: Json = None,
) -> None:
    """List the known devices, show one's state, or forget it."""
    if (device is None) != (action is DevicesAction.list):
        raise typer.BadParameter(f"{action} needs the device's ID" if device is None else "list takes no ID")
    call("devices", config=config, action=action.value, device=device, json_file=json_file)


@app.command(
    epilog=_examples(
        "sentinel inspect north/pump-7 --config sentinel.toml --profile pump --out pump-7.html",
        "sentinel inspect north/pump-7 --config sentinel.toml --profile pump --last 1000 --json pump-7.json",
    )
)
def inspect(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="The device's id.", autocompletion=_devices)],
    config: Config,
    profile: Profile,
    last: Annotated[int, typer.Option("--last", min=1, max=5000, metavar="N", help="So many of its last ticks.")] = 300,
    json_file: Json = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write a heat map there as HTML.")] = None,
) -> None:
    """Show gates and cells of a device's network over its last readings; a daemon may be running."""
    call("inspect", device=device, config=config, profile=profile, last=last, json_file=json_file, out=out)


@app.command(epilog=_examples("sentinel bench", "sentinel bench --json bench.json"))
def bench(json_file: Json = None) -> None:
    """Measure model step, memory per device, journal commit."""
    call("bench", json_file=json_file)
