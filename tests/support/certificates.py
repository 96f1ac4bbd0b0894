"""Certificates of a CA that is made for a test."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
_CA = ("-addext", "keyUsage=critical,keyCertSign", "-addext", "basicConstraints=critical,CA:TRUE")


@dataclass(frozen=True, slots=True)
class Certificates:
    """A folder with the certificate of a CA in ca.pem, and others that it signs."""

    openssl: Path
    folder: Path

    @property
    def ca(self) -> Path:
        """The CA's certificate."""
        return self.folder / "ca.pem"

    def sign(self, name: str, *sans: str, key: tuple[str, ...] = _CURVE, digest: str = "sha256") -> Path:
        """Make NAME.pem and NAME.key, made out to names such as DNS:localhost; return the former."""
        certificate, request = self.folder / f"{name}.pem", self.folder / f"{name}.csr"
        made_out = ("-addext", f"subjectAltName={','.join(sans)}") if sans else ()
        self._run("req", *key, "-nodes", "-keyout", certificate.with_suffix(".key"), "-subj", f"/CN={name}",
                  *made_out, "-out", request)  # fmt: skip
        self._run("x509", "-req", f"-{digest}", "-in", request, "-CA", self.ca, "-CAkey", self.ca.with_suffix(".key"),
                  "-CAcreateserial", "-copy_extensions", "copyall", "-days", "2", "-out", certificate)  # fmt: skip
        return certificate

    def _run(self, *arguments: str | Path) -> None:
        subprocess.run([self.openssl, *arguments], check=True, capture_output=True)


def make_certificates(openssl: Path, folder: Path) -> Certificates:
    """Make a CA in a folder."""
    certificates = Certificates(openssl, folder)
    certificates._run("req", "-x509", *_CURVE, *_CA, "-nodes", "-keyout", folder / "ca.key", "-days", "2",  # noqa: SLF001
                      "-subj", "/CN=CA of a test", "-out", certificates.ca)  # fmt: skip
    return certificates
