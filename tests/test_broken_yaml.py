"""Every broken pipeline file says where it is broken, what is wrong, and what may be meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.config.load import load_config, shipped_configs
from headstart.config.secrets import Secret, mask
from headstart.errors import ConfigError

BESIDE = {
    "stages.py": """
from typing import Literal
from pydantic import BaseModel, Field, field_validator
from pipecat.processors.frame_processor import FrameProcessor
from headstart.processors.settings import StageSettings

class Tone(BaseModel):
    pitch_hz: int = 100

class LoudSettings(StageSettings):
    gain_db: float = Field(default=0, ge=-20, le=20)
    voice: Literal["calm", "bright"] = "calm"
    token: str = "none"
    tone: Tone = Tone()
    times: list[int] = []
    words: list[str] = []

    @field_validator("token")
    @classmethod
    def known(cls, token: str) -> str:
        if token.startswith("bad"):
            raise ValueError(f"the token {token} is spent")
        return token

    @field_validator("words")
    @classmethod
    def short(cls, words: list[str]) -> list[str]:
        raise ValueError(f"too long: {words}")

class Loud(FrameProcessor):
    def __init__(self, settings: LoudSettings | None = None, **kwargs):
        super().__init__(**kwargs)

class Plain(FrameProcessor):
    def __init__(self, words: int, tone: Tone | None = None, hook=None, **kwargs):
        super().__init__(**kwargs)

class NoStage:
    pass

class Patient:
    def __init__(self, pauses: int):
        self.pauses = pauses

    def obstacle(self, evidence):
        return None

def function():
    pass
