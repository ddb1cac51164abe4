"""Builds an object from a plain mapping by the signature of its class's constructor.

One rule: where the constructor has a parameter `settings` annotated with a pydantic model, the
mapping is that model. Otherwise its keys are the constructor's parameters; and where the
constructor takes `**kwargs`, those of the base class's constructor as well.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import sys
import types
import typing
from collections import abc
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Protocol, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, PydanticUserError, ValidationError
from pydantic import create_model as create_pydantic_model

from headstart.config.choice import Choice
from headstart.config.messages import Issue, Loc, closest, issues_of, nearest_or_all


@dataclass(frozen=True)
class Parameter:
    """One key that a class takes."""

    name: str
    annotation: Any
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        """Whether the mapping has to have it."""
        return self.default is inspect.Parameter.empty


class Importer(Protocol):
    """Gets the classes that settings name."""

    def named(self, written: str, choice: Choice | None = None) -> type:
        """The class that a class path means, or a registered name where there is a choice.

        Raises:
            HeadstartError: There is none, or it may not be imported.
        """
        ...

    def refusal(self, cls: type) -> str | None:
        """Why no object of a class may be made; None if it may."""
        ...


@cache
def settings_model(cls: type) -> type[BaseModel] | None:
    """The pydantic model that a class's mapping is, if its constructor is of that kind."""
    for base in cls.__mro__:
        own, forwards = _own_parameters(base) if "__init__" in vars(base) else ((), True)
        for parameter in own:
            models = [kind for kind in alternatives(parameter.annotation) if _is_model(kind)]
            if parameter.name == "settings" and models:
                return cast("type[BaseModel]", models[0])
        if own or not forwards:
            break
    return None


@cache
def parameters(cls: Any) -> tuple[Parameter, ...]:
    """The keys that a class's constructor takes, its bases' through `**kwargs` included."""
    found: dict[str, Parameter] = {}
    inherited = False
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        own, forwards = _own_parameters(base)
        for parameter in own:
            if inherited and parameter.required:
                # The class may well pass it on itself; its signature does not say.
                parameter = dataclasses.replace(parameter, default=None)
            found.setdefault(parameter.name, parameter)
        inherited = True
        if not forwards:
            break
    return tuple(found.values())


def injected_parameters(cls: type, injectable: Collection[type]) -> dict[str, type]:
    """The parameters that the program supplies, not the file, with their types."""
    found: dict[str, type] = {}
    for parameter in parameters(cls):
        for candidate in alternatives(parameter.annotation):
            if candidate in injectable:
                found[parameter.name] = candidate
    return found


def arguments(
    cls: type, values: Mapping[str, Any], injectable: Collection[type], importer: Importer
) -> tuple[dict[str, Any], list[Issue]]:
    """The keyword arguments that a mapping stands for, and what is wrong with it.

    Nothing but pydantic models is built before `realise`: checking a file costs no engine.
    """
    model = settings_model(cls)
    injected = injected_parameters(cls, injectable)
    issues: list[Issue] = []
    if model is not None:
        built = _Builder(importer, issues).model(model, values, ())
        return {"settings": built}, issues
    keys = [p for p in parameters(cls) if p.name not in injected]
    return _Builder(importer, issues).keywords(keys, values, ()), issues


def realise(value: Any) -> Any:
    """Arguments with every nested object built."""
    if isinstance(value, _Deferred):
        return value.cls(**realise(value.keywords))
    if isinstance(value, dict):
        return {key: realise(item) for key, item in value.items()}
    if isinstance(value, list):
        return [realise(item) for item in value]
    return value


def validate_model(
    model: type[BaseModel], values: Mapping[str, Any]
) -> tuple[BaseModel | None, list[Issue]]:
    """A model from a mapping, and what is wrong with it."""
    issues: list[Issue] = []
    return _Builder(_NoImporter(), issues).model(model, values, ()), issues


class _NoImporter:
    def named(self, written: str, choice: Choice | None = None) -> type:
        raise TypeError(written)

    def refusal(self, cls: type) -> str | None:
        return None


def chosen(choice: Choice, value: Any, importer: Importer) -> tuple[Any, list[Issue]]:
    """What a setting that chooses a class stands for, yet to be realised, and what is wrong."""
    issues: list[Issue] = []
    return _Builder(importer, issues).chosen(choice, value, ()), issues


def choices(cls: type) -> dict[str, Choice]:
    """The settings of a class that choose another class."""
    model = settings_model(cls)
    if model is not None:
        return dict(_choices(model))
    found = ((p.name, _choice(get_args(p.annotation))) for p in parameters(cls))
    return {name: choice for name, choice in found if choice}


def _choices(model: type[BaseModel]) -> Iterator[tuple[str, Choice]]:
    for name, info in model.model_fields.items():
        choice = _choice(info.metadata)
        if choice is not None:
            yield info.alias or name, choice


