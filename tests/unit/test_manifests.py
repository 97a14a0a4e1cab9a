"""The manifests of docs/manifests.md: their published schemas accept them and refuse mutants, and
what a platform starts for each."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import platform_starts, published_schemas
from tests.support.platform_starts import NodeStart

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["Service, Job", "JobSet", "TrainingRuntime, TrainJob", "RayJob", "SkyPilot"]
# Fields whose keys a user chooses: another key is as good.
MAPS = {"labels", "selector", "limits", "rayStartParams", "envs", "secrets", "accelerators",
        "metadata.labels"}  # fmt: skip
SECRETS = {"moe:key": "k" * 16, "MOE_KEY": "k" * 16}
HOSTS = ["-m", "hosts=auto", "hosts.shared_folder=false", "world_size=16", "strategy=tp,ep"]


MANIFESTS = platform_starts.manifests()
DOCUMENTS = {
    document.get("kind", "SkyPilot"): document for part in MANIFESTS.values() for document in part
}


def places(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a document."""
    items: list[tuple[Any, Any]] = []
    if isinstance(part, dict):
        items = list(part.items())
    elif isinstance(part, list):
        items = list(enumerate(part))
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(document: Any, path: tuple[Any, ...], key: Any = None, value: Any = None) -> Any:
    """A copy in which the last key of a path is another, or its value is; without both, neither."""
    mutant = copy.deepcopy(document)
    parent = mutant
    for step in path[:-1]:
        parent = parent[step]
    old = parent.pop(path[-1])
    if key is not None:
        parent[key] = old
    elif value is not None:
        parent[path[-1]] = value
    return mutant


def named(document: Any, name: str) -> Iterator[Any]:
    """Entries {"name": name, ...}, and values of keys of that name."""
    for path in places(document):
        value = document
        for step in path:
            value = value[step]
        if path[-1] == name or (isinstance(value, dict) and value.get("name") == name):
            yield value


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(AssertionError, match="a key twice"):
        yaml.load("a: 1\nb: {c: 1, c: 2}", platform_starts.Loader)


def test_the_page_has_every_platform() -> None:
    assert list(MANIFESTS) == KINDS


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_published_schema_accepts_it(kind: str) -> None:
    assert published_schemas.faults(DOCUMENTS[kind]) == []


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_every_misspelt_field_is_refused(kind: str) -> None:
    """Each field of each document in turn, but for keys that are a user's."""
    document = DOCUMENTS[kind]
    fields = [path for path in places(document)
              if isinstance(path[-1], str) and not MAPS.intersection(path[-2:-1])]  # fmt: skip
    assert len(fields) >= 8
    accepted = [path for path in fields if not published_schemas.faults(
        changed(document, path, key=f"{path[-1]}X"))]  # fmt: skip
    assert accepted == []


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_value_of_a_wrong_type_is_refused(kind: str) -> None:
    document = DOCUMENTS[kind]
    fields = [path for path in places(document) if isinstance(path[-1], str)]
    accepted = [path for path in fields if not published_schemas.faults(
        changed(document, path, value=[[0]]))]  # fmt: skip
    assert accepted == []


@pytest.mark.parametrize(("kind", "path"), [
    ("Job", "spec.template"),
    ("Job", "spec.template.spec.containers"),
    ("Job", "spec.template.spec.containers.0.name"),
    ("Job", "spec.podFailurePolicy.rules.0.onExitCodes.values"),
    ("Job", "spec.template.spec.containers.0.env.1.valueFrom.secretKeyRef.key"),
    ("JobSet", "spec.replicatedJobs.0.name"),
    ("JobSet", "spec.replicatedJobs.0.template"),
    ("JobSet", "spec.failurePolicy.rules.0.action"),
    ("JobSet", "spec.replicatedJobs.0.template.spec.template.spec.containers.0.name"),
    ("TrainJob", "spec.runtimeRef"),
    ("TrainJob", "spec.runtimeRef.name"),
    ("TrainingRuntime", "spec.template.spec.replicatedJobs.0.template"),
    ("RayJob", "spec.rayClusterSpec.headGroupSpec"),
    ("RayJob", "spec.rayClusterSpec.workerGroupSpecs.0.groupName"),
    ("RayJob", "spec.rayClusterSpec.headGroupSpec.template.spec.containers"),
])  # fmt: skip
def test_a_missing_required_field_is_refused(kind: str, path: str) -> None:
    steps = tuple(int(step) if step.isdigit() else step for step in path.split("."))
    assert published_schemas.faults(changed(DOCUMENTS[kind], steps))


