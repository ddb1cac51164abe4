"""What a stage's name stands for: a built-in, an entry point, a class of a package or of a file."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points, metadata
from pathlib import Path
from typing import Any

from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameProcessor

from headstart import assets
from headstart.config import constructor
from headstart.config.choice import Choice
from headstart.config.constructor import (
    arguments,
    injected_parameters,
    realise,
    settings_model,
)
from headstart.config.extend import is_class_path
from headstart.config.messages import Issue, closest, nearest, nearest_or_all
from headstart.config.source import path_from
from headstart.config.spec import StageSpec
from headstart.errors import ConfigError, HeadstartError, UsageError

BUILTIN: Mapping[str, str] = {
    "vad.silero": "headstart.processors.vad:SileroVAD",
    "stt.whisper": "headstart.processors.stt.local:WhisperSTT",
    "stt.deepgram": "headstart.processors.stt.deepgram:DeepgramSTT",
    "stt.deepgram-flux": "headstart.processors.stt.deepgram_flux:DeepgramFluxSTT",
    "trigger.early": "headstart.processors.turn.trigger.settings:EarlyTrigger",
    "turn.smart": "headstart.processors.turn.aggregator:UserTurn",
    "llm.anthropic": "headstart.processors.llm:AnthropicLLM",
    "tts.kokoro": "headstart.processors.tts:KokoroTTS",
}
"""Stages by KIND.PROVIDER; the first provider of a kind is its default."""

ENTRY_POINT_GROUP = "headstart.stages"
"""Where installed packages name their stages: `stt.acme`, or a plain name without a kind."""

INJECTED = (LLMContext,)
"""Types of constructor parameters that the program supplies, not the file."""

REVIEWED = (
    # Headstart's own
    "headstart.processors",
    "headstart.bench.conversation.simulated",
    "headstart.bench.energy",
    "headstart.bench.load.no_op",
    "headstart.bench.stock.services",
    "headstart.bench.stock.voice",
    # Pipecat's
    "pipecat.audio.turn.smart_turn.local_smart_turn_v3",
    "pipecat.audio.vad.silero",
    "pipecat.processors.aggregators.llm_response_universal",
    "pipecat.processors.audio.vad_processor",
    "pipecat.processors.filters",
    "pipecat.services.anthropic.llm",
    "pipecat.services.cartesia.stt",
    "pipecat.services.cartesia.tts",
    "pipecat.services.deepgram.stt",
    "pipecat.services.deepgram.tts",
    "pipecat.services.elevenlabs.tts",
    "pipecat.services.openai.llm",
    "pipecat.services.openai.stt",
    "pipecat.services.openai.tts",
    "pipecat.turns.user_mute",
    "pipecat.turns.user_start",
    "pipecat.turns.user_stop",
)
"""Modules, and packages with all below them, whose classes run no code that their settings name.

