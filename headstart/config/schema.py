"""The JSON Schema of a pipeline file, for editors: from the spec and the stages' own models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from headstart.config import registry
from headstart.config.constructor import settings_model
from headstart.config.spec import PipelineHeader
from headstart.errors import UsageError

Schema = dict[str, Any]

_VARIABLE = {"$ref": "#/$defs/variable"}
_CLASS_PATH = r"^[^:]+:[A-Za-z_][A-Za-z0-9_]*$"


def json_schema() -> Schema:
    """The schema of a pipeline file, with the settings of every registered stage.

    A stage that cannot be imported takes any settings.
    """
    models = {name: _model(target) for name, target in registry.catalogue().items()}
    every: list[type[BaseModel]] = [PipelineHeader]
    every += dict.fromkeys(model for model in models.values() if model)
    references, definitions = models_json_schema(
        [(model, "validation") for model in every], ref_template="#/$defs/{model}"
    )
    known: dict[str, Schema] = definitions.get("$defs", {})
    for definition in known.values():
        _allow_variables(definition)
    header = known.pop(_definition(references[PipelineHeader, "validation"]))
    settings = {
        name: known[_definition(references[model, "validation"])] if model else {"type": "object"}
        for name, model in models.items()
    }
    stages = {
        "type": "array",
        "minItems": 1,
        "items": {"$ref": "#/$defs/stage"},
        "description": "The stages in the order in which frames meet them.",
    }
    beside = {
        "type": "object",
        "additionalProperties": {
            "anyOf": [{"$ref": "#/$defs/stage"}, {"type": "array", "items": stages["items"]}]
        },
    }
    properties = {
        **header["properties"],
        "stages": stages,
        "extends": {
            "type": "string",
            "description": "A shipped pipeline's name, or a path from this file.",
        },
        "override": {
            "type": "object",
            "description": "Inherited stages to change; null removes one.",
        },
        "before": {**beside, "description": "Stages to put before an inherited one."},
        "after": {**beside, "description": "Stages to put after an inherited one."},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Headstart pipeline",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "anyOf": [{"required": ["extends"]}, {"required": ["prompt", "stages"]}],
        "$defs": {
            **known,
            "variable": {"type": "string", "pattern": r"\$\{", "description": "${VAR}"},
            "stage": _stage(settings),
        },
    }


def _definition(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _model(target: str) -> type[BaseModel] | None:
    try:
        return settings_model(registry.import_processor(target))
    except UsageError:
        return None


def _stage(settings: dict[str, Schema]) -> Schema:
    """A name alone, or one name with its provider or its settings."""
    kinds = dict.fromkeys(name.partition(".")[0] for name in settings if "." in name)
    behind: dict[str, Schema] = {kind: _kind(kind, settings) for kind in kinds}
    behind |= {name: {"anyOf": [ref, {"type": "null"}]} for name, ref in settings.items()}
    of_class = {"type": ["object", "null"]}
    return {
        "anyOf": [
            {"enum": list(behind)},
            {"type": "string", "pattern": _CLASS_PATH},
            {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "properties": behind,
                "patternProperties": {_CLASS_PATH: of_class},
                "additionalProperties": False,
            },
        ]
    }


def _kind(kind: str, settings: dict[str, Schema]) -> Schema:
    offered = registry.providers(kind)
    forms: list[Schema] = [
        {"type": "null"},
        {"enum": offered},
        {"type": "string", "pattern": _CLASS_PATH},
        _VARIABLE,
    ]
    for index, provider in enumerate(offered):
        model = settings[f"{kind}.{provider}"]
        form = {
            **model,
            "properties": {"provider": {"const": provider}, **model.get("properties", {})},
        }
        if index:  # the first is the default, so that it need not be named
            form["required"] = ["provider", *model.get("required", [])]
        forms.append(form)
    forms.append(
        {
            "type": "object",
            "required": ["provider"],
            "properties": {"provider": {"type": "string", "pattern": _CLASS_PATH}},
        }
    )
    return {"anyOf": forms}


def _allow_variables(schema: Schema) -> None:
    for name, wanted in schema.get("properties", {}).items():
        if wanted.get("type") != "string" or "enum" in wanted:
            said = {k: wanted[k] for k in ("description", "default", "title") if k in wanted}
            schema["properties"][name] = {**said, "anyOf": [wanted, _VARIABLE]}
