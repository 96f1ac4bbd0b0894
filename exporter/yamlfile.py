"""A YAML file as plain values, with the place of each and the problems of the file, but none of its secrets.

A value below a key named like a secret, or one that looks like a secret, is never repeated in a message.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml
from pydantic_core import ErrorDetails, PydanticCustomError

from exporter.system import files

try:
    from yaml import CSafeLoader as SafeLoader  # ten times as fast; there where PyYAML was built with libyaml
except ImportError:  # pragma: no cover
    from yaml import SafeLoader  # type: ignore[assignment]

Location: TypeAlias = tuple[int | str, ...]
"""The keys and places in lists that lead to a value."""

_SECRET_NAME = re.compile("key|password|passwd|token|secret|credential|authorization|basic_auth", re.IGNORECASE)
_HIDDEN = "a value that is not shown"
_LONGEST_QUOTE = 80  # characters of a value that a message repeats
_DEEPEST = 20  # levels of nesting; the models have 5


class SyntaxProblemError(Exception):
    """The file cannot be read, or is no YAML; the text begins with the line where there is one: `:3: expected …`."""


def read_document(path: Path, read: Callable[[Path], bytes] = files.read) -> "Document":
    """Return what the file at `path` contains; `read` returns its bytes, or raises OSError.

    Raises:
        SyntaxProblemError: it cannot be read, or is no YAML, or more than one document of it.

    """
    return Document(*_compose(path, read))


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong at one place of the document; without `got` the value there is described."""

    location: Location
    what: str
    got: str = ""
    hint: str = ""


def expected(what: str, got: str = "", hint: str = "") -> PydanticCustomError:
    """Return the error of a value that is not `what`; without `got` the value itself is described where it may be."""
    return PydanticCustomError("expected", "expected {what}", {"what": what, "got": got, "hint": hint})


def finding(error: ErrorDetails) -> Finding:
    """Return the finding of an error of pydantic: one of `expected`, or one of its own."""
    if error["type"] == "expected":
        return Finding(error["loc"], **error["ctx"])
    return Finding(error["loc"], _BUILT_IN.get(error["type"], "another value"))


def unknown_key(location: Location, known: Iterable[str]) -> Finding:
    """Return the finding of a key that is none of the known ones."""
    names = sorted(known)
    hint = suggestion(str(location[-1]), names)
    return Finding(location, f"one of the keys {', '.join(names)}", "an unknown one", hint)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a hint with the known name that is most like `name`, empty where none is like it."""
    close = difflib.get_close_matches(name, [*known], n=1)
    return f"did you mean {close[0]}?" if close else ""


_BUILT_IN = {
    "missing": "a value, as this key has no default",
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "tuple_type": "a list",
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Place of a node: its path for people, and its line."""

    path: str
    line: int

    def problem(self, what: str, got: str, hint: str = "") -> tuple[int, str]:
        text = sentence(what, got, hint)
        return self.line, f"{self.path}: {text}" if self.path else text


