"""How a pipeline file builds upon another: `extends`, `override`, `before` and `after`.

A child's values replace its parent's, mappings are merged key by key. Its `stages` replace the
parent's; or it leaves them out and says what differs, stage by stage:

- `override: {stt: deepgram, vad: {stop_secs: 0.3}, trigger: null}` changes, merges, removes;
- `before` and `after`: `{llm: [STAGE, ...]}` put further stages beside one of the parent's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from headstart.config.messages import nearest_or_all
from headstart.config.source import Node, Scalar, Sequence, Table, describe
from headstart.config.spec import Position
from headstart.errors import Problem

NOT_INHERITED = ("name", "description")
EDITS = ("override", "before", "after")


@dataclass(frozen=True)
class StageNode:
    """A stage as written: `name`, `name: provider` or `name: {provider: ..., settings}`."""

    name: str
    position: Position
    provider: Scalar | None
    settings: Table

    @classmethod
    def read(cls, node: Node, problems: list[Problem]) -> StageNode | None:
        """Read one item of a list of stages."""
        if isinstance(node, Scalar) and isinstance(node.value, str) and node.value:
            return cls(node.value, node.position, None, Table({}, node.position))
        if not isinstance(node, Table) or not node.entries:
            message = f"a stage should be a name, or a name with settings; it is {describe(node)}"
            problems.append(node.position.problem(message))
            return None
        (name, value), *others = node.entries.items()
        for extra, _ in others:
            problems.append(
                node.keys[extra].problem(
                    f"a stage is one name: {extra!r} should be indented below {name!r}, "
                    "or begin a stage of its own with '- '"
                )
            )
        return cls.of(name, node.keys[name], value, problems)

    @classmethod
    def of(
        cls, name: str, position: Position, value: Node, problems: list[Problem]
    ) -> StageNode | None:
        """Read what stands behind the name of a stage."""
        empty = Table({}, position)
        if isinstance(value, Table):
            if is_class_path(name) or "provider" not in value.entries:
                return cls(name, position, None, value)
            provider = value.entries["provider"]
            if isinstance(provider, Scalar) and isinstance(provider.value, str):
                return cls(name, position, provider, value.without("provider"))
            problems.append(
                provider.position.problem(f"provider should be a name; it is {describe(provider)}")
            )
            return None
        if isinstance(value, Scalar) and value.value is None:
            return cls(name, position, None, empty)
        if isinstance(value, Scalar) and isinstance(value.value, str) and not is_class_path(name):
            return cls(name, position, value, empty)
        wanted = "settings" if is_class_path(name) else "a provider's name or settings"
        message = f"behind {name!r} should stand {wanted}; it is {describe(value)}"
        problems.append(value.position.problem(message))
        return None

    def answers_to(self) -> tuple[str, ...]:
        """The names by which a child may speak of this stage."""
        kind, _, class_name = self.name.rpartition(":")
        return (self.name, class_name) if kind else (self.name, self.name.partition(".")[0])


def is_class_path(name: str) -> bool:
    """Whether a stage is named by its class instead of by a registered name."""
    return ":" in name


def read_stages(node: Node, problems: list[Problem]) -> tuple[StageNode, ...]:
    """Read a list of stages."""
    if isinstance(node, Scalar) and node.broken:
        return ()
    if not isinstance(node, Sequence):
        message = f"stages should be a list, each line beginning with '- '; it is {describe(node)}"
        problems.append(node.position.problem(message))
        return ()
    if not node.items:
        problems.append(node.position.problem("stages should list one stage at least"))
    stages = (StageNode.read(item, problems) for item in node.items)
    return tuple(stage for stage in stages if stage is not None)


def merge(parent: Node, child: Node) -> Node:
    """The child's value where it has one, else the parent's; mappings key by key."""
    if not isinstance(parent, Table) or not isinstance(child, Table):
        return child
    entries = dict(parent.entries)
    for key, value in child.entries.items():
        entries[key] = merge(entries[key], value) if key in entries else value
    return Table(entries, child.position, {**parent.keys, **child.keys})


def edit_stages(
    parent: tuple[StageNode, ...],
    child: Table,
    default_provider: Callable[[str], str | None],
    problems: list[Problem],
) -> tuple[StageNode, ...]:
    """The parent's stages with the child's `override`, `before` and `after` applied.

    Args:
        parent: The stages that are inherited.
        child: The top of the file that extends.
        default_provider: The provider that a bare name stands for.
        problems: Takes whatever is wrong.
    """
    edited: list[tuple[StageNode, ...]] = [(stage,) for stage in parent]
    for part in EDITS:
        for name, position, value in _edits(child, part, problems):
            index = _find(parent, name, position, problems)
            if index is None:
                continue
            if part == "override":
                replaced = _override(parent[index], position, value, default_provider, problems)
                at = edited[index].index(parent[index])
                edited[index] = (*edited[index][:at], *replaced, *edited[index][at + 1 :])
                continue
            listed = value if isinstance(value, Sequence) else Sequence((value,), value.position)
            added = read_stages(listed, problems)
            if part == "before":
                edited[index] = (*added, *edited[index])
            else:
                edited[index] = (*edited[index], *added)
    return tuple(stage for group in edited for stage in group)


def _edits(child: Table, part: str, problems: list[Problem]) -> list[tuple[str, Position, Node]]:
    node = child.entries.get(part)
    if node is None:
        return []
    if not isinstance(node, Table):
        message = f"{part} should be a mapping by the name of a stage; it is {describe(node)}"
        problems.append(node.position.problem(message))
        return []
    return [(name, node.keys[name], value) for name, value in node.entries.items()]


def _find(
    stages: tuple[StageNode, ...], name: str, position: Position, problems: list[Problem]
) -> int | None:
    found = [index for index, stage in enumerate(stages) if name in stage.answers_to()]
    if len(found) == 1:
        return found[0]
    if found:
        problems.append(position.problem(f"{name!r} names {len(found)} of the inherited stages"))
    else:
        hint = nearest_or_all(name, [stage.name for stage in stages])
        problems.append(position.problem(f"no inherited stage is named {name!r}{hint}"))
    return None


def _override(
    stage: StageNode,
    position: Position,
    value: Node,
    default_provider: Callable[[str], str | None],
    problems: list[Problem],
) -> tuple[StageNode, ...]:
    if isinstance(value, Scalar) and value.value is None:
        return ()
    changed = StageNode.of(stage.name, position, value, problems)
    if changed is None:
        return (stage,)
    default = default_provider(stage.name)
    before = stage.provider.value if stage.provider else default
    after = changed.provider.value if changed.provider else before
    if after != before:  # another class: the settings of the old one mean nothing to it
        return (changed,)
    settings = merge(stage.settings, changed.settings)
    assert isinstance(settings, Table)
    # A relative ./file.py belongs to the file that wrote it, so the stage stays where it was.
    return (replace(stage, settings=settings),)
