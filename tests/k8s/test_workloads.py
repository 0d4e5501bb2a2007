"""What holds for every workload, in every combination."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic_settings import BaseSettings

from memfold.rpc.server import Server
from memfold.telemetry import Instruments
from memfold_gateway.reader_name import ReaderName

SERVICES = ("gateway", "writer", "reader")
# Not ours, but known to the libraries inside.
OTHER_VARIABLES = {"HF_HOME"}
WORKLOADS = {"Deployment", "StatefulSet"}
UNITS = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def workloads(objects):
    found = [o for o in objects if o["kind"] in WORKLOADS]
    assert {o["metadata"]["name"] for o in found} >= {f"memfold-{service}" for service in SERVICES}
    return found


def pods(objects):
    return [(o["metadata"]["name"], o["spec"]["template"]["spec"]) for o in workloads(objects)]


def of_kind(objects, kind):
    return [o for o in objects if o["kind"] == kind]


def chosen_by(match_labels, objects):
    """Names of the workloads whose pods have these labels."""
    return {
        o["metadata"]["name"]
        for o in workloads(objects)
        if match_labels.items() <= o["spec"]["template"]["metadata"]["labels"].items()
    }


def container_ports(container):
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def quantity(text):
    number, unit = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi|)", text).groups()
    return float(number) * UNITS.get(unit, 1)


def plain_environment(container):
    return {entry["name"]: entry["value"] for entry in container.get("env", [])}


def environment(container, objects):
    """What a container's process sees, secrets apart."""
    seen = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            (config,) = [
                o for o in of_kind(objects, "ConfigMap") if o["metadata"]["name"] == source["configMapRef"]["name"]
            ]
            seen.update(config["data"])
    return seen | plain_environment(container)


def settings_of(service):
    module = importlib.import_module(f"memfold_{service}.settings")
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseSettings) and value is not BaseSettings
    ]
    return found


def service_containers(objects):
    return {name: pod["containers"][0] for name, pod in pods(objects) if name.removeprefix("memfold-") in SERVICES}


# --- safety -------------------------------------------------------------------------------------------------------------