class Document:
    """The nodes of a YAML document as plain values, with the place of each and the problems of their structure.

    `value` is made of dict, tuple, str, int, float, bool and None; a node that aliases repeat is built once. `problems`
    are pairs of a line and a text.
    """

    def __init__(self, root: yaml.Node | None, lines: list[str]) -> None:
        self.problems: list[tuple[int, str]] = []
        self._root = root
        self._lines = lines
        self._hidden = _secret_nodes(root)
        self._top = _Place("", 1 if root is None else _line(root))
        self._entries: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = {}
        self._values: dict[int, object] = {}
        self._open: set[int] = set()
        self.value = None if root is None else self._value(root, self._top)

    def problem(self, finding: Finding) -> tuple[int, str]:
        """Return the line and the text of `finding`."""
        place, node = self._find(finding.location)
        if finding.got:
            return place.problem(finding.what, finding.got, finding.hint)
        came = self._describe(node)
        return place.problem(finding.what, came, "" if came == _HIDDEN else finding.hint)  # a hint may repeat the value

    def line(self, location: Location) -> int:
        """Return the line of `location`, or of the nearest thing around it that the file has."""
        return self._find(location)[0].line

    def describe(self, location: Location) -> str:
        """Return a description of the value at `location`, as far as it may be shown."""
        return self._describe(self._find(location)[1])

    def is_scalar(self, location: Location) -> bool:
        """Return whether the value at `location` is a text, number or boolean, not a list or a mapping."""
        return isinstance(self._find(location)[1], yaml.ScalarNode)

    def is_cut(self, location: Location) -> bool:
        """Return whether an unquoted text is at `location`, followed by a comment that may belong to it."""
        node = self._find(location)[1]
        if not isinstance(node, yaml.ScalarNode) or node.style in {"'", '"', "|", ">"}:
            return False
        end = node.end_mark
        return any(re.match(r"\s+#", line[end.column :]) for line in self._lines[end.line : end.line + 1])

    def _find(self, location: Location) -> tuple[_Place, yaml.Node | None]:
        place, node = self._top, self._root
        for part in location:
            if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                node = node.value[part]
                place = self._below(place, part, node)
            elif isinstance(node, yaml.MappingNode) and part in (entries := self._mapping(node, place)):
                key, node = entries[str(part)]
                place = self._below(place, str(part), key)
            else:
                return _Place(_join(place.path, part), place.line), None
        return place, node

    def _below(self, place: _Place, part: int | str, node: yaml.Node) -> _Place:
        """Return the place of `node`, an item or a key; a path ends at a key named like a secret."""
        return _Place(place.path if id(node) in self._hidden else _join(place.path, part), _line(node))

    def _value(self, node: yaml.Node, place: _Place) -> object:
        identity = id(node)
        if identity not in self._values:
            if not self._enter(node, place):
                return None
            self._values[identity] = self._build(node, place)
            self._open.remove(identity)
        return self._values[identity]

    def _enter(self, node: yaml.Node, place: _Place) -> bool:
        """Return whether `node` may be descended into, and note that it is until it leaves `_open`."""
        if id(node) in self._open:
            self.problems.append(place.problem("values without a circle", "an alias to something around it"))
        elif len(self._open) == _DEEPEST:
            self.problems.append(place.problem(f"at most {_DEEPEST} levels", "more"))
        else:
            self._open.add(id(node))
            return True
        return False

    def _build(self, node: yaml.Node, place: _Place) -> object:
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, (_SEQ,), place)
            return tuple(self._value(item, self._below(place, index, item)) for index, item in enumerate(node.value))
        if isinstance(node, yaml.MappingNode):
            self._check_tag(node, (_MAP,), place)
            entries = self._mapping(node, place)
            return {name: self._value(item, self._below(place, name, key)) for name, (key, item) in entries.items()}
        self._check_tag(node, (_STR, _INT, _FLOAT, _BOOL, _NULL), place)
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, place: _Place) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the keys and values of a mapping by name: its own, then those it merges, the nearest first."""
        identity = id(node)
        if identity in self._entries:
            return self._entries[identity]
        lines: dict[str, int] = {}
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = key.value if key.tag in (_STR, _MERGE) else None
            if not isinstance(name, str):
                where = _Place(place.path, _line(key))
                self.problems.append(where.problem("a key that is text", self._describe(key), hint="put it in quotes"))
                continue
            where = self._below(place, name, key)
            if name in lines:
                self.problems.append(where.problem("each key once", f"it again; it is in line {lines[name]} already"))
                continue
            lines[name] = where.line
            if key.tag == _MERGE:
                self._merge(value, merged, where)
            else:
                own[name] = key, value
        self._entries[identity] = merged | own
        return self._entries[identity]

    def _merge(self, value: yaml.Node, merged: dict[str, tuple[yaml.Node, yaml.Node]], place: _Place) -> None:
        """Add to `merged` the entries of the mapping, or the list of mappings, that a merge key names."""
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(source, yaml.MappingNode):
                self.problems.append(place.problem("a mapping or a list of mappings to merge", self._describe(source)))
            elif self._enter(source, place):
                merged.update(self._mapping(source, place) | merged)
                self._open.remove(id(source))

    def _check_tag(self, node: yaml.Node, known: tuple[str, ...], place: _Place) -> None:
        if node.tag not in known:
            hidden = id(node) in self._hidden or _may_hold_secret(node.tag)
            tag = "one that is not shown" if hidden else quoted(node.tag)
            self.problems.append(place.problem("no tag", tag))

    def _describe(self, node: yaml.Node | None) -> str:
        if node is None:
            return "none" if self._root else "an empty file"
        if node.tag == _NULL:
            return "nothing"
        if id(node) in self._hidden or (isinstance(node, yaml.ScalarNode) and _may_hold_secret(node.value)):
            return _HIDDEN
        if isinstance(node, yaml.ScalarNode):
            kind = {_INT: "the number ", _FLOAT: "the number ", _BOOL: "the boolean "}.get(node.tag)
            return kind + quoted(node.value)[1:-1] if kind else quoted(node.value)
        return f"{'a' if node.value else 'an empty'} {'list' if isinstance(node, yaml.SequenceNode) else 'mapping'}"


class _Loader(SafeLoader):
    """Resolves plain scalars as YAML 1.2 does, not 1.1: `no`, `1:30` and `2024-01-01` are what they look like, text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - declared so by PyYAML; empty, so that YAML 1.1's are not inherited