@pytest.mark.parametrize(("kind", "path", "value"), [
    ("Service", "metadata.name", 3),
    ("Job", "spec.completions", "two"),
    ("JobSet", "spec.failurePolicy.rules.0.action", "Restart"),
    ("JobSet", "spec.failurePolicy.rules.0.name", 7),
    ("JobSet", "apiVersion", "jobset.x-k8s.io/v1"),
    ("TrainJob", "spec.runtimeRef.name", ""),
    ("TrainJob", "apiVersion", "kubeflow.org/v1"),
    ("RayJob", "spec.rayClusterSpec.workerGroupSpecs.0.replicas", "2"),
    ("RayJob", "spec.shutdownAfterJobFinishes", "yes"),
    ("SkyPilot", "num_nodes", "2"),
    ("SkyPilot", "resources.accelerators", 8),
    ("SkyPilot", "envs.MOE_RUN", 1),
])  # fmt: skip
def test_a_wrong_value_is_refused(kind: str, path: str, value: object) -> None:
    steps = tuple(int(step) if step.isdigit() else step for step in path.split("."))
    assert published_schemas.faults(changed(DOCUMENTS[kind], steps, value=value))


def test_a_kind_without_a_schema_is_refused() -> None:
    (fault,) = published_schemas.faults({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob"})
    assert "Couldn't find schema for kind PyTorchJob" in fault


def test_a_strict_schema_refuses_what_a_server_would_drop() -> None:
    text = {"type": "string"}
    crd = {"type": "object", "properties": {
        "metadata": {"type": "object"},
        "named": {"type": "object", "additionalProperties": text},
        "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "listed": {"type": "array", "items": {"type": "object", "properties": {"type": text}}},
        "empty": {"type": "object"},
    }}  # fmt: skip
    assert published_schemas.strict(crd) == {
        "type": "object", "additionalProperties": False, "properties": {
            "metadata": {"type": "object"},
            "named": {"type": "object", "additionalProperties": text},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "listed": {"type": "array", "items": {
                "type": "object", "properties": {"type": text}, "additionalProperties": False,
            }},
            "empty": {"type": "object", "additionalProperties": False},
        },
    }  # fmt: skip


def test_what_is_left_out_of_a_schema_is_no_property() -> None:
    crd = {"description": "x", "properties": {"description": {"type": "string", "default": ""}}}
    assert published_schemas.without(crd, ("description", "default")) == {
        "properties": {"description": {"type": "string"}}
    }


@pytest.mark.parametrize("kind", published_schemas.SOURCES)
def test_a_stored_schema_is_of_the_version_that_is_named(kind: str) -> None:
    assert published_schemas.stored(kind)["from"] == list(published_schemas.SOURCES[kind])


def test_the_versions_on_the_page_are_those_of_the_schemas() -> None:
    text = platform_starts.PAGE.read_text("utf-8")
    minor = {repository: ".".join(tag.lstrip("v").split(".")[:2])
             for repository, tag, _ in published_schemas.SOURCES.values()}  # fmt: skip
    assert f"JobSet {minor['kubernetes-sigs/jobset']} |" in text
    assert f"Kubeflow Trainer {minor['kubeflow/trainer']} |" in text
    assert f"KubeRay {minor['ray-project/kuberay']} |" in text
    assert f"SkyPilot {published_schemas.SKYPILOT[1].rpartition('.')[0]} |" in text


def test_ray_has_the_version_of_the_image() -> None:
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert f"ray=={DOCUMENTS['RayJob']['spec']['rayClusterSpec']['rayVersion']}" in pins


@pytest.mark.parametrize("kinds", MANIFESTS)
def test_a_key_comes_from_a_secret(kinds: str) -> None:
    keys = [entry for part in MANIFESTS[kinds] for entry in named(part, "MOE_KEY")]
    reference = {"valueFrom": {"secretKeyRef": {"name": "moe", "key": "key"}}}
    assert keys == {"RayJob": [], "SkyPilot": [None]}.get(kinds, [{"name": "MOE_KEY", **reference}])


def test_an_indexed_job_starts_two_pods() -> None:
    first, second = platform_starts.starts(MANIFESTS["Service, Job"], SECRETS)
    command = ("python", "runners/bench.py", *HOSTS)
    assert first == NodeStart(
        command,
        {"HOSTNAME": "moe-0", "JOB_COMPLETION_INDEX": "0", "NNODES": "2", "MOE_KEY": "k" * 16},
        "moe-0.moe.default.svc.cluster.local",
    )
    assert second == NodeStart(
        command,
        {"HOSTNAME": "moe-1", "JOB_COMPLETION_INDEX": "1", "NNODES": "2", "MOE_KEY": "k" * 16},
        "moe-1.moe.default.svc.cluster.local",
    )


@pytest.mark.parametrize(("field", "value"), [
    ("selector", {"job-name": "other"}), ("clusterIP", "10.0.0.3"),
])  # fmt: skip
def test_a_service_that_does_not_lead_to_the_pods_gives_them_no_domain(
    field: str, value: object
) -> None:
    service, job = copy.deepcopy(MANIFESTS["Service, Job"])
    service["spec"][field] = value
    pods = platform_starts.starts([service, job], SECRETS)
    assert [pod.host_name for pod in pods] == ["moe-0", "moe-1"]


def test_a_job_set_starts_two_pods_with_its_own_service() -> None:
    first, second = platform_starts.starts(MANIFESTS["JobSet"], SECRETS)
    assert first.variables == {
        "HOSTNAME": "moe-node-0-0", "JOB_COMPLETION_INDEX": "0", "NNODES": "2",
        "MOE_KEY": "k" * 16,
    }  # fmt: skip
    assert first.host_name == "moe-node-0-0.moe.default.svc.cluster.local"
    assert second.host_name == "moe-node-0-1.moe.default.svc.cluster.local"
    assert first.command == second.command == ("python", "runners/bench.py", *HOSTS)


def test_a_train_job_starts_two_pods_of_its_runtime() -> None:
    first, second = platform_starts.starts(MANIFESTS["TrainingRuntime, TrainJob"], SECRETS)
    assert second.variables == {
        "HOSTNAME": "moe-node-0-1", "JOB_COMPLETION_INDEX": "1", "MOE_KEY": "k" * 16,
        "PET_NNODES": "2", "PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "moe-node-0-0.moe", "PET_MASTER_PORT": "29500",
    }  # fmt: skip
    assert first.variables["PET_NODE_RANK"] == "0"
    assert first.host_name == "moe-node-0-0.moe.default.svc.cluster.local"
    assert first.command == second.command == ("python", "runners/bench.py", *HOSTS)


@pytest.mark.parametrize(("limits", "processes"), [
    ({"nvidia.com/gpu": 8}, "auto"), ({"cpu": 4}, "4"), ({}, "1"),
])  # fmt: skip
def test_a_train_job_counts_processes_by_what_a_node_has(
    limits: dict[str, int], processes: str
) -> None:
    runtime, train_job = copy.deepcopy(MANIFESTS["TrainingRuntime, TrainJob"])
    train_job["spec"]["trainer"]["resourcesPerNode"] = {"limits": limits}
    first, _ = platform_starts.starts([runtime, train_job], SECRETS)
    assert first.variables["PET_NPROC_PER_NODE"] == processes


def test_a_ray_job_starts_the_driver_on_the_head() -> None:
    (driver,) = platform_starts.starts(MANIFESTS["RayJob"], {}, ["10.1.0.9"])
    assert driver.command[:2] == ("/bin/sh", "-c")
    assert driver.overrides == [
        "-m", "hydra/launcher=ray", "hosts.ranks_per_node=8",
        "world_size=16", "strategy=tp,ep",
    ]  # fmt: skip
    assert driver.variables["RAY_ADDRESS"] == "10.1.0.9:6379"
    assert "MOE_KEY" not in driver.variables


def test_a_sky_task_starts_its_script_on_two_machines() -> None:
    first, second = platform_starts.starts(MANIFESTS["SkyPilot"], SECRETS, ["10.1.0.9", "10.1.0.8"])
    assert second.variables == {
        "MOE_RUN": "first", "MOE_KEY": "k" * 16,
        "SKYPILOT_NODE_IPS": "10.1.0.9\n10.1.0.8", "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_INTERNAL_JOB_ID": "1",
        "SKYPILOT_TASK_ID": "sky-2026-11-28-12-00-00-000000_moe_1",
        "SKYPILOT_CLUSTER_INFO":
            '{"cluster_name": "moe", "cloud": "AWS", "region": "r", "zone": "z"}',
        "SKYPILOT_USER": "user", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    assert first.variables["SKYPILOT_NODE_RANK"] == "0"
    assert first.command[:2] == ("/bin/bash", "-c")
    assert first.overrides == second.overrides == HOSTS


def test_a_manifest_that_cannot_start_is_an_error() -> None:
    with pytest.raises(KeyError, match="moe:key"):
        platform_starts.starts(MANIFESTS["JobSet"], {})
    with pytest.raises(KeyError, match="MOE_KEY"):
        platform_starts.starts(MANIFESTS["SkyPilot"], {})
    service, job = copy.deepcopy(MANIFESTS["Service, Job"])
    job["spec"]["parallelism"] = 1
    with pytest.raises(ValueError, match="not all pods"):
        platform_starts.starts([service, job], SECRETS)
    runtime, train_job = copy.deepcopy(MANIFESTS["TrainingRuntime, TrainJob"])
    train_job["spec"]["runtimeRef"]["name"] = "other"
    with pytest.raises(ValueError, match="no such runtime"):
        platform_starts.starts([runtime, train_job], SECRETS)
    with pytest.raises(ValueError, match="not started once"):
        _ = NodeStart(("python", "other.py"), {}).overrides
