"""The manifests for Kubernetes as its own schemas have it; no cluster is here to run them."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from pruning.__main__ import command_line
from pruning.study.studies import load

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(ROOT.glob("profiles/kubernetes/*.yaml"))


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_manifests_are_what_kubernetes_takes(path, version):
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


def test_jobs_share_one_volume_and_run_what_there_is():
    documents = [document for path in FILES for document in yaml.safe_load_all(path.read_text())]
    claims = {one["metadata"]["name"] for one in documents if one["kind"] == "PersistentVolumeClaim"}
    jobs = {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in documents if one["kind"] == "Job"}
    assert set(jobs) == {"pruning-workers", "pruning-figures"}
    for pod in jobs.values():
        assert {
            volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if volume["name"] == "shared"
        } == claims
    given = command_line().parse_args(jobs["pruning-workers"]["containers"][0]["command"][3:])
    assert given.verb == "work" and load(given.study).runs
    assert f"study={given.study}" in jobs["pruning-figures"]["containers"][0]["command"]
