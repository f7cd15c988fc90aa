"""The files that settings name: secrets, certificates, keys. Read when they are used, so that they can be replaced."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

from sentinel.errors import ConfigError

Key = tuple[str | int, ...]
LONGEST_SECRET = 4096  # characters


def dotted(key: Key) -> str:
    """A key as people write it: "webhooks[0].url"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


class FileProblem(ConfigError):
    """A file cannot be what its setting says. Names key, path and reason, never what the file holds.

    Attributes:
        key: of the setting.
    """

    def __init__(self, key: Key, path: Path, reason: str) -> None:
        super().__init__([f"{dotted(key)} = {json.dumps(str(path), ensure_ascii=False)}: {reason}"])
        self.key = key


def secret(key: Key, path: Path | None) -> str | None:
    """What the file holds, without its line end; None: none is named.

    Raises:
        FileProblem: it cannot be read, is empty or no single line of UTF-8 text.
    """
    if path is None:
        return None
    try:
        text = path.read_text("utf-8").rstrip("\r\n")
    except OSError as error:
        raise FileProblem(key, path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FileProblem(key, path, "must be UTF-8 text") from None
    if not text:
        raise FileProblem(key, path, "is empty: write the secret into it")
    if not text.isprintable() or len(text) > LONGEST_SECRET:
        raise FileProblem(key, path, f"must be one line of text of at most {LONGEST_SECRET} characters")
    return text


def client_context(key: Key, ca: Path | None, cert: Path | None, private: Path | None) -> ssl.SSLContext:
    """For TLS with a server whose certificate `ca` vouches for (None: the system's authorities).

    Raises:
        FileProblem: a file cannot be read, or does not hold what it should.
    """
    context = ssl.create_default_context()
    if ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_certificates(context, (*key, "ca"), ca)
    if cert is not None:
        _load_chain(context, key, cert, private)
    return context


def server_context(key: Key, cert: Path, private: Path) -> ssl.SSLContext:
    """For TLS with clients. Raises as `client_context`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load_chain(context, key, cert, private)
    return context


def pinned_context(key: Key, cert: Path) -> ssl.SSLContext:
    """For TLS with the one server whose certificate this is, under whatever name. Raises as `client_context`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _load_certificates(context, key, cert)
    return context


def _load_certificates(context: ssl.SSLContext, key: Key, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise FileProblem(key, path, "holds no certificate in PEM form") from None
    except OSError as error:
        raise FileProblem(key, path, f"cannot be read: {error.strerror}") from None


def _load_chain(context: ssl.SSLContext, key: Key, cert: Path, private: Path | None) -> None:
    _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), (*key, "cert"), cert)
    at, path = ((*key, "key"), private) if private is not None else ((*key, "cert"), cert)
    encrypted = FileProblem(at, path, "is encrypted: give a key without a passphrase, readable by Sentinel alone")

    def passphrase() -> str:  # without it OpenSSL would ask for one on the terminal, and wait
        raise encrypted

    try:
        context.load_cert_chain(cert, private, passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise FileProblem(at, path, f"is not the key of the certificate {cert}") from None
        why = f" ({error.reason})" if error.reason else ""
        raise FileProblem(at, path, f"holds no usable private key in PEM form{why}") from None
    except OSError as error:
        raise FileProblem(at, path, f"cannot be read: {error.strerror}") from None