They are what a file may name where code from files is switched off. Look for these before you
add one: `trust_remote_code`, `from_pretrained`, pickles, programs to start, modules to import,
files to read that name any of it, and objects among the constructor's parameters.
"""

_TARGET = re.compile(r"[^\s:]+:[A-Za-z_]\w*|.+\.py:[A-Za-z_]\w*")


class NameProblem(UsageError):
    """A name that stands for no stage."""

    def __init__(self, message: str, *, of_provider: bool = False) -> None:
        self.of_provider = of_provider
        """The provider's name is wrong, not the stage's."""
        super().__init__(message)


@dataclass(frozen=True)
class Reference:
    """What a name stands for. Nothing has been imported for it."""

    name: str
    """The full name: `stt.whisper`, or the class path as written."""
    kind: str | None
    target: str
    """`package.module:Class`, or `/absolute/file.py:Class`."""
    installed: bool
    """Registered by Headstart or an installed package, not by a class path in a file."""

    @property
    def module(self) -> str:
        """The module or file that is imported for it."""
        return self.target.rpartition(":")[0]

    @property
    def trusted(self) -> bool:
        """Whether it may be imported where code from files is switched off."""
        return self.installed or is_reviewed(self.module)


def is_reviewed(module: str) -> bool:
    """Whether a module, or a package that it is in, is one of `REVIEWED`."""
    return not module.endswith(".py") and any(
        module == known or module.startswith(f"{known}.") for known in REVIEWED
    )


def refusal(written: str, target: str) -> str:
    """Why a class is refused where code from files is switched off.

    Args:
        written: Its name, as it stands in the file.
        target: Its class path.
    """
    if target.partition(".")[0] in ("headstart", "pipecat") and ".py:" not in target:
        return f"{written} may run code that its settings name, which is switched off"
    return f"{written} is code of its own, which is switched off"


def catalogue() -> dict[str, str]:
    """Every registered stage and its class path. Built-in names cannot be taken over."""
    return {**_installed(ENTRY_POINT_GROUP, tuple(sys.path)), **BUILTIN}


@cache
def _installed(group: str, path: tuple[str, ...]) -> dict[str, str]:
    """What installed packages name; looking through all of them takes milliseconds."""
    points = entry_points(group=group)
    return {point.name: point.value for point in sorted(points, key=lambda point: point.name)}


def providers(kind: str) -> list[str]:
    """The providers of a kind of stage, the default first."""
    return [name.partition(".")[2] for name in catalogue() if name.startswith(f"{kind}.")]


def default_provider(name: str) -> str | None:
    """The provider that a kind stands for by itself; None where the name is no kind."""
    return next(iter(providers(name)), None)


def resolve(name: str, provider: str | None, folder: Path) -> Reference:
    """What a stage's name stands for.

    Args:
        name: A kind (`stt`), a registered name (`stt.whisper`, `shout`), or a class path.
        provider: Which of a kind's providers, or a class path; None for the default.
        folder: Where relative files are looked for.

    Raises:
        NameProblem: It stands for nothing.
    """
    known = catalogue()
    if is_class_path(name):
        before, _, after = name.partition(":")
        if providers(before):
            raise NameProblem(f"{name!r} needs a space: write `{before}: {after}`")
        return Reference(name, None, class_path(name, folder), installed=False)
    if name in known and provider is None:
        kind = name.partition(".")[0] if "." in name else None
        return Reference(name, kind, known[name], installed=True)
    offered = providers(name)
    if name in known:
        raise NameProblem(f"{name} takes no provider", of_provider=True)
    if not offered:
        raise NameProblem(_unknown_name(name, known))
    provider = provider or offered[0]
    if is_class_path(provider):
        return Reference(provider, name, class_path(provider, folder), installed=False)
    if provider not in offered:
        hint = nearest_or_all(provider, offered)
        raise NameProblem(f"{name} has no provider {provider!r}{hint}", of_provider=True)
    full_name = f"{name}.{provider}"
    return Reference(full_name, name, known[full_name], installed=True)


def chosen_target(choice: Choice, written: str, folder: Path = Path()) -> str:
    """The class path that a setting means which chooses a class.

    Raises:
        NameProblem: It means none.
    """
    if is_class_path(written):
        return class_path(written, folder)
    known = {**_installed(choice.group, tuple(sys.path)), **choice.builtin}
    if written not in known:
        hint = nearest(written, known) or f": name {', '.join(known)}, or package.module:Class"
        raise NameProblem(f"there is no {choice.noun} {written!r}{hint}")
    return known[written]


def choices(reference: Reference) -> dict[str, Choice]:
    """The settings of a stage that choose a class, as far as no code of a file has to run.

    A class of a file's own is taken to have those of the default provider of its kind.
    """
    target = reference.target
    if not is_reviewed(reference.module):
        default = default_provider(reference.kind) if reference.kind else None
        target = catalogue()[f"{reference.kind}.{default}"] if default else ""
    if not is_reviewed(target.rpartition(":")[0]):
        return {}
    try:
        return constructor.choices(import_processor(target))
    except UsageError:  # whoever checks the stage says why
        return {}


def class_path(written: str, folder: Path) -> str:
    """A class path with its file, if it names one, made absolute.

    Raises:
        NameProblem: It is no class path.
    """
    if not _TARGET.fullmatch(written):
        raise NameProblem(f"{written!r} should be package.module:Class or ./file.py:Class")
    module, _, name = written.rpartition(":")
    if module.endswith(".py"):
        try:
            return f"{path_from(module, folder).resolve()}:{name}"
        except UsageError as error:
            raise NameProblem(str(error)) from None
    if "/" in module:
        raise NameProblem(f"{written!r} should be package.module:Class or ./file.py:Class")
    return written


def _unknown_name(name: str, known: Mapping[str, str]) -> str:
    if name.count(".") > 1:
        module, _, last = name.rpartition(".")
        return f"{name!r} is no stage; a class is written {module}:{last}"
    kinds = list(dict.fromkeys(full.partition(".")[0] for full in known))
    for kind in kinds:
        if name in providers(kind):
            return f"{name!r} is no stage but a provider of one; write `{kind}: {name}`"
    hint = nearest(name, [*kinds, *known]) or nearest_or_all(name, kinds)
    return f"there is no stage {name!r}{hint}"


def import_class(target: str) -> type:
    """Import the class that a class path names.

    Raises:
        UsageError: There is no such module, file or class, or it does not import.
    """
    module_name, _, class_name = target.rpartition(":")
    if module_name.endswith(".py"):
        module = _load_file(Path(module_name))
    else:
        module = _import_module(module_name)
    found = getattr(module, class_name, None)
    if found is None:
        here = [name for name, value in vars(module).items() if inspect.isclass(value)]
        hint = nearest(class_name, here)
        raise UsageError(f"{module_name} has no class {class_name!r}{hint}")
    if not inspect.isclass(found):
        raise UsageError(f"{target} is no class")
    return found


def import_processor(target: str) -> type[FrameProcessor]:
    """Import the class of a stage.

    Raises:
        UsageError: It cannot be imported, or is no Pipecat FrameProcessor.
    """
    found = import_class(target)
    if not issubclass(found, FrameProcessor):
        raise UsageError(f"{target} is no FrameProcessor, so it cannot be a stage")
    return found


def _import_module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            hint = _similar_module(missing)
            raise UsageError(f"there is no module {missing!r}{hint}") from error
        raise UsageError(f"importing {name} failed: {_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing {name} failed: {_line(error)}{_extra(name)}") from error


def _extra(name: str) -> str:
    """What brings a module's packages: Pipecat's services have extras of the same name."""
    service = name.removeprefix("pipecat.services.").partition(".")[0]
    known = metadata("pipecat-ai").get_all("Provides-Extra") or []
    if name == "headstart.bench.stock.services":
        return "; try: pip install 'headstart[stock]'"
    if name.startswith("pipecat.services.") and service in known:
        return f"; try: pip install 'pipecat-ai[{service}]'"
    return ""


def _similar_module(name: str) -> str:
    import pkgutil

    parent, _, last = name.rpartition(".")
    package = sys.modules.get(parent)
    if package is None or not hasattr(package, "__path__"):
        return "; is its package installed?"
    return nearest(last, [module.name for module in pkgutil.iter_modules(package.__path__)])


def _load_file(path: Path) -> types.ModuleType:
    """Run a Python file as a module of its own.

    The module's name comes from the file's place and content: two files of one name do not
    collide, and a file that has changed is read again.
    """
    try:
        source = path.read_bytes()
    except FileNotFoundError as error:
        near = closest(path.stem, [file.stem for file in path.parent.glob("*.py")])
        hint = f"; did you mean {near + '.py'!r}?" if near else f" in {path.parent}"
        raise UsageError(f"there is no file {path.name}{hint}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(bytes(path) + b"\0" + source).hexdigest()[:16]
    name = f"headstart_file_{digest}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # before it runs: dataclasses and annotations look it up
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            message = f"{path}:{error.lineno}: {error.msg}"
            raise UsageError(f"the file is not Python: {message}") from error
        if isinstance(error, (Exception, SystemExit)):
            raise UsageError(f"running {path} failed: {_line(error)}") from error
        raise
    return module


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True)
class StageType:
    """A class that can be a stage, and how its settings become one."""

    name: str
    cls: type[FrameProcessor]

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self.cls) or "").partition("\n")[0]

    def validate(self, settings: Mapping[str, Any], *, allow_code: bool = True) -> list[Issue]:
        """What is wrong with the settings. Imports, but loads no model.

        Args:
            settings: As they stand in the file.
            allow_code: Whether they may name classes that are not among `REVIEWED`.
        """
        return arguments(self.cls, settings, INJECTED, _Importer(allow_code))[1]

    def create(
        self,
        settings: Mapping[str, Any],
        injected: Mapping[type, object],
        make: Callable[[type[FrameProcessor]], type[FrameProcessor]] = lambda cls: cls,
    ) -> FrameProcessor:
        """Make the stage.

        Args:
            settings: Its settings as they stand in the file.
            injected: Objects for the constructor's parameters of these types.
            make: The class to make an instance of, given the class that the file names. It takes
                the same arguments.

        Raises:
            UsageError: The settings are wrong, or the class does not take them.
        """
        keywords, issues = self._arguments(settings)
        if issues:
            raise UsageError(f"{self.name}: {issues[0].message}")
        for name, kind in injected_parameters(self.cls, INJECTED).items():
            if kind in injected:
                keywords[name] = injected[kind]
        try:
            return make(self.cls)(**realise(keywords))
        except HeadstartError:
            raise
        except Exception as error:
            raise UsageError(f"{self.name} could not be made: {_line(error)}") from error

    def required_assets(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The weights that the stage needs with these settings."""
        required = getattr(self.cls, "required_assets", None)
        if required is None or settings_model(self.cls) is None:
            return ()
        names: tuple[str, ...] = required(self._arguments(settings)[0]["settings"])
        return names

    def check_environment(self, settings: Mapping[str, Any]) -> None:
        """Check that the stage could run here, as far as it can tell without loading anything.

        Raises:
            UsageError: Something is missing, such as a key.
        """
        check = getattr(self.cls, "check_environment", None)
        if check is None or settings_model(self.cls) is None:
            return
        try:
            check(self._arguments(settings)[0]["settings"])
        except HeadstartError:
            raise
        except Exception as error:
            raise UsageError(_line(error)) from error

    def _arguments(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[Issue]]:
        return arguments(self.cls, settings, INJECTED, _Importer())


