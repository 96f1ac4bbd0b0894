"""The exporter-toolkit's web-config.yml: TLS, users and headers of the web server, read, checked and kept up to date.

The file's form: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. What Python's
ssl, or this exporter, cannot do is refused by name. All problems are reported at once, by line, without a secret.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import logging
import os
import re
import ssl
import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from exporter.config import ConfigError
from exporter.system import threads
from exporter.system.files import TIMEOUT, Budget, Watch, digest
from exporter.yamlfile import Finding, SyntaxProblemError, read_document, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from exporter.system.files import Files
    from exporter.yamlfile import Document, Location

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

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
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
# Salt and hash are base64 of 16 and 23 bytes; the salt's last character holds two bits.
_BCRYPT = re.compile(r"\$2[abxy]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_WATCHING = 1  # seconds between two looks at the files
_IN_PEM = "in the PEM form"


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What a web configuration file says; without one, everybody is served.

    `context` is None without TLS. `allowed_sans` is what a client's certificate must be made out to, if anything;
    `users` are bcrypt hashes by name. `files` are digests of all files that were read, None for what cannot be read.
    """

    context: ssl.SSLContext | None = None
    allowed_sans: frozenset[str] = frozenset()
    users: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    files: Mapping[Path, bytes | None] = field(default_factory=dict)

    @property
    def protected(self) -> bool:
        """Whether TLS or users keep anybody out."""
        return self.context is not None or bool(self.users)


def load(path: Path, *, budget: Budget | None = None) -> WebConfig:
    """Return what the file at `path` says, with the certificates it names; relative paths are relative to its folder.

    `budget` is the time for all files together. Raises ConfigError with all problems, by line.
    """
    files = _Files(budget or Budget())
    try:
        document = read_document(path, files.read)
        findings: list[Finding] = []
        loaded = _read(document, path, files, findings)
    except SyntaxProblemError as error:
        problem = f"{path}{error}"
    except OSError as error:  # of the system, such as too many open files: what is wrong with a file is a finding
        problem = f"{path}: cannot be loaded: {error.strerror}"
    else:
        problems = sorted({*document.problems, *map(document.problem, findings)})
        if not problems:
            return loaded
        raise ConfigError(f"{path}:{line}: {text}" for line, text in problems)
    raise ConfigError([problem])


def certificate_fits(certificate: Mapping[str, object] | None, allowed: frozenset[str]) -> bool:
    """Tell whether a client's certificate, as `SSLObject.getpeercert` returns it, is made out to an allowed name.

    A client without one fits: whether it needs one is decided before.
    """
    if not certificate or not allowed:
        return True
    names = certificate.get("subjectAltName", ())
    assert isinstance(names, tuple)  # noqa: S101 - that is how ssl returns it
    return any(_name(kind, text) in allowed for kind, text in names)


class WatchedWebConfig:
    """The web configuration in force; once started, changes of its files come into force.

    `successful` tells whether the files as they are now are in force. Attributes may be read by any thread, `refresh`
    is for one at a time. `fatal` is called when the thread ends by an exception.
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
        """Look for changes every second, in a daemon thread. Raises NoThreadError."""
        threads.start(lambda: self._follow(fatal), "web configuration")

    def refresh(self) -> None:
        """Bring changed files into force; one that is wrong changes nothing, and why is logged once.

        Files are read again when two looks in a row find the same: half a file may be a valid one.
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
            return  # written since the last look
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
                time.sleep(_WATCHING)
                self.refresh()
        except BaseException as error:  # noqa: BLE001 - no later change would be seen
            fatal(error)

    def _keep(self, trouble: str) -> None:
        self.successful = False
        if trouble != self._trouble:
            logger.error(
                "the reload of the web configuration failed, keeping the previous one", extra={"error": trouble}
            )
        self._trouble = trouble


def _require_protection(path: Path, before: WebConfig, after: WebConfig) -> None:
    """Raise ConfigError where a reload would serve everybody: a file that is cut short looks like that, too."""
    if before.protected and not after.protected:
        what, hint = "TLS or users, as in the configuration in force", "restart braze-exporter to serve without both"
        raise ConfigError([f"{path}: {sentence(what, 'neither', hint)}"])


