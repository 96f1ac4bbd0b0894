"""Names of libraries that are used though they are not documented: capped, in one module each, and listed here."""

import ast
import asyncio.sslproto
import http.client
import importlib
import inspect
import io
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import urllib3.connection
import uvicorn.protocols.http.h11_impl
import uvicorn.server
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.servers import ROOT

DEPENDENCIES = [
    Requirement(text)
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
]

CAPPED = {"h11", "requests", "starlette", "urllib3", "uvicorn"}
"""Libraries of which names are used that they may change without notice."""

MODULES = {
    "exporter.braze.connection": {"_dns_host", "_new_conn", "_read_next_chunk_size"},
    "exporter.web.connections": {"_unset_keepalive_if_required"},
}
"""Per module of the exporter the names of others that begin with an underscore; no other module uses any."""

Cycle = uvicorn.protocols.http.h11_impl.RequestResponseCycle
Protocol = uvicorn.protocols.http.h11_impl.H11Protocol


@pytest.mark.parametrize("name", sorted(CAPPED))
def test_libraries_whose_private_names_are_used_are_capped(name: str) -> None:
    """Below the next major version, or before 1.0 the next minor one, of the oldest or of the pinned version."""
    (requirement,) = [requirement for requirement in DEPENDENCIES if requirement.name == name]
    (cap,) = [Version(part.version) for part in requirement.specifier if part.operator == "<"]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = re.search(rf"^{name}==(\S+)", lock, re.MULTILINE)
    assert found is not None
    pinned = Version(found[1])

    assert pinned in requirement.specifier
    assert cap == Version(f"{pinned.major + 1}" if pinned.major else f"0.{pinned.minor + 1}")


@pytest.mark.parametrize("path", sorted((ROOT / "exporter").rglob("*.py")), ids=lambda path: path.stem)
def test_private_names_of_others_are_used_in_one_module_each(path: Path) -> None:
    """A name with an underscore that this module does not define itself belongs to somebody else."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    overridden = own & _overridden(importlib.import_module(name))
    used = {node.attr for node in attributes} - own | overridden

    assert {name for name in used - {"_exit", "_replace"} if re.match("_[^_]", name)} == MODULES.get(name, set())


def _overridden(module: ModuleType) -> set[str]:
    """Return the names of methods of a module's classes that classes of others have, too."""
    classes = [
        value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return {
        name
        for owner in classes
        for name, value in vars(owner).items()
        if inspect.isfunction(value)
        and any(name in vars(base) for base in owner.__mro__ if not base.__module__.startswith("exporter"))
    }


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (http.client.HTTPResponse, "begin read isclosed _read_next_chunk_size"),
        (http.client.HTTPConnection, "response_class getresponse"),
        (urllib3.connection.HTTPConnection, "_new_conn is_connected request close default_port host"),
        (urllib3.connection.HTTPSConnection, "connect"),
        (io.BufferedReader, "peek readline read detach"),
        (asyncio.sslproto.SSLProtocol, "max_size"),
        (uvicorn.server.ServerState, "__init__"),
        (
            Protocol,
            "_unset_keepalive_if_required data_received eof_received on_response_complete send_400_response",
        ),
    ],
)
def test_names_that_are_used_are_there(owner: type, names: str) -> None:
    """What is overridden or called by a name that is not documented still has that name."""
    assert [name for name in names.split() if not hasattr(owner, name)] == []


def test_attributes_that_are_used_are_there() -> None:
    """What is set on objects of others has these names: of a connection, a response, a request, a protocol."""
    connection = urllib3.connection.HTTPConnection("127.0.0.1")
    response = _Response()
    response.begin()

    assert {"_dns_host", "port", "sock", "socket_options", "timeout"} <= {*vars(connection), *dir(connection)}
    assert {"chunk_left", "chunked", "fp", "headers", "length", "status", "version", "will_close"} <= {*vars(response)}
    assert {"disconnected", "keep_alive", "response_complete"} <= _set_by(Cycle)
    assert {"app", "config", "conn", "cycle", "flow", "loop", "scheme", "transport"} <= _set_by(Protocol)


class _Response(http.client.HTTPResponse):
    """A response without a socket."""

    def __init__(self) -> None:
        super().__init__(self)  # type: ignore[arg-type]

    def makefile(self, _: str) -> io.BufferedReader:
        """Return the bytes of a response, as a socket does."""
        return io.BufferedReader(io.BytesIO(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"))


def _set_by(owner: type) -> set[str]:
    """Return the attributes that a class sets on its objects."""
    path = Path(importlib.import_module(owner.__module__).__file__ or "")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner.__name__]
    return {
        node.attr for node in ast.walk(found) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
