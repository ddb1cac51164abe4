"""Fits the predictor of norm statistics: `python -m headstart.engines.kokoro.fit OUT.npz`.

Speaks sentences with each English voice as a whole, records what the instance norms measure,
and regresses it on the front end's output (ridge regression, then the best low-rank
approximation of what it predicts: Izenman 1975, "Reduced-rank regression for the multivariate
linear model"). Takes about half an hour on two cores.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kokoro_onnx.config import DEFAULT_VOCAB
from loguru import logger
from numpy.typing import NDArray

from headstart import assets
from headstart.engines.kokoro.backend import Abort
from headstart.engines.kokoro.engine import MODEL, VOICES, model_file
from headstart.engines.kokoro.front import front_end
from headstart.engines.kokoro.norms import features_of, targets_of
from headstart.engines.kokoro.phonemes import Phonemizer
from headstart.engines.kokoro.stream import Generator
from headstart.engines.kokoro.voices import Voices
from headstart.engines.kokoro.weights import load_model

SENTENCES = """
Sure.
Of course I can.
No, not really.
Let me think about that for a second.
What a lovely idea!
Which day would suit you best?
I am sorry, I did not catch the last part.
The shop opens at nine and closes at half past five.
Your parcel left the warehouse this morning, and it should be with you tomorrow.
Bring the water to the boil, add a pinch of salt,
and stir it slowly until the sugar has gone.
There are seven messages waiting for you.
Mount Everest is the highest mountain above sea level.
He was born in a small village near the coast, a long way from any road.
Could you tell me your date of birth, please?
That depends on how much time you have.
Good evening, and welcome back.
The quick answer is yes, but there is a longer one too.
Two tickets for the late show come to thirty one dollars.
Whales breathe air, just as we do.
I would take an umbrella, because it will probably rain after lunch.
Nothing is scheduled for Saturday.
Hmm, I have never heard of that one.
The bridge was built in eighteen eighty nine by a young engineer.
Turn the wheel gently to the left.
Please say that again, a little louder.
Light travels about three hundred thousand kilometres every second.
Done!
You might enjoy the garden behind the old library.
My battery is running low.
First, open the front cover; then push the green lever down.
Why would anyone paint a fence purple?
They played chess until well after midnight.
I can remind you an hour before it starts.
Thanks, that helps a lot.
It sounds like you had quite a journey.
A healthy adult heart beats between sixty and one hundred times a minute.
We are closed on public holidays.
The answer, as far as anyone knows, is forty two.
Speak to you soon.
""".strip().splitlines()

RANK = 64
RIDGE = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Record:
    """A sentence as a voice speaks it."""

    voice: str
    text: int
    features: NDArray[np.float32]
    targets: NDArray[np.float32]


def record(voices: list[str], sentences: int, threads: int) -> list[Record]:
    """Speak so many sentences with each voice, at slightly varied speeds."""
    weights = model_file(assets.path(MODEL))
    styles, phonemizer = Voices(assets.path(VOICES)), Phonemizer()
    model = load_model(weights)
    generator = Generator(model.decoder.generator, threads)
    random = np.random.default_rng(20)
    records = []
    for voice in voices:
        for number in random.permutation(len(SENTENCES))[:sentences]:
            clause = next(phonemizer.clauses(SENTENCES[number], voice))
            tokens = np.array([DEFAULT_VOCAB[phoneme] for phoneme in clause.phonemes], np.int64)
            with torch.inference_mode():
                front = front_end(
                    model,
                    tokens,
                    styles.style(voice, len(tokens)),
                    float(random.uniform(0.9, 1.15)),
                    Abort(),
                )
                _, measured = generator.whole(front.x, front.source, front.style, Abort())
                means = torch.cat([measured[layer][0] for layer in generator.layers])
                variances = torch.cat([measured[layer][1] for layer in generator.layers])
                records.append(
                    Record(
                        voice,
                        int(number),
                        features_of(front).numpy(),
                        targets_of(means, variances).numpy(),
                    )
                )
        logger.info(f"{voice}: {len(records)} sentences recorded")
    generator.close()
    return records


def fit(records: list[Record]) -> dict[str, NDArray[np.generic]]:
    """The arrays of a `NormPredictor`."""
    voices = sorted({record.voice for record in records})
    number = np.array([voices.index(record.voice) for record in records])
    features: NDArray[Any] = np.stack([r.features for r in records]).astype(np.float64)
    targets = np.stack([record.targets for record in records]).astype(np.float64)
    averages = np.stack([targets[number == n].mean(0) for n in range(len(voices))])
    feature_averages = np.stack([features[number == n].mean(0) for n in range(len(voices))])

    half = targets.shape[1] // 2
    deviations = targets - averages[number]
    deviations[:, :half] /= np.exp(averages[number][:, half:] / 2)
    features -= feature_averages[number]
    scale = features.std(0).clip(1e-4)
    # The two kinds of features weigh the same, however many there are of each.
    scale[:1024] *= 1024**0.5
    scale[1024:] *= (features.shape[1] - 1024) ** 0.5
    features /= scale

    ridge, score = _best_ridge(features, deviations, np.array([r.text for r in records]))
    weights = _ridge(features, deviations, ridge)
    _, _, directions = np.linalg.svd(features @ weights, full_matrices=False)
    outward = directions[:RANK]
    logger.info(f"ridge {ridge:g}: R2 on sentences left out {score:.3f}")
    return {
        "voices": np.array(voices),
        "averages": averages.astype(np.float16),
        "feature_averages": feature_averages.astype(np.float32),
        "feature_scale": scale.astype(np.float32),
        "inward": (weights @ outward.T).astype(np.float32),
        "outward": outward.astype(np.float16),
    }


def _ridge(
    features: NDArray[np.float64], targets: NDArray[np.float64], ridge: float
) -> NDArray[np.float64]:
    gram = features @ features.T
    dual = np.linalg.solve(gram + ridge * np.eye(len(gram)), targets)
    return np.asarray(features.T @ dual, np.float64)


def _best_ridge(
    features: NDArray[np.float64], targets: NDArray[np.float64], texts: NDArray[np.int64]
) -> tuple[float, float]:
    """The best of `RIDGE` by cross-validation in which no sentence is on both sides."""
    scores = []
    for ridge in RIDGE:
        lost = 0.0
        for fold in range(5):
            out = texts % 5 == fold
            weights = _ridge(features[~out], targets[~out], ridge)
            lost += float(((targets[out] - features[out] @ weights) ** 2).sum())
        scores.append(1 - lost / float((targets**2).sum()))
        logger.info(f"ridge {ridge:g}: R2 {scores[-1]:.3f}")
    best = int(np.argmax(scores))
    return RIDGE[best], scores[best]


def main(out: Path, sentences: int = 20) -> None:
    """Fit on all English voices and write the predictor's data."""
    english = [name for name in Voices(assets.path(VOICES)).names if name[0] in "ab"]
    np.savez_compressed(out, **fit(record(english, sentences, threads=2)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
