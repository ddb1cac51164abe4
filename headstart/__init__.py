"""Voice agents that begin to answer at human turn-taking speed, built on Pipecat.

```python
from headstart import Session, load_config
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Session", "load_config"]

if TYPE_CHECKING:
    from headstart.config.load import load_config
    from headstart.pipeline.session import Session


def __getattr__(name: str) -> Any:
    # On demand: `headstart --help` should not wait for Pipecat to be imported.
    if name == "Session":
        from headstart.pipeline.session import Session

        return Session
    if name == "load_config":
        from headstart.config.load import load_config

        return load_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
