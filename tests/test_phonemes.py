"""Words become Kokoro's phonemes: espeak's without misaki, its lexicon's where that can be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kokoro_onnx.config import DEFAULT_VOCAB
from loguru import logger

from headstart.bench.voice.session import shipped_texts
from headstart.engines.kokoro.text import g2p
from headstart.engines.kokoro.text.phonemes import Phonemizer

ABROAD = {
    "ef_dora": "Buenas tardes, ¿qué tal? El niño llegó a Zaragoza; cuesta 23 euros. Ayer llovía "
    "muchísimo. ¡Qué pingüino más pequeño! El yate y la llave; hoy hay huevos y chorizo.",
    "ff_siwis": "Bonjour, je voudrais un café. Les enfants ont mangé huit œufs; c'est très bon ! "
    "L'oiseau chante dans le jardin. Où est la gare, monsieur ? Un bon vin blanc. Le week-end.",
    "hf_alpha": "नमस्ते, आप कैसे हैं? मेरा नाम राम है। आज मौसम बहुत अच्छा है। चाय ठंडी "
    "हो गई; ज़रा रुकिए! पाँच लड़के।",
    "if_sara": "Buonasera, come sta? La pizza costa sette euro e mezzo. Gli gnocchi della zia "
    "sono pronti; è già mezzogiorno! Ho chiesto lo zaino azzurro. La scienza, il ghiaccio.",
    "pm_alex": "Boa tarde, tudo bem? O coração não dói mais. Amanhã vou à praia com as crianças; "
    "que dia lindo! Trinta e três gatos. A irmã do João tem um caminhão. Os tios dele.",
}
HARD_WORDS = (
    "Loch Ness, rendezvous; a certain button in the mountain's garden. Nobody wrote the little "
    "bottle! Bach's jalapeño smörgåsbord? Water, bitter butter, uh-oh: rhythm, prism, chasm. "
    "Here in the fourth year the poor Moor sees fair hair; x² is π, Llanelli, São, 1984, 7th."
)


def phonemes(text: str, voice: str) -> list[str]:
    return [clause.phonemes for clause in Phonemizer().clauses(text, voice)]


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(g2p, "_loaded", {})


# espeak


def by_misaki(language: g2p.Language, patch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The original of what `g2p` makes of espeak's phonemes."""
    espeak: Any = pytest.importorskip("misaki.espeak")
    if language.espeak in ("en-us", "en-gb"):
        english = espeak.EspeakFallback(british=language.espeak == "en-gb")
        # It means to replace this, too, but only when "e" is something else already.
        english_sounds = [("e^ə", "ɛː"), *espeak.EspeakFallback.E2M]
        patch.setattr(espeak.EspeakFallback, "E2M", english_sounds)
        return lambda text: english(SimpleNamespace(text=text))[0] or ""
    other = espeak.EspeakG2P(language=language.espeak)
    return lambda text: str(other(text)[0])


@pytest.mark.parametrize("voice", ["af_heart", "bm_lewis", *ABROAD])
def test_espeak_gives_the_phonemes_that_kokoro_learnt_through_misaki(
    voice: str, monkeypatch: pytest.MonkeyPatch, nothing_loaded: None
) -> None:
    monkeypatch.setattr(g2p, "_lexicon_is_installed", lambda: False)
    texts = [ABROAD[voice]] if voice in ABROAD else [HARD_WORDS, *shipped_texts()]
    ours = [phonemes(text, voice) for text in texts]
    misaki = by_misaki(g2p.language_of(voice), monkeypatch)
    monkeypatch.setitem(g2p._loaded, voice[0], g2p._dealing(misaki))
    assert ours == [phonemes(text, voice) for text in texts]
    assert set(" ".join(clause for clauses in ours for clause in clauses)) <= set(DEFAULT_VOCAB)


WITHOUT = """
import json, sys
texts, missing = json.loads(sys.argv[1])
for name in missing:
    sys.modules[name] = None  # not to be imported, as if it were not installed
import headstart.engines.kokoro
from headstart.engines.kokoro.text.phonemes import Phonemizer
said = {
    voice: [clause.phonemes for clause in Phonemizer().clauses(text, voice)]
    for voice, text in texts.items()
}
print(json.dumps([said, [name for name in ("misaki", "spacy", "torch") if sys.modules.get(name)]]))
"""


