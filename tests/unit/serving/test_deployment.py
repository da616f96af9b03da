from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from specstream import DeploymentConfig, environment
from specstream.errors import UsageError
from specstream.serving import run
from specstream.serving.deployment import check_machine

ROOT = Path(__file__).parents[3]


def test_the_call_of_the_manual() -> None:
    config = DeploymentConfig(
        model_name="gpt2",
        model_path="./models/my-model",
        gamma=4,
        max_tokens=512,
        temperature=0.7,
        memory_gb=16,
        gpu_required=True,
    )
    assert config.source == "./models/my-model"
    assert DeploymentConfig(model_name="gpt2").source == "gpt2"
    assert config.host == "127.0.0.1"


def test_the_file_then_the_environment_then_what_is_given(tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("max_tokens: 1\nmax_rows: 1\nport: 1\n")
    environment = {"SPECSTREAM_MAX_ROWS": "2", "SPECSTREAM_PORT": "2", "SPECSTREAM_GPU_REQUIRED": "true", "OTHER": "x"}
    config = DeploymentConfig.read(str(file), environment, port=3, host=None)
    assert (config.max_tokens, config.max_rows, config.port, config.gpu_required) == (1, 2, 3, True)


def test_the_file_that_is_shipped_is_one() -> None:
    assert DeploymentConfig.read(str(ROOT / "configs" / "deploy.yaml"), {}).model_name == "smollm2-135m"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gama: 4", "unknown setting 'gama'; known are acceptance_threshold, api_key, "),
        ("gamma: 0", "gamma is 0; give a value that is greater than or equal to 1"),
        ("- 1", "holds one list"),
        ("", "holds nothing; give keys and values"),
        ("a: [", "is not YAML: line 1, 'a: [': expected the node content"),
        ("port: 1\nport: 2", "deploy.yaml:2: port is given in line 1 already; drop one"),
        ("host: ::1\n\tport: 2", "line 2, 'port: 2': it is indented by a tab; give spaces"),
        ("port: 1\nserver: {}", "deploy.yaml:2: unknown section 'server'"),
        ("port: 1\nmodel: gpt2", "did you mean 'model_name'?"),
        ("port: 1\ntarget_model: gpt2", "did you mean 'model_name'?"),
        ("port: 1\napi_key: 12345", "deploy.yaml:2: api_key is not shown; give a text; a number in quotes"),
        ("port: true", "deploy.yaml:1: port is True; give a number"),
        ("max_model_len: 100", "did you mean 'max_context'?"),
        (
            "port: 1\nmemory_gb: 2GB",
            "deploy.yaml:2: memory_gb is '2GB'; give a number alone, in the unit that its name",
        ),
        ("port: 1\napi_key:", "deploy.yaml:2: api_key is empty; give a key, or leave the line out"),
    ],
)
def test_a_bad_file_is_named(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        DeploymentConfig.read(str(file), {})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_is_never_shown() -> None:
    assert "secret" not in repr(DeploymentConfig.read(None, {"SPECSTREAM_API_KEY": "secret"}))
    with pytest.raises(UsageError) as caught:
        DeploymentConfig.read(None, {}, api_key=["secret"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["", " ", "abc\n", "a b", "\tabc", "abc ", "gr\u00fcn", "\u200babc", "a\x00b"], ids=ascii
)
def test_a_key_that_no_client_can_send_is_refused_and_not_shown(key: str, tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(yaml.safe_dump({"api_key": key}))
    for read in (
        lambda: DeploymentConfig.read(None, {"SPECSTREAM_API_KEY": key}),
        lambda: DeploymentConfig.read(str(file), {}),
        lambda: DeploymentConfig.read(None, {}, api_key=key),
    ):
        with pytest.raises(UsageError) as caught:
            read()
        assert "API_KEY" in str(caught.value).upper()
        assert key.strip() == "" or key.strip() not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError):
        DeploymentConfig(api_key=key)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(DeploymentConfig.model_fields))
def test_an_empty_variable_is_refused(name: str) -> None:
    variable = f"SPECSTREAM_{name.upper()}"
    for value in ("", "  "):
        with pytest.raises(UsageError) as caught:
            DeploymentConfig.read(None, {variable: value})
        assert str(caught.value) == f"{variable} is empty; give it a value, or unset it"


@pytest.mark.parametrize("name", ["model_name", "model_path", "draft_model", "heads", "host", "device", "vllm_path"])
def test_an_empty_name_is_refused_wherever_it_is_given(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is ''; give a value that is not empty"):
        DeploymentConfig.read(None, {}, **{name: ""})


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        DeploymentConfig.read(None, {"SPECSTREAM_APIKEY": "secret"})
    assert str(caught.value).startswith("SPECSTREAM_APIKEY is no variable of this program; unset it, or give one of ")
    assert "SPECSTREAM_API_KEY" in str(caught.value)
    assert "secret" not in str(caught.value)
    DeploymentConfig.read(None, {"SPECSTREAM_CPU": "x86-64-v3", "SPECSTREAM_NO_SELFTEST_CACHE": "1"})


@pytest.mark.parametrize("given", ["https://a.example, http://b:80", ["https://a.example", "http://b:80"]])
def test_origins_are_a_list_or_words(given: object) -> None:
    assert DeploymentConfig.read(None, {}, cors_origins=given).cors_origins == ("https://a.example", "http://b:80")
    assert DeploymentConfig.read(None, {"SPECSTREAM_CORS_ORIGINS": "*"}).cors_origins == ("*",)


@pytest.mark.parametrize("origin", ["https://a.example/", "a.example", "https://a.example/page", "https://*.a"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(UsageError, match=r"cors_origins has '.*', which no browser sends; give .* such as https://a"):
        DeploymentConfig.read(None, {}, cors_origins=[origin])


@pytest.mark.parametrize("given", ["-tp 2 --seed '7'", ["-tp", 2, "--seed", 7]])
def test_arguments_for_vllm_are_words(given: object) -> None:
    assert DeploymentConfig.read(None, {}, vllm_args=given).vllm_args == ("-tp", "2", "--seed", "7")


def test_arguments_for_vllm_without_a_closing_quote_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"vllm_args is \"--a 'b\", which no shell reads"):
        DeploymentConfig.read(environment={"SPECSTREAM_VLLM_ARGS": "--a 'b"})


def test_unknown_names_are_refused_from_python_too() -> None:
    with pytest.raises(UsageError):
        DeploymentConfig(gama=4)  # type: ignore[call-arg]


class TestMachine:
    @pytest.fixture(autouse=True)
    def without_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(environment, "free_memory", lambda: int(8e9))

    def test_what_it_can_give_is_served(self) -> None:
        check_machine(DeploymentConfig(memory_gb=8))

    def test_memory_that_is_not_there_is_refused_with_the_numbers(self) -> None:
        with pytest.raises(UsageError, match=r"memory_gb is 16 and this machine has 8\.0 GB free"):
            check_machine(DeploymentConfig(memory_gb=16))

    def test_a_gpu_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(UsageError, match="gpu_required is true and this machine has 0 GPUs"):
            check_machine(DeploymentConfig(gpu_required=True))


def test_a_wrong_variable_is_named_and_not_one_that_is_replaced() -> None:
    environment = {"SPECSTREAM_PORT": "tcp://10.0.0.1:80"}
    with pytest.raises(
        UsageError, match=r"^SPECSTREAM_PORT: port is 'tcp://10.0.0.1:80'; give a value that is a whole"
    ):
        DeploymentConfig.read(None, environment)
    with pytest.raises(UsageError, match=r"^port is 99999; give "):
        DeploymentConfig.read(None, environment, port=99999)
    with pytest.raises(UsageError, match="did you mean 'SPECSTREAM_MODEL_NAME'"):
        DeploymentConfig.read(None, {"SPECSTREAM_MODEL_NAM": "gpt2"})


def test_vllm_has_no_memory_of_answers():
    with pytest.raises(UsageError, match="memory is 'answers' and the engine is vllm"):
        run.check(DeploymentConfig(engine="vllm", memory="answers"))


@pytest.mark.parametrize(("memory", "given"), [(None, False), ("answers", "answers")])
def test_a_server_remembers_answers_only_where_it_is_asked_to(monkeypatch, memory, given):
    """What one client was told would show in how fast another is answered."""

    def engine(name, **settings):
        raise UsageError(f"memory={settings['memory']}")

    monkeypatch.setattr(run, "SpeculativeEngine", engine)
    with pytest.raises(UsageError, match=f"memory={given}"):
        run.load(DeploymentConfig(memory=memory))


class TestSeveralModels:
    def test_each_has_its_own_settings_and_else_the_firsts(self, tmp_path: Path) -> None:
        file = tmp_path / "deploy.yaml"
        file.write_text(
            "model_name: a\nmodel_path: /a\ndraft_model: d\nmax_rows: 3\nlora_modules: {sql: /sql}\n"
            "models:\n  b: /b\n  c: {model_path: /c, draft_model: e, max_rows: 2, lora_modules: {own: /own}}\n"
        )
        found = DeploymentConfig.read(str(file), {}).targets
        assert [(each.model_name, each.source, each.draft_model, each.max_rows) for each in found] == [
            ("a", "/a", "d", 3),
            ("b", "/b", None, 3),
            ("c", "/c", "e", 2),
        ]
        assert [each.lora_modules for each in found] == [{"sql": "/sql"}, {}, {"own": "/own"}]
        assert not any(each.models for each in found)
        adapter = found[0].adapted("sql")
        assert (adapter.model_name, adapter.source, adapter.draft_model, adapter.lora_modules) == ("sql", "/a", "d", {})

    def test_the_folder_of_models_is_no_model(self) -> None:
        assert DeploymentConfig.read(None, {"SPECSTREAM_MODELS": "/data/models"}).models == {}

    def test_words_name_them_too(self) -> None:
        config = DeploymentConfig.read(
            None, {"SPECSTREAM_LORA_MODULES": "sql=/sql fun=./lr=3"}, models=["b=/b", "org/c", "./lr=3/d"]
        )
        assert config.models == {"b": "/b", "org/c": "org/c", "./lr=3/d": "./lr=3/d"}
        assert config.lora_modules == {"sql": "/sql", "fun": "./lr=3"}

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"models": "a=/b", "model_name": "a"}, "models is 'a', which another model is called; give another name"),
            ({"lora_modules": "a=/b", "models": "b", "model_name": "a"}, "lora_modules is 'a', which another model is"),
            (
                {"lora_modules": "a=/b", "models": "a"},
                "models is 'a', which another model is called; give another name",
            ),
            ({"lora_modules": "a=/b a=/c"}, "lora_modules is 'a' twice; give each another name"),
            ({"lora_modules": ["./sql"]}, "lora_modules is './sql', which has no name; give NAME=PATH"),
            ({"lora_modules": 5}, "lora_modules is 5; give names and folders, such as sql=./sql-adapter"),
            ({"models": {"b": 5}}, "models.b is 5; give names and where each is loaded from, such as chat=./models/"),
            ({"models": {"b": {"port": 1}}}, "in models, 'b': port is of the whole server; give it beside models"),
            ({"models": {"b": {"max_rows": 0}}}, "in models, 'b': max_rows is 0; give a value that is greater than"),
            ({"models": {"b": {"gama": 1}}}, "in models, 'b': unknown setting 'gama'; known are"),
        ],
        ids=str,
    )
    def test_what_cannot_be_is_refused(self, given: dict[str, object], words: str) -> None:
        with pytest.raises(UsageError) as caught:
            DeploymentConfig.read(None, {}, **given)
        assert str(caught.value).startswith(words)

    @pytest.mark.parametrize("given", [{"models": "b=/b"}, {"lora_modules": "b=/b"}], ids=str)
    def test_vllm_serves_one(self, given: dict[str, str]) -> None:
        with pytest.raises(
            UsageError, match=f"{next(iter(given))} are b and the engine is vllm, which we start with one"
        ):
            run.check(DeploymentConfig.read(None, {}, engine="vllm", **given))


def test_more_memory_for_earlier_texts_than_is_free_is_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(UsageError, match="prefix_cache_gb is 9999999 and this machine has"):
        check_machine(DeploymentConfig(prefix_cache_gb=9999999))
    with pytest.raises(UsageError, match="prefix_cache_gb is 9999999 and this machine has"):
        check_machine(DeploymentConfig(models={"b": {"model_path": "b", "prefix_cache_gb": 9999999}}))


def test_a_path_may_be_an_object() -> None:
    assert DeploymentConfig(model_path=Path("a/b"), heads=Path("c")).model_path == "a/b"  # type: ignore[arg-type]
