"""The container's and Kubernetes' files agree with the server: user, command, options, port, probes, times."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from basnet_runtime.serve.cli import app
from basnet_runtime.serve.config import ServeConfig
from basnet_torch import __version__
from basnet_torch.options import build

ROOT = Path(__file__).parents[3]
CONTAINERFILE = ROOT / "containers" / "Containerfile"
MANIFEST = ROOT / "deploy" / "kubernetes" / "serve.yaml"
FILES = [CONTAINERFILE, CONTAINERFILE.with_name("build.sh"), MANIFEST, ROOT / ".dockerignore"]


def configured(command):
    """What the server makes of a command line."""
    name, *arguments = command
    assert name == "basnet-serve"
    return build(ServeConfig, typer.main.get_command(app).make_context(name, arguments).params)


def instructions(name):
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)", text, re.MULTILINE)


@pytest.fixture
def deployment():
    return next(one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["kind"] == "Deployment")


@pytest.fixture
def container(deployment):
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return found


def test_the_image_serves_as_its_own_user():
    assert instructions("USER") == ["10001:10001"]
    (command,) = instructions("CMD")
    config = configured(yaml.safe_load(command))
    assert (config.host, [str(config.port)]) == ("0.0.0.0", instructions("EXPOSE"))
    assert not instructions("ENTRYPOINT")  # or basnet-run and basnet-doctor could not be called by name
    assert instructions("ARG")[0] == "BASE=docker.io/library/debian:12-slim"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_floats_and_nothing_is_of_one_machine(path):
    text = path.read_text()
    assert "latest" not in text
    assert not re.search(r"https?://|index-url|find-links|_proxy|/etc/ssl|/root/|/home/", text)
    assert set(re.findall(r"basnet-deploy:(\d[\w.]*)", text)) <= {__version__}


def test_the_build_context_holds_what_the_wheel_is_made_of():
    kept = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {package.split("/")[0] for package in packages}
    needed |= {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    (install,) = (line for line in instructions("RUN") if "pip install" in line)
    words = shlex.split(install.partition("-m pip install")[2].partition("&&")[0])
    assert needed | {words[words.index("--constraint") + 1]} == set(kept)
    assert all((ROOT / path).exists() for path in kept)


def test_the_extras_of_the_image_are_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = (line.partition("=")[2] for line in instructions("ARG") if line.startswith("EXTRAS="))
    assert set(asked.split(",")) <= set(extras)


def test_kubernetes_runs_the_server_as_it_is(deployment, container, client):
    pod = deployment["spec"]["template"]["spec"]
    config = configured(container["args"])
    assert config.host == "0.0.0.0"
    (port,) = container["ports"]
    assert port["containerPort"] == config.port
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(config.port)
    assert client.get(annotations["prometheus.io/path"]).status_code == 200
    for name, path in {"startup": "ready", "readiness": "ready", "liveness": "live"}.items():
        asked = container[f"{name}Probe"]["httpGet"]
        assert asked == {"path": f"/health/{path}", "port": port["name"]}
        assert client.get(asked["path"]).status_code == 200
    assert pod["terminationGracePeriodSeconds"] >= config.drain + config.grace + 5
    # A pod that is not ready must be seen before it accepts no more.
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < config.drain


def test_kubernetes_gives_the_image_no_more_than_it_needs(deployment, container):
    pod = deployment["spec"]["template"]["spec"]
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == "10001:10001"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} == set(container["resources"]["limits"]) == set(container["resources"]["requests"])
    (cache,) = re.findall(r"XDG_CACHE_HOME=(\S+)", CONTAINERFILE.read_text())
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounted[cache] in {volume["name"] for volume in pod["volumes"]}
    assert "NOT RUN" in MANIFEST.read_text()


def test_the_service_finds_the_pods(deployment, container):
    service = next(one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["kind"] == "Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