def test_every_pod_meets_the_restricted_standard(objects):
    for _, pod in pods(objects):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for volume in pod.get("volumes", []):
            assert set(volume) - {"name"} <= {"emptyDir", "secret", "configMap"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not any("hostPort" in port for port in container["ports"])


def test_every_pod_has_an_account_without_a_token(objects):
    accounts = {o["metadata"]["name"]: o for o in of_kind(objects, "ServiceAccount")}
    for name, pod in pods(objects):
        assert pod["serviceAccountName"] == name
        assert pod["automountServiceAccountToken"] is False
        assert accounts[name]["automountServiceAccountToken"] is False


def test_only_bounded_scratch_space_is_writable(objects):
    for _, pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert "emptyDir" in volumes[mounts["/tmp"]["name"]]
            for mount in mounts.values():
                volume = volumes.get(mount["name"], {})
                assert "emptyDir" not in volume or quantity(volume["emptyDir"]["sizeLimit"]) > 0
                assert mount.get("readOnly") is True or "secret" not in volume


def test_no_variable_of_a_service_link_can_pass_for_a_setting(objects):
    for _, pod in pods(objects):
        assert pod["enableServiceLinks"] is False


def test_no_secret_and_no_registry_is_in_the_manifests(objects):
    assert of_kind(objects, "Secret") == []
    for _, pod in pods(objects):
        for container in pod["containers"]:
            name, _, tag = container["image"].partition(":")
            assert "/" not in name
            assert tag not in ("", "latest")
    text = yaml.safe_dump_all(objects)
    assert not re.search(r"mfk_[a-z0-9-]+_|redis://[^/]*@", text)


# --- resources, probes, ends ----------------------------------------------------------------------------------------------


def test_every_container_says_what_it_needs_and_gets_at_most(objects):
    for _, pod in pods(objects):
        for container in pod["containers"]:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert set(requests) == set(limits) >= {"cpu", "memory"}
            for name, wanted in requests.items():
                assert 0 < quantity(wanted) <= quantity(limits[name])


def test_writer_and_reader_ask_for_one_gpu_unless_told_not_to(objects, combination):
    gpus = 0 if combination in ("cpu", "all") else 1
    for name, container in service_containers(objects).items():
        wanted = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        assert wanted == (0 if name == "memfold-gateway" else gpus)


def test_every_service_is_probed_over_grpc_on_the_port_it_listens_on(objects):
    for container in service_containers(objects).values():
        port = int(plain_environment(container)["MEMFOLD_LISTEN"].rpartition(":")[2])
        assert port in container_ports(container).values()
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[kind]["grpc"]["port"] == port


async def test_a_server_that_cannot_serve_yet_is_alive_but_not_ready(overlay):
    server = Server("127.0.0.1:0")
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def healthy(probe):
            request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
            return (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING

        for container in service_containers(overlay.values()).values():
            assert await healthy(container["livenessProbe"])
            assert not await healthy(container["readinessProbe"])
        await server.set_serving(True)
        for container in service_containers(overlay.values()).values():
            assert await healthy(container["readinessProbe"])
            assert await healthy(container["startupProbe"])
    await server.stop()


def test_every_container_has_time_to_start_and_is_not_killed_for_a_pause(objects):
    def patience(probe):
        return probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)

    for _, pod in pods(objects):
        for container in pod["containers"]:
            assert patience(container["livenessProbe"]) > patience(container["readinessProbe"])
            assert patience(container["livenessProbe"]) >= 60
            assert patience(container["startupProbe"]) >= 600


def test_every_service_gets_the_time_to_drain_that_it_will_take(objects):
    for name, pod in pods(objects):
        if name == "memfold-redis":
            continue
        (container,) = pod["containers"]
        before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        grace = float(plain_environment(container)["MEMFOLD_GRACE_S"])
        assert pod["terminationGracePeriodSeconds"] >= before + grace + 10
        # Behind a virtual address a pod must leave it before it closes its port. Gateways hear from readers themselves.
        assert (before > 0) == any(
            name in chosen_by(o["spec"]["selector"], objects) and o["spec"].get("clusterIP") != "None"
            for o in of_kind(objects, "Service")
        )


def test_a_rollout_never_waits_for_a_spare_gpu(objects):
    for o in of_kind(objects, "Deployment"):
        rolling = o["spec"]["strategy"]["rollingUpdate"]
        if o["metadata"]["name"] != "memfold-gateway":
            assert rolling == {"maxSurge": 0, "maxUnavailable": 1}
        else:
            assert rolling == {"maxSurge": 1, "maxUnavailable": 0}


def test_pods_spread_over_nodes(objects):
    for o in of_kind(objects, "Deployment"):
        (spread,) = o["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert chosen_by(spread["labelSelector"]["matchLabels"], objects) == {o["metadata"]["name"]}


# --- who belongs to whom --------------------------------------------------------------------------------------------------


def test_selectors_choose_their_own_workload_and_no_other(objects):
    for o in workloads(objects):
        assert chosen_by(o["spec"]["selector"]["matchLabels"], objects) == {o["metadata"]["name"]}
    for o in of_kind(objects, "PodDisruptionBudget"):
        assert chosen_by(o["spec"]["selector"]["matchLabels"], objects) == {o["metadata"]["name"]}
        assert o["spec"]["maxUnavailable"] == 1  # of one pod too: a budget must never block the drain of a node
    for o in of_kind(objects, "Service"):
        assert chosen_by(o["spec"]["selector"], objects) == {o["metadata"]["name"]}
    budgets = {o["metadata"]["name"] for o in of_kind(objects, "PodDisruptionBudget")}
    assert budgets == {o["metadata"]["name"] for o in workloads(objects)}


def test_services_lead_to_ports_that_are_open(objects):
    ports = {name: container_ports(pod["containers"][0]) for name, pod in pods(objects)}
    for o in of_kind(objects, "Service"):
        for port in o["spec"]["ports"]:
            assert ports[o["metadata"]["name"]][port["targetPort"]] == port["port"]


def test_gateways_find_every_reader_by_dns(objects):
    gateway = service_containers(objects)["memfold-gateway"]
    target = plain_environment(gateway)["MEMFOLD_READER_TARGET"]
    (reader,) = [o for o in of_kind(objects, "Service") if o["metadata"]["name"] == "memfold-reader"]
    assert target == f"dns:///memfold-reader:{reader['spec']['ports'][0]['port']}"
    assert reader["spec"]["clusterIP"] == "None"
    assert reader["spec"]["publishNotReadyAddresses"] is True
    assert ReaderName.parse_list(target) == (ReaderName("memfold-reader", 50052),)


def test_policies_open_exactly_what_is_served(objects):
    open_to = {}  # (workload, port) -> names of workloads that may call, or None for anyone
    for policy in of_kind(objects, "NetworkPolicy"):
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        for rule in policy["spec"]["ingress"]:
            callers = None
            if "from" in rule:
                (source,) = rule["from"]
                selector = source["podSelector"]
                callers = set(selector.get("matchLabels", {}).values())
                callers |= {value for e in selector.get("matchExpressions", []) for value in e["values"]}
            for name in chosen_by(policy["spec"]["podSelector"]["matchLabels"], objects):
                for port in rule["ports"]:
                    open_to[name, port["port"]] = callers
    expected = {(name, 9464): None for name, _ in pods(objects)} | {
        ("memfold-gateway", 50051): None,
        ("memfold-reader", 50052): {"memfold-gateway"},
    }
    if of_kind(objects, "StatefulSet"):
        expected["memfold-redis", 6379] = {"memfold-gateway", "memfold-writer", "memfold-reader"}
    assert open_to == expected


def test_the_redis_of_the_component_is_the_one_that_services_use(overlay):
    config = next(o for (kind, _), o in overlay.items() if kind == "ConfigMap")
    service = overlay["Service", "memfold-redis"]
    port = service["spec"]["ports"][0]["port"]
    assert config["data"]["MEMFOLD_REDIS_URL"] == f"redis://memfold-redis:{port}/0"
    arguments = overlay["StatefulSet", "memfold-redis"]["spec"]["template"]["spec"]["containers"][0]["args"]
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"
    assert config["data"]["MEMFOLD_DURABILITY"] == "fsync"


# --- settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_is_a_setting_of_the_service(service, overlay):
    known = {f"MEMFOLD_{name}".upper() for name in settings_of(service).model_fields}
    container = service_containers(overlay.values())[f"memfold-{service}"]
    assert set(plain_environment(container)) - OTHER_VARIABLES <= known


def test_every_shared_variable_is_a_setting_of_some_service(overlay):
    known = {f"MEMFOLD_{name}".upper() for service in SERVICES for name in settings_of(service).model_fields}
    config = next(o for (kind, _), o in overlay.items() if kind == "ConfigMap")
    assert set(config["data"]) <= known


@pytest.mark.parametrize("service", SERVICES)
def test_the_service_accepts_what_its_container_is_given(service, overlay, monkeypatch):
    container = service_containers(overlay.values())[f"memfold-{service}"]
    given = environment(container, overlay.values())
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = settings_of(service)()
    assert settings.metrics_port == container_ports(container)["metrics"]
    assert settings.listen == given["MEMFOLD_LISTEN"]
    assert settings.redis_url == given["MEMFOLD_REDIS_URL"]


def test_prometheus_is_told_the_port_that_metrics_are_on(objects):
    config = of_kind(objects, "ConfigMap")[0]["data"]
    for o in of_kind(objects, "Deployment"):
        template = o["spec"]["template"]
        notes = template["metadata"]["annotations"]
        assert notes["prometheus.io/scrape"] == "true"
        metrics = container_ports(template["spec"]["containers"][0])["metrics"]
        assert notes["prometheus.io/port"] == config["MEMFOLD_METRICS_PORT"] == str(metrics)


# --- scaling --------------------------------------------------------------------------------------------------------------


def test_each_deployment_has_one_owner_of_its_replicas(objects):
    scaled = [o["spec"]["scaleTargetRef"]["name"] for o in objects if "scaleTargetRef" in o.get("spec", {})]
    assert len(scaled) == len(set(scaled))
    for o in of_kind(objects, "Deployment"):
        assert ("replicas" in o["spec"]) == (o["metadata"]["name"] not in scaled)


def test_keda_asks_for_metrics_that_exist_in_the_namespace_that_is_used(overlay):
    known = {f"memfold_{field.name}" for field in fields(Instruments)}
    asked = set()
    for (kind, _), o in overlay.items():
        if kind == "ScaledObject":
            for trigger in o["spec"]["triggers"]:
                query = trigger["metadata"]["query"]
                asked |= set(re.findall(r"memfold_\w+", query))
                assert set(re.findall(r'namespace="([^"]*)"', query)) == {o["metadata"]["namespace"]}
                assert len(re.findall(r"namespace=", query)) == len(re.findall(r"memfold_\w+", query))
    assert {
        "memfold_behind_memories",
        "memfold_behind_oldest_seconds",
        "memfold_engine_active",
        "memfold_engine_waiting",
        "memfold_engine_slots",
    } == asked
    assert asked <= known
