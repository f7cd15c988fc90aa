"""`sentinel health`: whether the daemon of a configuration works, for health checks and people."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from sentinel.errors import ConfigError, SentinelError
from sentinel.settings import HttpSettings, load_settings

TIMEOUT = 4.0  # seconds
LONGEST_ANSWER = 65536  # bytes


def health(config: Path | None = None) -> int:
    """Ask /healthz of `[http]`, say what it answers, and return 0 if that is yes. Blocks some seconds at most.

    Raises:
        ConfigError: it has problems, or its port is 0, which nobody can ask.
        SentinelError: nobody answers, or not as Sentinel does.
    """
    settings = load_settings(config)
    if settings.http.port == 0:
        raise ConfigError([f"{settings.origin('http', 'port')}: http.port = 0: name a port, so that it can be asked"])
    ok, reasons = _ask(settings.http)
    if ok:
        print("ok")
        return 0
    print("\n".join(reasons) or "not ok; give the token for the reasons", file=sys.stderr)
    return 1


def _ask(http: HttpSettings) -> tuple[bool, list[str]]:
    host = f"[{http.host}]" if ":" in http.host else http.host  # 0.0.0.0 and [::] reach this machine, too
    url = f"{'http' if http.tls is None else 'https'}://{host}:{http.port}/healthz"
    token = http.token()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http or https, nothing else
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if http.tls is not None:
        handlers.append(urllib.request.HTTPSHandler(context=http.tls.pinned()))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT) as answer:
            body = answer.read(LONGEST_ANSWER)
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(LONGEST_ANSWER)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise SentinelError(
            f"{url} does not answer ({reason}): is the daemon running with this configuration?"
        ) from None
    try:
        told = json.loads(body)
        return told["ok"] is True, [str(reason) for reason in told["reasons"]]
    except (ValueError, KeyError, TypeError):
        raise SentinelError(f"{url} does not answer as Sentinel does: does another program use the port?") from None