class _WrongError(Exception):
    """A value that is not what is expected; `place` leads to it within a list."""

    def __init__(self, what: str, got: str = "", hint: str = "", place: Location = ()) -> None:
        super().__init__(what)
        self.what = what
        self.got = got
        self.hint = hint
        self.place = place


class _Section:
    """One mapping of the file, read key by key; what is wrong is noted, and keys that nobody asked for at the end."""

    def __init__(self, value: object, location: Location, findings: list[Finding]) -> None:
        self._location = location
        self._findings = findings
        self._asked: list[str] = []
        self._values: Mapping[str, object] = value if isinstance(value, dict) else {}
        if not isinstance(value, dict | None):
            # The whole content of a file that is another one may be a secret.
            self.wrong((), "a mapping of keys to values", "" if location else "another content, which is not shown")

    @property
    def empty(self) -> bool:
        return not self._values

    def read(self, key: str, reader: Callable[[object], Value], default: Value) -> Value:
        """Return a value as its reader does, the default where it is missing, empty or wrong."""
        self._asked.append(key)
        value = self._values.get(key)
        if value is None:
            return default
        try:
            return reader(value)
        except _WrongError as wrong:
            self.wrong((key, *wrong.place), wrong.what, wrong.got, wrong.hint)
            return default

    def section(self, key: str) -> _Section:
        """Return a mapping within this one."""
        self._asked.append(key)
        return _Section(self._values.get(key), (*self._location, key), self._findings)

    def items(self) -> Iterator[str]:
        """Yield the keys of a mapping that takes any."""
        yield from self._values

    def has(self, *keys: str) -> bool:
        """Tell whether one of the keys is there with a value; an empty text is none, as in the toolkit."""
        return any(self._values.get(key) not in (None, "") for key in keys)

    def wrong(self, place: Location, what: str, got: str = "", hint: str = "") -> None:
        self._findings.append(Finding((*self._location, *place), what, got, hint))

    def finish(self) -> None:
        """Note each key that was not asked for."""
        for key in self._values:
            if key not in self._asked:
                close = difflib.get_close_matches(key, self._asked, n=1)
                hint = f"did you mean {close[0]}?" if close else ""
                self.wrong((key,), f"one of the keys {', '.join(sorted(self._asked))}", "an unknown one", hint)


def _read(document: Document, path: Path, files: _Files, findings: list[Finding]) -> WebConfig:
    top = _Section(document.value, (), findings)
    tls = _Tls(top.section("tls_server_config"), path.parent, files)
    http = top.section("http_server_config")
    http2 = http.read("http2", _flag, default=False)
    headers = http.section("headers")
    shown = {key: headers.read(key, _header(allowed), "") for key, allowed in _HEADERS.items()}
    headers.finish()
    http.finish()
    users = top.section("basic_auth_users")
    hashes = {name: users.read(name, _hash, b"") for name in users.items()}
    for name in hashes:
        if ":" in name:
            users.wrong((name,), "a name without a colon", "one with a colon, which clients cannot send")
    top.read("rate_limit", _no_rate_limit, None)
    top.finish()
    return WebConfig(
        context=tls.context(),
        allowed_sans=tls.allowed_sans,
        users=MappingProxyType(hashes),
        headers=MappingProxyType({name: text for name, text in shown.items() if text}),
        warnings=tuple(_warnings(document, http2=http2)),
        files=MappingProxyType(files.digests),
    )


def _warnings(document: Document, *, http2: bool) -> Iterator[str]:
    if http2:
        yield "HTTP/2 is not served; clients use HTTP/1.1"
    if not (isinstance(document.value, dict) and any(document.value.values())):
        yield "the web configuration is empty: everybody is served, without TLS"


class _Files:
    """Reads the files of one load and remembers their digests."""

    def __init__(self, budget: Budget) -> None:
        self.digests: dict[Path, bytes | None] = {}
        self._budget = budget

    def read(self, path: Path) -> bytes:
        """Return the content of a file; raises OSError, or ValueError where the path contains a null character."""
        self.digests[path] = None
        content = self._budget.read(path)
        if path.is_fifo():
            del self.digests[path]  # it is empty now, which is no change
        else:
            self.digests[path] = digest(content)
        return content