@pytest.mark.parametrize("missing", [["misaki", "spacy"], ["en_core_web_sm"]])
def test_voices_speak_where_misaki_is_missing_and_import_nothing_heavy_in_vain(
    missing: list[str], monkeypatch: pytest.MonkeyPatch, nothing_loaded: None
) -> None:
    monkeypatch.setattr(g2p, "_lexicon_is_installed", lambda: False)
    texts = {"af_heart": "Near the car, a bath.", "bm_lewis": "Near the car, a bath."} | ABROAD
    said, heavy = result_of(WITHOUT, [texts, missing])
    assert heavy == []
    assert said == {voice: phonemes(text, voice) for voice, text in texts.items()}
    assert said["af_heart"] != said["bm_lewis"]


def result_of(script: str, argument: Any, path: Path | None = None) -> Any:
    """What a script prints last, as JSON, in a process of its own."""
    paths = [str(path)] if path else []
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(argument)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*paths, *sys.path])},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# misaki's lexicon

TAGGED = """
I/PRP record/VBP a/DT new/JJ record/NN every/DT day/NN
They/PRP record/VBP the/DT record/NN now/RB
We/PRP record/VBP it/PRP
The/DT record/NN is/VBZ old/JJ
It/PRP costs/VBZ 3/CD dollars/NNS and/CC 50/CD cents/NNS at/IN 10/CD 30/CD
We/PRP live/VBP near/IN the/DT capital/NN
The/DT office/NN cannot/MD deliver/VB the/DT blorvik/NN before/IN June/NNP
Come/VB at/IN ten/CD o'clock/: sharp/RB
"""
"""The tag of "o'clock" is a mistake, which is to be expected of any tagger."""


@pytest.fixture(scope="module")
def spacy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package like spaCy's English model, but it has read eight sentences."""
    pytest.importorskip("misaki.en")
    spacy: Any = pytest.importorskip("spacy")
    from spacy.training import Example

    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en", meta={"name": "core_web_sm", "version": "3.8.0"})
    nlp.add_pipe("tok2vec")
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96, "upstream": "tok2vec"}
    nlp.add_pipe(
        "tagger", config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}}
    )
    examples = []
    for line in TAGGED.strip().splitlines():
        words, tags = zip(*(word.split("/") for word in line.split()), strict=True)
        examples.append(
            Example.from_dict(spacy.tokens.Doc(nlp.vocab, words=list(words)), {"tags": tags})
        )
    nlp.initialize(lambda: examples)
    for _ in range(40):
        nlp.update(examples)

    site = tmp_path_factory.mktemp("site")
    package = site / "en_core_web_sm"
    package.mkdir()
    nlp.to_disk(package / "en_core_web_sm-3.8.0")
    (package / "meta.json").write_text(json.dumps(nlp.meta))
    (package / "__init__.py").write_text(
        "from spacy.util import load_model_from_init_py\n\n\n"
        "def load(**overrides):\n    return load_model_from_init_py(__file__, **overrides)\n"
    )
    declare(site)
    return site


def declare(site: Path) -> None:
    """Make what lies in a folder an installed package, as spaCy wants its models."""
    installed = site / "en_core_web_sm-3.8.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: en_core_web_sm\nVersion: 3.8.0\n"
    )


SPEAK = """
import json, sys
from loguru import logger
log = []
logger.add(lambda message: log.append(message.record["message"]))
from headstart.engines.kokoro.text.phonemes import Phonemizer
phonemizer = Phonemizer()
said = {
    voice: [
        [
            [word.text, clause.phonemes[word.start : word.end]]
            for clause in phonemizer.clauses(text, voice)
            for word in clause.words
        ]
        for text in json.loads(sys.argv[1])
    ]
    for voice in ("af_heart", "bm_lewis")
}
print(json.dumps([said, [message for message in log if "phonemes" in message]]))
"""


