"""Fits the predictor of norm statistics: `python -m headstart.engines.kokoro.fit OUT.npz`.

Speaks sentences with each English voice as a whole, records what the instance norms measure,
and regresses it on the front end's output (ridge regression, then the best low-rank
approximation of what it predicts: Izenman 1975, "Reduced-rank regression for the multivariate
linear model"). The more sentences, the truer the voice; `fit OUT.npz 40` takes about half an
hour on two cores.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.resources import files
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
from headstart.engines.kokoro.front import FrontEnd
from headstart.engines.kokoro.norms import GROUPS, KINDS, Features, targets_of
from headstart.engines.kokoro.pair import Pair
from headstart.engines.kokoro.phonemes import Phonemizer
from headstart.engines.kokoro.stream import Generator
from headstart.engines.kokoro.voices import Voices
from headstart.engines.kokoro.weights import load_weights, under

RANK = 48
RIDGE = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 3.0)
"""How much each kind of features counts. Means follow the style more than all else."""
_SOURCE_CHANNELS, _SOURCE_IMPORTANCE = 6 * 256 + 6 * 128, 0.3
"""The first channels are of the branches for the source; errors there are hardly heard."""
_FOLDS = 5


@dataclass(frozen=True)
class Record:
    """A sentence as a voice speaks it."""

    voice: str
    text: int
    x: NDArray[np.float16]
    pitch: NDArray[np.float32]
    energy: NDArray[np.float32]
    style: NDArray[np.float32]
    targets: NDArray[np.float32]


def sentences() -> list[str]:
    """What is spoken; other texts than those that quality is measured on."""
    text = (files("headstart.engines.kokoro") / "fit_sentences.txt").read_text("utf-8")
    return text.strip().splitlines()


def record(voices: list[str], number: int, threads: int) -> list[Record]:
    """Speak so many sentences with each voice, at slightly varied speeds."""
    weights = model_file(assets.path(MODEL))
    styles, phonemizer, texts = Voices(assets.path(VOICES)), Phonemizer(), sentences()
    parameters, pair = load_weights(weights), Pair(threads)
    front_end = FrontEnd(parameters, pair)
    generator = Generator(under("decoder.generator.", parameters), pair)
    random = np.random.default_rng(20)
    records = []
    torch.set_num_threads(1)
    for voice in voices:
        for text in random.permutation(len(texts))[:number]:
            clause = next(phonemizer.clauses(texts[text], voice))
            tokens = np.array([DEFAULT_VOCAB[phoneme] for phoneme in clause.phonemes], np.int64)
            style, speed = styles.style(voice, len(tokens)), float(random.uniform(0.9, 1.15))
            with torch.inference_mode():
                front = front_end(tokens, style, speed, Abort())
                _, means, variances = generator.whole(front, Abort())
                records.append(
                    Record(
                        voice,
                        int(text),
                        front.x.half().numpy(),
                        front.pitch.numpy(),
                        front.energy.numpy(),
                        front.style.numpy(),
                        targets_of(means, variances).numpy(),
                    )
                )
        logger.info(f"{voice}: {len(records)} sentences recorded")
    pair.close()
    return records


def fit(records: list[Record]) -> dict[str, NDArray[Any]]:
    """The arrays of a `NormPredictor`."""
    voices = sorted({record.voice for record in records})
    number = np.array([voices.index(record.voice) for record in records])
    frames = np.concatenate([record.x[::4] for record in records]).astype(np.float32)
    input_middle, input_scale = frames.mean(0), frames.std(0)
    features, middle, scale, of_voice = _features(records, number, input_middle, input_scale)

    targets = np.stack([record.targets for record in records]).astype(np.float64)
    averages = np.stack([targets[number == n].mean(0) for n in range(len(voices))])
    half = targets.shape[1] // 2
    deviations = targets - averages[number]
    deviations[:, :half] /= np.exp(averages[number][:, half:] / 2)

    texts = np.array([record.text for record in records])
    regressions: dict[str, NDArray[Any]] = {}
    for kind, part in zip(KINDS, np.split(deviations, 2, axis=1), strict=True):
        found = _regression(features, of_voice, part, texts)
        regressions |= {f"{kind}_{name}": value for name, value in found.items()}

    averages_middle = averages.mean(0).astype(np.float16)
    channel_step = np.abs(averages - averages_middle).max(0).astype(np.float16) / 127
    channel_step = channel_step.clip(1e-5)
    return {
        "voices": np.array(voices),
        "averages": np.round((averages - averages_middle) / channel_step).astype(np.int8),
        "averages_step": channel_step.astype(np.float16),
        "averages_middle": averages_middle,
        "input_middle": input_middle,
        "input_scale": input_scale,
        "feature_middle": middle.astype(np.float32),
        "feature_scale": scale.astype(np.float32),
        **regressions,
    }


def _regression(
    features: NDArray[np.float64],
    of_voice: NDArray[np.float64],
    targets: NDArray[np.float64],
    texts: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """The weights from features to targets, of low rank."""
    importance = np.ones(targets.shape[1])
    importance[:_SOURCE_CHANNELS] = _SOURCE_IMPORTANCE
    weighted = targets * importance
    ridge, score = _best_ridge(features, weighted, texts)
    weights = _ridge(features, weighted, ridge)
    _, strengths, directions = np.linalg.svd(features @ weights, full_matrices=False)
    inward, inward_step = _bytes((weights @ directions[:RANK].T) / strengths[:RANK], axis=0)
    outward, outward_step = _bytes(directions[:RANK] * strengths[:RANK, None] / importance)
    logger.info(f"ridge {ridge:g}: R2 on sentences left out {score:.3f}")
    return {
        "inward": inward,
        "inward_step": inward_step,
        "offsets": (of_voice @ (inward * inward_step)).astype(np.float32),
        "outward": outward,
        "outward_step": outward_step,
    }


def _features(
    records: list[Record],
    number: NDArray[np.int64],
    input_middle: NDArray[np.float32],
    input_scale: NDArray[np.float32],
) -> tuple[NDArray[np.float64], ...]:
    """Scaled deviations from the voice's averages; middle, scale, and the voices' averages."""
    seen = Features(torch.from_numpy(input_middle), torch.from_numpy(input_scale))
    found: NDArray[np.float64] = np.stack(
        [
            seen.of(
                torch.from_numpy(record.x).float(),
                torch.from_numpy(record.pitch),
                torch.from_numpy(record.energy),
                torch.from_numpy(record.style),
            ).numpy()
            for record in records
        ]
    ).astype(np.float64)
    middle = found.mean(0)
    found -= middle
    of_voice = np.stack([found[number == n].mean(0) for n in range(number.max() + 1)])
    found -= of_voice[number]
    # Each kind of features weighs the same, however many there are of it.
    scale = found.std(0).clip(1e-4) * np.repeat(np.sqrt(GROUPS) / _WEIGHTS, GROUPS)
    return found / scale, middle, scale, of_voice / scale


def _bytes(
    values: NDArray[np.float64], axis: int | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """In 255 steps of the same size, along the axis or all: what is small compresses well."""
    step = np.abs(values).max(axis) / 127
    return np.round(values / step).astype(np.int8), np.array(step, np.float32)


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
    gram, scores = features @ features.T, []
    for ridge in RIDGE:
        lost = 0.0
        for fold in range(_FOLDS):
            out = texts % _FOLDS == fold
            inside = gram[np.ix_(~out, ~out)] + ridge * np.eye(int((~out).sum()))
            dual = np.linalg.solve(inside, targets[~out])
            lost += float(((targets[out] - gram[np.ix_(out, ~out)] @ dual) ** 2).sum())
        scores.append(1 - lost / float((targets**2).sum()))
        logger.info(f"ridge {ridge:g}: R2 {scores[-1]:.3f}")
    best = int(np.argmax(scores))
    return RIDGE[best], scores[best]


def main(out: Path, number: int) -> None:
    """Fit on all English voices and write the predictor's data."""
    english = [name for name in Voices(assets.path(VOICES)).names if name[0] in "ab"]
    np.savez_compressed(out, **fit(record(english, number, threads=2)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
