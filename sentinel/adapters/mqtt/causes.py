"""Why a broker cannot be used, in words that name the cause and the remedy."""

from __future__ import annotations

import errno
import re
import socket
import ssl

from paho.mqtt.reasoncodes import ReasonCode

from sentinel.errors import SentinelError

EXPIRED, NOT_YET_VALID, SELF_SIGNED, WRONG_HOST, WRONG_ADDRESS = 10, 9, (18, 19, 20, 21, 2), 62, 64  # X509_V_ERR_…
_NETWORK = {
    errno.ECONNREFUSED: "nothing listens there: start the broker, or correct mqtt.host and mqtt.port (--broker)",
    errno.EHOSTUNREACH: "there is no way to it: check the network and mqtt.host (--broker)",
    errno.ENETUNREACH: "there is no way to it: check the network and mqtt.host (--broker)",
}
_LOGIN = "mqtt.username and the file mqtt.password_file (--username, --password-file)"
_REFUSED = {  # reason codes of CONNACK and DISCONNECT (MQTT 5, 2.4); those of 3.1.1 are told as these
    0x84: "set another mqtt.version",
    0x85: "set another mqtt.client_id",
    0x86: f"check {_LOGIN}, and that the broker knows this user",
    0x87: f"check {_LOGIN}, and that the broker lets this user in",
    0x88: "the broker is not ready; look at its log",
    0x8A: "lift the ban on the broker",
    0x8E: "another client came with the same mqtt.client_id: give each its own",
}
_ANONYMOUS = f"the broker takes no anonymous clients: set {_LOGIN}, or mqtt.tls.cert and key"


class Refused(ConnectionError):
    """The broker answered, and does not want us. Its text is for people."""


def refusal(reason: ReasonCode, username: str | None) -> str:
    """Why the broker ended or refused a connection."""
    remedy = _ANONYMOUS if username is None and reason.value in {0x86, 0x87} else _REFUSED.get(reason.value)
    return f"the broker says: {reason}" + (f"; {remedy}" if remedy else "")


def forbidden(action: str, topic: str, reason: ReasonCode, username: str | None) -> str:
    """Why the broker refused a subscription or a publish."""
    who = f"the user {username}" if username else "this client"
    return f"{topic}: {reason}; the broker must allow {who} to {action} this topic (its access control list)"


def explain(error: BaseException, host: str, port: int, *, tls: bool, accepted: bool = False) -> str:
    """Why there is no connection. `accepted`: there was one, which the broker had accepted."""
    if isinstance(error, SentinelError | Refused):
        return str(error)
    where = f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _verification(error, host)
    if isinstance(error, ssl.SSLError):
        return _tls(error, where)
    if isinstance(error, socket.gaierror):
        return f"{host}: {error.strerror}; correct mqtt.host (--broker), or check the name service"
    if isinstance(error, TimeoutError):
        return (
            f"{where} does not answer ({error}); "
            "check mqtt.host, mqtt.port, firewalls, and that both ends speak TLS or neither does"
        )
    if isinstance(error, OSError) and error.errno in _NETWORK:
        return f"{where}: {error.strerror}; {_NETWORK[error.errno]}"
    if accepted or not isinstance(error, ConnectionError):
        return f"{where}: {type(error).__name__}: {error}"
    hint = (
        "check that mqtt.port is the broker's TLS listener, usually 8883, and that it accepts mqtt.tls.cert"
        if tls
        else "it may want TLS: set mqtt.tls, and the port of its TLS listener (--broker mqtts://HOST:PORT)"
    )
    return f"{where} closed the connection without an answer ({error}); {hint}; the broker's log says why"


def _verification(error: ssl.SSLCertVerificationError, host: str) -> str:
    said = f"the broker's certificate is refused ({error.verify_message})"
    if error.verify_code == EXPIRED:
        return f"{said}; renew it on the broker, or set this machine's clock"
    if error.verify_code == NOT_YET_VALID:
        return f"{said}; set the clocks of this machine and of the one that made it"
    if error.verify_code in SELF_SIGNED:
        return f"{said}; set mqtt.tls.ca to the certificate of the authority that signed it (--ca)"
    if error.verify_code in {WRONG_HOST, WRONG_ADDRESS}:
        return f"{said}; set mqtt.host to a name that is in it, or have it made for {host}"
    return f"{said}; look at it with `openssl s_client`"


def _tls(error: ssl.SSLError, where: str) -> str:
    reason = error.reason or str(error)
    alert = re.search(r"ALERT_(.+)", reason)
    if alert is None or alert[1] in {"PROTOCOL_VERSION", "INTERNAL_ERROR"}:
        hint = "set mqtt.port to the broker's TLS listener, usually 8883, or remove mqtt.tls"
        if isinstance(error, ssl.SSLEOFError):  # a refusal that came too late to be read
            hint += "; or the broker does not accept mqtt.tls.cert: its log says why"
        return f"{where}: TLS failed ({reason}); {hint}"
    said = alert[1].replace("_", " ").lower()
    if alert[1] in {"CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE"}:
        return f"{where} refuses the client ({said}): it wants a client certificate; set mqtt.tls.cert and mqtt.tls.key"
    return (
        f"{where} refuses the certificate mqtt.tls.cert ({said}); "
        "have one made by an authority that the broker trusts, that is neither expired nor revoked"
    )
