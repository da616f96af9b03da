"""What Ray Serve is asked for, with a stand-in for it."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from specstream.errors import MissingPackageError, SpecStreamError, UsageError
from specstream.serving import ray_app, run
from specstream.serving.deployment import DeploymentConfig
from specstream.serving.ray_app import build
from tests.integration.served import tiny_engine


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the stand-in was given."""
    seen: dict[str, Any] = {}
    serve: Any = ModuleType("ray.serve")

    def ingress(application: Any) -> Any:
        seen["application"] = application
        return lambda kind: kind

    def deployment(kind: Any, **options: Any) -> Any:
        seen.update(options, kind=kind)
        return SimpleNamespace(bind=lambda: "bound")

    serve.ingress, serve.deployment = ingress, deployment
    serve.get_replica_context = lambda: SimpleNamespace(replica_id=SimpleNamespace(unique_id="third"))
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    monkeypatch.setattr(ray_app, "_servers", [])
    return seen


def test_so_many_replicas_with_so_much_each(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECSTREAM_MAX_ROWS", "3")
    monkeypatch.setenv("SPECSTREAM_MAX_QUEUE", "5")
    assert build({"replicas": "2", "cpus": "4", "gpus": "0.5"}) == "bound"
    assert asked["num_replicas"] == 2
    assert asked["max_ongoing_requests"] == 8
    assert asked["ray_actor_options"] == {"num_cpus": 4, "num_gpus": 0.5}


def test_more_under_load(asked: dict[str, Any]) -> None:
    build({"replicas": 1, "most_replicas": 4})
    assert asked["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8}
    assert "num_replicas" not in asked


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"replicas": "0"}, "replicas is wrong: Input should be greater than or equal to 1; known are config"),
        ({"replica": 2}, "replica is wrong: Extra inputs are not permitted"),
        ({"config": "nowhere.yaml"}, "config 'nowhere.yaml' cannot be read"),
    ],
)
def test_what_is_wrong_is_named(arguments: dict[str, Any], words: str, asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        build(arguments)
    assert str(caught.value).startswith(words)


def test_vllm_is_not_ours_to_replicate(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECSTREAM_ENGINE", "vllm")
    with pytest.raises(UsageError, match="engine is 'vllm', which has replicas of its own"):
        build({})


def test_no_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install '.\[ray\]'"):
        build({})


def test_a_replica_signs_its_answers_and_says_when_it_has_died(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load", lambda config: [run.Loaded(config=config, engine=tiny_engine(), root="tiny")])
    build({})
    health = asked["kind"]().check_health
    health()  # nothing has started yet
    with TestClient(asked["application"]()) as client:
        answer = client.get("/health")
        assert (answer.status_code, answer.headers["x-specstream-replica"]) == (200, "third")
        health()
    (server,) = ray_app._servers
    server.models.named(None).scheduler = SimpleNamespace(alive=False)  # type: ignore[assignment]
    with pytest.raises(SpecStreamError, match="the scheduler of smollm2-135m has died"):
        health()
    assert isinstance(server.config, DeploymentConfig)
