"""The settings of the exporter-toolkit's web-config.yml, each checked by itself. Pure."""

from __future__ import annotations

import re
import ssl
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from exporter.yamlfile import Finding, expected, finding, suggestion, unknown_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import ValidationInfo

    from exporter.yamlfile import Location

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
CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_CIPHER_SUITE = "a cipher suite as Go names it, such as TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
# Salt and hash are base64 of 16 and 23 bytes; the salt's last character holds two bits.
_BCRYPT = re.compile(r"\$2[abxy]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")


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
        raise expected(what, f"{value}; Python's ssl cannot request a certificate without verifying it")
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


class TlsSettings(BaseModel):
    """The section tls_server_config; without certificate and key there is no TLS."""

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
    curve_preferences: tuple[Annotated[str, _one_of(CURVES)], ...] = ()
    prefer_server_cipher_suites: _Flag = True


class Headers(BaseModel):
    """Headers that every response has."""

    model_config = _STRICT
    _nulls = field_validator("*", mode="wrap")(_default_for_null)

    content_security_policy: Annotated[str, _header()] = Field("", alias="Content-Security-Policy")
    strict_transport_security: Annotated[str, _header()] = Field("", alias="Strict-Transport-Security")
    x_content_type_options: Annotated[str, _header("nosniff")] = Field("", alias="X-Content-Type-Options")
    x_frame_options: Annotated[str, _header("deny", "sameorigin")] = Field("", alias="X-Frame-Options")
    x_xss_protection: Annotated[str, _header()] = Field("", alias="X-XSS-Protection")


class HttpSettings(BaseModel):
    """The section http_server_config."""

    model_config = _STRICT
    _nulls = field_validator("*", mode="wrap")(_default_for_null)

    http2: _Flag = False
    headers: Headers = Headers()


class Settings(BaseModel):
    """The whole file."""

    model_config = _STRICT
    _nulls = field_validator("*", mode="wrap")(_default_for_null)

    tls_server_config: TlsSettings = TlsSettings()
    http_server_config: HttpSettings = HttpSettings()
    basic_auth_users: dict[str, Annotated[bytes, BeforeValidator(_hash)]] = {}
    rate_limit: Annotated[None, BeforeValidator(_no_rate_limit)] = None


_KEYS: Mapping[Location, list[str]] = {
    location: [field.alias or name for name, field in model.model_fields.items()]
    for location, model in (
        ((), Settings),
        (("tls_server_config",), TlsSettings),
        (("http_server_config",), HttpSettings),
        (("http_server_config", "headers"), Headers),
    )
}
"""The known keys of each mapping of the file, by its location."""


def read_settings(value: object) -> tuple[Settings, list[Finding]]:
    """Return the settings of a document, with defaults in place of invalid ones, and the findings about those."""
    findings = [
        Finding(("basic_auth_users", name), "a name without a colon", "one with a colon, which clients cannot send")
        for name in section(value, "basic_auth_users")
        if ":" in name
    ]
    try:
        return Settings.model_validate(value), findings
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
    return Settings.model_validate(value), findings


def _without(value: object, location: Location) -> object:
    """Return mappings without the key that leads to a location."""
    if not location or not isinstance(value, dict):
        return {}
    key, *below = location
    inner = value.get(key)
    rest = {name: each for name, each in value.items() if name != key}
    return {**rest, key: _without(inner, tuple(below))} if below and isinstance(inner, dict) else rest


def section(value: object, key: str) -> Mapping[str, object]:
    """Return a mapping within another one, an empty one where either is something else."""
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}
