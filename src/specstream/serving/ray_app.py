"""Replicas of our server under Ray Serve, each with an engine of its own and a share of the requests.

``serve run specstream.serving.ray_app:build config=deploy.yaml replicas=2 gpus=1``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from specstream.environment import require
from specstream.errors import SpecStreamError, UsageError
from specstream.serving.deployment import DeploymentConfig

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from specstream.serving.app import Server

_servers: list[Server] = []
"""The server of this process; Ray gives each replica a process."""


class Replicas(BaseModel):
    """What ``build`` takes.

    Attributes:
        config: a YAML file that every machine can read, as of ``specstream serve``; over it goes the environment.
        replicas: engines.
        most_replicas: as many as that under load, where it is more; ``max_rows`` requests are aimed at for each.
        cpus: cores that Ray sets aside for each.
        gpus: GPUs likewise; below 1 several replicas share one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    config: str | None = None
    replicas: int = Field(default=1, ge=1)
    most_replicas: int | None = Field(default=None, ge=1)
    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)


def build(arguments: Mapping[str, Any]) -> Any:
    """The application that ``serve run`` and ``ray.serve.run`` take.

    Args:
        arguments: of ``Replicas``; texts, as from a command line, will do.

    Raises:
        UsageError: an unknown argument or a value out of range, here or in the configuration.
        MissingPackageError: there is no Ray.
    """
    serve = require("ray.serve", "ray", "Ray Serve")
    try:
        wanted = Replicas(**arguments)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(Replicas.model_fields)
        raise UsageError(f"{'.'.join(map(str, first['loc']))} is wrong: {first['msg']}; known are {known}") from None
    config = DeploymentConfig.read(wanted.config)
    if config.engine != "local":
        raise UsageError(f"engine is {config.engine!r}, which has replicas of its own; give engine: local")

    models = [each for target in config.targets for each in (target, *[target] * len(target.lora_modules))]

    def application() -> ASGIApp:
        return replica(config, serve.get_replica_context().replica_id.unique_id)

    class Replica:
        """One engine."""

        def check_health(self) -> None:
            """Ray replaces a replica whose check fails."""
            if dead := [name for server in _servers for name in server.models.dead]:
                raise SpecStreamError(f"the scheduler of {dead[0]} has died; the replica has to be started again")

    # Ray holds back what is more than this; with our own queue in it, it is our 429 that a client sees.
    options: dict[str, Any] = {"max_ongoing_requests": sum(each.max_rows + each.max_queue for each in models)}
    if wanted.most_replicas is not None and wanted.most_replicas > wanted.replicas:
        options["autoscaling_config"] = {
            "min_replicas": wanted.replicas,
            "max_replicas": wanted.most_replicas,
            "target_ongoing_requests": sum(each.max_rows for each in models),
        }
    else:
        options["num_replicas"] = wanted.replicas
    actor = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus}
    deployment = serve.deployment(
        serve.ingress(application)(Replica),
        name="specstream",
        ray_actor_options=actor,
        graceful_shutdown_timeout_s=config.grace_seconds,
        **options,
    )
    return deployment.bind()


def replica(config: DeploymentConfig, name: str) -> ASGIApp:
    """A server in this process, whose answers say its name."""
    from specstream.serving import run
    from specstream.serving.app import Server

    run.check(config)
    server = Server(run.load(config), config, replica=name)
    _servers.append(server)
    return server.app
