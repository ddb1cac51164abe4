"""What the generator's instance norms would measure over a clause, predicted before it is made.

A ridge regression from the front end's output to the mean and the variance of every channel in
every norm, as deviations from the voice's own averages. Its weights are the same for all
voices, and to what can be told from the main directions of the features each voice adds weights
of its own (Evgeniou and Pontil 2004, "Regularized multi-task learning"); what comes out is of
low rank. What is seen of a clause is its style, which Kokoro chooses by the number of phonemes,
and averages over time: of the generator's input, of random rectified projections of it (Rahimi
and Recht 2008, "Weighted sums of random kitchen sinks"), and of how often pitch and energy are
where. `headstart.engines.kokoro.fit.fitting` makes the data.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.engines.kokoro.torch.pair import Pair

CHANNELS = 512
"""Of the generator's input."""
MAIN = 128
"""Main directions of the generator's input; they hold 97 % of its variance."""
WINDOWS = ((0,), (0, 1), (0, 2, 4), (0, 3, 6))
"""Frames that are projected together."""
PROJECTIONS = 1024
"""Of each kind of window."""
STYLE = 128
"""Numbers in a style."""
_LATE = (1, 3)
"""Kinds of window that the helper sees to."""
_PITCHES_HZ = np.geomspace(60, 450, 16)
_ENERGIES = np.linspace(-9.7, 9.1, 12)
"""Where energy mostly is: 1st to 99th percentile of the sentences of the fit."""
_UNVOICED_HZ = 10.0
LOUDER_DB = 0.08
"""By so much, clauses made with predicted statistics are louder than with their own: the mean of
260 clauses of the fit's sentences, by a fit that had left these out; 0.06 to 0.13 by length."""
_ENOUGH = 128
"""Windows of a clause that are looked at: neighbours are alike."""


class NormPredictor:
    """Predicts the statistics of a clause for the voices that it was fitted on."""

    def __init__(self, data: dict[str, NDArray[np.generic]], pair: Pair | None = None) -> None:
        """Use the arrays that `fit` has written; `pair` shares the work."""
        self._pair = pair or Pair(1)

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(data[name].astype(np.float32))

        self._voices = {str(name): number for number, name in enumerate(data["voices"])}
        averages = tensor("averages") * tensor("averages_step") + tensor("averages_middle")
        self._means, log_variances = averages.chunk(2, dim=1)
        self._deviations, self._variances = (log_variances / 2).exp(), log_variances.exp()
        self._middle = tensor("feature_middle")
        scale = tensor("feature_scale")[:, None]
        # Many rows that end in few numbers: it is faster to have them stand as columns.
        self._inward = (tensor("inward") * tensor("inward_step") / scale).t().contiguous()
        self._glance = (tensor("glance") * tensor("glance_step") / scale).t().contiguous()
        self._own = tensor("own") * tensor("own_step")
        self._offsets = tensor("offsets")
        outward = tensor("outward") * tensor("outward_step")
        self._outward = [half.contiguous() for half in outward.chunk(2, dim=1)]
        self._features = Features(
            tensor("input_middle"), tensor("input_scale"), tensor("input_main"), self._pair
        )

    @classmethod
    def shipped(cls, pair: Pair | None = None) -> NormPredictor | None:
        """The predictor that comes with the package; None where it has been left out."""
        file = files("headstart.engines.kokoro.torch") / "norms.npz"
        if not file.is_file():
            return None
        with file.open("rb") as stream, np.load(stream) as data:
            return cls(dict(data), pair)

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
        found = self._inward @ seen + (self._glance @ seen) @ self._own[number]
        found = found - self._offsets[number]
        # 23 MB of weights pass by for these two products: each thread reads half of them.
        shift, growth = self._pair.both(
            lambda: found @ self._outward[0], lambda: found @ self._outward[1]
        )
        return (
            self._means[number] + shift * self._deviations[number],
            self._variances[number] * torch.exp(growth),
        )


