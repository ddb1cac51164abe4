"""Voice agents that begin to answer at human turn-taking speed, built on Pipecat."""

__version__ = "0.1.0"
