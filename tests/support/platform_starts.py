"""What a platform starts on each node for a manifest: command, variables and host name.

Written after the platforms' own sources, which each function names; what varies
from run to run (names of pods, times) has a fixed value here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from runners.config.host_variables import READ
from tests.support import docs

Document = Mapping[str, Any]
NAMESPACE_DOMAIN = "default.svc.cluster.local"
INDEX_PATHS = ("metadata.annotations['batch.kubernetes.io/job-completion-index']",
               "metadata.labels['batch.kubernetes.io/job-completion-index']")  # fmt: skip
TRAINER_PORT, RAY_PORT = "29500", "6379"
PAGE = docs.ROOT / "docs" / "manifests.md"
IPS = ("10.0.0.1", "10.0.0.2")


class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Refuses a key that a mapping has twice, as kubectl and SkyPilot do."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        assert len(mapping) == len(node.value), f"a key twice:{node.start_mark}"
        return mapping


def manifests() -> dict[str, list[dict[str, Any]]]:
    """The YAML blocks of the page by the kinds of their documents."""
    blocks = docs.parsed(PAGE.read_text("utf-8")).blocks
    parts = [
        list(yaml.load_all("\n".join(lines), Loader)) for name, lines in blocks if name == "yaml"
    ]
    return {
        ", ".join(document.get("kind", "SkyPilot") for document in part): part for part in parts
    }


@dataclass(frozen=True)
class NodeStart:
    """The start of the program on one node."""

    command: tuple[str, ...]  # as executed; where a shell reads it, (shell, "-c", script)
    variables: dict[str, str]  # that platform and manifest set
    host_name: str = ""  # fully qualified, in pods of an Indexed Job

    def surroundings(self, others: Mapping[str, str]) -> dict[str, str]:
        """These variables among others, but for those by which other platforms tell a place."""
        return {
            **{name: text for name, text in others.items() if name not in READ},
            **self.variables,
        }

    def small(self, *further: str) -> list[str]:
        """The overrides for two nodes of two ranks on CPUs."""
        sizes = {"world_size": "world_size=4", "hosts.ranks_per_node": "hosts.ranks_per_node=2"}
        words = [sizes.get(word.partition("=")[0], word) for word in self.overrides]
        return [*words, "device=cpu", *further]

    @property
    def overrides(self) -> list[str]:
        """The words after runners/bench.py. Raises ValueError where that is not started once."""
        words = list(self.command)
        if len(words) == 3 and words[1] == "-c":
            words = shlex.split(words[2].replace("\\\n", " "))
        if words.count("runners/bench.py") != 1:
            raise ValueError(f"{words}: runners/bench.py is not started once")
        return words[words.index("runners/bench.py") + 1 :]


def starts(
    documents: Sequence[Document], secrets: Mapping[str, str], ips: Sequence[str] = IPS
) -> list[NodeStart]:
    """The starts of a manifest, node 0's first; a RayJob has one, of the driver.

    `secrets` has "NAME:KEY" for a Secret of Kubernetes and the variable's name for one of SkyPilot,
    `ips` the addresses of SkyPilot's nodes or of Ray's head. Raises KeyError for a secret that is
    missing, as the platforms do.
    """
    by_kind = {document.get("kind", "SkyPilot"): document for document in documents}
    if "Job" in by_kind:
        return of_job(by_kind, secrets)
    if "JobSet" in by_kind:
        return of_job_set(by_kind["JobSet"], secrets)
    if "TrainJob" in by_kind:
        return of_train_job(by_kind, secrets)
    if "RayJob" in by_kind:
        return [of_ray_job(by_kind["RayJob"], secrets, ips)]
    return of_sky_task(by_kind["SkyPilot"], secrets, ips)


def of_job(by_kind: Mapping[str, Document], secrets: Mapping[str, str]) -> list[NodeStart]:
    """kubernetes: pkg/controller/job/indexed_job_utils.go (JOB_COMPLETION_INDEX, host name); the
    subdomain resolves where it names a headless Service that selects the pods."""
    job, service = by_kind["Job"], by_kind["Service"]
    name = job["metadata"]["name"]
    subdomain = job["spec"]["template"]["spec"].get("subdomain", "")
    reached = (service["metadata"]["name"], service["spec"].get("clusterIP")) == (subdomain, "None")
    selects = service["spec"].get("selector") == {"batch.kubernetes.io/job-name": name}
    return of_pods(name, subdomain if reached and selects else "", job["spec"], secrets)


def of_job_set(job_set: Document, secrets: Mapping[str, str]) -> list[NodeStart]:
    """jobset: pkg/controllers/jobset_controller.go (subdomain), pkg/util/placement/placement.go
    (names), pkg/webhooks/jobset_webhook.go (Indexed)."""
    (replicated,) = job_set["spec"]["replicatedJobs"]
    name = job_set["metadata"]["name"]
    job = {"completionMode": "Indexed", **replicated["template"]["spec"]}
    subdomain = job_set["spec"].get("network", {}).get("subdomain", name)
    return of_pods(f"{name}-{replicated['name']}-0", subdomain, job, secrets)


def of_train_job(by_kind: Mapping[str, Document], secrets: Mapping[str, str]) -> list[NodeStart]:
    """trainer: pkg/runtime/framework/plugins/torch/torch.go (PET_*), jobset/builder.go (what of the
    TrainJob replaces the runtime's)."""
    train_job, runtime = by_kind["TrainJob"], by_kind["TrainingRuntime"]
    name, trainer = train_job["metadata"]["name"], train_job["spec"]["trainer"]
    if train_job["spec"]["runtimeRef"] != {
        "kind": "TrainingRuntime", "name": runtime["metadata"]["name"]
    }:  # fmt: skip
        raise ValueError(f"{train_job['spec']['runtimeRef']}: no such runtime in the manifest")
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    limits = trainer.get("resourcesPerNode", container.get("resources", {})).get("limits", {})
    gpus = any("gpu" in resource for resource in limits)
    variables = {
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": "auto" if gpus else str(max(1, int(limits.get("cpu", 1)))),
        "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
        "PET_MASTER_PORT": TRAINER_PORT,
    }
    pet = [{"name": key, "value": text} for key, text in variables.items()]
    rank = {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": INDEX_PATHS[0]}}}
    env = [*container.get("env", []), *trainer.get("env", []), *pet, rank]
    started = {**container, **{key: trainer[key] for key in ("command", "args") if key in trainer}}
    job = {
        "completionMode": "Indexed",
        "completions": trainer["numNodes"],
        "parallelism": trainer["numNodes"],
        "template": {"spec": {"containers": [{**started, "env": env}]}},
    }
    return of_pods(f"{name}-{replicated['name']}-0", name, job, secrets)


def of_pods(
    name: str, subdomain: str, job: Document, secrets: Mapping[str, str]
) -> list[NodeStart]:
    """The pods of an Indexed Job, all at once."""
    if job["completionMode"] != "Indexed" or job["completions"] != job["parallelism"]:
        raise ValueError(f"{name}: not all pods of the run are there at the same time")
    (container,) = job["template"]["spec"]["containers"]
    result = []
    for index in range(job["completions"]):
        host = f"{name}-{index}"
        own = {"HOSTNAME": host, "JOB_COMPLETION_INDEX": str(index)}
        variables = own | env_of(container, secrets, str(index))
        full = f"{host}.{subdomain}.{NAMESPACE_DOMAIN}" if subdomain else host
        command = (*container["command"], *container.get("args", []))
        result.append(NodeStart(command, variables, full))
    return result


def env_of(container: Document, secrets: Mapping[str, str], index: str) -> dict[str, str]:
    """`env` of a container, in a pod with this completion index."""
    variables = {}
    for entry in container.get("env", []):
        source = entry.get("valueFrom", {})
        if "secretKeyRef" in source:
            reference = source["secretKeyRef"]
            variables[entry["name"]] = secrets[f"{reference['name']}:{reference['key']}"]
        elif source.get("fieldRef", {}).get("fieldPath") in INDEX_PATHS:
            variables[entry["name"]] = index
        else:
            variables[entry["name"]] = entry["value"]
    return variables


def of_ray_job(ray_job: Document, secrets: Mapping[str, str], ips: Sequence[str]) -> NodeStart:
    """kuberay: ray-operator/controllers/ray/common/pod.go (the head's variables) and job.go; ray:
    dashboard/modules/job/job_supervisor.py, which sets RAY_ADDRESS anew and uses /bin/sh."""
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    submission = f"{ray_job['metadata']['name']}-abcde"
    own = {
        "RAY_PORT": RAY_PORT,
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        "RAY_ADDRESS": f"{ips[0]}:{RAY_PORT}",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({
            "runtime_env": {"env_vars": {}},
            "metadata": {"job_submission_id": submission, "job_name": submission},
        }),
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    command = ("/bin/sh", "-c", ray_job["spec"]["entrypoint"].strip())
    return NodeStart(command, env_of(head["containers"][0], secrets, "") | own)


def of_sky_task(task: Document, secrets: Mapping[str, str], ips: Sequence[str]) -> list[NodeStart]:
    """skypilot: sky/backends/task_codegen.py, cloud_vm_ray_backend.py and skylet/log_lib.py; the
    folder is ~/sky_workdir, a copy of `workdir`."""
    if len(ips) != task["num_nodes"]:
        raise ValueError(f"{len(ips)} addresses, {task['num_nodes']} nodes")
    accelerators = task["resources"]["accelerators"]
    where = {"cluster_name": task["name"], "cloud": "AWS", "region": "r", "zone": "z"}
    given = {name: text for name, text in task.get("envs", {}).items() if text is not None}
    for name, text in task.get("secrets", {}).items():
        given[name] = secrets[name] if text is None else text
    own = {
        "SKYPILOT_NODE_IPS": "\n".join(ips),
        "SKYPILOT_NUM_NODES": str(len(ips)),
        "SKYPILOT_NUM_GPUS_PER_NODE": accelerators.partition(":")[2] or "1",
        "SKYPILOT_INTERNAL_JOB_ID": "1",
        "SKYPILOT_TASK_ID": f"sky-2026-11-28-12-00-00-000000_{task['name']}_1",
        "SKYPILOT_CLUSTER_INFO": json.dumps(where),
        "SKYPILOT_USER": "user",
        "PYTHONUNBUFFERED": "1",
    }
    command = ("/bin/bash", "-c", task["run"].strip())
    return [
        NodeStart(command, given | own | {"SKYPILOT_NODE_RANK": str(rank)})
        for rank in range(len(ips))
    ]
