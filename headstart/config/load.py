"""Reads a pipeline file: variables, `extends`, names and settings, with every error in place."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import headstart
from headstart.config import registry, structure
from headstart.config.choice import Choice
from headstart.config.constructor import validate_model
from headstart.config.extend import (
    EDITS,
    NOT_INHERITED,
    StageNode,
    edit_stages,
    is_class_path,
    merge,
    read_stages,
)
from headstart.config.messages import Issue, Loc, closest, nearest_or_all
from headstart.config.registry import NameProblem, Reference, StageType, refusal
from headstart.config.secrets import mask
from headstart.config.source import (
    Node,
    Scalar,
    Sequence,
    Table,
    describe,
    fill,
    locate,
    parse,
    path_from,
    read,
    read_bytes,
    secrets_in,
    walk,
)
from headstart.config.spec import PipelineHeader, PipelineSpec, StageSpec
from headstart.errors import ConfigError, Problem, UsageError

KEYS = (*PipelineHeader.model_fields, "stages", "extends", *EDITS)
"""What may stand at the top of a file."""

MAX_PARENTS = 20
"""A longer chain of files that extend each other is refused."""


def load_config(config: str | Path, *, allow_code: bool = True) -> PipelineSpec:
    """Read a pipeline file and check all of it, short of loading models.

    Args:
        config: The path of a file, or the name of a pipeline that ships with Headstart.
        allow_code: Whether the file may name classes other than those of installed packages by
            their registered names, and those of `registry.REVIEWED`. They run when they are
            imported, so switch it off for files of people you would not run a program from.

    Raises:
        ConfigError: Something is wrong; it carries every problem of the file.
    """
    return Document.read(config).check(allow_code=allow_code)


def shipped_configs() -> dict[str, Path]:
    """The pipelines that ship with Headstart, by name."""
    package = Path(headstart.__file__).parent
    folders = (package / "configs", package.parent / "configs")  # of the wheel, the checkout
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def find_config(config: str | Path, folder: Path = Path()) -> Path:
    """The file that a path or the name of a shipped pipeline means.

    Args:
        config: What ends in .yaml or .yml or holds a slash is a path, else it is a name.
        folder: Where relative paths start.

    Raises:
        UsageError: It is no path, and there is no shipped pipeline of that name.
    """
    written = str(config)
    if isinstance(config, Path) or "/" in written or written.endswith((".yaml", ".yml")):
        return path_from(config, folder)
    shipped = shipped_configs()
    if written in shipped:
        return shipped[written]
    if path_from(written, folder).is_file():
        return folder / written
    hint = nearest_or_all(written, shipped)
    raise UsageError(f"no pipeline named {written!r} ships with Headstart{hint}")


@dataclass(frozen=True)
class NamedStage:
    """A stage whose name has been looked up, and whose class has not been imported."""

    node: StageNode
    reference: Reference

    choices: Mapping[str, Choice] = field(default_factory=dict)
    """The settings that choose a class."""

    def named_classes(self) -> Iterator[tuple[Scalar, str]]:
        """Every value in the settings that names a class, and the class path that it means."""
        for key, value in walk(self.node.settings):
            if key == "class" and isinstance(value, Scalar) and is_class_path(str(value.value)):
                yield value, str(value.value)
        for key, choice in self.choices.items():
            chosen = self.node.settings.entries.get(key)
            named = chosen.entries.get("class") if isinstance(chosen, Table) else chosen
            if not isinstance(named, Scalar) or not isinstance(named.value, str):
                continue
            if isinstance(chosen, Table) and is_class_path(named.value):
                continue  # the same `class` as above
            with suppress(NameProblem):  # what is wrong with it is for the stage to say
                yield named, registry.chosen_target(choice, named.value)

    def spec(self) -> StageSpec:
        """What the pipeline's description says of it."""
        return StageSpec(
            name=self.reference.name,
            kind=self.reference.kind,
            target=self.reference.target,
            settings=self.node.settings.plain(),
            position=self.node.position.keeping(secrets_in(self.node.settings)),
        )


