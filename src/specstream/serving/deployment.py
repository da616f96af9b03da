"""What a server is given: the model, how it speculates, its limits. Read from YAML and the environment.

``SPECSTREAM_MAX_TOKENS=256`` is ``max_tokens: 256``.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from specstream.config import check_prefix_cache, truth_value
from specstream.environment import PREFIX, VARIABLES, check_free, gpus, variable
from specstream.errors import UsageError, listed, meant, must_be, remedy, shown
from specstream.files.yaml_file import Document, Section, home_expanded, misplaced, owner_of, read_document
from specstream.serving.faults import FieldError
from specstream.serving.reasoning import ReasoningParser
from specstream.serving.tool_calls import Parser

SPARE_CONNECTIONS = 16
"""Beyond the limit: in these it is said that there are too many."""

OWN_FILES = 100
"""Files that a server has open besides its connections, at most."""


class DeploymentConfig(Section):
    """What ``specstream serve`` serves.

    Attributes:
        model_name: what clients call the model, and, without a ``model_path``, the name it is loaded by.
        model_path: a folder, or another name, to load it from.
        models: further models by name: where each is loaded from, or a mapping of its own settings. Of this one's it
            has all but those of ``OWN`` (what drafts, and the adapters).
        lora_modules: LoRA adapters of the model by name, each a folder in PEFT's format. Each is merged into a copy of
            the model, which takes the model's memory once more; what drafts for the model drafts for them too.
        engine: ``local`` is this package's own; ``vllm`` starts vLLM with what it has of the rest (docs/scaling.md).
        draft_model: as in ``SpeculativeEngine``; so are ``drafter``, ``heads``, ``device``, ``dtype``,
            ``runtime`` and ``quantization``.
        memory: a file that keeps the answers, for drafts to copy from. What one client was told then shows in how fast
            another is answered, so None, which keeps nothing, is for servers with more than one. Not for ``vllm``.
        prefix_cache_gb: most memory (10**9 bytes) for keys and values of earlier texts. A prompt that begins as one of
            them is read from there on, which shows in its time and in ``cached_tokens``; 0 keeps none. vLLM has its
            own.
        gamma: most tokens drafted per round; None for as many as pay.
        acceptance_threshold: lossy: a number turns on typical acceptance, which changes what answers at a temperature
            above 0 say; their ``speculation`` has ``lossless: false``. None is lossless. Not for ``vllm``.
        max_tokens: most new tokens of one answer, and how many it gets where the request does not say.
        temperature: of requests that do not say; 0 is greedy.
        memory_gb: memory that must be free, on the GPU if one is used; the weights, the cache of ``max_rows``
            answers of ``max_context`` tokens, and ``prefix_cache_gb`` must fit into it. None asks nothing.
        gpu_required: refuse to start without a GPU.
        host: where to listen; the default is this machine only.
        port: likewise; 0 takes a free one.
        api_key: what clients must send as their bearer token; None lets everyone in.
        max_rows: answers that are decoded side by side.
        max_queue: answers that may wait for a place; more are told to come again (429).
        prefill_chunk_tokens: most tokens of a prompt that are read between two rounds of the answers beside it. Where
            our kernels read it, no pass reads more than 128. Elsewhere, answers to prompts that are longer than fewer
            than 512 are exact up to rounding: narrower passes run other kernels.
        max_context: most tokens of a prompt and its answer; None for what the model holds.
        max_connections: clients that are connected at a time; None for 1000, or half the files that may be open.
        max_choices: most answers to one request (``n``, and prompts of a completion).
        max_body_bytes: of a request.
        tool_call_parser: how the model writes calls of tools, by vLLM's names; ``auto`` tells by the chat template.
        reasoning_parser: whether thoughts are told from answers (``reasoning_content``): ``think`` is between
            ``<think>`` and ``</think>``; ``auto`` does so where the chat template has these tags.
        request_seconds: an answer that takes longer, from the arrival of its request on, is given up (504).
        grace_seconds: how long a server that is told to stop goes on with what it has begun.
        cors_origins: whose pages a browser lets ask this server, such as ``https://example.org``; ``*`` is everyone's.
        log_level: of what is logged, the least; ``warning`` leaves out the line that each request gets.
        log_prompts: whether prompts go into the log.
        vllm_path: the ``vllm`` command; None for the one on the PATH.
        vllm_args: what it gets besides, such as ``--tensor-parallel-size 4``; of a text the words, as a shell reads it.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, hide_input_in_errors=True
    )

    model_name: str = Field(default="smollm2-135m", min_length=1)
    model_path: str | None = None
    models: dict[str, str | dict[str, Any]] = Field(default_factory=dict)
    lora_modules: dict[str, str] = Field(default_factory=dict)
    engine: Literal["local", "vllm"] = "local"
    draft_model: str | None = None
    drafter: Literal[
        "auto",
        "none",
        "lookup",
        "recycling",
        "lookahead",
        "streams",
        "medusa",
        "block",
        "eagle3",
        "dflash",
        "draft_model",
        "mixed",
    ] = "auto"
    heads: str | None = None
    memory: str | None = None
    prefix_cache_gb: float = Field(default=0.5, ge=0)
    gamma: int | None = Field(default=None, ge=1)
    acceptance_threshold: float | None = Field(default=None, gt=0, lt=1)
    device: str = "auto"
    dtype: str = "auto"
    runtime: Literal["auto", "eager", "native", "packed", "graphs", "static"] = "auto"
    quantization: Literal["none", "int8", "int4"] = "none"
    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    memory_gb: float | None = Field(default=None, gt=0)
    gpu_required: bool = False
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_key: SecretStr | None = None
    max_rows: int = Field(default=8, ge=1)
    max_queue: int = Field(default=64, ge=0)
    prefill_chunk_tokens: int = Field(default=512, ge=1, le=512)
    max_context: int | None = Field(default=None, ge=2)
    max_connections: int | None = Field(default=None, ge=1)
    max_choices: int = Field(default=8, ge=1)
    max_body_bytes: int = Field(default=1_000_000, ge=1)
    tool_call_parser: Parser = "auto"
    reasoning_parser: ReasoningParser = "auto"
    request_seconds: float = Field(default=300.0, gt=0)
    grace_seconds: float = Field(default=30.0, ge=0)
    cors_origins: tuple[str, ...] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_prompts: bool = False
    vllm_path: str | None = None
    vllm_args: tuple[str, ...] = ()

    if not TYPE_CHECKING:  # for whom the fields are the arguments

        def __init__(self, **values: Any) -> None:
            if (name := truth_value(type(self), values)) is not None:
                raise FieldError(f"{name} is {values[name]}; give a number, or leave it out", name)
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise FieldError(_complaint(error), str(error.errors()[0]["loc"][0])) from None
            self._check_names()

    @field_validator("models", "lora_modules", mode="before")
    @classmethod
    def _by_name(cls, value: Any, field: ValidationInfo) -> Any:
        """Of words such as ``NAME=PATH`` a mapping; a model may be called what it is loaded from."""
        if isinstance(value, str):
            value = value.split()
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
            return value
        pairs = [named(word) for word in value]
        if field.field_name == "lora_modules" and (bare := next((n for n, path in pairs if n == path), None)):
            lacking = "path" if bare.endswith("=") else "name"
            raise ValueError(f"lora_modules is {bare!r}, which has no {lacking}; give NAME=PATH")
        return _unique(pairs, str(field.field_name))

    @field_validator("vllm_args", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                return shlex.split(value)
            except ValueError as error:
                raise ValueError(f"vllm_args is {value!r}, which no shell reads ({error}); mend its quotes") from None
        return [str(word) for word in value] if isinstance(value, (list, tuple)) else value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: Any) -> Any:
        return re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_sent(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/*?#\s]+", origin):
                raise ValueError(
                    f"cors_origins has {origin!r}, which no browser sends; give scheme and host, such as "
                    "https://a.example"
                )
        return origins

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any, field: ValidationInfo) -> Any:
        """An empty text is no value: as a key it would let everyone in, as a host it would listen everywhere."""
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, str) and not value.strip() and field.field_name != "vllm_args":
            raise ValueError(f"{field.field_name} is {value!r}; give a value that is not empty, or leave it out")
        return value

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not re.fullmatch("[!-~]+", key.get_secret_value()):
            raise ValueError("api_key has white space or a character that no header holds; give visible ASCII alone")
        return key

    @property
    def source(self) -> str:
        """Where the model is loaded from."""
        return self.model_path or self.model_name

    def called(self, name: str) -> DeploymentConfig:
        """The same model under another name.

        Raises:
            UsageError: it is empty.
        """
        return DeploymentConfig(**{**self._given, "model_name": name, "model_path": self.source})

    def adapted(self, name: str) -> DeploymentConfig:
        """The configuration of one of ``lora_modules``: its base's by another name, without the base's adapters."""
        return DeploymentConfig(**{**self._given, "model_name": name, "model_path": self.source, "lora_modules": {}})

    @property
    def targets(self) -> list[DeploymentConfig]:
        """A configuration for each model, this one's first; each has its adapters, and none has further models.

        Raises:
            FieldError: a setting of a further model that is unknown, out of range, or of the whole server.
        """
        given = {name: value for name, value in self._given.items() if name != "models"}
        shared = {name: value for name, value in given.items() if name not in OWN}
        found = [DeploymentConfig(**given)] if self.models else [self]
        for name, settings in self.models.items():
            own = {"model_path": settings} if isinstance(settings, str) else settings
            try:
                if wide := sorted(OF_THE_SERVER & own.keys()):
                    raise FieldError(f"{wide[0]} is of the whole server; give it beside models", wide[0])
                found.append(DeploymentConfig(**{**shared, **own, "model_name": name}))
            except FieldError as error:
                raise FieldError(f"in models, {name!r}: {error}", "models") from None
        return found

    @property
    def _given(self) -> dict[str, Any]:
        return {field: getattr(self, field) for field in self.model_fields_set}

    def _check_names(self) -> None:
        """Refuse a name that two models have.

        Raises:
            FieldError: so it is.
        """
        if not self.models and not self.lora_modules:
            return
        names = set[str]()
        for each in self.targets:
            for name, field in ((each.model_name, "models"), *((name, "lora_modules") for name in each.lora_modules)):
                if name in names:
                    raise FieldError(f"{field} is {name!r}, which another model is called; give another name", field)
                names.add(name)

    @classmethod
    def read(
        cls, path: str | None = None, environment: Mapping[str, str] | None = None, **given: Any
    ) -> DeploymentConfig:
        """From a YAML file, over which the environment goes, over which goes what is given.

        Args:
            path: the file; None for none.
            environment: None for this process's.
            **given: fields; None is not given.

        Raises:
            UsageError: a file that cannot be read, an unknown key or variable, a value out of range.
        """
        environment = os.environ if environment is None else environment
        document = Document(source="", values={}) if path is None else _file(path)
        values = dict(document.values)
        check_variables(environment)
        values |= {
            name: home_expanded(environment[key]) for key, name in _settings_by_variable().items() if key in environment
        }
        values |= {name: value for name, value in given.items() if value is not None}
        try:
            return cls(**values)
        except FieldError as error:
            if given.get(name := error.param) is not None:
                where = ""
            elif (key := PREFIX + name.upper()) in environment and key in _settings_by_variable():
                where = f"{key}: "
            else:
                where = document.where((name,))
            if name in cls.model_fields:
                owner = owner_of(document.values, cls.model_fields) if where == document.where((name,)) else ""
                raise UsageError(f"{where}{error}{owner}") from None
            said = misplaced([name], {"": cls.model_fields}, document.values.get(name)) or error
            raise UsageError(f"{where}{said}{owner_of(document.values, cls.model_fields)}") from None


OWN = frozenset({"model_path", "lora_modules", "draft_model", "heads", "memory"})
"""Settings of one model that no further one has of it."""

OF_THE_SERVER = frozenset(
    {
        *("model_name", "models", "engine", "device", "memory_gb", "gpu_required", "host", "port", "api_key"),
        *("max_connections", "max_body_bytes", "grace_seconds", "cors_origins", "log_level", "log_prompts"),
        *("vllm_path", "vllm_args"),
    }
)
"""Settings that no further model has of its own."""


def named(word: str) -> tuple[str, str]:
    """Name and path of ``NAME=PATH``; what has no such name is both. A path may have an ``=`` behind a slash."""
    name, equals, path = word.partition("=")
    return (name, path) if equals and name and path and "/" not in name else (word, word)


def _unique(pairs: Sequence[tuple[str, str]], field: str) -> dict[str, str]:
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{field} is {twice!r} twice; give each another name")
    return dict(pairs)


def check_variables(environment: Mapping[str, str]) -> None:
    """Refuse what begins like our variables and is none, and those that are empty.

    Raises:
        UsageError: the first one.
    """
    must_be(isinstance(environment, Mapping), "environment", environment, "a mapping, such as os.environ")
    known = sorted({*VARIABLES, *_settings_by_variable()})
    for name in environment:
        if not str(name).startswith(PREFIX):
            continue
        if name not in known:
            raise UsageError(f"{name} is no variable of this program; unset it, or give one of {_listed(name, known)}")
        variable(name, environment)


def _settings_by_variable() -> Mapping[str, str]:
    """Settings by their variables; ``SPECSTREAM_MODELS`` is the folder that models are kept in, and no setting."""
    variables = {PREFIX + name.upper(): name for name in DeploymentConfig.model_fields}
    return {key: name for key, name in variables.items() if key not in VARIABLES}


def _listed(name: str, known: Sequence[str]) -> str:
    """The known variables, and the one that is meant: by what follows the prefix, which all have alike."""
    like = meant(name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known])
    return ", ".join(known) + ("" if like is None else f"; did you mean {PREFIX + like!r}?")


def check_machine(config: DeploymentConfig) -> None:
    """Refuse what this machine cannot give, before anything is loaded.

    Raises:
        UsageError: no GPU, or too little memory; with the numbers.
    """
    if config.gpu_required and not gpus():
        raise UsageError("gpu_required is true and this machine has 0 GPUs; give gpu_required: false to serve on a CPU")
    if config.memory_gb is not None:
        check_free("memory_gb", config.memory_gb, config.device)
    if config.engine == "local":
        for target in config.targets:
            check_prefix_cache(target.prefix_cache_gb, target.device)


def most_connections(config: DeploymentConfig) -> int:
    """How many clients may be connected.

    Raises:
        UsageError: more than there may be open files.
    """
    files = open_files()
    room = files - SPARE_CONNECTIONS - backlog() - OWN_FILES
    if config.max_connections is None:
        return max(1, min(1000, files // 2, room))
    if config.max_connections > room:
        raise UsageError(
            f"max_connections is {config.max_connections} and {files} files may be open, which is room for "
            f"{max(0, room)}; give less, or raise `ulimit -n`"
        )
    return config.max_connections


def backlog() -> int:
    """How many connections are accepted at once, before those that are too many are closed."""
    return max(1, min(128, open_files() // 8))


def open_files() -> int:
    """How many files this process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return 8192
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**20 if limit == resource.RLIM_INFINITY else limit


def _file(path: str) -> Document:
    document = read_document(path, (), "port=8001")
    for key, value in document.values.items():
        if not isinstance(key, str):
            raise UsageError(f"{document.where((key,))}{key!r} is no name; give keys such as model_name: gpt2")
        if key == "api_key" and value is None:  # a template that nobody filled in must not let everyone in
            raise UsageError(f"{document.where((key,))}{key} is empty; give a key, or leave the line out")
    return document


def _complaint(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])  # of a mapping, pydantic also says which branch of a union it means
    if first["type"] == "extra_forbidden":
        return f"unknown setting {name!r}; known are {listed(name, DeploymentConfig.model_fields)}"
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    value = "not shown" if name == "api_key" else shown(first["input"])
    place = name if len(first["loc"]) < 2 else f"{name}.{first['loc'][1]}"
    return f"{place} is {value}; give {_WANTED.get(name) or remedy(first['msg'], first['input'])}"


_WANTED = {
    "api_key": "a text; a number in quotes",
    "lora_modules": "names and folders, such as sql=./sql-adapter",
    "models": "names and where each is loaded from, such as chat=./models/chat",
    "cors_origins": "a list of origins, such as [https://a.example]",
    "vllm_args": "a text or a list, such as --tensor-parallel-size 4",
}
"""What pydantic calls by the kinds of Python."""
