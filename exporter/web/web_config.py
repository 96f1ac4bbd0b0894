"""The exporter-toolkit's web-config.yml: TLS, users and headers of the web server, loaded and reloaded on changes.

Its format: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Settings that Python's
ssl or this exporter cannot apply are errors. All problems are reported at once, by line, without a secret.

    file ─ yamlfile ─► plain values ─ pydantic: each by itself ─► _Settings ─ _Tls: what belongs together ─► WebConfig
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import ssl
import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from exporter.config import ConfigError
from exporter.system import threads
from exporter.system.files import TIMEOUT, Budget, Watch, digest
from exporter.yamlfile import (
    Finding,
    SyntaxProblemError,
    expected,
    finding,
    read_document,
    sentence,
    suggestion,
    unknown_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pydantic import ValidationInfo

    from exporter.system.files import Files
    from exporter.yamlfile import Document, Location

logger = logging.getLogger(__name__)

CIPHER_SUITES: Mapping[str, str] = MappingProxyType(
    {
        f"TLS_ECDHE_{key}_WITH_{name}": f"ECDHE-{key}-{openssl}"
        for name, openssl in (
            ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
            ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
            ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
            ("AES_128_CBC_SHA", "AES128-SHA"),
            ("AES_256_CBC_SHA", "AES256-SHA"),
        )
        for key in ("ECDSA", "RSA")
    }
    | {
        "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
        "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
        "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
        "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    }
    # Those of TLS 1.3 cannot be chosen, as in Go: all of them are always there.
    | dict.fromkeys(("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"), "")
)
"""OpenSSL's name of each cipher suite that Go names; empty for those of TLS 1.3."""

