"""Certificates for tests, made by openssl: an authority, what it signs, and what it revokes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.servers import binary

_CONFIG = """
[ca]
default_ca = ours
[ours]
database = {folder}/index
serial = {folder}/serial
new_certs_dir = {folder}
certificate = {folder}/ca.crt
private_key = {folder}/ca.key
default_md = sha256
default_days = 2
default_crl_days = 2
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
"""
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """A certificate authority in `folder`, which must exist and be its own."""

    def __init__(self, folder: Path) -> None:
        self._openssl = binary("openssl")
        self._folder = folder
        self.ca, self.crl = folder / "ca.crt", folder / "ca.crl"
        (folder / "ca.conf").write_text(_CONFIG.format(folder=folder))
        (folder / "index").touch()
        (folder / "serial").write_text("01\n")
        self._run("req", "-x509", *_KEY, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority", "-days", "2")
        self.renew_crl()

    def issue(
        self, name: str, *, names: str = "IP:127.0.0.1,DNS:localhost", expired: bool = False
    ) -> tuple[Path, Path]:
        """A certificate and its key, for servers of these names and for clients."""
        extension = ("-addext", f"subjectAltName={names}")
        self._run("req", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", *extension)
        when = ("-startdate", "20200101000000Z", "-enddate", "20200201000000Z") if expired else ()
        self._run("ca", "-config", "ca.conf", "-batch", "-in", f"{name}.csr", "-out", f"{name}.crt", "-notext", *when)
        return self._folder / f"{name}.crt", self._folder / f"{name}.key"

    def encrypted(self, key: Path) -> bytes:
        """A key, locked with a passphrase."""
        self._run("pkey", "-in", str(key), "-aes128", "-passout", "pass:hunter2", "-out", "locked.key")
        return (self._folder / "locked.key").read_bytes()

    def revoke(self, name: str) -> None:
        """Put a certificate on the list of those revoked."""
        self._run("ca", "-config", "ca.conf", "-revoke", f"{name}.crt")
        self.renew_crl()

    def renew_crl(self) -> None:
        """Write the list of those revoked."""
        self._run("ca", "-config", "ca.conf", "-gencrl", "-out", "ca.crl")

    def _run(self, *arguments: str) -> None:
        ended = subprocess.run(
            [self._openssl, *arguments], cwd=self._folder, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
