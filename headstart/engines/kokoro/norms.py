"""What the generator's instance norms would measure over a clause, predicted before it is made.

A ridge regression from the front end's output to the mean and variance of every channel in
every norm, as deviations from the voice's own averages; the same weights for all voices, of
low rank. `headstart.engines.kokoro.fit` makes the data.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.engines.kokoro.front import Front

_SILENT = 1e-2
"""Magnitude of the source below which a step is unvoiced."""


class NormPredictor:
    """Predicts the statistics of a clause for the voices that it was fitted on."""

    def __init__(self, data: dict[str, NDArray[np.generic]]) -> None:
        """Use the arrays that `fit` has written."""
        self._voices = {str(name): number for number, name in enumerate(data["voices"])}
        self._averages = torch.from_numpy(data["averages"].astype(np.float32))
        self._feature_averages = torch.from_numpy(data["feature_averages"].astype(np.float32))
        self._feature_scale = torch.from_numpy(data["feature_scale"].astype(np.float32))
        self._inward = torch.from_numpy(data["inward"].astype(np.float32))
        self._outward = torch.from_numpy(data["outward"].astype(np.float32))

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

    def predict(self, voice: str, front: Front) -> tuple[Tensor, Tensor]:
        """Means and variances of all channels of all norms, in the generator's order."""
        number = self._voices[voice]
        features = (features_of(front) - self._feature_averages[number]) / self._feature_scale
        mean, log_variance = self._averages[number].chunk(2)
        shift, growth = ((features @ self._inward) @ self._outward).chunk(2)
        return mean + shift * torch.exp(log_variance / 2), torch.exp(log_variance + growth)


def features_of(front: Front) -> Tensor:
    """What the regression sees of a clause; shape (1048,)."""
    magnitude = front.source[0, :11]
    voiced = (magnitude[2:].sum(0) > _SILENT).float().mean()
    x = front.x[0]
    return torch.cat(
        [
            x.mean(1),
            x.std(1).clamp_min(1e-4).log(),
            torch.log(magnitude.mean(1) + 1e-3),
            torch.log(magnitude.std(1) + 1e-3),
            voiced[None],
            torch.tensor([float(np.log(x.shape[1]))]),
        ]
    )


def targets_of(means: Tensor, variances: Tensor) -> Tensor:
    """Means and logarithms of variances, one after the other, as `averages` has them."""
    return torch.cat([means, variances.clamp_min(1e-8).log()])