def test_english_is_said_as_in_misakis_lexicon_and_by_espeak_where_that_fails(
    spacy_model: Path, monkeypatch: pytest.MonkeyPatch, nothing_loaded: None
) -> None:
    texts = [
        "We live near the capital.",
        "They record the record now.",
        "The blorvik cannot deliver, the office said.",
        "Come at 10:00!",
        "It costs $3.50 at 10:30.",
        "It costs 3 dollars and 50 cents at 10 30.",
        "In 1984, $9,050 for room 0042.",
        "9" * 400,
    ]
    said, log = result_of(SPEAK, texts, spacy_model)
    assert log == [
        "American English phonemes: misaki's lexicon",
        "British English phonemes: misaki's lexicon",
    ]
    for voice in said:
        for text, words in zip(texts, said[voice], strict=True):
            assert [word for word, _ in words] == text.split()
            assert all(phonemes for _, phonemes in words)
    american, british = (
        [[phonemes for _, phonemes in words] for words in said[voice]] for voice in said
    )

    # From the lexicon, which espeak contradicts.
    assert american[0] == ["wˌi", "lˈɪv", "nˌɪɹ", "ðə", "kˈæpəTᵊl"]
    assert british[0] == ["wˌiː", "lˈɪv", "nˌɪə", "ðə", "kˈapɪtᵊl"]
    # A verb and a noun.
    assert american[1] == ["ðˌA", "ɹəkˈɔɹd", "ðə", "ɹˈɛkəɹd", "nˈW"]
    # "the" before a consonant and before a vowel.
    assert (american[2][0], american[2][4]) == ("ðə", "ði")
    # As wording.py writes it.
    for voice in (american, british):
        money, time = voice[4][2], voice[4][4]
        assert [money, time] == [" ".join(voice[5][2:7]), " ".join(voice[5][8:])]
    # A year, an amount, and digits of which none is lost.
    assert american[6][1] == "nˌIntˈin ˈATi fˈɔɹ"
    assert american[6][2] == "nˈIn θˈWzᵊnd fˈɪfti dˈɑləɹz"
    assert american[6][5] == "zˈɪɹO zˈɪɹO fˈɔɹ tˈu"

    monkeypatch.setattr(g2p, "_lexicon_is_installed", lambda: False)
    assert phonemes(texts[0], "af_heart") != [" ".join(american[0]) + "."]
    # No word of the lexicon; taken for punctuation by the tagger; more than misaki can count.
    assert american[2][1] == phonemes("blorvik", "af_heart")[0]
    assert american[3][2] == " ".join(["tˈɛn", *phonemes("o'clock", "af_heart")])
    assert american[7] == phonemes(texts[7], "af_heart")[:1]


@pytest.mark.parametrize("known", [True, False], ids=["model broken", "model unknown to spaCy"])
def test_a_broken_installation_of_misaki_is_warned_of_once_and_espeak_speaks(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_loaded: None
) -> None:
    pytest.importorskip("misaki.en")
    spacy: Any = pytest.importorskip("spacy")
    with monkeypatch.context() as patch:
        patch.setattr(g2p, "_lexicon_is_installed", lambda: False)
        by_espeak = phonemes("Near the capital.", "af_heart")
    monkeypatch.setattr(g2p, "_loaded", {})

    (tmp_path / "en_core_web_sm").mkdir()
    (tmp_path / "en_core_web_sm" / "__init__.py").write_text("raise ValueError('of another spaCy')")
    declare(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "en_core_web_sm", raising=False)
    if not known:
        monkeypatch.setattr(spacy.util, "is_package", lambda name: False)
        monkeypatch.setattr(spacy.cli, "download", lambda name: pytest.fail("downloads the model"))
    log: list[str] = []
    sink = logger.add(lambda message: log.append(message), level="WARNING", format="{message}")
    try:
        assert phonemes("Near the capital.", "af_heart") == by_espeak
        assert phonemes("Near the capital.", "am_adam") == by_espeak
    finally:
        logger.remove(sink)
    assert len(log) == 1
    assert "espeak" in log[0]
    assert ("of another spaCy" if known else "en_core_web_sm") in log[0]
