"""What the settings of a stage have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StageSettings(BaseModel):
    """Base of a stage's settings, as they stand in YAML.

    A field's type, bounds and default are checked before anything is loaded; the docstring
    under it, with its unit, is what `headstart stages NAME` and the JSON Schema print.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
