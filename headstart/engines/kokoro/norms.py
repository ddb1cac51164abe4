"""What the generator's instance norms would measure over a clause, predicted before it is made.

Ridge regressions from the front end's output to the mean and to the variance of every channel
in every norm, as deviations from the voice's own averages; the same weights for all voices, of
low rank. What they see of a clause is its style, which Kokoro chooses by the number of
phonemes, and averages over time: of the generator's input, of random rectified projections of
it (Rahimi and Recht 2008, "Weighted sums of random kitchen sinks"), and of how often pitch and
energy are where. `headstart.engines.kokoro.fit` makes the data.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHANNELS = 512
"""Of the generator's input."""
PROJECTIONS = 768
STYLE = 128
"""Numbers in a style."""
KINDS = ("mean", "variance")
"""What is predicted of a channel, by a regression of its own."""
_PITCHES_HZ = np.geomspace(60, 450, 16)
_ENERGIES = np.linspace(-9.7, 9.1, 12)
"""Where energy mostly is: 1st to 99th percentile of the sentences of the fit."""
_UNVOICED_HZ = 10.0


class NormPredictor:
    """Predicts the statistics of a clause for the voices that it was fitted on."""

    def __init__(self, data: dict[str, NDArray[np.generic]]) -> None:
        """Use the arrays that `fit` has written."""

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(data[name].astype(np.float32))

        self._voices = {str(name): number for number, name in enumerate(data["voices"])}
        averages = tensor("averages") * tensor("averages_step") + tensor("averages_middle")
        self._means, log_variances = averages.chunk(2, dim=1)
        self._deviations, self._variances = (log_variances / 2).exp(), log_variances.exp()
        self._middle = tensor("feature_middle")
        scale = tensor("feature_scale")[:, None]
        self._regressions = [
            (
                tensor(f"{kind}_inward") * tensor(f"{kind}_inward_step") / scale,
                tensor(f"{kind}_offsets"),
                tensor(f"{kind}_outward") * tensor(f"{kind}_outward_step"),
            )
            for kind in KINDS
        ]
        self._features = Features(tensor("input_middle"), tensor("input_scale"))

    @classmethod
    def shipped(cls) -> NormPredictor | None:
        """The predictor that comes with the package; None where it has been left out."""
        file = files("headstart.engines.kokoro") / "norms.npz"
        if not file.is_file():
            return None
        with file.open("rb") as stream, np.load(stream) as data:
            return cls(dict(data))

    def knows(self, voice: str) -> bool:
        """Whether it was fitted on the voice."""
        return voice in self._voices

    def predict(
        self, voice: str, x: Tensor, pitch: Tensor, energy: Tensor, style: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means and variances of all channels of all norms, in the generator's order.

        Args:
            voice: One that it knows.
            x: The generator's input, shape (frames, 512).
            pitch: In Hz, shape (frames,).
            energy: Shape (frames,).
            style: Shape (1, 128).
        """
        number = self._voices[voice]
        seen = self._features.of(x, pitch, energy, style) - self._middle
        shift, growth = (
            (seen @ inward - offsets[number]) @ outward
            for inward, offsets, outward in self._regressions
        )
        return (
            self._means[number] + shift * self._deviations[number],
            self._variances[number] * torch.exp(growth),
        )


class Features:
    """What the regression sees of a clause."""

    def __init__(self, middle: Tensor, scale: Tensor) -> None:
        """Set what is usual.

        Args:
            middle: Mean of each channel of the generator's input, shape (512,).
            scale: Their standard deviation.
        """
        # A legacy generator, because its numbers are promised to stay the same for ever.
        random = np.random.RandomState(20)
        weights = 2 * random.standard_normal((CHANNELS, PROJECTIONS)) / CHANNELS**0.5
        bias = random.uniform(-1, 1, PROJECTIONS)
        self._weights = torch.from_numpy(weights.astype(np.float32)) / scale[:, None]
        self._bias = torch.from_numpy(bias.astype(np.float32)) - middle @ self._weights
        self._pitches = torch.from_numpy(np.log(_PITCHES_HZ).astype(np.float32))
        self._energies = torch.from_numpy(_ENERGIES.astype(np.float32))

    def of(self, x: Tensor, pitch: Tensor, energy: Tensor, style: Tensor) -> Tensor:
        """Averages over the clause, and its style; shape (1980,). Arguments as for `predict`."""
        voiced = (pitch > _UNVOICED_HZ).float()
        log_pitch = pitch.clamp_min(40).log()
        heights = _shares(log_pitch, self._pitches) * voiced[:, None]
        loudness = _shares(energy, self._energies)
        change = torch.diff(log_pitch, prepend=log_pitch[:1]).abs() * voiced
        # Neighbours are alike: every other frame will do for the costly part.
        kinks = torch.addmm(self._bias, x[::2], self._weights).relu_()
        deviation, mean = torch.std_mean(x, dim=0)
        return torch.cat(
            [
                mean,
                deviation.clamp_min(1e-4).log(),
                kinks.mean(0),
                heights.mean(0),
                loudness.mean(0),
                (loudness * voiced[:, None]).mean(0),
                (heights * energy[:, None]).mean(0),
                torch.stack(
                    [
                        change.mean(),
                        voiced.mean(),
                        pitch.mean() / 100,
                        (pitch**2).mean() / 1e4,
                    ]
                ),
                style[0],
            ]
        )


GROUPS = (CHANNELS, CHANNELS, PROJECTIONS, 2 * len(_PITCHES_HZ) + 2 * len(_ENERGIES) + 4, STYLE)
"""How many features there are of each kind, in order."""


def _shares(values: Tensor, knots: Tensor) -> Tensor:
    """How near each value is to each knot: 1 on it, 0 at its neighbours; (values, knots)."""
    inside = values.clamp(knots[0], knots[-1])
    return (1 - (inside[:, None] - knots).abs() / (knots[1] - knots[0])).clamp_min(0)


def targets_of(means: Tensor, variances: Tensor) -> Tensor:
    """Means and logarithms of variances, one after the other, as `averages` has them."""
    return torch.cat([means, variances.clamp_min(1e-8).log()])