class Features:
    """What the regression sees of a clause."""

    def __init__(
        self, middle: Tensor, scale: Tensor, main: Tensor, pair: Pair | None = None
    ) -> None:
        """Set what is usual.

        Args:
            middle: Mean of each channel of the generator's input, shape (512,).
            scale: Their standard deviation.
            main: Directions in which they vary most, in these units; shape (512, 128).
            pair: Shares the work.
        """
        self._pair = pair or Pair(1)
        self._main = main / scale[:, None]
        self._main_middle = -(middle @ self._main)
        # A legacy generator, because its numbers are promised to stay the same for ever.
        random = np.random.RandomState(20)
        self._kinks = []
        for window in WINDOWS:
            size = len(window) * MAIN
            # About two at the whole input's unit variance, whatever the window.
            weights = (
                2 * random.standard_normal((size, PROJECTIONS)) / (len(window) * CHANNELS) ** 0.5
            )
            bias = random.uniform(-1, 1, PROJECTIONS)
            self._kinks.append(
                (torch.from_numpy(weights.astype(np.float32)), torch.from_numpy(bias).float())
            )
        self._pitches = torch.from_numpy(np.log(_PITCHES_HZ).astype(np.float32))
        self._energies = torch.from_numpy(_ENERGIES.astype(np.float32))

    def of(self, x: Tensor, pitch: Tensor, energy: Tensor, style: Tensor) -> Tensor:
        """Averages over the clause, and its style; shape (5308,). Arguments as for `predict`."""
        main = torch.addmm(self._main_middle, x, self._main)
        # Half of the projections are about as much work as everything else.
        late = self._pair.start(lambda: [self._bent(main, kind) for kind in _LATE])
        early = {kind: self._bent(main, kind) for kind in range(len(WINDOWS)) if kind not in _LATE}
        voiced = (pitch > _UNVOICED_HZ).float()
        log_pitch = pitch.clamp_min(40).log()
        heights = _shares(log_pitch, self._pitches) * voiced[:, None]
        loudness = _shares(energy, self._energies)
        change = torch.diff(log_pitch, prepend=log_pitch[:1]).abs() * voiced
        mean = x.mean(0)
        # `std_mean` over the frames takes twice as long.
        deviation = (x - mean).square_().sum(0).div_(max(1, len(x) - 1)).sqrt_()
        bent = early | dict(zip(_LATE, late.result(), strict=True))
        return torch.cat(
            [
                mean,
                deviation.clamp_min(1e-4).log(),
                *(bent[kind] for kind in range(len(WINDOWS))),
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

    def _bent(self, main: Tensor, kind: int) -> Tensor:
        """The average of what is left of random projections where they are positive.

        Args:
            main: The input in its main directions; shape (frames, 128).
            kind: Of window, which has projections of its own.
        """
        window, (weights, bias) = WINDOWS[kind], self._kinks[kind]
        starts = max(1, len(main) - window[-1])
        first = torch.arange(0, starts, max(2, starts // _ENOUGH))
        seen = torch.cat([main[(first + n).clamp_max(len(main) - 1)] for n in window], 1)
        return torch.addmm(bias, seen, weights).relu_().mean(0)


GROUPS = (
    *(CHANNELS, CHANNELS),
    *(PROJECTIONS for _ in WINDOWS),
    *(2 * len(_PITCHES_HZ) + 2 * len(_ENERGIES) + 4, STYLE),
)
"""How many features there are of each kind, in order."""


def _shares(values: Tensor, knots: Tensor) -> Tensor:
    """How near each value is to each knot: 1 on it, 0 at its neighbours; (values, knots)."""
    inside = values.clamp(knots[0], knots[-1])
    return (1 - (inside[:, None] - knots).abs() / (knots[1] - knots[0])).clamp_min(0)


def targets_of(means: Tensor, variances: Tensor) -> Tensor:
    """Means and logarithms of variances, one after the other, as `averages` has them."""
    return torch.cat([means, variances.clamp_min(1e-8).log()])