@dataclass(frozen=True)
class Document:
    """A pipeline file as read, with what it extends; no code of its stages has run."""

    path: Path
    top: Table
    stages: tuple[NamedStage, ...]
    problems: tuple[Problem, ...]

    @classmethod
    def read(cls, config: str | Path) -> Document:
        """Read a file and what it extends.

        Raises:
            ConfigError: There is no such file, or it is no such YAML.
        """
        try:
            path = find_config(config)
        except UsageError as error:
            raise ConfigError([Problem(Path(config), 1, 1, str(error))]) from None
        problems: list[Problem] = []
        top, nodes = _inherit(path, read(path), (), problems)
        filled = fill(top, os.environ, problems)
        assert isinstance(filled, Table)
        stages = []
        for node in nodes:
            stage = _filled(node, problems)
            named = _named(stage, problems)
            if named is not None:
                stages.append(named)
        return cls(path, filled, tuple(stages), tuple(problems))

    def modules(self) -> list[str]:
        """The modules and files that the stages' classes would be imported from."""
        found = []
        for stage in self.stages:
            found.append(stage.reference.module)
            found += [target.rpartition(":")[0] for _, target in stage.named_classes()]
        return list(dict.fromkeys(found))

    def check(self, *, allow_code: bool = True, environment: bool = False) -> PipelineSpec:
        """Import the stages' classes and check their settings, and whether they fit together.

        Args:
            allow_code: As for `load_config`.
            environment: Whether to check as well that this process could run the stages: that
                their keys are set.

        Raises:
            ConfigError: Something is wrong; it carries every problem of the file.
        """
        problems = list(self.problems)
        header = self._header(problems)
        stages = tuple(stage.spec() for stage in self.stages)
        for stage in self.stages:
            problems += _check_stage(stage, allow_code)
        if not problems:  # of stages that are right by themselves
            problems += structure.problems(stages)
            problems += _unknown_weights(stages)
            if environment:
                problems += _missing_here(stages)
        if problems or header is None:
            raise ConfigError(_in_order(problems, self.path))
        return PipelineSpec.model_validate({**dict(header), "stages": stages})

    def _header(self, problems: list[Problem]) -> PipelineHeader | None:
        top = self.top.without("stages", "extends", *EDITS)
        values = {"name": self.path.stem, **top.plain()}
        header, issues = validate_model(PipelineHeader, values)
        problems += located(issues, top, "")
        return header if isinstance(header, PipelineHeader) else None


def _inherit(
    path: Path, own: Table, chain: tuple[Path, ...], problems: list[Problem]
) -> tuple[Table, tuple[StageNode, ...]]:
    """A file's values and stages, those of the files it extends included."""
    own = _known_keys(own, problems)
    edits = [key for key in EDITS if key in own.entries]
    extends = own.entries.get("extends")
    if extends is None:
        problems += [own.keys[key].problem(f"{key} needs extends") for key in edits]
        if "stages" in own.entries:
            return own, _own_stages(own, problems)
        problems.append(own.position.problem("needs 'stages', the list of what frames go through"))
        return own, ()
    inherited = _parent(path, extends, chain, problems)
    if inherited is None:
        own = _excused(own, "prompt")
        return own, _own_stages(own, problems) if "stages" in own.entries else ()
    top, stages = inherited
    merged = merge(top.without(*NOT_INHERITED, "stages", "extends", *EDITS), own)
    assert isinstance(merged, Table)
    if "stages" not in own.entries:
        return merged, edit_stages(stages, own, registry.default_provider, problems)
    problems += [
        own.keys[key].problem(f"{key} changes inherited stages, but this file has its own stages")
        for key in edits
    ]
    return merged, _own_stages(own, problems)


def _known_keys(own: Table, problems: list[Problem]) -> Table:
    for key, position in own.keys.items():
        if key not in KEYS:
            hint = nearest_or_all(key, KEYS)
            problems.append(position.problem(f"{key!r} is no key of a pipeline{hint}"))
            own = _excused(own.without(key), closest(key, KEYS))
    return own


