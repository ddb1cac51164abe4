"""The language model: answers, token by token, while the user may still be speaking."""

from headstart.processors.llm.anthropic import AnthropicLLM
from headstart.processors.llm.settings import LLMSettings

__all__ = ["AnthropicLLM", "LLMSettings"]
