"""Reads YAML into values that know their place: file, line and column of every key and value."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from headstart.config.expand import expand
from headstart.config.secrets import Secret
from headstart.config.spec import Position
from headstart.config.syntax import syntax_problem
from headstart.errors import ConfigError, Problem, UsageError

MAX_BYTES = 1_000_000
"""A longer file is refused before it is parsed."""
MAX_VALUES = 10_000
"""More values than this in one file, aliases counted wherever they stand, are refused."""

_TOO_MANY = f"more than {MAX_VALUES} values; this is no pipeline"

Plain = str | int | float | bool | None
Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Scalar:
    """A single value."""

    value: Plain
    position: Position
    text: str = ""
    """What the file says, unquoted, before the variables are filled in."""
    written: str = ""
    """The same with its quotes and line breaks."""
    quoted: bool = False
    broken: bool = False
    """Already reported; whatever else is wrong with it is no news."""
    secret: bool = False
    """From the environment: not to be printed."""

    def plain(self) -> Plain:
        """The value alone."""
        return self.value


@dataclass(frozen=True)
class Sequence:
    """A list of values."""

    items: tuple[Node, ...]
    position: Position

    def plain(self) -> list[Any]:
        """The values alone."""
        return [item.plain() for item in self.items]


@dataclass(frozen=True)
class Table:
    """Values by key, in file order."""

    entries: Mapping[str, Node]
    position: Position
    keys: Mapping[str, Position] = field(default_factory=dict)
    """Where each key stands."""

    def plain(self) -> dict[str, Any]:
        """The values alone."""
        return {key: value.plain() for key, value in self.entries.items()}

    def without(self, *names: str) -> Table:
        """The same less some keys."""
        return replace(self, entries={k: v for k, v in self.entries.items() if k not in names})


Node = Scalar | Sequence | Table


def describe(node: Node) -> str:
    """What a value is, for messages: never the text of one that may be secret."""
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Table):
        return "a mapping"
    if node.value is None:
        return "nothing"
    if node.secret:
        return "what the variable holds"
    if isinstance(node.value, bool):
        return str(node.value).lower()
    if isinstance(node.value, str):
        return f"the text {_shortened(node.value)!r}"
    return _shortened(node.text or str(node.value))


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def locate(node: Node, loc: Loc) -> tuple[Node, Position]:
    """The deepest value on the way to `loc`, and where its key (or itself) stands."""
    position = node.position
    for part in loc:
        if isinstance(node, Table) and part in node.entries:
            position = node.keys.get(str(part), node.position)
            node = node.entries[str(part)]
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            position = node.position
        else:
            break
    return node, position


def fill(node: Node, variables: Mapping[str, str], problems: list[Problem]) -> Node:
    """Fill the environment's variables into every value below; keys stay as they are."""
    if isinstance(node, Sequence):
        return replace(node, items=tuple(fill(item, variables, problems) for item in node.items))
    if isinstance(node, Table):
        filled = {key: fill(value, variables, problems) for key, value in node.entries.items()}
        return replace(node, entries=filled)
    if "$" not in node.text:
        return node
    expansion = expand(node.text, variables)
    searched = 0
    for failure in expansion.failures:
        found = max(node.written.find(failure.token, searched), 0)
        searched = found + 1
        problems.append(_within(node, found).problem(failure.message))
    value: Plain = expansion.text
    if expansion.whole and not node.quoted:
        with suppress(ValueError):  # a number of thousands of digits stays text
            value = core_value(expansion.text)
    secrets = expansion.secrets
    try:
        expansion.text.encode()
    except UnicodeEncodeError:
        problems.append(node.position.problem("the environment variable holds no text in UTF-8"))
        return replace(node, value=None, broken=True)
    if secrets and not expansion.whole:  # a part of the text may be a part of the value, too
        secrets = (*secrets, Secret(node.text, expansion.text))
    return replace(
        node,
        value=value,
        position=node.position.keeping(secrets),
        secret=expansion.used,
        broken=bool(expansion.failures),
    )