class _Tls:
    """The section tls_server_config."""

    def __init__(self, section: _Section, folder: Path, files: _Files) -> None:
        self._files = files
        self._section = section
        self._folder = folder
        self._certificate = self._pem("cert", "a certificate")
        self._key = self._pem("key", "the certificate's private key")
        self._client_ca = self._pem("client_ca", "the certificates of CAs")
        self._client_auth = section.read(
            "client_auth_type", _client_auth, None if section.has("client_auth_type") else ssl.CERT_NONE
        )
        sans: tuple[str, ...] = section.read("client_allowed_sans", _several(_text), ())
        self.allowed_sans = frozenset(sans)
        self._least = section.read("min_version", _one_of(_VERSIONS), ssl.TLSVersion.TLSv1_2)
        self._most = section.read("max_version", _one_of(_VERSIONS), ssl.TLSVersion.TLSv1_3)
        self._ciphers: tuple[str, ...] = section.read(
            "cipher_suites", _several(_one_of(CIPHER_SUITES, _CIPHER_SUITE)), ()
        )
        self._curves: tuple[str, ...] = section.read("curve_preferences", _several(_one_of(_CURVES)), ())
        self._own_preference = section.read("prefer_server_cipher_suites", _flag, default=True)
        section.finish()
        if not section.empty:
            self._check()

    def context(self) -> ssl.SSLContext | None:
        """Return what connections are made with, None without TLS; what OpenSSL refuses is noted as wrong."""
        if self._certificate is None or self._key is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_NO_RENEGOTIATION
        if not self._own_preference:
            context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        self._load_certificate(context, self._certificate, self._key)
        self._set_versions_and_ciphers(context)
        if len({*self._curves}) == 1:
            context.set_ecdh_curve(self._curves[0])
        context.verify_mode = self._client_auth or ssl.CERT_NONE
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whatever the CA file holds is trusted, as in Go
        if self._client_ca is not None:
            self._load_client_ca(context, self._client_ca)
        elif self._client_auth:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)  # as Go does
        return context

    def _pem(self, key: str, what: str) -> bytes | None:
        """Return what stands in the file, or in the file that it names; None where that is neither or both."""
        file = f"{key}_file"
        text = self._section.read(key, _text, "")
        path = self._section.read(file, _text, "")
        if text and path:
            self._section.wrong((file,), f"either {key} or {file}", "both")
            return None
        if not path:
            return text.encode() or None
        whole = self._folder / path
        try:
            return self._files.read(whole)
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = (error.strerror if isinstance(error, OSError) else None) or "not a path"
            self._section.wrong((file,), f"a file with {what}", f"one that cannot be read ({reason})")
            return None

    def _key_of(self, key: str) -> Location:
        return (key if self._section.has(key) else f"{key}_file",)

    def _check(self) -> None:
        """Note what does not fit together."""
        section = self._section
        for key in ("cert", "key"):
            if not section.has(key, f"{key}_file"):
                section.wrong((), f"{key}_file or {key}", "neither")
        if self._client_auth == ssl.CERT_NONE:
            for key in ("client_ca", "client_ca_file", "client_allowed_sans"):
                if section.has(key):
                    hint = "client_auth_type: RequireAndVerifyClientCert makes use of it"
                    section.wrong((key,), "a client_auth_type that verifies certificates of clients", "none", hint)
        if self._least > self._most:
            section.wrong(("max_version",), "at least min_version", "less")
        if 1 < len({*self._curves}) < len(_CURVES):
            section.wrong(("curve_preferences",), "one curve, or all", "several", "leave it out")
        if self._ciphers and not any(self._ciphers) and self._most < ssl.TLSVersion.TLSv1_3:
            section.wrong(("cipher_suites",), "a suite that versions up to max_version have", "none")

    def _load_certificate(self, context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
        try:
            with _as_file(certificate) as file:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(file)
        except ssl.SSLError:
            self._section.wrong(self._key_of("cert"), f"a certificate {_IN_PEM}", "none, or a broken one")
            return
        if b"ENCRYPTED" in key:
            self._section.wrong(self._key_of("key"), "a private key without a passphrase", "an encrypted one")
            return
        try:
            with _as_file(certificate) as file, _as_file(key) as key_file:
                context.load_cert_chain(file, key_file, password="")  # never asked for on the terminal
        except ssl.SSLError as error:
            what, got = "a certificate and a key that OpenSSL takes", f"others ({error.reason})"
            if not error.reason:
                what, got = f"a private key {_IN_PEM}", "none, or a broken one"
            elif error.reason == "KEY_VALUES_MISMATCH":
                what, got = "the private key of the certificate", "that of another"
            elif error.reason == "EE_KEY_TOO_SMALL":
                what, got = "a key that OpenSSL takes for safe", "one that is too small"
            self._section.wrong(self._key_of("key"), what, got)

    def _load_client_ca(self, context: ssl.SSLContext, certificates: bytes) -> None:
        try:
            with _as_file(certificates) as file:
                context.load_verify_locations(file)
        except ssl.SSLError:
            self._section.wrong(self._key_of("client_ca"), f"certificates of CAs {_IN_PEM}", "none, or a broken one")

    def _set_versions_and_ciphers(self, context: ssl.SSLContext) -> None:
        least = self._least
        ciphers = list(filter(None, self._ciphers))
        if self._ciphers and not ciphers:
            least = ssl.TLSVersion.TLSv1_3  # only suites of TLS 1.3 are wanted
        if least < ssl.TLSVersion.TLSv1_2:
            # Before TLS 1.2 the handshake is signed by way of SHA-1, which OpenSSL allows at level 0 only.
            ciphers = [*(ciphers or ("ECDHE+AESGCM", "ECDHE+CHACHA20", "ECDHE+AES", "RSA+AES")), "@SECLEVEL=0"]
        if ciphers:
            try:
                context.set_ciphers(":".join(ciphers))
            except ssl.SSLError:
                self._section.wrong(("cipher_suites",), "a suite that this machine's OpenSSL has", "none")
        if least <= self._most:
            context.minimum_version = least
            context.maximum_version = self._most


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _WrongError("text", hint="put it in quotes" if isinstance(value, bool | int | float) else "")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _WrongError("true or false")
    return value


def _one_of(known: Mapping[str, Value], what: str = "") -> Callable[[object], Value]:
    def read(value: object) -> Value:
        name = _text(value)
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else ""
            raise _WrongError(what or f"one of {', '.join(known)}", hint=hint)
        return known[name]

    return read


def _several(reader: Callable[[object], Value]) -> Callable[[object], tuple[Value, ...]]:
    """Return the reader of a list; of several wrong entries the first is reported."""

    def read(value: object) -> tuple[Value, ...]:
        if not isinstance(value, tuple):
            raise _WrongError("a list")
        entries = []
        for index, entry in enumerate(value):
            try:
                entries.append(reader(entry))
            except _WrongError as wrong:
                raise _WrongError(wrong.what, wrong.got, wrong.hint, (index, *wrong.place)) from None
        return tuple(entries)

    return read


def _client_auth(value: object) -> ssl.VerifyMode:
    if value in _UNVERIFIED:
        raise _WrongError(
            f"one of {', '.join(_CLIENT_AUTH)}",
            f"{value}; Python's ssl cannot ask for a certificate without verifying it",
        )
    return ssl.CERT_NONE if value == "" else _one_of(_CLIENT_AUTH)(value)


def _header(allowed: tuple[str, ...]) -> Callable[[object], str]:
    def read(value: object) -> str:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
        if allowed and text not in allowed:
            raise _WrongError(" or ".join(allowed))
        if not (text.isascii() and text.isprintable()):
            raise _WrongError("one line of printable ASCII characters")
        return text.strip()

    return read


def _hash(value: object) -> bytes:
    if not isinstance(value, str) or not _BCRYPT.fullmatch(value):
        hint = "`htpasswd -nBC 10 NAME` makes one"
        raise _WrongError("the bcrypt hash of a password, of a cost from 4 to 31", "a value that is not shown", hint)
    return value.encode()


def _no_rate_limit(_: object) -> None:
    raise _WrongError("no rate_limit, as this exporter limits no rates", "one", "remove it")


def _name(kind: str, text: str) -> str:
    """Return a name of a certificate as Go writes it."""
    if kind == "IP Address":
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(text.strip()))
    return text


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give the content as a file in memory: ssl reads files only, and the ones on disk may change in between."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"