def _choice(metadata: Collection[Any]) -> Choice | None:
    return next((item for item in metadata if isinstance(item, Choice)), None)


@dataclass(frozen=True)
class _Deferred:
    """A nested object that is yet to be built."""

    cls: type
    keywords: dict[str, Any]


_HOLDER = ConfigDict(arbitrary_types_allowed=True)


class _Builder:
    def __init__(self, importer: Importer, issues: list[Issue]) -> None:
        self._importer = importer
        self._issues = issues
        self._meant: set[Loc] = set()
        """What misspelt keys seem to mean; that these are missing is no news."""

    def keywords(
        self, keys: Sequence[Parameter], values: Mapping[str, Any], loc: Loc
    ) -> dict[str, Any]:
        """Arguments by name, each of its parameter's type."""
        known = {key.name: key for key in keys}
        built: dict[str, Any] = {}
        for name, value in values.items():
            if name in known:
                built[name] = self.value(known[name].annotation, value, (*loc, name))
            else:
                self._unknown(name, known, loc)
        for key in keys:
            if key.required and key.name not in values and (*loc, key.name) not in self._meant:
                self._issues.append(Issue(loc, f"needs {key.name!r}"))
        return built

    def model(self, model: type[BaseModel], values: Any, loc: Loc) -> BaseModel | None:
        """A pydantic model, stricter than it may be: keys that it does not know are wrong."""
        before = len(self._issues)
        self._unknown_keys(model, values, loc)
        reported = {issue.loc for issue in self._issues[before:]} | self._meant
        built: BaseModel | None = None
        try:
            built = model.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            for issue in issues_of(error, values):
                if (*loc, *(issue.missing or issue.loc)) not in reported:
                    self._issues.append(dataclasses.replace(issue, loc=(*loc, *issue.loc)))
        if built is not None:
            for name, choice in _choices(model):
                if name in values:
                    self.chosen(choice, values[name], (*loc, name))
        return built

    def chosen(self, choice: Choice, value: Any, loc: Loc) -> Any:
        """The object that a setting chooses; what it is made of, checked."""
        settings: dict[str, Any] = {}
        within = loc
        if isinstance(value, Mapping):
            settings = {key: item for key, item in value.items() if key != "class"}
            if not isinstance(value.get("class"), str):
                self._issues.append(Issue(loc, f"needs 'class': which {choice.noun}"))
                return None
            value, loc = value["class"], (*loc, "class")
        cls = self._import(value, choice.base, loc, choice)
        if cls is None:
            return None
        model = settings_model(cls)
        if model is not None:
            return _Deferred(cls, {"settings": self.model(model, settings, within)})
        return self._call(cls, parameters(cls), settings, within)

    def value(self, annotation: Any, value: Any, loc: Loc) -> Any:
        """A value of the annotated type."""
        choice = _choice(get_args(annotation)) if get_origin(annotation) is Annotated else None
        if choice is not None and value is not None:
            return self.chosen(choice, value, loc)
        choices = alternatives(annotation)
        if value is None and types.NoneType in choices:
            return None
        if isinstance(value, Mapping):
            for choice in choices:
                if is_structure(choice):
                    return self._structure(choice, value, loc)
        if isinstance(value, list):
            for choice in choices:
                items = get_args(choice)
                if get_origin(choice) in (list, abc.Sequence) and is_structure(items[0]):
                    return [self.value(items[0], v, (*loc, i)) for i, v in enumerate(value)]
        for choice in choices:
            if _is_enum(choice) and isinstance(value, str) and value.upper() in choice.__members__:
                return choice[value.upper()]  # by its name; by its value goes the usual way
        return self._leaf(annotation, choices, value, loc)

    def _leaf(self, annotation: Any, choices: Sequence[Any], value: Any, loc: Loc) -> Any:
        plain = [c for c in choices if not is_structure(c) and not _is_opaque(c)]
        if not any(choice is not types.NoneType for choice in plain):
            names = " or ".join(c.__name__ for c in choices if is_structure(c))
            message = f"should be a mapping, the settings of {names}"
            if not names:
                message = "takes a Python object, which a file cannot give"
            self._issues.append(Issue(loc, message, given=bool(names)))
            return None
        kind = annotation if len(plain) == len(choices) else Union[tuple(plain)]  # noqa: UP007
        try:
            field: Any = (kind, ...)
            holder = create_pydantic_model("Holder", __config__=_HOLDER, value=field)
            held = holder.model_validate_json(json.dumps({"value": value}), strict=True)
        except ValidationError as error:
            for issue in issues_of(error, {"value": value}):
                self._issues.append(dataclasses.replace(issue, loc=(*loc, *issue.loc[1:])))
            return None
        except PydanticUserError:  # a type that says nothing about what may be given
            return value
        return vars(held)["value"]

    def _structure(self, cls: Any, values: Mapping[str, Any], loc: Loc) -> Any:
        if issubclass(cls, BaseModel):
            return self.model(cls, values, loc)
        if dataclasses.is_dataclass(cls):
            return self._call(cls, dataclass_parameters(cls), values, loc)
        target = values.get("class")
        if isinstance(target, str):
            named = self._import(target, cls, (*loc, "class"))
            if named is None:
                return None
            cls, values = named, {k: v for k, v in values.items() if k != "class"}
        elif refusal := self._importer.refusal(cls):
            self._issues.append(Issue(loc, refusal))
            return None
        if inspect.isabstract(cls):
            message = f"needs 'class': which {cls.__name__}, as package.module:Class"
            self._issues.append(Issue(loc, message))
            return None
        return self._call(cls, parameters(cls), values, loc)

    def _import(self, written: str, base: type, loc: Loc, choice: Choice | None = None) -> Any:
        """The class of that name, if it is one of the base's; None where something is wrong."""
        try:
            named = self._importer.named(written, choice)
        except Exception as error:
            self._issues.append(Issue(loc, str(error)))
            return None
        if not issubclass(named, base):
            self._issues.append(Issue(loc, f"{written} is no {base.__name__}"))
            return None
        return named

    def _call(
        self, cls: Any, keys: Sequence[Parameter], values: Mapping[str, Any], loc: Loc
    ) -> Any:
        return _Deferred(cls, self.keywords(keys, values, loc))

    def _unknown(self, name: str, known: Collection[str], loc: Loc) -> None:
        near = closest(name, known)
        if near:
            self._meant.add((*loc, near))
        hint = nearest_or_all(name, known) if near or len(known) <= 12 else ""
        self._issues.append(Issue((*loc, name), f"{name!r} is no setting here{hint}", at_key=True))

    def _unknown_keys(self, model: type[BaseModel], values: Any, loc: Loc) -> None:
        if not isinstance(values, Mapping) or model.model_config.get("extra") == "allow":
            return
        known: dict[str, Any] = {}
        for name, info in model.model_fields.items():
            known[info.alias or name] = info.annotation
            if info.alias and model.model_config.get("populate_by_name"):
                known[name] = info.annotation
        for key, value in values.items():
            if key not in known:
                self._unknown(key, known, loc)
                continue
            nested = [c for c in alternatives(known[key]) if _is_model(c)]
            if len(nested) == 1:
                self._unknown_keys(nested[0], value, (*loc, key))