@dataclass(frozen=True)
class _Importer:
    """Imports what settings name; where code is switched off, what has been reviewed alone."""

    allow_code: bool = True

    def named(self, written: str, choice: Choice | None = None) -> type:
        target = chosen_target(choice, written) if choice else class_path(written, Path())
        registered = choice is not None and not is_class_path(written)
        if not self.allow_code and not registered and not is_reviewed(target.rpartition(":")[0]):
            raise NameProblem(refusal(written, target))
        cls = import_class(target)
        if not registered and (refused := self.refusal(cls)):
            raise NameProblem(refused)
        return cls

    def refusal(self, cls: type) -> str | None:
        if self.allow_code or is_reviewed(cls.__module__):
            return None
        return refusal(cls.__name__, f"{cls.__module__}:{cls.__name__}")


def make(choice: Choice, value: Any) -> Any:
    """The object that a setting chooses.

    Args:
        choice: What there is to choose from.
        value: A name, a class path, or a mapping with either as `class`, and settings.

    Raises:
        UsageError: There is no such class, or it cannot be made of these settings.
    """
    deferred, issues = constructor.chosen(choice, value, _Importer())
    if issues:
        raise UsageError(f"{choice.noun}: {issues[0].message}")
    try:
        return realise(deferred)
    except HeadstartError:
        raise
    except Exception as error:
        raise UsageError(f"the {choice.noun} could not be made: {_line(error)}") from error


