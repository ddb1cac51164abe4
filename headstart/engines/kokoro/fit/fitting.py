"""Fits the predictor of norm statistics: `python -m headstart.engines.kokoro.fit OUT.npz 120`.

Speaks stretches of sentences with each English voice as a whole, records what the instance norms
measure, and regresses it on the front end's output (ridge regression, then the best low-rank
approximation of what it predicts: Izenman 1975, "Reduced-rank regression for the multivariate
linear model"). The more is recorded, the truer the voice; 120 stretches a voice take about an
hour on two cores.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain, repeat
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
from headstart.engines.kokoro.text.phonemes import Phonemizer
from headstart.engines.kokoro.torch.front import FrontEnd
from headstart.engines.kokoro.torch.norms import GROUPS, MAIN, Features, targets_of
from headstart.engines.kokoro.torch.pair import Pair
from headstart.engines.kokoro.torch.stream import Generator
from headstart.engines.kokoro.torch.weights import load_weights, under
from headstart.engines.kokoro.voices import Voices

RANK = 320
GLANCE = 128
"""Main directions of the features, to which each voice has weights of its own."""
OWN = 0.5
"""How far these may go, compared with those that all voices share."""
RIDGE = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
_WEIGHTS = (*(1.0 for _ in GROUPS[:-1]), 3.0)
"""How much each kind of features counts. Means follow the style more than all else."""
_CHANNELS = (6 * 256, 6 * 128, 18 * 256, 18 * 128)
"""Of the branches for the source in both stages, then of the stages themselves."""
_HEARD = (0.21, 0.21, 0.82, 1.0, 0.08, 0.10, 0.28, 0.36)
"""How much an error is heard in these, of means in standard deviations, then of logarithms of
variances: the gradient of the log-mel spectrum, by back-propagation through 37 clauses."""
_FOLDS, _SAMPLED = 5, 256
_WHOLE, _JOINED = 0.25, 0.05
"""Shares of sentences that are spoken whole, and together with another one."""
_FEW_WORDS = 6


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
    text = (files("headstart.engines.kokoro.fit") / "sentences.txt").read_text("utf-8")
    return text.strip().splitlines()


def record(voice: str, number: int) -> list[Record]:
    """What a voice makes of so many stretches of the sentences, at slightly varied speeds."""
    weights = model_file(assets.path(MODEL))
    styles, phonemizer, texts = Voices(assets.path(VOICES)), Phonemizer(), sentences()
    parameters, pair = load_weights(weights), Pair(1)
    front_end = FrontEnd(parameters, pair)
    generator = Generator(under("decoder.generator.", parameters), pair)
    random = np.random.default_rng([20, styles.names.index(voice)])
    torch.manual_seed(styles.names.index(voice))
    torch.set_num_threads(1)
    records: list[Record] = []
    while len(records) < number:
        text = int(random.integers(len(texts)))
        clause = next(phonemizer.clauses(_stretch(texts, text, random), voice))
        tokens = np.array([DEFAULT_VOCAB[phoneme] for phoneme in clause.phonemes], np.int64)
        style, speed = styles.style(voice, len(tokens)), float(random.uniform(0.9, 1.15))
        with torch.inference_mode():
            front = front_end(tokens, style, speed, Abort())
            _, means, variances = generator.whole(front, Abort())
            records.append(
                Record(
                    voice,
                    text,
                    front.x.half().numpy(),
                    front.pitch.numpy(),
                    front.energy.numpy(),
                    front.style.numpy(),
                    targets_of(means, variances).numpy(),
                )
            )
    logger.info(f"{voice}: {len(records)} recorded")
    return records


def _stretch(texts: list[str], text: int, random: np.random.Generator) -> str:
    """Mostly a few words of the sentence: short clauses are the hardest, and cost the least."""
    words, kind = texts[text].split(), random.random()
    if kind < _WHOLE:
        return texts[text]
    if kind < _WHOLE + _JOINED:
        # The other is one that cross-validation leaves out at the same time.
        other = random.choice(range(text % _FOLDS, len(texts), _FOLDS))
        return f"{texts[text].rstrip('.!?')}, {texts[other]}"
    few = int(random.integers(1, min(len(words), _FEW_WORDS) + 1))
    start = int(random.integers(len(words) - few + 1))
    said = " ".join(words[start : start + few])
    return said + str(random.choice([",", ".", ""])) if said[-1].isalnum() else said


def fit(records: list[Record]) -> dict[str, NDArray[Any]]:
    """The arrays of a `NormPredictor`."""
    voices = sorted({record.voice for record in records})
    number = np.array([voices.index(record.voice) for record in records])
    frames = np.concatenate([record.x[::8] for record in records]).astype(np.float32)
    input_middle, input_scale = frames.mean(0), frames.std(0)
    _, directions = np.linalg.eigh(np.cov((frames - input_middle) / input_scale, rowvar=False))
    input_main = directions[:, -MAIN:].astype(np.float16)
    seen = Features(
        torch.from_numpy(input_middle),
        torch.from_numpy(input_scale),
        torch.from_numpy(input_main.astype(np.float32)),
    )
    features, middle, scale, of_voice = _features(records, number, seen)

    targets = np.stack([record.targets for record in records])
    averages = np.stack([targets[number == n].mean(0) for n in range(len(voices))])
    half = targets.shape[1] // 2
    targets -= averages[number]
    targets[:, :half] /= np.exp(averages[number][:, half:] / 2)

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
        "input_main": input_main,
        "feature_middle": middle.astype(np.float32),
        "feature_scale": scale.astype(np.float32),
        **_regression(features, of_voice, number, targets, [record.text for record in records]),
    }


def _regression(
    features: NDArray[np.float64],
    of_voice: NDArray[np.float64],
    number: NDArray[np.int64],
    targets: NDArray[np.float32],
    texts: list[int],
) -> dict[str, NDArray[Any]]:
    """The weights from features to targets."""
    heard = np.repeat(_HEARD, 2 * _CHANNELS).astype(np.float32)
    targets = targets * heard
    _, directions = np.linalg.eigh(features.T @ features)
    glance, glance_step = _bytes(directions[:, -GLANCE:], axis=0)
    glanced = features @ (glance * glance_step)
    kernel = features @ features.T
    kernel += OWN * (number[:, None] == number) * (glanced @ glanced.T)

    ridge = _best_ridge(kernel, targets, np.array(texts) % _FOLDS)
    dual = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), targets)
    strengths, directions = _main_directions(kernel @ dual)
    # Half of the strength on either side, so that on both what is weak takes few bits.
    dual = dual @ directions.T / np.sqrt(strengths)
    inward, inward_step = _bytes(features.T @ dual)
    voices = range(len(of_voice))
    own, own_step = _bytes(
        OWN * np.stack([glanced[number == n].T @ dual[number == n] for n in voices])
    )
    outward, outward_step = _bytes(directions * np.sqrt(strengths)[:, None])
    glances = of_voice @ (glance * glance_step)
    offsets = of_voice @ (inward * inward_step)
    offsets += np.stack([glances[n] @ (own[n] * own_step) for n in voices])
    return {
        "inward": inward,
        "inward_step": inward_step,
        "glance": glance,
        "glance_step": glance_step,
        "own": own,
        "own_step": own_step,
        "offsets": offsets.astype(np.float32),
        "outward": outward,
        "outward_step": outward_step / heard,
    }


def _main_directions(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The strongest of a singular value decomposition, and how strong they are."""
    squares, left = np.linalg.eigh(values @ values.T)
    kept = np.flatnonzero(squares > 1e-9 * squares[-1])[: -RANK - 1 : -1]
    strengths = np.sqrt(squares[kept])
    return strengths, left[:, kept].T @ values / strengths[:, None]