""",
    "not_python.py": "class Broken:\n    def f(:\n",
    "raises.py": "raise RuntimeError('no licence')\n",
    "exits.py": "import sys\nsys.exit(3)\n",
    "needs.py": "import a_package_that_is_not_there\n",
    "parent.yaml": "prompt: Hi.\nstages: [vad, stt, './stages.py:Loud']\n",
    "twice.yaml": "prompt: Hi.\nstages: ['./stages.py:Loud', './stages.py:Loud']\n",
    "loop_a.yaml": "extends: loop_b.yaml\n",
    "loop_b.yaml": "extends: loop_a.yaml\n",
    "bad_parent.yaml": "prompt: Hi.\nstages: [\n",
}

TOP = "prompt: Hi.\nstages:\n"
LOUD = TOP + "  - ./stages.py:Loud:\n      "
PLAIN = TOP + "  - ./stages.py:Plain:\n      "
CHILD = "extends: parent.yaml\n"
EARLY = "extends: early\noverride: {trigger: {"

# `»` stands before each place that is to be named; then the words that are to be said there.
BROKEN: dict[str, tuple[str, ...]] = {
    # what a file is
    "empty file": ("»", "the file is empty"),
    "only comments": ("»# nothing here\n\n", "the file is empty"),
    "a text": ("»just words\n", "`key: value` lines; it is the text 'just words'"),
    "a list": ("»- vad\n- stt\n", "`key: value` lines; it is a list"),
    "two documents": (TOP + "  - vad\n»---\nprompt: b\n", "one pipeline; remove the '---'"),
    "control character": ("prompt: Hi»\x07.\n", "binary"),
    # syntax
    "tab as indentation": ("prompt: Hi.\nstages:\n»\t- vad\n", "a tab cannot indent YAML"),
    "indented too little": (
        "prompt: Hi.\nstages:\n    - vad\n  »- stt\n",
        "the indentation does not fit the lines above",
    ),
    "key indented too far": ("prompt: Hi.\n  name»: x\n", "a ':' cannot stand here"),
    "colon in a text": ("prompt: Answer»: in one word\n", "or quote the text"),
    "quote not closed": ('prompt: »"Hi.\nstages: [vad]\n', "this quote is not closed"),
    "brace not closed": ("prompt: Hi.\nstages:\n  - vad: »{stop_secs: 0.2\n", "this '{' is not"),
    "bracket not closed": ("prompt: Hi.\nstages: »[vad, stt\n", "this '[' is not closed"),
    "file ends in a bracket": ("prompt: Hi.\nstages: [\n»", "the file ends before a '['"),
    "bracket without a value": ("prompt: Hi.\nstages: [», vad]\n", "a value is missing here"),
    "misspelt stages": ("prompt: Hi.\n»stage: [vad]\n", "did you mean 'stages'?"),
    "misspelt required parameter": (PLAIN + "»wrds: 1\n", "did you mean 'words'?"),
    "key without colon": ("prompt: Hi.\n»stages\n", "needs a ':' after its key"),
    "value begins with *": ("prompt: »*** Hi\nstages: [vad]\n", "begins with '*' needs quotes"),
    "value begins with !": ("prompt: »!x!y Hi\nstages: [vad]\n", "begins with '!' needs quotes"),
    "value begins with |": ("prompt: »|Hi\nstages: [vad]\n", "begins with '|' or '>' needs"),
    "text before the keys": ("Hello there\nprompt»: Hi.\n", "and the line above"),
    "value begins with @": ("prompt: »@me\n", "needs quotes"),
    "alias without anchor": (TOP + "  - »*missing\n", "this alias (*) has no anchor"),
    "alias inside itself": ("»prompt: Hi.\nstages: &a [*a]\n", "nested too deeply"),
    "python tag": ("prompt: »!!python/name:os.system x\nstages: [vad]\n", "means nothing here"),
    "text under a number's tag": ("prompt: »!!int many\nstages: [vad]\n", "does not fit its tag"),
    "half a character": ('prompt: »"\\ud800"\nstages: [vad]\n', "does not fit its tag !!str"),
    "list as a key": ("prompt: Hi.\n? »[a]\n: 1\nstages: [vad]\n", "a key should be a name"),
    # keys at the top
    "duplicate key": ("prompt: a\n»prompt: b\nstages: [vad]\n", "already there, in line 1"),
    "misspelt key": ("»promt: Hi.\nstages: [vad]\n", "did you mean 'prompt'?"),
    "foreign key": (
        "prompt: Hi.\n»volume: 3\nstages: [vad]\n",
        "no key of a pipeline; choose from",
    ),
    "no prompt": ("»name: x\nstages: ['./stages.py:Loud']\n", "needs 'prompt'"),
    "no stages": ("»prompt: Hi.\n", "needs 'stages'"),
    "prompt is a number": ("prompt: »3\nstages: ['./stages.py:Loud']\n", "text; it is 3"),
    "prompt is a list": ("prompt: »[a]\nstages: ['./stages.py:Loud']\n", "text; it is a list"),
    "empty prompt": ("prompt: »''\nstages: ['./stages.py:Loud']\n", "at least 1 character"),
    "audio is a number": (
        "prompt: Hi.\naudio: »16000\nstages: ['./stages.py:Loud']\n",
        "audio should be a mapping; it is 16000",
    ),
    "misspelt rate": (
        "prompt: Hi.\naudio: {»in_sample_rat: 16000}\nstages: ['./stages.py:Loud']\n",
        "did you mean 'in_sample_rate'?",
    ),
    "rate out of bounds": (
        "prompt: Hi.\naudio:\n  out_sample_rate: »4\nstages: ['./stages.py:Loud']\n",
        "out_sample_rate should be greater than or equal to 8000; it is 4",
    ),
    # stages
    "stages is a text": ("prompt: Hi.\nstages: »vad\n", "stages should be a list"),
    "stages is a mapping": ("prompt: Hi.\nstages:\n  »vad: {}\n", "stages should be a list"),
    "no stage in the list": ("prompt: Hi.\nstages: »[]\n", "one stage at least"),
    "unknown stage": (TOP + "  - »sst: whisper\n", "no stage 'sst'; did you mean 'stt'?"),
    "unknown stage, nothing near": (TOP + "  - »quux\n", "no stage 'quux'; choose from vad, stt"),
    "unknown provider": (TOP + "  - stt: »wisper\n", "did you mean 'whisper'?"),
    "unknown provider, in full": (TOP + "  - stt: {provider: »wisper}\n", "mean 'whisper'?"),
    "space missing after the name": (TOP + "  - »stt:whisper\n", "write `stt: whisper`"),
    "misspelt provider key": (TOP + "  - stt: {»provder: whisper}\n", "did you mean 'provider'?"),
    "provider as a stage": (TOP + "  - »whisper\n", "write `stt: whisper`"),
    "provider is a list": (TOP + "  - stt: {provider: »[a]}\n", "provider should be a name"),
    "stage is a number": (TOP + "  - »3\n", "a stage should be a name"),
    "settings beside the name": (TOP + "  - stt: whisper\n    »chunk_ms: 250\n", "indented below"),
    "scalar behind a class": (TOP + "  - ./stages.py:Loud: »3\n", "should stand settings; it is 3"),
    "number behind a stage": (TOP + "  - stt: »3\n", "provider's name or settings; it is 3"),
    "dotted class": (TOP + "  - »my.package.Stage\n", "a class is written my.package:Stage"),
    # classes
    "no such module": (TOP + "  - »nowhere.at_all:Stage\n", "there is no module 'nowhere'"),
    "misspelt module": (
        TOP + "  - »pipecat.processors.filtrs:X\n",
        "no module 'pipecat.processors.filtrs'; did you mean 'filters'?",
    ),
    "misspelt class": (TOP + "  - »./stages.py:Lout\n", "no class 'Lout'; did you mean 'Loud'?"),
    "no such file": (TOP + "  - »./missing.py:Stage\n", "there is no file missing.py in /"),
    "misspelt file": (TOP + "  - »./stagse.py:X\n", "file stagse.py; did you mean 'stages.py'?"),
    "a directory for a file": (TOP + "  - »./folder.py:X\n", "folder.py cannot be read: Is a dir"),
    "no processor": (TOP + "  - »./stages.py:NoStage\n", "NoStage is no FrameProcessor"),
    "a function": (TOP + "  - »./stages.py:function\n", "function is no class"),
    "no Python": (TOP + "  - »./not_python.py:Broken\n", "not_python.py:2: invalid syntax"),
    "raises on import": (TOP + "  - »./raises.py:X\n", "failed: RuntimeError: no licence"),
    "exits on import": (TOP + "  - »./exits.py:X\n", "failed: SystemExit: 3"),
    "imports what is missing": (TOP + "  - »./needs.py:X\n", "No module named 'a_package_that"),
    "malformed class path": (TOP + "  - »./stages.py:3\n", "should be package.module:Class"),
    # settings: a pydantic model
    "misspelt setting": (
        LOUD + "»gain_bd: 3\n",
        "Loud: 'gain_bd' is no setting here; did you mean",
    ),
    "setting of the wrong type": (LOUD + "gain_db: »loud\n", "gain_db should be a number; it is"),
    "number in quotes": (
        LOUD + "gain_db: »'3'\n",
        "gain_db should be a number; it is the text '3'",
    ),
    "yes is a text": (LOUD + "token: »true\n", "token should be text; it is true"),
    "out of bounds": (LOUD + "gain_db: »40\n", "less than or equal to 20; it is 40"),
    "not one of the choices": (LOUD + "voice: »brigt\n", "'calm' or 'bright'; did you mean 'brig"),
    "nested misspelt setting": (LOUD + "tone: {»pitch: 3}\n", "did you mean 'pitch_hz'?"),
    "nested wrong type": (LOUD + "tone:\n        pitch_hz: »low\n", "pitch_hz should be a whole"),
    "wrong item of a list": (LOUD + "times: [1, »two]\n", "times[1] should be a whole number"),
    "mapping where a text is due": (LOUD + "token: »{a: 1}\n", "token should be text; it is a map"),
    "its own validator": (LOUD + "token: »bad-1\n", "the token bad-1 is spent"),
    "duplicate setting": (LOUD + "gain_db: 1\n      »gain_db: 2\n", "already there, in line 4"),
    # settings: a constructor's signature
    "missing parameter": (TOP + "  - »./stages.py:Plain\n", "Plain: needs 'words'"),
    "misspelt parameter": (PLAIN + "words: 1\n      »ton: {}\n", "did you mean 'tone'?"),
    "parameter of the wrong type": (PLAIN + "words: »many\n", "words should be a whole number"),
    "nested parameter": (PLAIN + "words: 1\n      tone: {pitch_hz: »x}\n", "a whole number"),
    "no mapping": (
        PLAIN + "words: 1\n      tone: »3\n",
        "tone should be a mapping, the settings of",
    ),
    "a service without its key": (
        TOP + "  - »pipecat.services.anthropic.llm:AnthropicLLMService\n",
        "needs 'api_key'",
    ),
    "a service's nested settings": (
        TOP + "  - pipecat.services.anthropic.llm:AnthropicLLMService:\n      api_key: k\n"
        "      settings: {»max_token: 5}\n",
        "did you mean 'max_tokens'?",
    ),
    "an abstract class": (
        TOP + "  - pipecat.processors.audio.vad_processor:VADProcessor:\n      »vad_analyzer: {}\n",
        "needs 'class': which VADAnalyzer",
    ),
    "another kind of class": (
        TOP + "  - pipecat.processors.audio.vad_processor:VADProcessor:\n"
        "      vad_analyzer: {class: »./stages.py:Plain}\n",
        "Plain is no VADAnalyzer",
    ),
    # variables
    "unset variable": (
        LOUD + "token: »${HEADSTART_TEST_UNSET}\n",
        "HEADSTART_TEST_UNSET is not set",
    ),
    "unset variable in a text": (
        LOUD + "token: 'a b »${HEADSTART_TEST_UNSET} c'\n",
        "HEADSTART_TEST_UNSET is not set",
    ),
    "unset variable in a block": (
        "prompt: |\n  One.\n  Two »${HEADSTART_TEST_UNSET}.\nstages: ['./stages.py:Loud']\n",
        "HEADSTART_TEST_UNSET is not set",
    ),
    "misspelt variable": (
        LOUD + "token: »${HEADSTART_TEST_STE}\n",
        "did you mean HEADSTART_TEST_SE",
    ),
    "variable not closed": (LOUD + "token: »${HEADSTART_TEST_SET\n", "'${' is never closed"),
    "no variable's name": (LOUD + "token: »${3}\n", "'${3}' is no variable"),
    "variable of the wrong type": (
        LOUD + "gain_db: »${HEADSTART_TEST_SET}\n",
        "gain_db should be a number; it is what the variable holds",
    ),
    "variable as a provider": (
        TOP + "  - stt: »${HEADSTART_TEST_SET}\n",
        "stt has no provider '${HEADSTART_TEST_SET}'; choose from whisper",
    ),
    "secret in a validator's words": (
        LOUD + "token: »${HEADSTART_TEST_BAD}\n",
        "token ${HEADSTART_TEST_BAD} is spent",
    ),
    # extends
    "extends what is not there": ("extends: »no.yaml\n", "there is no file no.yaml"),
    "extends no shipped name": ("extends: »lokal\n", "did you mean 'local'?"),
    "extends a number": ("extends: »3\n", "extends should be the name or path"),
    "extends itself": ("extends: »broken.yaml\n", "in a circle: broken.yaml -> broken.yaml"),
    "override without extends": (TOP + "  - './stages.py:Loud'\n»override: {}\n", "needs extends"),
    "override of its own stages": (
        CHILD + "stages: ['./stages.py:Loud']\n»override: {stt: null}\n",
        "changes inherited stages, but this file has its own",
    ),
    "override of no stage": (
        CHILD + "override: {»sst: null}\n",
        "named 'sst'; did you mean 'stt'?",
    ),
    "override of one of two": (
        "extends: twice.yaml\noverride: {»Loud: null}\n",
        "'Loud' names 2 of the inherited stages",
    ),
    "override is a list": (CHILD + "override: »[stt]\n", "a mapping by the name of a stage"),
    "override by a number": (CHILD + "override: {stt: »3}\n", "provider's name or settings"),
    "after no stage": (CHILD + "after: {»tts: vad}\n", "no inherited stage is named 'tts'"),
    "after, an unknown stage": (CHILD + "after: {stt: [»quux]}\n", "there is no stage 'quux'"),
    # policies: named like stages, though they are settings
    "misspelt policy": (EARLY + "policy: »confidant}}\n", "did you mean 'confident'?"),
    "unknown policy": (EARLY + "policy: »sure}}\n", "no policy 'sure': name confident, eager"),
    "misspelt policy, as a mapping": (EARLY + "policy: {class: »eagre}}}\n", "mean 'eager'?"),
    "policy without a class": (EARLY + "»policy: {patience: 1}}}\n", "needs 'class': which policy"),
    "policy is a list": (EARLY + "policy: »[eager]}}\n", "policy should be text or a mapping"),
    "no file of a policy": (EARLY + "policy: »./no.py:X}}\n", "no file no.py"),
    "function for a policy": (EARLY + "policy: »'tempfile:mkdtemp'}}\n", "mkdtemp is no class"),
    "class that is no policy": (EARLY + "policy: »./stages.py:NoStage}}\n", "is no Policy"),
    "setting of a policy without any": (
        EARLY + "policy: {class: eager, »pace: 1}}}\n",
        "'pace' is no setting here",
    ),
    "policy's setting of the wrong type": (
        EARLY + "policy: {class: ./stages.py:Patient, pauses: »many}}}\n",
        "pauses should be a whole number; it is the text 'many'",
    ),
    "policy without what it needs": (
        EARLY + "policy: »./stages.py:Patient}}\n",
        "needs 'pauses'",
    ),
    # numbers that are none
    "infinite seconds": (TOP + "  - vad: {stop_secs: ».inf}\n", "a finite number; it is .inf"),
    "not a number": (TOP + "  - vad: {threshold: ».nan}\n", "a finite number; it is .nan"),
    "larger than any number": (
        TOP + "  - vad: {stop_secs: »1e400}\n",
        "a finite number; it is 1e4",
    ),
    "whole, and larger than any": (
        TOP + f"  - vad: {{stop_secs: »1{'0' * 400}}}\n",
        "stop_secs should be a finite number; it is 1000",
    ),
    "infinite within a list": (LOUD + "times: [1, »-.inf]\n", "should be a finite number"),
    "infinite by a variable": (
        LOUD + "gain_db: »${HEADSTART_TEST_INF}\n",
        "gain_db should be a finite number; it is what the variable holds",
    ),
    # stages that do not fit together
    "reverse": (
        TOP + "  - tts\n  - »llm\n  - »turn\n  - »stt\n  - vad\n",
        "llm should stand before tts",
        "turn should stand before llm",
        "stt should stand before turn",
    ),
    "recogniser behind the model": (
        TOP + "  - vad\n  - llm\n  - »stt\n",
        "stt should stand before llm",
    ),
    "two models": (
        TOP + "  - llm\n  - »llm\n",
        "a second llm stage; the first is in broken.yaml:3",
    ),
    "three recognisers": (
        TOP + "  - vad\n  - stt\n  - »stt: whisper\n  - »stt: whisper\n",
        "a second stt",
        "a second stt",
    ),
    "one more turn, by its class": (
        TOP + "  - turn\n  - »headstart.processors.turn.aggregator:UserTurn\n",
        "a second turn stage",
    ),
    "voice without words": (TOP + "  - vad\n  - stt\n  - turn\n  - »tts\n", "tts needs an llm"),
    "trigger without a model": (TOP + "  - vad\n  - stt\n  - »trigger\n  - turn\n", "needs an llm"),
    "trigger without a model or turn": (TOP + "  - vad\n  - stt\n  - »trigger\n", "needs an llm"),
    "trigger by its class, without a model": (
        TOP + "  - vad\n  - stt\n  - »headstart.processors.turn.trigger.settings:EarlyTrigger\n",
        "trigger needs an llm",
    ),
    "trigger with another's turn": (
        TOP + "  - »trigger\n  - turn:\n      provider: "
        "pipecat.processors.aggregators.llm_response_universal:LLMUserAggregator\n  - llm\n",
        "a turn stage that is `turn: smart`",
    ),
    "recogniser that is never told to listen": (
        TOP + "  - »stt\n  - turn\n  - llm\n  - tts\n",
        "stt needs a vad stage",
    ),
    # what a path cannot be
    "extends a zero byte": ('extends: »"a\\0b.yaml"\n', "is no path"),
    "extends a home of nobody": ("extends: »~nobody-here/x.yaml\n", "is no path"),
    "class in a home of nobody": (TOP + "  - »~nobody-here/x.py:X\n", "is no path"),
    "variable that is no text": (LOUD + "token: »${HEADSTART_TEST_BYTES}\n", "no text in UTF-8"),
    "variable within a default": (LOUD + "token: »${A:-${HEADSTART_TEST_SET}}\n", "is no variable"),
    # several at once
    "all at once": (
        "»nme: x\nprompt: »3\nstages:\n  - »sst\n  - ./stages.py:Loud: {»gain: 1, voice: »loud}\n",
        "no key of a pipeline; did you mean 'name'?",
        "should be text",
        "no stage 'sst'",
        "'gain' is no setting here",
        "'calm' or 'bright'",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in BESIDE.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder.py").mkdir()
    monkeypatch.setenv("HEADSTART_TEST_SET", "hunter2")
    monkeypatch.setenv("HEADSTART_TEST_BAD", "bad-hunter2")
    monkeypatch.setenv("HEADSTART_TEST_INF", ".inf")
    monkeypatch.setenv("HEADSTART_TEST_BYTES", "\udcff")
    monkeypatch.delenv("HEADSTART_TEST_UNSET", raising=False)
    return tmp_path


def problems_of(path: Path) -> list[tuple[int, int, str]]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert all(problem.file == path for problem in caught.value.problems)
    return [(p.line, p.column, p.message) for p in caught.value.problems]


def places(marked: str) -> list[tuple[int, int]]:
    found = []
    text = ""
    for part in marked.split("»")[:-1]:
        text += part
        found.append((text.count("\n") + 1, len(text) - text.rfind("\n")))
    return found


def test_there_are_at_least_fifty_broken_files() -> None:
    assert len(BROKEN) >= 50


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_says_where_and_what(folder: Path, case: str) -> None:
    marked, *words = BROKEN[case]
    path = folder / "broken.yaml"
    path.write_text(marked.replace("»", ""))
    found = problems_of(path)
    assert [(line, column) for line, column, _ in found] == places(marked), found
    for (_, _, message), wanted in zip(found, words, strict=True):
        assert wanted in message
        assert "\n" not in message
        assert "hunter2" not in message


def test_a_circle_of_files_is_named_from_end_to_end(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(folder / "loop_a.yaml")
    (problem,) = caught.value.problems
    assert (problem.file.name, problem.line, problem.column) == ("loop_b.yaml", 1, 10)
    assert "loop_a.yaml -> loop_b.yaml -> loop_a.yaml" in problem.message


def test_what_is_wrong_with_a_parent_is_said_of_the_parent(folder: Path) -> None:
    child = folder / "child.yaml"
    child.write_text("extends: bad_parent.yaml\nnme: x\n")
    with pytest.raises(ConfigError) as caught:
        load_config(child)
    assert [(p.file.name, p.line) for p in caught.value.problems] == [
        ("child.yaml", 2),
        ("bad_parent.yaml", 3),
    ]


def test_a_file_that_cannot_be_read_has_the_form_of_any_other_error(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"prompt: Hi\n\xff\xfe\x00")
    bomb = tmp_path / "bomb.yaml"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{b}: &{b} [{', '.join(['*' + a] * 10)}]" for a, b in zip("abcdef", "bcdefg", strict=True)
    ]
    bomb.write_text("\n".join(lines))
    deep = tmp_path / "deep.yaml"
    deep.write_text("prompt: " + "[" * 1000)
    assert problems_of(tmp_path / "missing.yaml") == [(1, 1, "there is no such file")]
    assert problems_of(tmp_path) == [(1, 1, "this is a directory, not a file")]
    assert problems_of(binary) == [(2, 1, "this is no text in UTF-8; is this a binary file?")]
    assert "more than 10000 values" in problems_of(bomb)[0][2]
    assert "nested too deeply" in problems_of(deep)[0][2]


def hostile_files(folder: Path) -> dict[str, Path]:
    os.mkfifo(folder / "pipe.yaml")
    with (folder / "long.yaml").open("wb") as file:
        file.truncate(50_000_000)
    return {
        "no regular file": folder / "pipe.yaml",
        "longer than 1 MB": folder / "long.yaml",
        "this is a directory": folder,
    }


def test_what_is_no_file_or_too_long_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for message, path in hostile_files(tmp_path).items():
        (line, column, said) = problems_of(path)[0]
        assert (line, column) == (1, 1)
        assert message in said
    with pytest.raises(ConfigError, match=r"^/dev/zero:1:1: this is no regular file$"):
        load_config("/dev/zero")


def test_what_extends_cannot_be_read_is_said_where_it_is_named(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    for message, path in {**hostile_files(tmp_path), "no regular": Path("/dev/zero")}.items():
        child.write_text(f"extends: {path}/\n" if path.is_dir() else f"extends: {path}\n")
        (problem,) = problems_of(child)
        assert problem[:2] == (1, 10)
        assert message in problem[2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("passwd", "hunter2:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/sbin/nologin\n"),
        (".env", "API_KEY=hunter2\n"),
        ("credentials", "[default]\nkey = hunter2\n"),
        ("notes", "hunter2: hunter2\n"),
        ("secrets.yaml", "hunter2: {token: hunter2}\n"),
        ("token.yaml", "hunter2\n"),
        ("list.yml", "- hunter2\n"),
    ],
)
def test_nothing_of_a_file_is_shown_that_is_no_pipeline(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "link.yaml").symlink_to(tmp_path / name)
    child = tmp_path / "child.yaml"
    for extended in (f"./{name}", "link.yaml"):
        child.write_text(f"extends: {extended}\n")
        with pytest.raises(ConfigError) as caught:
            load_config(child)
        assert "hunter2" not in str(caught.value)
        assert len(caught.value.problems) == 1


def test_a_chain_of_files_has_an_end(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    with pytest.raises(ConfigError, match=r"extends goes over more than 20 files"):
        load_config(tmp_path / "0.yaml")


@pytest.mark.parametrize(
    "data",
    ["prompt: " + "${" * 400_000, "prompt: |\n" + "  ${A:-\n" * 120_000, "- a\n" * 240_000],
    ids=["unclosed", "unclosed defaults", "values"],
)
def test_a_megabyte_of_anything_is_read_in_steps_that_grow_no_faster_than_it(
    tmp_path: Path, data: str
) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(data)
    command = "import sys; from headstart.config.load import load_config; load_config(sys.argv[1])"
    # Seconds; in steps that grow with the square of it these take hours.
    ended = subprocess.run(
        [sys.executable, "-c", command, str(path)], capture_output=True, timeout=120, check=False
    )
    assert b"ConfigError" in ended.stderr


def test_a_text_full_of_variables_that_are_not_set_tells_of_some(tmp_path: Path) -> None:
    path = tmp_path / "unset.yaml"
    path.write_text("prompt: |\n" + "".join(f"  ${{UNSET_{n}}}\n" for n in range(20_000)))
    assert len(problems_of(path)) < 30


SECRETS = {
    "a key": "sk-ant-hunter2",
    "a class": "hunter2.below:Hunter2",
    "a module that is there": "decimal:hunter2",
    "a file": "./hunter2.py:Hunter2",
    "a path": "/nowhere/hunter2/hunter2.yaml",
    "an address": "ftp://user:hunter2@hunter2.example/hunter2?hunter2=1",
    "a model": "llama://hunter2?hunter2=2",
    "quotes and lines": 'it\'s "hunter2"\n\thunter2 \u00fc',
    "capitals": "HUNTER2",
}
PLACES = {
    "extends": "extends: '${KEY}'\n",
    "extends, in part": "extends: './${KEY}.yaml'\n",
    "policy": EARLY + "policy: '${KEY}'}}\n",
    "policy, in part": EARLY + "policy: 'a${KEY}'}}\n",
    "class of a policy": EARLY + "policy: {class: '${KEY}'}}}\n",
    "provider": TOP + "  - stt: '${KEY}'\n",
    "provider, with a wrong setting": TOP + "  - stt: {provider: '${KEY}', modl: 1}\n",
    "nested class": TOP + "  - pipecat.processors.audio.vad_processor:VADProcessor:\n"
    "      vad_analyzer: {class: '${KEY}'}\n",
    "base_url": "extends: local\noverride: {llm: {base_url: 'x${KEY}'}}\n",
    "base_url of a model": "extends: local\noverride: {llm: {base_url: 'llama://${KEY}'}}\n",
    "number": TOP + "  - vad: {stop_secs: '${KEY}'}\n",
    "choice": "extends: local\noverride: {tts: {engine: '${KEY}'}}\n",
    "its own validator": LOUD + "token: 'bad ${KEY}'\n",
    "its own validator, of a list": LOUD + "words: ['${KEY}']\n",
    "rate": "extends: local\naudio: {in_sample_rate: '${KEY}'}\n",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("secret", SECRETS)
def test_no_error_shows_what_a_variable_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, secret: str, place: str
) -> None:
    monkeypatch.setenv("KEY", SECRETS[secret])
    path = folder / "secret.yaml"
    path.write_text(PLACES[place])
    for allow_code in (True, False):
        with pytest.raises(ConfigError) as caught:
            load_config(path, allow_code=allow_code)
        assert "hunter2" not in str(caught.value).casefold()
        assert "\n" not in caught.value.problems[0].message


@given(st.text(min_size=1), st.text(), st.text())
def test_a_value_is_masked_however_it_is_quoted(value: str, before: str, after: str) -> None:
    secrets = [Secret("${KEY}", value)]
    if len(value.strip()) < 3:
        assert mask(f"{before} {value!r} {after}", secrets).count("${KEY}") >= bool(value.strip())
    else:
        for quoted in (value, repr(value), json.dumps(value), quote(value)):
            assert "${KEY}" in mask(f"{before} {quoted} {after}", secrets)


def test_masking_leaves_other_words_alone() -> None:
    secrets = [Secret("${A}", "en"), Secret("${B}", "off"), Secret("${C}", "https://acme.example")]
    message = "when offered, write https://host; it is 'en', off or acme.example"
    assert mask(message, secrets) == "when offered, write https://host; it is '${A}', ${B} or ${C}"


def test_a_name_that_is_no_shipped_pipeline_suggests_one() -> None:
    with pytest.raises(ConfigError, match=r"^lokal:1:1: .*did you mean 'local'\?$"):
        load_config("lokal")


SHIPPED = shipped_configs()["local"].read_bytes()


@given(
    st.binary(max_size=40)
    | st.tuples(
        st.integers(0, len(SHIPPED)),
        st.integers(0, 20),
        st.text("\t\n :-{}[]'\"&*!|$#x1", max_size=6),
    ).map(lambda cut: SHIPPED[: cut[0]] + cut[2].encode() + SHIPPED[cut[0] + cut[1] :])
)
@settings(deadline=None, max_examples=100)
def test_whatever_a_file_holds_it_is_a_pipeline_or_errors_with_places(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.yaml"
        path.write_bytes(data)
        try:
            load_config(path, allow_code=False)
        except ConfigError as error:
            lines = data.count(b"\n") + 2
            assert error.problems
            for problem in error.problems:
                assert 1 <= problem.line <= lines and problem.column >= 1
                assert problem.message and "\n" not in problem.message
