"""The Kubernetes manifests, checked without a cluster: their structure, the operator's schema, the run in them.

The schema is that of the operator's own package, without what it depends on: make test-kubernetes.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import jsonschema
import pytest
import yaml
from dask.utils import parse_bytes

import cluster_setup
from daskcurate import settings
from daskcurate.pipeline_config import load_config

FOLDER = Path(cluster_setup.__file__).parent / "kubernetes"
CRDS = "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds"


def documents(name):
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))


def pods():
    """Return the pods of both files by name: their specs."""
    (cluster,), (job,) = documents("cluster"), documents("job")
    found = {}
    for name, spec in (("cluster", cluster["spec"]), ("job", job["spec"]["cluster"]["spec"])):
        found[f"{name} worker"], found[f"{name} scheduler"] = (
            spec["worker"]["spec"],
            spec["scheduler"]["spec"],
        )
    return {**found, "run": job["spec"]["job"]["spec"]}


@pytest.mark.parametrize(
    "name", ["cluster worker", "cluster scheduler", "job worker", "job scheduler", "run"]
)
def test_pods(name):
    pod = pods()[name]
    (container,) = pod["containers"]
    repository, _, tag = container["image"].rpartition(":")
    assert repository
    assert tag != "latest"
    asked, most = container["resources"]["requests"], container["resources"]["limits"]
    assert asked["memory"] == most["memory"]  # or the node may have less than the worker was told
    assert float(asked["cpu"]) <= float(most["cpu"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == volumes
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["DASK_CONFIG"] == mounts["settings"]
    named = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
    assert named <= {document["metadata"]["name"] for document in documents("settings")}


def test_workers_stay_below_their_containers_limit():
    pod = pods()["cluster worker"]
    (container,) = pod["containers"]
    options = dict(zip(container["args"][2::2], container["args"][3::2], strict=True))
    limits = container["resources"]["limits"]
    inside, outside = (parse_bytes(size.replace("Gi", "GiB")) for size in (
        options["--memory-limit"].removesuffix("B"), limits["memory"]))  # fmt: skip
    assert 1 << 30 <= outside - inside <= outside // 4
    assert options["--nthreads"] == limits["cpu"]
    assert options["--name"] == "$(DASK_WORKER_NAME)"
    spill = {volume["name"]: volume for volume in pod["volumes"]}["spill"]["emptyDir"]["sizeLimit"]
    assert parse_bytes(spill + "B") < parse_bytes(limits["ephemeral-storage"] + "B")
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {options["--local-directory"]}


def test_the_service_finds_its_scheduler():
    (cluster,), (job,) = documents("cluster"), documents("job")
    inner = job["spec"]["cluster"]["spec"]
    for name, spec in ((cluster["metadata"]["name"], cluster["spec"]), (job["metadata"]["name"], inner)):
        selector = spec["scheduler"]["service"]["selector"]
        assert selector.pop("dask.org/cluster-name") == name
        assert selector == {"dask.org/component": "scheduler"}
        assert spec["scheduler"]["service"]["type"] == "ClusterIP"
        (container,) = spec["scheduler"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {port["targetPort"]: port["port"] for port in spec["scheduler"]["service"]["ports"]}
        assert ports == {"tcp-comm": 8786, "http-dashboard": 8787}
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
    assert inner == cluster["spec"]  # once the selectors are gone


def test_the_settings_are_ours_and_the_run_is_one(tmp_path):
    ours, run = documents("settings")
    assert yaml.safe_load(ours["data"]["daskcurate.yaml"]) == yaml.safe_load(settings.dask_file())
    file = tmp_path / "run.yaml"
    file.write_text(run["data"]["run.yaml"])
    assert [stage.name for stage in load_config(file).stages] == ["flat", "dedup"]
    (mount,) = (m for m in pods()["run"]["containers"][0]["volumeMounts"] if m["name"] == "run")
    assert pods()["run"]["containers"][0]["args"] == ["daskcurate", "run", f"{mount['mountPath']}/run.yaml"]


def strict(schema):
    """Return a schema in which no key may be given that it does not name, and text that may be a number."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("type") == "object" and "properties" in made and "additionalProperties" not in made:
        made["additionalProperties"] = bool(made.get("x-kubernetes-preserve-unknown-fields"))
    if made.get("x-kubernetes-int-or-string") or made.get("format") == "int-or-string":
        made["type"] = ["integer", "string"]
    return made


@pytest.mark.parametrize(("name", "kind"), [("cluster", "DaskCluster"), ("job", "DaskJob")])
def test_the_operators_schema(name, kind):
    try:
        package = distribution("dask-kubernetes")
    except PackageNotFoundError:
        pytest.skip("the operator's package is not installed: make test-kubernetes")
    crd = yaml.safe_load(Path(package.locate_file(f"{CRDS}/{kind.lower()}.yaml")).read_text())
    (version,) = crd["spec"]["versions"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["apiVersion"] = {"const": f"{crd['spec']['group']}/{version['name']}"}
    schema["properties"]["kind"] = {"const": crd["spec"]["names"]["kind"]}
    schema["properties"]["metadata"] = {"type": "object"}
    (document,) = documents(name)
    validator = jsonschema.Draft202012Validator(schema)
    assert [f"{'/'.join(map(str, e.path))}: {e.message[:200]}" for e in validator.iter_errors(document)] == []
    document["spec"]["worke"] = {}
    assert list(validator.iter_errors(document))
