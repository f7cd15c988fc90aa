"""`sentinel run`: the daemon."""

import signal
from pathlib import Path

from sentinel.errors import ConfigError
from sentinel.logs import configure_logs
from sentinel.service import Service
from sentinel.settings import Settings, command_line, load_settings


def run(*, config: Path | None, broker: str | None, topic: str | None) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP reads the configuration again."""

    def read() -> Settings:
        return load_settings(config, overrides=command_line(broker, topic))

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
    settings = read()
    if not settings.profiles:
        raise ConfigError(["no profile: name a topic in [profiles.NAME], or give --topic"])
    configure_logs()
    for warning in settings.warnings():
        print(f"warning: {warning}")
    service = Service(settings, reread=read)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    signal.signal(signal.SIGHUP, lambda *_: service.reload())
    service.run()
    return 0