def _excused(own: Table, key: str | None) -> Table:
    """The same, where it is no news that a key is missing."""
    if key is None or key in own.entries:
        return own
    return replace(own, entries={**own.entries, key: Scalar(None, own.position, broken=True)})


def _own_stages(own: Table, problems: list[Problem]) -> tuple[StageNode, ...]:
    return read_stages(own.entries["stages"], problems)


def _parent(
    path: Path, extends: Node, chain: tuple[Path, ...], problems: list[Problem]
) -> tuple[Table, tuple[StageNode, ...]] | None:
    name = fill(extends, os.environ, problems)
    if isinstance(name, Scalar) and name.broken:
        return None
    if not isinstance(name, Scalar) or not isinstance(name.value, str):
        message = f"extends should be the name or path of a pipeline; it is {describe(name)}"
        problems.append(name.position.problem(message))
        return None
    try:
        parent = find_config(name.value, path.parent)
        data = read_bytes(parent)
    except FileNotFoundError:
        problems.append(name.position.problem(f"there is no file {name.value}"))
        return None
    except UsageError as error:
        problems.append(name.position.problem(str(error)))
        return None
    chain = (*chain, path.resolve())
    if parent.resolve() in chain:
        circle = " -> ".join(file.name for file in (*chain, parent))
        problems.append(name.position.problem(f"extends goes in a circle: {circle}"))
        return None
    if len(chain) > MAX_PARENTS:
        problems.append(name.position.problem(f"extends goes over more than {MAX_PARENTS} files"))
        return None
    # A file that is no pipeline may be anybody's: nothing of it is shown.
    no_pipeline = name.position.problem(f"{name.value} is no pipeline, so it cannot be extended")
    try:
        own = parse(parent, data, quote=False)
    except ConfigError as error:
        is_yaml = parent.resolve().suffix in (".yaml", ".yml")
        problems += error.problems if is_yaml else [no_pipeline]
        return None
    if not own.entries.keys() & {"prompt", "stages", "extends"}:
        problems.append(no_pipeline)
        return None
    return _inherit(parent, own, chain, problems)


def _filled(node: StageNode, problems: list[Problem]) -> StageNode:
    settings = _finite(_absolute(fill(node.settings, os.environ, problems)), problems)
    assert isinstance(settings, Table)
    if node.provider is None:
        return StageNode(node.name, node.position, None, settings)
    provider = fill(node.provider, os.environ, problems)
    assert isinstance(provider, Scalar)
    position = node.position.keeping(secrets_in(provider))
    return StageNode(node.name, position, provider, settings)


def _absolute(node: Node) -> Node:
    """Every nested `class: ./file.py:Class` made absolute, from the file that says so."""
    if isinstance(node, Sequence):
        return replace(node, items=tuple(_absolute(item) for item in node.items))
    if not isinstance(node, Table):
        return node
    entries = {key: _absolute(value) for key, value in node.entries.items()}
    if "class" in entries:
        entries["class"] = _absolute_class(entries["class"])
    return replace(node, entries=entries)


def _absolute_class(named: Node) -> Node:
    if isinstance(named, Scalar) and isinstance(named.value, str) and is_class_path(named.value):
        with suppress(NameProblem):  # whether it is a class path at all is for the stage to say
            target = registry.class_path(named.value, named.position.file.parent)
            return replace(named, value=target)
    return named


def _finite(node: Node, problems: list[Problem], key: str = "") -> Node:
    """The same; infinities and `.nan` are reported, since nothing can work with them."""
    if isinstance(node, Sequence):
        return replace(node, items=tuple(_finite(item, problems, key) for item in node.items))
    if isinstance(node, Table):
        entries = {key: _finite(value, problems, key) for key, value in node.entries.items()}
        return replace(node, entries=entries)
    if not _is_finite(node.value):
        message = f"{key} should be a finite number; it is {describe(node)}"
        problems.append(node.position.problem(message))
        return replace(node, broken=True)
    return node