def secrets_in(node: Node) -> tuple[Secret, ...]:
    """What variables put into the values below."""
    if isinstance(node, Scalar):
        return node.position.secrets
    below = node.items if isinstance(node, Sequence) else node.entries.values()
    return tuple(secret for value in below for secret in secrets_in(value))


def _within(node: Scalar, offset: int) -> Position:
    before = node.written[:offset]
    lines = before.count("\n")
    column = len(before) - before.rfind("\n") if lines else node.position.column + offset
    return replace(node.position, line=node.position.line + lines, column=column)


# The core schema of YAML 1.2.2 (section 10.3.2): `yes`, `no`, `on` and `off` are text, and so
# are dates; numbers have no underscores and no sexagesimal.
_CORE: tuple[tuple[str, str], ...] = (
    ("null", r"null|Null|NULL|~|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
)
_TAG = "tag:yaml.org,2002:"


class _CoreResolver(BaseResolver):
    """Types plain scalars by the core schema."""


for _name, _pattern in _CORE:
    _CoreResolver.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), None)


class _Loader(Reader, Scanner, Parser, Composer, _CoreResolver):
    def __init__(self, path: Path, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _CoreResolver.__init__(self)
        self._path = path
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose what comes next; the parser reads on only while there are not too many."""
        self._values += 1
        if self._values > 2 * MAX_VALUES:  # keys are counted here, too
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ConfigError([Problem(self._path, mark.line + 1, mark.column + 1, _TOO_MANY)])
        return super().compose_node(parent, index)


# So that `{rate: ${RATE:-1, 2}}` needs no quotes, the signs of YAML inside a variable are
# hidden from PyYAML behind as many characters that nobody writes.
_VARIABLE = re.compile(r"\$\{[^}\n]*\}?")  # one that is not closed is not looked at again
_SHIELD = {ord(sign): 0xF8D0 + index for index, sign in enumerate("{}[],:#")}
_UNSHIELD = {hidden: sign for sign, hidden in _SHIELD.items()}


def core_value(text: str, tag: str | None = None) -> Plain:
    """The value of a plain scalar under the core schema, or under the tag it has.

    Raises:
        ValueError: The text is nothing that the tag can stand for.
    """
    if tag is None:
        tag = next((name for name, rule in _CORE if re.fullmatch(rule, text)), "str")
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    if tag == "int":
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if tag == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def read(path: Path) -> Table:
    """Read a file whose top is a mapping.

    Raises:
        ConfigError: There is no such file, or it is no such YAML.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise ConfigError([Problem(path, 1, 1, "there is no such file")]) from None
    except UsageError as error:
        raise ConfigError([Problem(path, 1, 1, str(error))]) from None
    return parse(path, data)


def parse(path: Path, data: bytes, *, quote: bool = True) -> Table:
    """Read what a file holds.

    Args:
        path: The file.
        data: What it holds.
        quote: Whether to say what it holds where that is no mapping.

    Raises:
        ConfigError: It is no YAML whose top is a mapping.
    """
    text = _text(path, data)
    problems: list[Problem] = []
    try:
        root = _Loader(path, _VARIABLE.sub(_shielded, text)).get_single_node()
        if root is None:
            raise ConfigError([Problem(path, 1, 1, "the file is empty")])
        node = _Converter(path, text, problems).convert(root)
    except yaml.reader.ReaderError as error:
        before = text[: int(error.position)]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = "this character cannot stand in YAML; is this a binary file?"
        raise ConfigError([Problem(path, line, column, message)]) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError([syntax_problem(path, error)]) from None
    except RecursionError:
        message = "nested too deeply, or an alias stands inside what it refers to"
        raise ConfigError([Problem(path, 1, 1, message)]) from None
    if not isinstance(node, Table):
        problems.insert(
            0,
            node.position.problem(
                "the file should hold `key: value` lines"
                + (f"; it is {describe(node)}" if quote else "")
            ),
        )
    if problems or not isinstance(node, Table):
        raise ConfigError(problems)
    return node


def path_from(written: str | Path, folder: Path) -> Path:
    """The path that is written in a file of that folder.

    Raises:
        UsageError: It is none: it holds a zero byte, or begins with `~` and a name of nobody.
    """
    try:
        path = folder / Path(written).expanduser()
        os.fsencode(path)
    except (RuntimeError, ValueError):
        raise UsageError(f"{str(written)!r} is no path") from None
    if "\0" in str(path):
        raise UsageError(f"{str(written)!r} is no path")
    return path


def _shielded(match: re.Match[str]) -> str:
    return match[0].translate(_SHIELD) if match[0].endswith("}") else match[0]


def read_bytes(path: Path) -> bytes:
    """What a file holds that may be a pipeline: a regular one, and no longer than `MAX_BYTES`.

    Raises:
        FileNotFoundError: There is no such file.
        UsageError: It is none of that kind. The message does not name it.
    """
    try:
        # Opening a pipe would wait for its writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError("this is no regular file")
            # The size may be wrong, as in /proc, or grow.
            data = b"" if status.st_size > MAX_BYTES else file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise UsageError("this is a directory, not a file") from None
    except OSError as error:
        raise UsageError(f"the file cannot be read: {error.strerror}") from None
    if status.st_size > MAX_BYTES or len(data) > MAX_BYTES:
        raise UsageError(f"the file is longer than {MAX_BYTES // 1_000_000} MB: no pipeline is")
    return data


_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = data[: error.start].decode("utf-8", "replace")
        line, column = good.count("\n") + 1, len(good) - good.rfind("\n")
        message = "this is no text in UTF-8; is this a binary file?"
        raise ConfigError([Problem(path, line, column, message)]) from None


class _Converter:
    """From PyYAML's nodes to ours."""

    def __init__(self, file: Path, text: str, problems: list[Problem]) -> None:
        self._file = file
        self._text = text
        self._problems = problems
        self._values = 0

    def convert(self, node: yaml.Node) -> Node:
        position = self._position(node)
        self._values += 1
        if self._values > MAX_VALUES:
            raise ConfigError([position.problem(_TOO_MANY)])
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Sequence(tuple(self.convert(item) for item in node.value), position)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._table(node, position)
        tag = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.ScalarNode) and tag in ("str", "null", "bool", "int", "float"):
            return self._scalar(node, tag, position)
        self._problems.append(position.problem(f"the tag {node.tag} means nothing here"))
        return Scalar(None, position, broken=True)

    def _table(self, node: yaml.MappingNode, position: Position) -> Table:
        entries: dict[str, Node] = {}
        keys: dict[str, Position] = {}
        for key_node, value_node in node.value:
            at = self._position(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._problems.append(at.problem("a key should be a name, not a list or mapping"))
                continue
            key = key_node.value.translate(_UNSHIELD)
            if key in entries:
                message = f"{key!r} is already there, in line {keys[key].line}"
                self._problems.append(at.problem(message))
                continue
            entries[key], keys[key] = self.convert(value_node), at
        return Table(entries, position, keys)

    def _scalar(self, node: yaml.ScalarNode, tag: str, position: Position) -> Scalar:
        written = self._text[node.start_mark.index : node.end_mark.index]
        text = node.value.translate(_UNSHIELD)
        try:
            text.encode()  # an escape may stand for half a character
            value = core_value(text, tag)
        except ValueError:
            self._problems.append(position.problem(f"{text!r} does not fit its tag !!{tag}"))
            return Scalar(None, position, broken=True)
        return Scalar(value, position, text, written, quoted=bool(node.style))

    def _position(self, node: yaml.Node) -> Position:
        return Position(self._file, node.start_mark.line + 1, node.start_mark.column + 1)


def walk(node: Node) -> Iterator[tuple[str, Node]]:
    """Every key and value below, depth first."""
    if isinstance(node, Table):
        for key, value in node.entries.items():
            yield key, value
            yield from walk(value)
    elif isinstance(node, Sequence):
        for item in node.items:
            yield from walk(item)