def _features(
    records: list[Record],
    number: NDArray[np.int64],
    seen: Features,
) -> tuple[NDArray[np.float64], ...]:
    """Scaled deviations from the voice's averages; middle, scale, and the voices' averages."""
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


def _best_ridge(
    kernel: NDArray[np.float64], targets: NDArray[np.float32], fold_of: NDArray[np.int64]
) -> float:
    """The best of `RIDGE` by cross-validation in which no sentence is on both sides."""
    # Some random directions of the targets tell as much as all.
    random = np.random.default_rng(20).standard_normal((targets.shape[1], _SAMPLED))
    sampled, scores = targets @ random, []
    for ridge in RIDGE:
        lost = 0.0
        for fold in range(_FOLDS):
            out = fold_of == fold
            inside = kernel[np.ix_(~out, ~out)] + ridge * np.eye(int((~out).sum()))
            dual = np.linalg.solve(inside, sampled[~out])
            lost += float(((sampled[out] - kernel[np.ix_(out, ~out)] @ dual) ** 2).sum())
        scores.append(1 - lost / float((sampled**2).sum()))
        logger.info(f"ridge {ridge:g}: R2 on sentences left out {scores[-1]:.3f}")
    return RIDGE[int(np.argmax(scores))]


def main(out: Path, number: int) -> None:
    """Fit on all English voices and write the predictor's data."""
    english = [name for name in Voices(assets.path(VOICES)).names if name[0] in "ab"]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        records = [*chain(*pool.map(record, english, repeat(number)))]
    np.savez_compressed(out, **fit(records))  # type: ignore[arg-type]