def stage_type(stage: StageSpec) -> StageType:
    """The class behind a stage of a pipeline.

    Raises:
        UsageError: It cannot be imported, or is no FrameProcessor.
    """
    return StageType(stage.name, import_processor(stage.target))


def create(
    stage: StageSpec,
    injected: Mapping[type, object],
    make: Callable[[type[FrameProcessor]], type[FrameProcessor]] = lambda cls: cls,
) -> FrameProcessor:
    """Make a stage of a pipeline.

    Args:
        stage: The stage.
        injected: Objects for the constructor's parameters of these types.
        make: The class to make an instance of, given the class that the file names.

    Raises:
        ConfigError: It cannot be made; the place is where the file names the stage.
    """
    try:
        return stage_type(stage).create(stage.settings, injected, make)
    except ConfigError:
        raise
    except UsageError as error:
        raise ConfigError([stage.position.problem(str(error))]) from error


def required_assets(stage: StageSpec) -> tuple[str, ...]:
    """The weights that a stage of a pipeline needs, by name.

    Raises:
        UsageError: The stage's class cannot be imported.
        ConfigError: It names weights that nobody knows; the place is where the stage is named.
    """
    names = stage_type(stage).required_assets(stage.settings)
    try:
        for name in names:
            assets.known(name)
    except UsageError as error:
        raise ConfigError([stage.position.problem(f"{stage.name}: {error}")]) from None
    return names