_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_CIPHER_SUITE = "a cipher suite as Go names it, such as TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
# Salt and hash are base64 of 16 and 23 bytes; the salt's last character holds two bits.
_BCRYPT = re.compile(r"\$2[abxy]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
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
        settings, findings = _settings({} if document.value is None else document.value)
        tls = _Tls(settings.tls_server_config, _mapping(document.value, "tls_server_config"), path.parent, files)
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


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise expected("text", hint="put it in quotes" if isinstance(value, bool | int | float) else "")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise expected("true or false")
    return value


def _one_of(known: Mapping[str, object], what: str = "") -> BeforeValidator:
    def read(value: object) -> object:
        name = _text(value)
        if name not in known:
            raise expected(what or f"one of {', '.join(known)}", hint=suggestion(name, known))
        return known[name]

    return BeforeValidator(read)


def _client_auth(value: object) -> object:
    if value in _UNVERIFIED:
        what = f"one of {', '.join(_CLIENT_AUTH)}"
        raise expected(what, f"{value}; Python's ssl cannot ask for a certificate without verifying it")
    return "NoClientCert" if value == "" else value


def _header(*allowed: str) -> BeforeValidator:
    def read(value: object) -> str:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
        if allowed and text not in allowed:
            raise expected(" or ".join(allowed))
        if not (text.isascii() and text.isprintable()):
            raise expected("one line of printable ASCII characters")
        return text.strip()

    return BeforeValidator(read)


def _hash(value: object) -> bytes:
    if not isinstance(value, str) or not _BCRYPT.fullmatch(value):
        hint = "`htpasswd -nBC 10 NAME` makes one"
        raise expected("the bcrypt hash of a password, of a cost from 4 to 31", "a value that is not shown", hint)
    return value.encode()


def _no_rate_limit(_: object) -> None:
    raise expected("no rate_limit, as this exporter limits no rates", "one", "remove it")


def _default_for_null(
    cls: type[BaseModel], value: object, read: Callable[[object], object], info: ValidationInfo[None]
) -> object:
    """Read a value; null is the default, as in Go."""
    return cls.model_fields[info.field_name or ""].default if value is None else read(value)


_STRICT = ConfigDict(strict=True, frozen=True, extra="forbid")
_Text = Annotated[str, BeforeValidator(_text)]
_Flag = Annotated[bool, BeforeValidator(_flag)]


class _TlsSettings(BaseModel):
    model_config = _STRICT
    _nulls = field_validator("*", mode="wrap")(_default_for_null)

    cert: _Text = ""
    cert_file: _Text = ""
    key: _Text = ""
    key_file: _Text = ""
    client_ca: _Text = ""
    client_ca_file: _Text = ""
    client_auth_type: Annotated[ssl.VerifyMode, _one_of(_CLIENT_AUTH), BeforeValidator(_client_auth)] = ssl.CERT_NONE
    client_allowed_sans: tuple[_Text, ...] = ()
    min_version: Annotated[ssl.TLSVersion, _one_of(_VERSIONS)] = ssl.TLSVersion.TLSv1_2
    max_version: Annotated[ssl.TLSVersion, _one_of(_VERSIONS)] = ssl.TLSVersion.TLSv1_3
    cipher_suites: tuple[Annotated[str, _one_of(CIPHER_SUITES, _CIPHER_SUITE)], ...] = ()
    curve_preferences: tuple[Annotated[str, _one_of(_CURVES)], ...] = ()
    prefer_server_cipher_suites: _Flag = True


class _Headers(BaseModel):
    model_config = _STRICT
    _nulls = field_validator("*", mode="wrap")(_default_for_null)

    content_security_policy: Annotated[str, _header()] = Field("", alias="Content-Security-Policy")
    strict_transport_security: Annotated[str, _header()] = Field("", alias="Strict-Transport-Security")
    x_content_type_options: Annotated[str, _header("nosniff")] = Field("", alias="X-Content-Type-Options")
    x_frame_options: Annotated[str, _header("deny", "sameorigin")] = Field("", alias="X-Frame-Options")
    x_xss_protection: Annotated[str, _header()] = Field("", alias="X-XSS-Protection")


class _HttpSettings(BaseModel):
    model_config = _STRICT
    _nulls = field_validator("*", mode="wrap")(_default_for_null)

    http2: _Flag = False
    headers: _Headers = _Headers()


class _Settings(BaseModel):
    """The whole file."""

    model_config = _STRICT
    _nulls = field_validator("*", mode="wrap")(_default_for_null)

    tls_server_config: _TlsSettings = _TlsSettings()
    http_server_config: _HttpSettings = _HttpSettings()
    basic_auth_users: dict[str, Annotated[bytes, BeforeValidator(_hash)]] = {}
    rate_limit: Annotated[None, BeforeValidator(_no_rate_limit)] = None


_KEYS: Mapping[Location, list[str]] = {
    location: [field.alias or name for name, field in model.model_fields.items()]
    for location, model in (
        ((), _Settings),
        (("tls_server_config",), _TlsSettings),
        (("http_server_config",), _HttpSettings),
        (("http_server_config", "headers"), _Headers),
    )
}
"""The known keys of each mapping of the file, by its location."""


def _settings(value: object) -> tuple[_Settings, list[Finding]]:
    """Return the settings, with defaults in place of invalid ones, and the findings about those."""
    findings = [
        Finding(("basic_auth_users", name), "a name without a colon", "one with a colon, which clients cannot send")
        for name in _mapping(value, "basic_auth_users")
        if ":" in name
    ]
    try:
        return _Settings.model_validate(value), findings
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False, include_input=False)
    for error in errors:
        location = error["loc"]
        value = _without(value, location)
        if error["type"] == "extra_forbidden":
            findings.append(unknown_key(location, _KEYS[location[:-1]]))
        elif location:
            findings.append(finding(error))
        else:  # the whole content of a file that is another one may be a secret
            findings.append(Finding((), "a mapping of keys to values", "another content, which is not shown"))
    return _Settings.model_validate(value), findings


def _without(value: object, location: Location) -> object:
    """Return mappings without the key that leads to a location."""
    if not location or not isinstance(value, dict):
        return {}
    key, *below = location
    inner = value.get(key)
    rest = {name: each for name, each in value.items() if name != key}
    return {**rest, key: _without(inner, tuple(below))} if below and isinstance(inner, dict) else rest


def _mapping(value: object, key: str) -> Mapping[str, object]:
    """Return a mapping within another one, an empty one where either is something else."""
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _warnings(document: Document, settings: _Settings) -> Iterator[str]:
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

    def __init__(self, settings: _TlsSettings, written: Mapping[str, object], folder: Path, files: _Files) -> None:
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
        if 1 < len({*settings.curve_preferences}) < len(_CURVES):
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
