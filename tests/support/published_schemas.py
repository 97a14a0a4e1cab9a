"""Published schemas of manifests, and what of a manifest they refuse.

Services and Jobs are checked by the package kubernetes-validate. No package has the schemas of the
other kinds with all their rules (kubeflow-trainer-api has no enums and patterns), so
tests/support/data/schemas/ holds them, without descriptions, CEL rules and status. All are under
the Apache License 2.0. Written anew from clones of SOURCES and a Python that has SkyPilot:

    python -m tests.support.published_schemas JOBSET KUBERAY TRAINER SKYPILOT_PYTHON
"""

from __future__ import annotations

import functools
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

DATA = Path(__file__).parent / "data" / "schemas"
KUBERNETES = "1.37"
# Kind -> repository, tag, path of the CRD
SOURCES = {
    "JobSet": ("kubernetes-sigs/jobset", "v0.12.0",
               "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml"),
    "RayJob": ("ray-project/kuberay", "v1.7.0",
               "ray-operator/config/crd/bases/ray.io_rayjobs.yaml"),
    "TrainJob": ("kubeflow/trainer", "v2.3.0",
                 "manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml"),
    "TrainingRuntime": ("kubeflow/trainer", "v2.3.0",
                        "manifests/base/crds/trainer.kubeflow.org_trainingruntimes.yaml"),
}  # fmt: skip
REPOSITORIES = ("kubernetes-sigs/jobset", "ray-project/kuberay", "kubeflow/trainer")
SKYPILOT = ("skypilot-org/skypilot", "0.14.1", "sky/utils/schemas.py")
PRINT_SKYPILOT = """
import json
from sky.utils import schemas
resources = schemas.get_resources_schema()
del resources["$schema"]  # of the whole, not of a part
task = schemas.get_task_schema()
task["properties"]["resources"] = resources  # SkyPilot checks it in a second step
print(json.dumps(task))
"""
LEFT_OUT = ("description", "default", "x-kubernetes-validations", "x-kubernetes-list-type",
            "x-kubernetes-list-map-keys", "x-kubernetes-map-type")  # fmt: skip


def faults(document: dict[str, Any]) -> list[str]:
    """What the schema of a document's kind refuses, `path: message`. A document without a kind is
    a SkyPilot task."""
    kind, version = str(document.get("kind", "SkyPilot")), document.get("apiVersion", "")
    if kind not in (*SOURCES, "SkyPilot"):
        return core_faults(document)
    if version != stored(kind)["api_version"]:
        return [f"$.apiVersion: {version}: no version of {kind}"]
    errors = validator(kind).iter_errors(document)
    found = [f"{error.json_path}: {error.message}" for error in errors]
    for metadata in metadata_of(document):
        found += core_faults({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    return found


def core_faults(document: dict[str, Any]) -> list[str]:
    """Of a kind that is Kubernetes' own; unknown fields are faults."""
    kind, version = document["kind"], document.get("apiVersion")
    if not isinstance(kind, str) or not isinstance(version, str):
        return [f"$: {version}, {kind}: no API version and kind"]
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return [f"$: {error.message}"]
    except kubernetes_validate.ValidationError as error:
        return [f"{error.json_path}: {error.message}"]
    return []


@functools.cache
def stored(kind: str) -> dict[str, Any]:
    """{"from": [repository, version, path], "api_version", "schema"}."""
    return json.loads(gzip.decompress((DATA / f"{kind}.json.gz").read_bytes()))


@functools.cache
def validator(kind: str) -> Draft202012Validator:
    schema = stored(kind)["schema"]
    return Draft202012Validator(schema if kind == "SkyPilot" else strict(schema))


def strict(schema: Any) -> Any:
    """A CRD's schema that refuses fields which the API server would drop. ObjectMeta, which a CRD
    leaves out, stays open: `faults` checks it."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(part) for key, part in schema.items() if key != "properties"}
    if "properties" in schema:
        result["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
        if "metadata" in result["properties"]:
            result["properties"]["metadata"] = {"type": "object"}
    keeps = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    return result if schema.get("type") != "object" or keeps else {
        **result, "additionalProperties": False
    }  # fmt: skip


def metadata_of(part: Any) -> Iterator[dict[str, Any]]:
    """Every ObjectMeta in a document."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "metadata" and isinstance(value, dict):
                yield value
            else:
                yield from metadata_of(value)
    elif isinstance(part, list):
        for value in part:
            yield from metadata_of(value)


def without(schema: Any, names: tuple[str, ...]) -> Any:
    """A schema without these keywords; properties of these names stay."""
    if isinstance(schema, list):
        return [without(one, names) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: without(part, names) for key, part in schema.items() if key not in names}
    if "properties" in schema:
        kept["properties"] = {
            name: without(one, names) for name, one in schema["properties"].items()
        }
    return kept


def write(kind: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    DATA.mkdir(exist_ok=True)
    (DATA / f"{kind}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def main(clones: dict[str, str], skypilot_python: str) -> None:
    for kind, (repository, tag, path) in SOURCES.items():
        shown = ["git", "-C", clones[repository], "show", f"{tag}:{path}"]
        crd = yaml.safe_load(subprocess.run(shown, capture_output=True, check=True).stdout)
        (version,) = (one for one in crd["spec"]["versions"] if one["storage"])
        schema = without(version["schema"]["openAPIV3Schema"], LEFT_OUT)
        schema["properties"].pop("status", None)
        name = f"{crd['spec']['group']}/{version['name']}"
        write(kind, {"from": [repository, tag, path], "api_version": name, "schema": schema})
    printed = [skypilot_python, "-c", PRINT_SKYPILOT]
    task = json.loads(subprocess.run(printed, capture_output=True, check=True).stdout)
    write("SkyPilot", {"from": SKYPILOT, "api_version": "", "schema": task})


if __name__ == "__main__":
    main(dict(zip(REPOSITORIES, sys.argv[1:4], strict=True)), sys.argv[4])
