"""Artifacts of the stand-in for a W&B server: what wandb 0.31 sends to log one, and no more.

The client creates the artifact and its manifest, uploads both, and commits.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StoredArtifact:
    """One version; `files` holds the contents by the paths in it, `manifest` is W&B's own list."""

    id: str
    fields: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # as the client declared them, by path
    manifest: bytes = b""
    state: str = "PENDING"

    @property
    def name(self) -> str:
        return str(self.fields["artifactCollectionName"])

    @property
    def type(self) -> str:
        return str(self.fields["artifactTypeName"])

    @property
    def is_whole(self) -> bool:
        """Whether it is committed and each file has the digest that the client declared."""
        sums = {
            p: base64.b64encode(hashlib.md5(c).digest()).decode() for p, c in self.files.items()
        }
        return self.state == "COMMITTED" and bool(self.manifest) and sums == self.digests

    def node(self) -> dict[str, Any]:
        """What a query for it gets."""
        owner = {"id": "p", "internalId": "1", "name": self.fields["projectName"],
                 "entity": {"name": self.fields["entityName"]}}  # fmt: skip
        return {
            "__typename": "Artifact",
            "id": self.id,
            "artifactSequence": {"__typename": "ArtifactSequence", "name": self.name,
                                 "project": owner},
            "versionIndex": 0,
            "artifactType": {"name": self.type},
            "description": None,
            "metadata": self.fields.get("metadata"),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": self.state,
            "size": sum(len(content) for content in self.files.values()),
            "digest": self.fields["digest"],
            "commitHash": "c",
            "fileCount": len(self.files),
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "aliases": [],
        }  # fmt: skip


class Artifacts:
    """The artifacts of a server at `url`, in the order in which they were created."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.all: list[StoredArtifact] = []

    def upload(self, path: str, content: bytes) -> None:
        """Takes a PUT to /artifact/<id>/manifest or /artifact/<id>/file/<path>; ignores others."""
        parts = path.split("/", 4)
        if parts[1] != "artifact":
            return
        artifact = self._of(parts[2])
        if parts[3] == "manifest":
            artifact.manifest = content
        else:
            artifact.files[parts[4]] = content

    def answer(self, operation: str, v: dict[str, Any]) -> dict[str, Any]:
        """The `data` of a GraphQL operation; KeyError for one that is not known here."""
        return _OPERATIONS[operation](self, v)

    def _of(self, artifact_id: str) -> StoredArtifact:
        return next(one for one in self.all if one.id == artifact_id)

    def _type(self, v: dict[str, Any]) -> dict[str, Any]:
        known = [one for one in self.all if one.name == str(v["name"]).split(":")[0]]
        return {"project": {"artifact": known[-1].node() if known else None}}

    def _create(self, v: dict[str, Any]) -> dict[str, Any]:
        self.all.append(StoredArtifact(f"a{len(self.all)}", dict(v["input"])))
        answer = {"id": self.all[-1].id, "state": "PENDING", "artifactSequence": {}}
        return {"createArtifact": {"artifact": answer}}

    def _manifest(self, v: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/artifact/{v['artifactID']}/manifest" if v["includeUpload"] else None
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
        return {
            "createArtifactManifest": {"artifactManifest": {"id": v["artifactID"], "file": file}}
        }

    def _update_manifest(self, v: dict[str, Any]) -> dict[str, Any]:
        created = self._manifest({**v, "artifactID": v["artifactManifestID"]})
        return {"updateArtifactManifest": created["createArtifactManifest"]}

    def _create_files(self, v: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for file in v["input"]["artifactFiles"]:
            self._of(file["artifactID"]).digests[file["name"]] = file["md5"]
            url = f"{self.url}/artifact/{file['artifactID']}/file/{file['name']}"
            node = {"storagePath": file["name"], "uploadUrl": url, "uploadHeaders": []}
            owner = {"uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}
            edges.append({"node": node | owner})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _commit(self, v: dict[str, Any]) -> dict[str, Any]:
        artifact = self._of(v["artifactID"])
        artifact.state = "COMMITTED"
        answer = {"id": artifact.id, "digest": artifact.fields["digest"]}
        return {"commitArtifact": {"artifact": answer}}


_OPERATIONS: dict[str, Callable[[Artifacts, dict[str, Any]], dict[str, Any]]] = {
    "ArtifactType": Artifacts._type,
    "CreateArtifact": Artifacts._create,
    "CreateArtifactManifest": Artifacts._manifest,
    "UpdateArtifactManifest": Artifacts._update_manifest,
    "CreateArtifactFiles": Artifacts._create_files,
    "CommitArtifact": Artifacts._commit,
    "ArtifactByID": lambda server, v: {"artifact": server._of(v["id"]).node()},
}
