"""Tests of exporter.web.web_config: files against promtool, messages, what TLS does, and changes of files."""

import os
import re
import resource
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from exporter.config import ConfigError
from exporter.system.files import Files
from exporter.system.threads import NoThreadError
from exporter.web.web_config import WatchedWebConfig, WebConfig, certificate_fits, load
from exporter.web.web_settings import CIPHER_SUITES
from tests.support.certificates import Certificates, make_certificates
from tests.support.servers import ROOT, eventually
from tests.support.system import Volume, no_new_threads

HASH = "$2y$04$V7JRrLpBaoLS.nMFMnVi3efMn3LVZdjl4vtfVVgGjTPqnAYqU60f2"
TLS = "cert_file: server.pem, key_file: server.key"
CLIENTS = "client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem"

Written = Callable[[str], Path]


@pytest.fixture(scope="module")
def certificates(openssl: Path, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA, with a certificate of a server, of another one, and of a client."""
    made = make_certificates(openssl, tmp_path_factory.mktemp("certificates"))
    made.sign("server", "DNS:localhost", "IP:127.0.0.1")
    made.sign("other", "DNS:localhost")
    made.sign("client", "DNS:prometheus", "IP:2001:db8::1", "email:a@example.com", "URI:spiffe://example.com/a")
    made.sign("weak", "DNS:localhost", key=("-newkey", "rsa:512"))
    made.sign("sha1", "DNS:localhost", digest="sha1")
    folder = made.folder
    (folder / "empty.pem").write_bytes(b"")
    (folder / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    command: list[str | Path] = [openssl, "pkey", "-aes128", "-passout", "pass:x"]
    command += ["-in", folder / "server.key", "-out", folder / "encrypted.key"]
    subprocess.run(command, check=True)
    return made


@pytest.fixture
def write(certificates: Certificates, tmp_path: Path) -> Written:
    """Write a web configuration beside the certificates."""
    for file in certificates.folder.iterdir():
        (tmp_path / file.name).symlink_to(file)

    def write(text: str) -> Path:
        file = tmp_path / "web.yml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


GOOD = [
    "",
    "{}",
    "tls_server_config:",
    "tls_server_config: {}",
    f"tls_server_config: {{{TLS}}}",
    f"tls_server_config: {{{TLS}, client_auth_type: NoClientCert}}",
    f"tls_server_config: {{{TLS}, client_auth_type: ''}}",
    f"tls_server_config: {{{TLS}, {CLIENTS}}}",
    f"tls_server_config: {{{TLS}, client_auth_type: VerifyClientCertIfGiven}}",
    f"tls_server_config: {{{TLS}, min_version: TLS13, max_version: TLS13}}",
    f"tls_server_config: {{{TLS}, cipher_suites: [{', '.join(CIPHER_SUITES)}]}}",
    f"tls_server_config: {{{TLS}, cipher_suites: [], prefer_server_cipher_suites: false}}",
    f"tls_server_config: {{{TLS}, curve_preferences: [CurveP521]}}",
    f"tls_server_config: {{{TLS}, curve_preferences: [X25519, CurveP256, CurveP384, CurveP521]}}",
    "http_server_config: {http2: true}",
    f"tls_server_config: {{{TLS}}}\nhttp_server_config: {{http2: false}}",
    "http_server_config: {headers: {X-Frame-Options: deny, X-XSS-Protection: 1, X-Content-Type-Options: nosniff}}",
    "http_server_config: {headers: {Content-Security-Policy: \"default-src 'self'\", Strict-Transport-Security: ''}}",
    f"basic_auth_users: {{alice: {HASH}, bob: {HASH.replace('2y', '2a')}, 'a b ü': {HASH.replace('2y', '2b')}}}",
    "basic_auth_users:",
]

BAD = [
    ("just a text", "expected a mapping of keys to values, got another content, which is not shown"),
    ("tls: {}", "tls: expected one of the keys basic_auth_users, http_server_config, rate_limit, tls_server_config"),
    ("tls_server_config: []", "tls_server_config: expected a mapping of keys to values, got an empty list"),
    (f"tls_server_config: {{{TLS}, cert_fil: x}}", "cert_fil: expected one of the keys cert, cert_file, cipher_suites"),
    (
        f"tls_server_config: {{{TLS}, cert_fil: x}}",
        "curve_preferences, key, key_file, max_version, min_version, prefer",
    ),
    (f"tls_server_config: {{{TLS}, cert_fil: x}}", "server_cipher_suites, got an unknown one; did you mean cert_file?"),
    ("basic_auth: {}", "rate_limit, tls_server_config, got an unknown one; did you mean basic_auth_users?"),
    ("tls: {}", "tls_server_config, got an unknown one\n"),
    ("tls_server_config: {cert_file: 5, key_file: server.key}", "expected text, got the number 5; put it in quotes\n"),
    ("tls_server_config: {cert_file: [server.pem], key_file: server.key}", "cert_file: expected text, got a list\n"),
    (f"tls_server_config: {{{TLS}, {TLS}}}", "expected each key once"),
    ("tls_server_config: {cert_file: server.pem}", "tls_server_config: expected key_file or key, got neither"),
    ("tls_server_config: {key_file: server.key}", "tls_server_config: expected cert_file or cert, got neither"),
    ("tls_server_config: {cert_file: '', key_file: server.key}", "expected cert_file or cert, got neither"),
    ("tls_server_config: {client_auth_type: NoClientCert}", "expected cert_file or cert, got neither"),
    ("tls_server_config: {cert_file: none.pem, key_file: server.key}", "cannot be read (No such file or directory)"),
    ("tls_server_config: {cert_file: server.pem, key_file: .}", "cannot be read (Is a directory)"),
    ('tls_server_config: {cert_file: server.pem, key_file: "a\\0b"}', "cannot be read (not a path)"),
    ("tls_server_config: {cert_file: server.key, key_file: server.key}", "cert_file: expected a certificate in"),
    ("tls_server_config: {cert_file: broken.pem, key_file: server.key}", "cert_file: expected a certificate in"),
    ("tls_server_config: {cert_file: empty.pem, key_file: server.key}", "cert_file: expected a certificate in"),
    ("tls_server_config: {cert_file: server.pem, key_file: server.pem}", "key_file: expected a private key in the PEM"),
    ("tls_server_config: {cert_file: server.pem, key_file: other.key}", "of the certificate, got that of another"),
    ("tls_server_config: {cert_file: server.pem, key_file: encrypted.key}", "passphrase, got an encrypted one"),
    (f"tls_server_config: {{{TLS}, client_ca_file: ca.pem}}", "client_ca_file: expected a client_auth_type that"),
    (f"tls_server_config: {{{TLS}, client_auth_type: Require}}", "client_auth_type: expected one of NoClientCert"),
    (f"tls_server_config: {{{TLS}, min_version: TLS14}}", "min_version: expected one of TLS10, TLS11, TLS12, TLS13"),
    (f"tls_server_config: {{{TLS}, min_version: 1.2}}", "min_version: expected text, got the number 1.2; put it in"),
    (f"tls_server_config: {{{TLS}, cipher_suites: [AES128-SHA]}}", "cipher_suites[0]: expected a cipher suite as Go"),
    (f"tls_server_config: {{{TLS}, cipher_suites: TLS_AES_128_GCM_SHA256}}", "cipher_suites: expected a list"),
    (f"tls_server_config: {{{TLS}, curve_preferences: [CurveP257]}}", "did you mean CurveP256?"),
    (f"tls_server_config: {{{TLS}, prefer_server_cipher_suites: maybe}}", "expected true or false, got 'maybe'"),
    ("http_server_config: {http2: 2}", "http2: expected true or false, got the number 2"),
    ("http_server_config: {headers: {X-Frame-Options: allow}}", "expected deny or sameorigin, got 'allow'"),
    ("http_server_config: {headers: {X-Content-Type-Options: sniff}}", "expected nosniff, got 'sniff'"),
    ("http_server_config: {headers: {Server: x}}", "Server: expected one of the keys Content-Security-Policy"),
    ("basic_auth_users: {alice: secret}", "basic_auth_users: expected the bcrypt hash of a password, of a cost from"),
    ("basic_auth_users: {alice: }", "basic_auth_users: expected the bcrypt hash of a password, of a cost from"),
    (f"basic_auth_users: {{alice: {HASH.replace('$04$', '$32$')}}}", "of a cost from 4 to 31"),
    (f"basic_auth_users: [{HASH}]", "basic_auth_users: expected a mapping of keys to values"),
    ("basic_auth_users: {alice: {", ":2: expected YAML, got a syntax error"),
]

REFUSED = [
    *(
        (f"tls_server_config: {{{TLS}, client_auth_type: {name}}}", f"got {name}; Python's ssl cannot request a")
        for name in ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
    ),
    ("rate_limit: {interval: 1s, burst: 1}", "rate_limit: expected no rate_limit, as this exporter limits no rates"),
    (f"basic_auth_users: {{alice: {HASH[:-1]}}}", "basic_auth_users: expected the bcrypt hash of a password"),
    (f"basic_auth_users: {{'a:b': {HASH}}}", "a name without a colon, got one with a colon, which clients cannot send"),
    (f"tls_server_config: {{{TLS}, client_allowed_sans: [a]}}", "client_allowed_sans: expected a client_auth_type"),
    (f"tls_server_config: {{{TLS}, curve_preferences: [CurveP256, X25519]}}", "expected one curve, or all, got"),
    (f"tls_server_config: {{{TLS}, min_version: TLS13, max_version: TLS12}}", "max_version: expected at least min_ver"),
    (
        f"tls_server_config: {{{TLS}, max_version: TLS12, cipher_suites: [TLS_AES_128_GCM_SHA256]}}",
        "cipher_suites: expected a suite that versions up to max_version have, got none",
    ),
    ("tls_server_config: {min_version: TLS13}", "tls_server_config: expected cert_file or cert, got neither"),
    ("tls_server_config: {cert_file: weak.pem, key_file: weak.key}", "a key that OpenSSL takes for safe, got one that"),
    (f"tls_server_config: {{{TLS}, {CLIENTS.replace('ca.', 'empty.')}}}", "client_ca_file: expected certificates of"),
    (f"tls_server_config: {{{TLS}, cert: x}}", "cert_file: expected either cert or cert_file, got both"),
    ('http_server_config: {headers: {X-XSS-Protection: "1\\nSet-Cookie: a"}}', "one line of printable ASCII"),
    ("http_server_config: {headers: {Content-Security-Policy: 'schön'}}", "one line of printable ASCII"),
    ("http_server_config: {headers: {X-XSS-Protection: true}}", "expected text, got the boolean true; put it in quot"),
    ("tls_server_config: {cert_file: sha1.pem, key_file: sha1.key}", "that OpenSSL takes, got others (CA_MD_TOO_WEAK)"),
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_good(text: str, write: Written, promtool: Path) -> None:
    """What promtool takes for good is taken."""
    file = write(text)

    assert checked(promtool, file)
    assert isinstance(load(file), WebConfig)


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_bad(text: str, expected: str, write: Written, promtool: Path) -> None:
    """What promtool refuses is refused, in words that say where, what came and what is right."""
    file = write(text)

    assert not checked(promtool, file) or "NoClientCert}" in text  # which versions after 2.42 refuse
    assert expected in f"{problems(file)}\n"


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_refused(text: str, expected: str, write: Written) -> None:
    """What the toolkit takes and cannot be done here is refused by name, and so is what could not work there either."""
    assert expected in problems(write(text))


def test_all_problems_at_once(write: Written) -> None:
    """Every problem is told, by line."""
    file = write(
        "tls_server_config:\n  cert_file: none.pem\n  min_version: TLS9\n  x: y\nrate_limit: {}\n"
        "basic_auth_users:\n  alice: x\n"
        "http_server_config:\n  headers:\n    X-Frame-Options: x\n"
    )

    lines = [re.match(rf"{re.escape(str(file))}:(\d+): ", problem) for problem in problems(file).splitlines()]
    assert [line and line[1] for line in lines] == ["1", "2", "3", "4", "5", "7", "10"]


def test_all_entries_of_a_list(write: Written) -> None:
    """Every wrong entry of a list is told, not only the first."""
    text = problems(write(f"tls_server_config: {{{TLS}, cipher_suites: [A, TLS_AES_128_GCM_SHA256, B]}}"))

    assert re.findall(r"(cipher_suites\[\d\]): .* got ('.')", text) == [
        ("cipher_suites[0]", "'A'"),
        ("cipher_suites[2]", "'B'"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "basic_auth_users: {alice: SECRET}",
        "basic_auth_users: {SECRET: [1]}",
        "basic_auth_users: {alice: {SECRET: 1, SECRET: 2}}",
        "basic_auth_users: SECRET",
        "basic_auth_users: {alice: !SECRET x}",
        "basic_auth_user: {alice: SECRET}",
        "tls_server_config: {key: SECRET}",
        "tls_server_config: {cert_file: server.pem, key: SECRET}",
        "tls_server_config: {cert_file: server.pem, key_file: SECRET}",
        "SECRET",
        "'SECRET",
        "basic_auth_users:\n alice: 'SECRET\n bob: SECRET: [",
    ],
)
def test_secrets_are_not_shown(text: str, write: Written) -> None:
    """Neither a hash nor a key, nor a password in the place of one, is part of a message."""
    assert "5EcReT" not in problems(write(text.replace("SECRET", "x5EcReT")))


@pytest.mark.parametrize("pipe", ["cert_file", "key_file"])
def test_a_pipe_is_empty(pipe: str, write: Written, tmp_path: Path) -> None:
    """A named pipe that nobody writes to holds nothing up."""
    os.mkfifo(tmp_path / "pipe")
    text = f"tls_server_config: {{{TLS}}}".replace(
        f"{pipe}: server.{'pem' if pipe == 'cert_file' else 'key'}", f"{pipe}: pipe"
    )

    assert problems(write(text))


def test_nothing_is_left_open_without_a_file() -> None:
    """An empty configuration has neither TLS nor users, and changes no header."""
    assert WebConfig() == WebConfig(None, frozenset(), {}, {}, (), {})


def test_http2(write: Written) -> None:
    """HTTP/2 that is asked for is not served, which is told; what is the default anyway is not worth a word."""
    assert "HTTP/2 is not served" in load(write("http_server_config: {http2: true}")).warnings[0]
    assert load(write("http_server_config: {http2: false}")).warnings == ()


@pytest.mark.parametrize("key", ["cert", "key", "client_ca"])
def test_inline(key: str, write: Written, certificates: Certificates) -> None:
    """Certificates and keys may stand in the file itself."""
    texts = {name: (certificates.folder / file).read_text() for name, file in
             (("cert", "server.pem"), ("key", "server.key"), ("client_ca", "ca.pem"))}  # fmt: skip
    entries = dict(entry.split(": ") for entry in f"{TLS}, {CLIENTS}".split(", "))
    del entries[f"{key}_file"]
    lines = [*(f"  {name}: {value}" for name, value in entries.items()), f"  {key}: |"]
    lines += [f"    {line}" for line in texts[key].splitlines()]
    file = write("\n".join(["tls_server_config:", *lines, ""]))

    client = client_context(certificates, "client")

    assert greet(load(file), client) == "TLSv1.3"


@pytest.mark.parametrize(
    ("settings", "version", "expected"),
    [
        ("min_version: TLS12", ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
        ("min_version: TLS13", ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
        ("min_version: TLS13", ssl.TLSVersion.TLSv1_2, None),
        ("max_version: TLS12", ssl.TLSVersion.TLSv1_3, None),
        ("max_version: TLS12", ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
        ("min_version: TLS12", ssl.TLSVersion.TLSv1_1, None),
        ("min_version: TLS10", ssl.TLSVersion.TLSv1, "TLSv1"),
        ("min_version: TLS11, max_version: TLS11", ssl.TLSVersion.TLSv1_1, "TLSv1.1"),
        ("cipher_suites: [TLS_AES_128_GCM_SHA256]", ssl.TLSVersion.TLSv1_2, None),
        ("cipher_suites: [TLS_AES_128_GCM_SHA256]", ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
        ("curve_preferences: [CurveP384]", ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_versions(
    settings: str, version: ssl.TLSVersion, expected: str | None, write: Written, certificates: Certificates
) -> None:
    """A client speaks the versions that are allowed and no other; old ones only where they are asked for."""
    client = client_context(certificates)
    client.minimum_version = client.maximum_version = version
    if version < ssl.TLSVersion.TLSv1_2:
        client.set_ciphers("ALL:@SECLEVEL=0")

    assert greet(load(write(f"tls_server_config: {{{TLS}, {settings}}}")), client) == expected


@pytest.mark.parametrize("suite", [name for name, openssl in CIPHER_SUITES.items() if "ECDHE-ECDSA" in openssl])
def test_cipher_suites(suite: str, write: Written, certificates: Certificates) -> None:
    """Each suite of an ECDSA certificate can be chosen by Go's name, and excludes the others."""
    loaded = load(write(f"tls_server_config: {{{TLS}, cipher_suites: [{suite}], max_version: TLS12}}"))
    fitting, other = client_context(certificates), client_context(certificates)
    fitting.set_ciphers(CIPHER_SUITES[suite])
    other.set_ciphers(":".join({"ECDHE-ECDSA-AES128-CCM", "ECDHE-ECDSA-CAMELLIA128-SHA256"}))

    assert greet(loaded, fitting) == "TLSv1.2"
    assert greet(loaded, other) is None


def test_tls_settings(write: Written) -> None:
    """Without settings TLS is 1.2 or 1.3, with our order of ciphers, no renegotiation, and no client's certificate."""
    context = load(write(f"tls_server_config: {{{TLS}}}")).context

    assert context is not None
    assert (context.minimum_version, context.maximum_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    assert context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.verify_mode == ssl.CERT_NONE
    usual = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert (context.security_level, context.get_ciphers()) == (usual.security_level, usual.get_ciphers())


@pytest.mark.parametrize(
    ("settings", "level", "suites"),
    [
        ("min_version: TLS13", None, None),
        ("cipher_suites: [TLS_AES_128_GCM_SHA256]", None, None),
        ("cipher_suites: [TLS_RSA_WITH_AES_128_GCM_SHA256]", None, {"AES128-GCM-SHA256"}),
        ("min_version: TLS10, cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]", 0, {"AES128-SHA"}),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_the_security_level(settings: str, level: int | None, suites: set[str] | None, write: Written) -> None:
    """OpenSSL's security level is its own, but for versions before 1.2, which need level 0; chosen suites are all."""
    context = load(write(f"tls_server_config: {{{TLS}, {settings}}}")).context
    usual = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    assert context is not None
    assert context.security_level == (usual.security_level if level is None else level)
    names, usual_names = (
        {cipher["name"] for cipher in each.get_ciphers() if cipher["protocol"] != "TLSv1.3"}
        for each in (context, usual)
    )
    assert names == (usual_names if suites is None else suites)


@pytest.mark.parametrize(("preference", "expected"), [("false", False), ("true", True)])
def test_the_order_of_ciphers(preference: str, expected: bool, write: Written) -> None:  # noqa: FBT001 - a parameter
    """The client's order of cipher suites counts where it is asked for."""
    context = load(write(f"tls_server_config: {{{TLS}, prefer_server_cipher_suites: {preference}}}")).context

    assert context is not None
    assert bool(context.options & ssl.OP_CIPHER_SERVER_PREFERENCE) is expected


def test_a_client_that_speaks_http2(write: Written, certificates: Certificates) -> None:
    """A client that would rather speak HTTP/2 is told to speak HTTP/1.1."""
    client = client_context(certificates)
    client.set_alpn_protocols(["h2", "http/1.1"])

    assert shaken(load(write(f"tls_server_config: {{{TLS}}}")), client).selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("curves", ["[]", "[X25519, CurveP256, CurveP384, CurveP521]", "[CurveP384, CurveP384]"])
@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1"])
def test_curves(curves: str, curve: str, write: Written, certificates: Certificates) -> None:
    """One curve excludes the others; all of them, or none, exclude nothing."""
    client = client_context(certificates)
    client.set_ecdh_curve(curve)
    loaded = load(write(f"tls_server_config: {{{TLS}, curve_preferences: {curves}}}"))

    assert (greet(loaded, client) is None) is (curves == "[CurveP384, CurveP384]" and curve == "prime256v1")


def test_the_systems_cas(write: Written, certificates: Certificates) -> None:
    """Without client_ca_file certificates of clients are verified by the system's CAs, where they are verified."""
    script = "import sys; from pathlib import Path; from exporter.web.web_config import load; "
    script += "print(len(load(Path(sys.argv[1])).context.get_ca_certs()))"
    counts = [
        subprocess.run(
            [sys.executable, "-c", script, write(f"tls_server_config: {{{TLS}, client_auth_type: {kind}}}")],
            cwd=ROOT,
            env={**os.environ, "SSL_CERT_FILE": str(certificates.ca), "SSL_CERT_DIR": "/nowhere"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for kind in ("RequireAndVerifyClientCert", "VerifyClientCertIfGiven", "NoClientCert")
    ]

    assert counts == ["1\n", "1\n", "0\n"]


def test_a_trusted_certificate_needs_no_root(write: Written, certificates: Certificates, tmp_path: Path) -> None:
    """Whatever the CA file contains is trusted, also a client's certificate itself."""
    write("")
    (tmp_path / "only.pem").write_bytes((certificates.folder / "client.pem").read_bytes())
    loaded = load(write(f"tls_server_config: {{{TLS}, {CLIENTS.replace('ca.pem', 'only.pem')}}}"))

    assert greet(loaded, client_context(certificates, "client"))


def test_users_headers_and_names(write: Written) -> None:
    """Users come with their hashes, headers without white space around them and without empty ones, names as a set."""
    loaded = load(
        write(
            f"tls_server_config: {{{TLS}, {CLIENTS}, client_allowed_sans: [a, b, a]}}\n"
            "http_server_config: {headers: {X-XSS-Protection: 1, X-Frame-Options: deny, Strict-Transport-Security: '',"
            " Content-Security-Policy: \" default-src 'self' \"}}\n"
            f"basic_auth_users: {{alice: {HASH}}}"
        )
    )

    assert loaded.users == {"alice": HASH.encode()}
    assert loaded.allowed_sans == {"a", "b"}
    assert loaded.headers == {
        "Content-Security-Policy": "default-src 'self'",
        "X-Frame-Options": "deny",
        "X-XSS-Protection": "1",
    }
    assert HASH not in repr(loaded)


def test_all_cipher_suites_exist() -> None:
    """OpenSSL has every suite by the name that Go's is translated to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name in filter(None, CIPHER_SUITES.values()):
        context.set_ciphers(name)

        assert name in {cipher["name"] for cipher in context.get_ciphers()}


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("RequireAndVerifyClientCert", "client", True),
        ("RequireAndVerifyClientCert", None, False),
        ("RequireAndVerifyClientCert", "stranger", False),
        ("VerifyClientCertIfGiven", "client", True),
        ("VerifyClientCertIfGiven", None, True),
        ("VerifyClientCertIfGiven", "stranger", False),
    ],
)
def test_client_certificates(
    mode: str,
    name: str | None,
    expected: bool,  # noqa: FBT001 - a parameter of the test
    write: Written,
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    """A certificate that is required, or given, is verified."""
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    made_by = make_certificates(certificates.openssl, strangers) if name == "stranger" else certificates
    if name == "stranger":
        made_by.sign("stranger")
    client = client_context(certificates)
    if name is not None:
        client.load_cert_chain(made_by.folder / f"{name}.pem", made_by.folder / f"{name}.key")

    loaded = load(write(f"tls_server_config: {{{TLS}, client_auth_type: {mode}, client_ca_file: ca.pem}}"))

    assert (greet(loaded, client) is not None) is expected


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ("prometheus", True),
        ("2001:db8::1", True),
        ("a@example.com", True),
        ("spiffe://example.com/a", True),
        ("other", False),
        ("Prometheus", False),
        ("client", False),
    ],
)
def test_allowed_sans(allowed: str, expected: bool, certificates: Certificates) -> None:  # noqa: FBT001 - a parameter of the test
    """A certificate is made out to a name of any kind, as Go writes it; the common name is none."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    server.load_cert_chain(certificates.folder / "server.pem", certificates.folder / "server.key")
    server.verify_mode = ssl.CERT_REQUIRED
    seen: list[object] = []

    assert greet(WebConfig(server), client_context(certificates, "client"), seen)
    (certificate,) = seen
    assert isinstance(certificate, dict)
    assert certificate_fits(certificate, frozenset({allowed, "x"})) is expected
    assert certificate_fits(certificate, frozenset())
    assert certificate_fits(None, frozenset({allowed}))


def test_a_change_is_noticed(write: Written, caplog: pytest.LogCaptureFixture) -> None:
    """A file that changed is read once, when two looks find the same; one that did not is not read again."""
    caplog.set_level("INFO")
    watched = WatchedWebConfig(write(f"basic_auth_users: {{alice: {HASH}}}"))
    watched.refresh()
    watched.refresh()
    first = watched.current

    write(f"basic_auth_users: {{alice: {HASH}, bob: {HASH}}}")
    watched.refresh()
    between = watched.current
    watched.refresh()
    second = watched.current
    watched.refresh()

    assert [*first.users] == ["alice"]
    assert between is first
    assert [*second.users] == ["alice", "bob"]
    assert watched.current is second
    assert [(record.message, vars(record)["tls"]) for record in caplog.records] == [
        ("the web configuration was reloaded", False)
    ]


@pytest.mark.parametrize("end", ["tls_server_config:", "basic_auth_users:", "cert_file", "bob", "alice"])
def test_half_a_file_never_comes_into_force(end: str, write: Written) -> None:
    """A file that is being written leaves the previous configuration in force, wherever its first half ends."""
    text = f"tls_server_config: {{{TLS}}}\nbasic_auth_users:\n  alice: {HASH}\n  bob: {HASH}\n"
    watched = WatchedWebConfig(write(text))
    before = watched.current

    write(text[: text.index(end)])
    watched.refresh()
    write(text)
    watched.refresh()
    watched.refresh()

    assert watched.current is before
    assert watched.successful


def test_a_file_that_changes_while_it_is_loaded(write: Written) -> None:
    """A file that is written between the last look and its load is left to the next look."""
    file = write(f"basic_auth_users: {{alice: {HASH}}}")
    contents = iter(
        [f"basic_auth_users: {{bob: {HASH}}}"] * 2
        + [f"http_server_config: {{}}\nbasic_auth_users: {{eve: {HASH}}}"] * 5
    )
    started = False

    def open_next(path: Path) -> int:
        if started:
            write(next(contents))
        return os.open(path, os.O_RDONLY)

    watched = WatchedWebConfig(file, files=Files(open_next))
    started, users = True, []
    for _ in range(5):
        watched.refresh()
        users.append([*watched.current.users])

    assert users == [["alice"], ["alice"], ["alice"], ["eve"], ["eve"]]


def refreshed(watched: WatchedWebConfig) -> WatchedWebConfig:
    """Bring changes into force: look until the files were the same twice."""
    watched.refresh()
    watched.refresh()
    return watched


def test_a_certificate_behind_links_is_noticed(write: Written, certificates: Certificates, tmp_path: Path) -> None:
    """A certificate is read again when a link to its folder changes, as Kubernetes does it."""
    for name, source in (("one", "server"), ("two", "other")):
        (tmp_path / name).mkdir()
        for kind in ("pem", "key"):
            (tmp_path / name / f"tls.{kind}").write_bytes((certificates.folder / f"{source}.{kind}").read_bytes())
    (tmp_path / "data").symlink_to("one")
    watched = WatchedWebConfig(write("tls_server_config: {cert_file: data/tls.pem, key_file: data/tls.key}"))
    first = watched.current

    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(tmp_path / "data")
    refreshed(watched)

    client = client_context(certificates)
    assert watched.current.context is not first.context
    assert served(first, client) != served(watched.current, client)


@pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.pem"])
def test_each_file_is_watched(name: str, write: Written, certificates: Certificates, tmp_path: Path) -> None:
    """A change of the certificate, the key or the CA is noticed though its size and its time stay the same."""
    watched = WatchedWebConfig(write(f"tls_server_config: {{{TLS}, {CLIENTS}}}"))
    times = certificates.folder / name
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(bytes(times.stat().st_size))
    os.utime(tmp_path / name, ns=(times.stat().st_atime_ns, times.stat().st_mtime_ns))

    assert not refreshed(watched).successful


def test_a_broken_change_changes_nothing(write: Written, caplog: pytest.LogCaptureFixture) -> None:
    """With a file that is wrong the old one stays, which is logged once for each reason, until it is right again."""
    good, bad = f"basic_auth_users: {{alice: {HASH}}}", "basic_auth_users: {alice: bob}"
    watched = WatchedWebConfig(write(good))
    before = watched.current

    for text in (bad, "rate_limit: {}", good, bad):
        write(text)
        for _ in range(3):
            refreshed(watched)
            assert watched.successful == (text == good)
            assert watched.current.users == before.users

    assert [record.message for record in caplog.records] == [
        "the reload of the web configuration failed, keeping the previous one"
    ] * 3
    errors = [str(vars(record)["error"]) for record in caplog.records]
    assert ["bcrypt" in error for error in errors] == [True, False, True]
    assert "bob" not in "".join(errors)


def test_a_file_that_is_away_for_a_moment(write: Written, tmp_path: Path) -> None:
    """When a file is the old one again, the configuration is in force again."""
    watched = WatchedWebConfig(write(f"tls_server_config: {{{TLS}}}"))
    key = tmp_path / "server.key"

    key.rename(tmp_path / "away")
    between = refreshed(watched).successful
    (tmp_path / "away").rename(key)

    assert (between, refreshed(watched).successful) == (False, True)


def test_a_file_that_comes_later(write: Written, certificates: Certificates, tmp_path: Path) -> None:
    """A file that a new configuration names is waited for, whatever was in force before."""
    watched = WatchedWebConfig(write(f"basic_auth_users: {{alice: {HASH}}}"))
    write("tls_server_config: {cert_file: server.pem, key_file: late.key}")
    between = refreshed(watched).successful
    (tmp_path / "late.key").write_bytes((certificates.folder / "server.key").read_bytes())

    assert (between, refreshed(watched).successful) == (False, True)
    assert watched.current.context


def test_a_key_that_comes_later(write: Written, certificates: Certificates, tmp_path: Path) -> None:
    """Between the writing of a new certificate and of its key the old ones serve."""
    for kind in ("pem", "key"):
        (tmp_path / f"tls.{kind}").write_bytes((certificates.folder / f"server.{kind}").read_bytes())
    watched = WatchedWebConfig(write("tls_server_config: {cert_file: tls.pem, key_file: tls.key}"))

    (tmp_path / "tls.pem").write_bytes((certificates.folder / "other.pem").read_bytes())
    between = refreshed(watched).successful
    (tmp_path / "tls.key").write_bytes((certificates.folder / "other.key").read_bytes())

    assert (between, refreshed(watched).successful) == (False, True)


OPEN = ["", "# nothing\n", "{}", "tls_server_config:", "tls_server_config: {}\nbasic_auth_users:\n", "---\n...\n"]


@pytest.mark.parametrize("text", [*OPEN, "http_server_config: {headers: {X-Frame-Options: deny}}"])
@pytest.mark.parametrize("before", [f"tls_server_config: {{{TLS}}}", f"basic_auth_users: {{alice: {HASH}}}"])
def test_a_reload_never_opens_everything(
    text: str, before: str, write: Written, caplog: pytest.LogCaptureFixture
) -> None:
    """With TLS or users in force a file with neither is refused: it may be one that was cut short."""
    watched = WatchedWebConfig(write(before))
    in_force = watched.current
    file = write(text)
    refreshed(watched)

    assert (watched.current, watched.successful) == (in_force, False)
    (record,) = caplog.records
    assert vars(record)["error"] == (
        f"{file}: expected TLS or users, as in the configuration in force, got neither; "
        "restart braze-exporter to serve without both"
    )
    write(before + " ")
    assert refreshed(watched).successful


@pytest.mark.parametrize("before", [f"tls_server_config: {{{TLS}}}", f"basic_auth_users: {{alice: {HASH}}}"])
@pytest.mark.parametrize("after", [f"tls_server_config: {{{TLS}}}", f"basic_auth_users: {{alice: {HASH}}}"])
def test_a_reload_may_exchange_tls_and_users(before: str, after: str, write: Written) -> None:
    """A file with TLS or users is obeyed, whichever was in force."""
    watched = WatchedWebConfig(write(f"{before}\nhttp_server_config: {{http2: false}}"))
    write(after)
    refreshed(watched)

    assert watched.successful
    assert bool(watched.current.users) == ("alice" in after)


@pytest.mark.parametrize("text", OPEN)
def test_an_empty_file_is_warned_of(text: str, write: Written, caplog: pytest.LogCaptureFixture) -> None:
    """A file that says nothing is valid, with a warning that everybody is served; one that says anything has none."""
    warning = "the web configuration is empty: everybody is served, without TLS"
    watched = WatchedWebConfig(write("http_server_config: {http2: false}"))
    write(text)
    refreshed(watched)

    assert load(write(text)).warnings == (warning,)
    assert watched.successful
    assert [record.message for record in caplog.records] == [warning]
    assert load(write(f"basic_auth_users: {{alice: {HASH}}}")).warnings == ()


def test_a_hung_volume(write: Written, tmp_path: Path, volume: Volume, caplog: pytest.LogCaptureFixture) -> None:
    """While a volume does not answer the old configuration stays, told once; when it answers the new one is read."""
    watched = WatchedWebConfig(write(f"tls_server_config: {{{TLS}}}"), files=Files(volume.open), timeout=1)
    before = watched.current
    volume.hung = {tmp_path / "server.key"}
    for _ in range(2):
        refreshed(watched)
    between = (watched.current, watched.successful)
    volume.answer()
    write(f"tls_server_config: {{{TLS}}}\nbasic_auth_users: {{alice: {HASH}}}")

    assert between == (before, False)
    (record,) = caplog.records
    assert vars(record)["error"] == (
        f"{tmp_path}/web.yml:1: tls_server_config.key_file: expected a file with the certificate's private key, "
        "got one that cannot be read (the file system does not respond within 1 s)"
    )
    assert refreshed(watched).successful
    assert [*watched.current.users] == ["alice"]


def test_a_pipe_is_read_once(write: Written, tmp_path: Path) -> None:
    """A web configuration from a pipe, as shells make for <(command), is in force for good."""
    write("")
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(writer, f"basic_auth_users: {{alice: {HASH}}}".encode())
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(WatchedWebConfig, tmp_path / "pipe")
        eventually(lambda: select.select([writer], [], [], 0)[0] == [], what="a reader")
        os.close(writer)
        watched = loading.result()

    assert refreshed(watched).successful
    assert [*watched.current.users] == ["alice"]


def test_too_many_open_files(write: Written) -> None:
    """Where the system has no room for another open file a configuration cannot be loaded, and nothing else happens."""
    file = write(f"tls_server_config: {{{TLS}, {CLIENTS}}}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    problems = []
    with ExitStack() as stack:
        largest = max(int(link.name) for link in Path("/proc/self/fd").iterdir())
        while (number := stack.enter_context(open(os.devnull, "rb")).fileno()) < largest:  # noqa: PTH123 - not a path
            pass  # until there are no smaller numbers left
        for room in range(8):
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (number + 1 + room, limits[1]))
                load(file)
            except ConfigError as error:
                problems.append(str(error))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert 0 < len(problems) < 8
    assert f"{file}: cannot be loaded: Too many open files" in problems


def test_changes_are_looked_for(write: Written) -> None:
    """Once started, a change comes into force by itself; an exception that ends the thread is fatal."""
    crashes: list[BaseException] = []
    file = write(f"basic_auth_users: {{alice: {HASH}}}")
    stopped = threading.Event()

    def open_or_crash(path: Path) -> int:
        if stopped.is_set():
            raise ZeroDivisionError
        return os.open(path, os.O_RDONLY)

    watched = WatchedWebConfig(file, files=Files(open_or_crash))
    watched.start(crashes.append)
    write(f"basic_auth_users: {{bob: {HASH}}}")
    eventually(lambda: "bob" in watched.current.users, what="another user")
    stopped.set()
    eventually(lambda: crashes, what="a crash")

    assert [type(crash) for crash in crashes] == [ZeroDivisionError]


def test_no_thread_to_look_for_changes(write: Written) -> None:
    """A thread that cannot be started is an error at the start."""
    watched = WatchedWebConfig(write(""))
    with no_new_threads(), pytest.raises(NoThreadError, match="web configuration"):
        watched.start(lambda _: None)


def checked(promtool: Path, file: Path) -> bool:
    """Tell whether promtool takes a web configuration for good."""
    result = subprocess.run(
        [promtool, "check", "web-config", file.name], cwd=file.parent, capture_output=True, check=False
    )
    return result.returncode == 0


def problems(file: Path) -> str:
    """Return what is said of a file that is wrong."""
    with pytest.raises(ConfigError) as raised:
        load(file)
    return str(raised.value)


def client_context(certificates: Certificates, name: str = "") -> ssl.SSLContext:
    """Return a client's settings: it trusts the CA, and has the certificate of that name."""
    context = ssl.create_default_context(cafile=certificates.ca)
    if name:
        context.load_cert_chain(certificates.folder / f"{name}.pem", certificates.folder / f"{name}.key")
    return context


def greet(loaded: WebConfig, client: ssl.SSLContext, seen: list[object] | None = None) -> str | None:
    """Let a client greet a server with these settings; return the version of TLS, None where they cannot agree."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        answering = threading.Thread(target=_answer, args=(listener, loaded, [] if seen is None else seen))
        answering.start()
        try:
            with (
                closing(socket.create_connection(listener.getsockname(), timeout=10)) as connection,
                client.wrap_socket(connection, server_hostname="localhost") as encrypted,
            ):
                return encrypted.version() if encrypted.recv(2) == b"hi" else None
        except OSError:
            return None
        finally:
            answering.join()


def served(loaded: WebConfig, client: ssl.SSLContext) -> bytes:
    """Return the certificate that a client gets to see."""
    return shaken(loaded, client).getpeercert(binary_form=True) or b""


def shaken(loaded: WebConfig, client: ssl.SSLContext) -> ssl.SSLObject:
    """Return the client's side of a handshake."""
    assert loaded.context is not None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    theirs = loaded.context.wrap_bio(to_server, to_client, server_side=True)
    for side in (ours, theirs, ours):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return ours


def _answer(listener: socket.socket, loaded: WebConfig, seen: list[object]) -> None:
    assert loaded.context is not None
    with closing(listener.accept()[0]) as accepted:
        try:
            with loaded.context.wrap_socket(accepted, server_side=True) as encrypted:
                seen.append(encrypted.getpeercert())
                encrypted.sendall(b"hi")
        except OSError:
            pass
