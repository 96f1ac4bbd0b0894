"""The exporter-toolkit's web-config.yml: TLS, users and headers of the web server, loaded and reloaded on changes.

Its format: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Settings that Python's
ssl or this exporter cannot apply are errors. All problems are reported at once, by line, without a secret.

    file ─ yamlfile ─► plain values ─ web_settings: each by itself ─► Settings ─ _Tls: all together ─► WebConfig
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import ssl
import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from exporter.config import ConfigError
from exporter.system import threads
from exporter.system.files import TIMEOUT, Budget, Watch, digest
from exporter.web.web_settings import CURVES, read_settings, section
from exporter.yamlfile import Finding, SyntaxProblemError, read_document, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from exporter.system.files import Files
    from exporter.web.web_settings import Settings, TlsSettings
    from exporter.yamlfile import Document

logger = logging.getLogger(__name__)

_CHECK_INTERVAL = 1  # seconds between two checks of the files for changes
_IN_PEM = "in the PEM form"


@dataclass(frozen=True, slots=True)
class WebConfig:
    """The settings of a web configuration file; the defaults serve everybody.

    `context` is None without TLS. With `allowed_sans`, a client's certificate must have one of these names. `users` are
    bcrypt hashes by name. `files` are digests of all files that were read, None for one that cannot be read.
    """

    context: ssl.SSLContext | None = None
    allowed_sans: frozenset[str] = frozenset()
    users: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    files: Mapping[Path, bytes | None] = field(default_factory=dict)

    @property
    def protected(self) -> bool:
        """Whether TLS or users restrict access."""
        return self.context is not None or bool(self.users)


def load(path: Path, *, budget: Budget | None = None) -> WebConfig:
    """Return the settings of the file at `path` and the certificates it names; paths are relative to its folder.

    `budget` is the time for all files together. Raises ConfigError with all problems, by line.
    """
    files = _Files(budget or Budget())
    try:
        document = read_document(path, files.read)
        settings, findings = read_settings({} if document.value is None else document.value)
        tls = _Tls(settings.tls_server_config, section(document.value, "tls_server_config"), path.parent, files)
        context = tls.context()
    except SyntaxProblemError as error:
        problem = f"{path}{error}"
    except OSError as error:  # of the system, such as too many open files; a file that cannot be read is a finding
        problem = f"{path}: cannot be loaded: {error.strerror}"
    else:
        problems = sorted({*document.problems, *map(document.problem, (*findings, *tls.findings))})
        if problems:
            raise ConfigError(f"{path}:{line}: {text}" for line, text in problems)
        headers = settings.http_server_config.headers.model_dump(by_alias=True)
        return WebConfig(
            context=context,
            allowed_sans=frozenset(settings.tls_server_config.client_allowed_sans),
            users=MappingProxyType(settings.basic_auth_users),
            headers=MappingProxyType({name: text for name, text in headers.items() if text}),
            warnings=tuple(_warnings(document, settings)),
            files=MappingProxyType(files.digests),
        )
    raise ConfigError([problem])


def certificate_fits(certificate: Mapping[str, object] | None, allowed: frozenset[str]) -> bool:
    """Return whether a client's certificate, as `SSLObject.getpeercert` returns it, has an allowed name.

    A missing certificate fits: the TLS handshake has already decided whether one is required.
    """
    if not certificate or not allowed:
        return True
    names = certificate.get("subjectAltName", ())
    assert isinstance(names, tuple)  # noqa: S101 - that is the type that ssl returns
    return any(_name(kind, text) in allowed for kind, text in names)


class WatchedWebConfig:
    """The web configuration in use, `current`; once started, a thread reloads it when its files change.

    `successful` is False while the files differ from it because they are invalid. Any thread may read the attributes,
    only one at a time may call `refresh`. `fatal` is called when the thread ends by an exception.
    """

    def __init__(self, path: Path, *, files: Files | None = None, timeout: float = TIMEOUT) -> None:
        """Read the file at `path`; raises ConfigError."""
        self._path = path
        self._files = files
        self._timeout = timeout
        self.current = load(path, budget=self._budget())
        self.successful = True
        self._watch = Watch(self.current.files)
        self._trouble = ""

    def start(self, fatal: Callable[[BaseException], None]) -> None:
        """Check the files every second in a daemon thread. Raises NoThreadError."""
        threads.start(lambda: self._follow(fatal), "web configuration")

    def refresh(self) -> None:
        """Reload changed files; if they are invalid, keep the previous configuration and log the reason once.

        Files are reloaded when two checks in a row find the same content: half a file may be valid.
        """
        complete = self._watch.look(self._budget())
        if not complete or (self.successful and not self._watch.changed):
            return
        try:
            loaded = load(self._path, budget=self._budget())
            _require_protection(self._path, self.current, loaded)
        except ConfigError as error:
            self._keep(str(error))
            return
        if not self._watch.agrees(loaded.files):
            return  # changed since the last check
        for remark in loaded.warnings:
            if remark not in self.current.warnings:
                logger.warning(remark)
        self.current = loaded
        self.successful = True
        self._watch = Watch(loaded.files)
        self._trouble = ""
        logger.info("the web configuration was reloaded", extra={"tls": loaded.context is not None})

    def _budget(self) -> Budget:
        return Budget(self._timeout, files=self._files)

    def _follow(self, fatal: Callable[[BaseException], None]) -> None:
        try:
            while True:
                time.sleep(_CHECK_INTERVAL)
                self.refresh()
        except BaseException as error:  # noqa: BLE001 - later changes would be missed
            fatal(error)

    def _keep(self, trouble: str) -> None:
        self.successful = False
        if trouble != self._trouble:
            logger.error(
                "the reload of the web configuration failed, keeping the previous one", extra={"error": trouble}
            )
        self._trouble = trouble


def _require_protection(path: Path, before: WebConfig, after: WebConfig) -> None:
    """Raise ConfigError where a reload would remove TLS and users: the file may be truncated."""
    if before.protected and not after.protected:
        what, hint = "TLS or users, as in the configuration in force", "restart braze-exporter to serve without both"
        raise ConfigError([f"{path}: {sentence(what, 'neither', hint)}"])


def _warnings(document: Document, settings: Settings) -> Iterator[str]:
    if settings.http_server_config.http2:
        yield "HTTP/2 is not served; clients use HTTP/1.1"
    if not (isinstance(document.value, dict) and any(document.value.values())):
        yield "the web configuration is empty: everybody is served, without TLS"


class _Files:
    """Reads the files of one load and keeps their digests."""

    def __init__(self, budget: Budget) -> None:
        self.digests: dict[Path, bytes | None] = {}
        self._budget = budget

    def read(self, path: Path) -> bytes:
        """Return the content of a file; raises OSError, or ValueError where the path contains a null character."""
        self.digests[path] = None
        content = self._budget.read(path)
        if path.is_fifo():
            del self.digests[path]  # it is empty after a read, which is not a change
        else:
            self.digests[path] = digest(content)
        return content


class _Tls:
    """The section tls_server_config: `written` is its plain values, of which `settings` lacks the wrong ones."""

    def __init__(self, settings: TlsSettings, written: Mapping[str, object], folder: Path, files: _Files) -> None:
        self.findings: list[Finding] = []
        self._settings = settings
        self._written = written
        self._folder = folder
        self._files = files
        self._certificate = self._pem("cert", "a certificate")
        self._key = self._pem("key", "the certificate's private key")
        self._client_ca = self._pem("client_ca", "the certificates of CAs")
        if written:
            self._check()

    def context(self) -> ssl.SSLContext | None:
        """Return the TLS settings of connections, None without TLS; what OpenSSL rejects is a finding."""
        settings = self._settings
        if self._certificate is None or self._key is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_NO_RENEGOTIATION
        if not settings.prefer_server_cipher_suites:
            context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        self._load_certificate(context, self._certificate, self._key)
        self._set_versions_and_ciphers(context)
        if len({*settings.curve_preferences}) == 1:
            context.set_ecdh_curve(settings.curve_preferences[0])
        context.verify_mode = settings.client_auth_type
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # every certificate of the CA file is trusted, as in Go
        if self._client_ca is not None:
            self._load_client_ca(context, self._client_ca)
        elif settings.client_auth_type:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)  # as Go does
        return context

    def _pem(self, key: str, what: str) -> bytes | None:
        """Return a PEM text of the configuration, or of a file that it names; None where that is neither or both."""
        file = f"{key}_file"
        text, path = getattr(self._settings, key), getattr(self._settings, file)
        if text and path:
            self._wrong(file, f"either {key} or {file}", "both")
            return None
        if not path:
            return text.encode() or None
        try:
            return self._files.read(self._folder / path)
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = (error.strerror if isinstance(error, OSError) else None) or "not a path"
            self._wrong(file, f"a file with {what}", f"one that cannot be read ({reason})")
            return None

    def _has(self, *keys: str) -> bool:
        """Tell whether one of the keys has a value; an empty text is none, as in the toolkit."""
        return any(self._written.get(key) not in {None, ""} for key in keys)

    def _key_of(self, key: str) -> str:
        return key if self._has(key) else f"{key}_file"

    def _wrong(self, key: str, what: str, got: str, hint: str = "") -> None:
        location = ("tls_server_config", key) if key else ("tls_server_config",)
        self.findings.append(Finding(location, what, got, hint))

    def _check(self) -> None:
        """Find contradictions between settings."""
        settings = self._settings
        for key in ("cert", "key"):
            if not self._has(key, f"{key}_file"):
                self._wrong("", f"{key}_file or {key}", "neither")
        if self._written.get("client_auth_type") in (None, "", "NoClientCert"):
            for key in ("client_ca", "client_ca_file", "client_allowed_sans"):
                if self._has(key):
                    hint = "client_auth_type: RequireAndVerifyClientCert uses it"
                    self._wrong(key, "a client_auth_type that verifies certificates of clients", "none", hint)
        if settings.min_version > settings.max_version:
            self._wrong("max_version", "at least min_version", "less")
        if 1 < len({*settings.curve_preferences}) < len(CURVES):
            self._wrong("curve_preferences", "one curve, or all", "several", "leave it out")
        if settings.cipher_suites and not any(settings.cipher_suites) and settings.max_version < ssl.TLSVersion.TLSv1_3:
            self._wrong("cipher_suites", "a suite that versions up to max_version have", "none")

    def _load_certificate(self, context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
        try:
            with _as_file(certificate) as file:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(file)
        except ssl.SSLError:
            self._wrong(self._key_of("cert"), f"a certificate {_IN_PEM}", "none, or a broken one")
            return
        if b"ENCRYPTED" in key:
            self._wrong(self._key_of("key"), "a private key without a passphrase", "an encrypted one")
            return
        try:
            with _as_file(certificate) as file, _as_file(key) as key_file:
                context.load_cert_chain(file, key_file, password="")  # so that OpenSSL never prompts on the terminal
        except ssl.SSLError as error:
            what, got = "a certificate and a key that OpenSSL takes", f"others ({error.reason})"
            if not error.reason:
                what, got = f"a private key {_IN_PEM}", "none, or a broken one"
            elif error.reason == "KEY_VALUES_MISMATCH":
                what, got = "the private key of the certificate", "that of another"
            elif error.reason == "EE_KEY_TOO_SMALL":
                what, got = "a key that OpenSSL takes for safe", "one that is too small"
            self._wrong(self._key_of("key"), what, got)

    def _load_client_ca(self, context: ssl.SSLContext, certificates: bytes) -> None:
        try:
            with _as_file(certificates) as file:
                context.load_verify_locations(file)
        except ssl.SSLError:
            self._wrong(self._key_of("client_ca"), f"certificates of CAs {_IN_PEM}", "none, or a broken one")

    def _set_versions_and_ciphers(self, context: ssl.SSLContext) -> None:
        settings = self._settings
        least = settings.min_version
        ciphers = list(filter(None, settings.cipher_suites))
        if settings.cipher_suites and not ciphers:
            least = ssl.TLSVersion.TLSv1_3  # only suites of TLS 1.3 are configured
        if least < ssl.TLSVersion.TLSv1_2:
            # Before TLS 1.2 the handshake is signed with SHA-1, which OpenSSL allows at level 0 only.
            ciphers = [*(ciphers or ("ECDHE+AESGCM", "ECDHE+CHACHA20", "ECDHE+AES", "RSA+AES")), "@SECLEVEL=0"]
        if ciphers:
            try:
                context.set_ciphers(":".join(ciphers))
            except ssl.SSLError:
                self._wrong("cipher_suites", "a suite that this machine's OpenSSL has", "none")
        if least <= settings.max_version:
            context.minimum_version = least
            context.maximum_version = settings.max_version


def _name(kind: str, text: str) -> str:
    """Return a name of a certificate as Go writes it."""
    if kind == "IP Address":
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(text.strip()))
    return text


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Yield the path of a file in memory with this content: ssl only reads files, and those on disk may change."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"