def _is_finite(value: object) -> bool:
    try:
        return not isinstance(value, (int, float)) or math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _named(node: StageNode, problems: list[Problem]) -> NamedStage | None:
    if node.provider is not None and node.provider.broken:
        return None
    provider = str(node.provider.value) if node.provider else None
    # What a file names is beside the file that names it, which a child's override may be.
    by_provider = node.provider is not None and is_class_path(provider or "")
    owner = node.provider.position if by_provider and node.provider else node.position
    try:
        reference = registry.resolve(node.name, provider, owner.file.parent)
    except NameProblem as error:
        wrong = node.provider if error.of_provider and node.provider else node
        problems.append(wrong.position.problem(str(error)))
        return None
    choices = registry.choices(reference)
    settings = dict(node.settings.entries)
    for key in choices.keys() & settings.keys():
        settings[key] = _absolute_class(settings[key])
    return NamedStage(
        replace(node, settings=replace(node.settings, entries=settings)), reference, choices
    )


def _check_stage(stage: NamedStage, allow_code: bool) -> list[Problem]:
    """Import the stage's class and check its settings."""
    reference, node = stage.reference, stage.node
    if not allow_code and not reference.trusted:
        return [node.position.problem(refusal(reference.name, reference.target))]
    try:
        cls = registry.import_processor(reference.target)
    except UsageError as error:
        return [node.position.problem(str(error))]
    if not allow_code and not reference.installed and not registry.is_reviewed(cls.__module__):
        # A reviewed module may have imported it from elsewhere.
        message = refusal(reference.name, f"{cls.__module__}:{cls.__name__}")
        return [node.position.problem(message)]
    issues = StageType(reference.name, cls).validate(node.settings.plain(), allow_code=allow_code)
    if reference.kind:
        issues = [_provider_misspelt(issue) for issue in issues]
    prefix = mask(f"{reference.name.rpartition(':')[2]}: ", node.position.secrets)
    return located(issues, node.settings, prefix)


def _unknown_weights(stages: tuple[StageSpec, ...]) -> list[Problem]:
    found: list[Problem] = []
    for stage in stages:
        try:
            registry.required_assets(stage)
        except ConfigError as error:
            found += error.problems
    return found


def _missing_here(stages: tuple[StageSpec, ...]) -> list[Problem]:
    """What stages need that this process does not have, such as a key."""
    found = []
    for stage in stages:
        try:
            registry.stage_type(stage).check_environment(stage.settings)
        except UsageError as error:
            found.append(stage.position.problem(f"{stage.name.rpartition(':')[2]}: {error}"))
    return found


def _provider_misspelt(issue: Issue) -> Issue:
    """`provider` is a key of every stage that has a kind, though of no class's settings."""
    if issue.at_key and len(issue.loc) == 1 and closest(str(issue.loc[0]), ["provider"]):
        message = f"{issue.loc[0]!r} is no setting here; did you mean 'provider'?"
        return replace(issue, message=message)
    return issue


def located(issues: list[Issue], table: Table, prefix: str) -> list[Problem]:
    """What is wrong with a mapping, each with its place in the file."""
    problems = []
    for issue in issues:
        node, key = locate(table, issue.loc)
        if isinstance(node, Scalar) and node.broken:
            continue
        at_key = issue.at_key or (isinstance(node, Table) and not issue.given)
        # A validator may quote any of what it was given.
        position = (key if at_key else node.position).keeping(secrets_in(node))
        message = issue.message
        name = _spoken(issue.loc) if issue.loc and not issue.at_key else ""
        if name:
            name += " " if message.startswith(("should", "needs", "takes")) else ": "
        given = f"; it is {describe(node)}" if issue.given else ""
        problems.append(position.problem(f"{prefix}{name}{message}{given}"))
    return problems


def _spoken(loc: Loc) -> str:
    """The last key of a place, with its indices: `wake_phrases[1]`."""
    key = max((at for at, part in enumerate(loc) if isinstance(part, str)), default=0)
    return str(loc[key]) + "".join(f"[{index}]" for index in loc[key + 1 :])


def _in_order(problems: list[Problem], first: Path) -> list[Problem]:
    """Without repetition, by file (the one asked for first), line and column."""
    unique = list(dict.fromkeys(problems))
    return sorted(unique, key=lambda p: (p.file != first, str(p.file), p.line, p.column))