_NULL, _BOOL, _INT, _FLOAT, _MERGE, _STR, _SEQ, _MAP = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "merge", "str", "seq", "map")
)
_DIGITS = list("0123456789")
for _tag, _pattern, _first in (
    (_NULL, r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    (_BOOL, r"(?:true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    (_INT, r"[-+]?[0-9]+\Z", [*"-+", *_DIGITS]),
    (_FLOAT, r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?)\Z", [*"-+.", *_DIGITS]),
    (_FLOAT, r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z", list("-+.")),
    (_MERGE, r"<<\Z", ["<"]),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def _compose(path: Path, read: Callable[[Path], bytes]) -> tuple[yaml.Node | None, list[str]]:
    """Return the root node and the lines of the file."""
    try:
        text = read(path).decode("utf-8-sig")
        loader = _Loader(text)
        try:
            return loader.get_single_node(), text.splitlines()
        finally:
            loader.dispose()
    except OSError as error:
        problem = f": expected a file that can be read, got {quoted(error.strerror or 'an error')}"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = f":{line}: expected UTF-8, got the byte 0x{error.object[error.start]:02x}"
    except yaml.MarkedYAMLError as error:
        problem = _syntax_problem(error, text.splitlines())
    except yaml.reader.ReaderError as error:
        line = text.encode().count(b"\n", 0, error.position) + 1
        problem = f":{line}: expected printable text, got a control character"
    except RecursionError:
        problem = f":1: expected at most {_DEEPEST} levels, got more"
    raise SyntaxProblemError(problem)  # out here, so that it does not bring along the parser's with its snippets


def _syntax_problem(error: yaml.MarkedYAMLError, lines: list[str]) -> str:
    """Return the line and the text of a syntax error without anything of the file's own: it may be a secret."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    if error.problem == "but found another document":
        return f":{line}: expected one YAML document, got another one"
    parts = [_without_quotes(error.problem or "not valid")]
    if error.context and error.context_mark:
        parts.append(f"{_without_quotes(error.context)} in line {error.context_mark.line + 1}")
    if re.match(r" *\t", "".join(lines[line - 1 : line])):
        parts.append("indent with spaces, not with tabs")
    if re.match(r"[ -]*\w+: +[^'\"\[{|>\s].*:(\s|$)", "".join(lines[line - 1 : line])):
        parts.append("put the name in quotes, as any text with `: ` in it")
    return f":{line}: expected YAML, got a syntax error: {'; '.join(parts)}"


def _without_quotes(message: str) -> str:
    """Return a message of the YAML parser without the text it quotes, unless that is the punctuation it misses."""
    return re.sub(r"""\s*(['"])(.*?)\1""", lambda quote: quote[0] if quote[2] in (*":,]}-?",) else "", message)


def _secret_nodes(root: yaml.Node | None) -> frozenset[int]:
    """Return the identities of all nodes that stand, or are repeated by an alias, below a key named like a secret.

    A document that is nothing but a text is one, too: it may be the file of a key, named in the wrong place.
    """
    secret: set[int] = set()
    seen: set[tuple[int, bool]] = set()
    rest = [(root, isinstance(root, yaml.ScalarNode))]
    while rest:
        node, hidden = rest.pop()
        if node is None or (id(node), hidden) in seen:
            continue
        seen.add((id(node), hidden))
        if hidden:
            secret.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            rest += [(item, hidden) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            rest += [(key, hidden) for key, _ in node.value]
            rest += [(value, hidden or names_secret(key.value)) for key, value in node.value]
    return frozenset(secret)


def names_secret(name: object) -> bool:
    """Return whether a key is named like a secret, so that the value below it must not be shown."""
    return isinstance(name, str) and _SECRET_NAME.search(name) is not None


def _may_hold_secret(text: str) -> bool:
    """Return whether `text` is like `token:x`, a key that lacks a blank, or like a URL with a password."""
    return "@" in text or names_secret(text)


def _scalar(node: yaml.Node) -> object:
    """Return the value of a scalar; what does not fit its tag (`!!int x`, more digits than Python reads) stays text."""
    text = str(node.value)
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return {"true": True, "false": False}.get(text.lower(), text)
    if node.tag == _FLOAT:
        return math.nan  # no setting takes a fraction: that it is one is all there is to know
    if node.tag == _INT:
        try:
            return int(text)
        except ValueError:
            return text
    return text


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _join(path: str, part: int | str) -> str:
    if isinstance(part, int):
        return f"{path}[{part}]"
    name = part
    if not re.fullmatch(r"[\w-]{1,80}|<<", part):
        name = "(not shown)" if _may_hold_secret(part) else quoted(part)
    return f"{path}.{name}" if path else name


def quoted(text: str) -> str:
    """Return `text` in quotes, on one line, with unprintable characters escaped and cut where it is long."""
    return repr(text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…")


def sentence(what: str, got: str, hint: str = "") -> str:
    """Return a message: what was expected, what came, and how to mend it where that is not plain."""
    return f"expected {what}, got {got}" + (f"; {hint}" if hint else "")
