"""`sentinel run`: the daemon."""

import signal
from pathlib import Path
from typing import Unpack

import structlog

from sentinel import __version__
from sentinel.errors import ConfigError
from sentinel.logs import configure_logs
from sentinel.settings import Login, Settings, command_line, load_settings

log = structlog.get_logger("sentinel.run")


def run(
    *, config: Path | None, broker: str | None, topic: str | None, http_port: int | None, **login: Unpack[Login]
) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP reads the configuration again."""

    def read() -> Settings:
        return load_settings(config, overrides=command_line(broker, topic, http_port, **login))

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
    settings = read()
    if not settings.profiles:
        raise ConfigError(["no profile: name a topic in [profiles.NAME], or give --topic"])
    configure_logs()
    log.info("starting", version=__version__, broker=f"{settings.mqtt.host}:{settings.mqtt.port}")
    for warning in settings.warnings():
        log.warning("configuration", reason=warning)
    from sentinel.service import Service  # takes seconds: what is going on is said before

    service = Service(settings, reread=read)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    signal.signal(signal.SIGHUP, lambda *_: service.reload())
    service.run()
    return 0