def _own_parameters(cls: type) -> tuple[tuple[Parameter, ...], bool]:
    """The parameters of a class's own constructor, and whether it passes others on."""
    function = cls.__init__  # type: ignore[misc]
    if not inspect.isfunction(function):  # that of `object`, or written in C
        return (), False
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return (), False
    hints = _hints(function)
    kinds = inspect.Parameter
    own = tuple(
        Parameter(name, hints.get(name, Any), parameter.default)
        for name, parameter in list(signature.parameters.items())[1:]
        if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    )
    forwards = any(p.kind is kinds.VAR_KEYWORD for p in signature.parameters.values())
    return own, forwards


def dataclass_parameters(cls: Any) -> tuple[Parameter, ...]:
    """The keys that a dataclass takes."""
    hints = _hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        has_default = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        default = field.default if has_default else inspect.Parameter.empty
        if field.init:
            found.append(Parameter(field.name, hints.get(field.name, Any), default))
    return tuple(found)


def _hints(thing: Any) -> dict[str, Any]:
    """The annotations as types; one that names what cannot be found takes anything."""
    found: dict[str, Any] = {}
    for owner in reversed(thing.__mro__) if inspect.isclass(thing) else (thing,):
        names = vars(sys.modules[owner.__module__])
        for name, annotation in inspect.get_annotations(owner).items():
            alone = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                found |= typing.get_type_hints(alone, names, include_extras=True)
            except Exception:  # an annotation may run any code
                found[name] = Any
    return found


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows: the members of a union, else the type itself."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(c for member in get_args(annotation) for c in alternatives(member))
    return (annotation,)


def _is_model(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, BaseModel)


def _is_enum(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, enum.Enum)


def _is_foreign(kind: Any) -> bool:
    """A class that is no model and no type of Python's own."""
    return (
        inspect.isclass(kind)
        and get_origin(kind) is None
        and kind.__module__.partition(".")[0] not in (*sys.stdlib_module_names, "builtins")
        and not issubclass(kind, enum.Enum)
        and not hasattr(kind, "__get_pydantic_core_schema__")
        and not typing.is_typeddict(kind)
    )


def is_structure(kind: Any) -> bool:
    """A class whose objects are built from a mapping of its constructor's parameters."""
    if _is_model(kind):
        return True
    return _is_foreign(kind) and (dataclasses.is_dataclass(kind) or bool(parameters(kind)))


def _is_opaque(kind: Any) -> bool:
    """A class that nothing in a file can stand for, such as the type of a sentinel."""
    return _is_foreign(kind) and not is_structure(kind)
