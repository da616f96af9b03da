"""Calls as papers, tutorials and other projects write them: run as written, or by what docs/calls.md names for them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from torch.nn import functional

import specstream
from specstream import MultiStreamAttention, SpeculativeEngine
from specstream.cli import build_app, main
from specstream.errors import UsageError
from specstream.evaluation.benchmark.config import read_config as read_benchmark
from specstream.evaluation.evaluate_config import read_config as read_evaluation
from specstream.training.config import DataSection, read_config
from specstream.training.data import load_examples
from specstream.training.router_config import read_collect_config, read_router_config
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target, a draft, and a file of prompts."""
    root = tmp_path_factory.mktemp("calls")
    for name, model in {"target": tiny_model(), "draft": tiny_model(noise=0.02)}.items():
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    (root / "prompts.txt").write_text("one two three\nfour five six\n", encoding="utf-8")
    return root


GENERATE = "generate 'one two' --model target --no-chat --json"
COMPARE = "compare --target-model target --draft-model draft --input-str one --json"
COMMANDS = [
    *(f"{GENERATE} {option} 4" for option in ("--max-tokens", "--max-new-tokens", "--N", "-n")),
    *(f"{GENERATE} -n 4 --draft draft {option} 3" for option in ("-K", "--K", "--gamma")),
    f"{GENERATE} -n 4 --top-p 0",
    f"{GENERATE} -n 4 --temperature 0.7 --top-k 0 --top-p 0 --seed 1",
    f"{GENERATE} -n 4 --temperature 0.7 --top-p 0.9 --seed 1",
    f"{GENERATE} -n 4 --temperature 1 --acceptance-threshold 0.3 --draft draft --seed 1",
    f"{GENERATE} -n 4 --drafter lookahead",
    *(f"{COMPARE} --num-runs 1 {option} 4 --K 2" for option in ("--N", "--max-tokens", "--max-new-tokens", "-n")),
    f"{COMPARE} --num-runs 1 --N 4 -K 2 --temperature 0 --top-k 0 --top-p 0",
    f"{COMPARE} --num-runs 1 --N 4 --gamma 2 --temperature 0.7 --top-p 0.9",
    "audit --prompts prompts.txt --model target --draft draft --K 2 --max-tokens 4 --no-chat --json",
    "tune --prompts prompts.txt --model target --output best.yaml --num-runs 1 --max-tokens 4 --json",
    "models list --json",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_as_written(monkeypatch, capsys, folder, command):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as exit_:
        main(shlex.split(command))
    out, err = capsys.readouterr()
    assert exit_.value.code == 0, err
    json.loads(out)


def test_a_length_and_a_depth_are_followed_under_every_name(monkeypatch, capsys, folder):
    monkeypatch.chdir(folder)
    for option in ("--max-tokens", "--N"):
        with pytest.raises(SystemExit):
            main([*shlex.split(GENERATE), option, "3"])
        assert json.loads(capsys.readouterr().out)["new_tokens"] == 3
    for option in ("--K", "-K"):
        with pytest.raises(SystemExit):
            main([*shlex.split(COMPARE), "--num-runs", "1", "--N", "4", option, "2"])
        assert json.loads(capsys.readouterr().out)["arguments"]["K"] == 2


CALLS = [
    "SpeculativeEngine(target, tokenizer).generate('one two', max_new_tokens=4).text",
    # Without a measured baseline the speedup is unknown where plain passes were timed while the machine was slower.
    "SpeculativeEngine(target, tokenizer, draft_model=draft, measure_baseline=True).generate('one')['speedup']",
    "SpeculativeEngine(model=target, tokenizer=tokenizer, max_speculation_depth=5).generate('one').drafts",
    "SpeculativeEngine(target, tokenizer, temperature=0.7, seed=1).generate('one', max_new_tokens=4)['text']",
    "SpeculativeEngine(folder, torch_dtype=torch.float32).generate('one', max_new_tokens=4).dtype",
    "SpeculativeEngine(folder, dtype='float32', device='cpu').generate('one', max_new_tokens=4).device",
    "SpeculativeEngine(target, tokenizer, acceptance_threshold=0.3).generate('one', max_new_tokens=4).lossless",
    "SpeculativeEngine(target, tokenizer, top_p=0).generate('one', max_new_tokens=4, temperature=1.0, seed=1).text",
    "[each.text for each in SpeculativeEngine(target, tokenizer).generate(['one', 'two'], max_new_tokens=4)]",
    "SpeculativeEngine(target, tokenizer).generate([{'role': 'user', 'content': 'one'}], max_new_tokens=4).text",
    "''.join(SpeculativeEngine(target, tokenizer).stream('one', max_new_tokens=4))",
    "SpeculativeEngine(target, tokenizer).benchmark(['one'], num_runs=1, max_new_tokens=4)['average_speedup']",
    "SpeculativeEngine(target, tokenizer).benchmark(['one'], num_runs=1, max_new_tokens=4).speculation_accuracy",
    "SpeculativeEngine(target, tokenizer).get_metrics()['acceptance_rate']",
    "SpeculativeEngine(target, tokenizer).get_metrics().acceptance_rate",
    "speculative_decode(target, draft, ids, max_new_tokens=4)[1]['acceptance_rate']",
    "speculative_decode(target, draft, ids, max_new_tokens=4, gamma=4)[1].acceptance_rate",
    "speculative_decode(target, draft, ids, max_new_tokens=4, temperature=1.0, top_k=0, top_p=0, seed=1)[0]",
    "speculative_decode(target, None, ids[0], max_new_tokens=4)[1].tokens_per_second",
    "speculative_decode(create_backend(folder, dtype=torch.float32).model, draft, ids, max_new_tokens=4)[1].exact",
    "create_backend(folder, dtype='float32', device='cpu', runtime='eager').vocab_size",
    "MultiStreamAttention(32, 4, 3)(torch.randn(1, 5, 32), torch.randn(1, 5, 3, 32))",
    "MultiStreamAttention(hidden_size=32, num_heads=4, gamma=3).gamma",
    "target.generate(ids, max_new_tokens=4, do_sample=False, custom_generate=custom_generate(draft))",
    "DeploymentConfig(model_name=folder, max_tokens=64, temperature=0.7).max_tokens",
]


@pytest.mark.parametrize("call", CALLS)
def test_a_python_call_runs_as_written(folder, call):
    names = {name: getattr(specstream, name) for name in specstream.__all__}
    names |= {"torch": torch, "folder": str(folder / "target"), "ids": torch.tensor([[5, 6, 7]])}
    names |= {"target": tiny_model(), "draft": tiny_model(noise=0.02), "tokenizer": tiny_tokenizer()}
    assert eval(call, names) is not None


def test_zero_keeps_all_tokens_as_one_does():
    engine = SpeculativeEngine(tiny_model(), tiny_tokenizer())
    texts = [engine.generate("one", max_new_tokens=12, temperature=1.0, seed=3, top_p=p).text for p in (0, 1.0, 0.05)]
    assert texts[0] == texts[1] != texts[2]


def test_a_figure_that_is_none_is_an_error_that_names_them():
    metrics = SpeculativeEngine(tiny_model(), tiny_tokenizer()).get_metrics()
    with pytest.raises(AttributeError, match=r"no figure 'acceptance'; there are .*acceptance_rate"):
        _ = metrics.acceptance


def test_the_attention_of_streams_is_one_softmax_over_what_each_may_see():
    """Stream j of position t: the main stream up to t, and the streams 1 to j of t."""
    torch.manual_seed(0)
    module, (length, gamma, heads) = MultiStreamAttention(24, 3, 2).double(), (5, 2, 3)
    main = torch.randn(2, length, 24, dtype=torch.float64)
    streams = torch.randn(2, length, gamma, 24, dtype=torch.float64)
    own_main, own_streams = module(main, streams)

    def attend(states, seen):
        query, key, value = module.q_proj(states), module.k_proj(seen), module.v_proj(seen)
        query, key, value = (each.unflatten(-1, (heads, -1)).transpose(0, 1) for each in (query, key, value))
        return module.o_proj(functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1))

    for row in range(2):
        for t in range(length):
            before = main[row, : t + 1]
            expected = attend(main[row, t : t + 1], before)[0]
            torch.testing.assert_close(own_main[row, t], expected)
            for j in range(gamma):
                seen = torch.cat([before, streams[row, t, : j + 1]])
                expected = attend(streams[row, t, j : j + 1], seen)[0]
                torch.testing.assert_close(own_streams[row, t, j], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("arguments", [(32, 5, 4), (32, 0, 4), (32, 4, 0)])
def test_heads_that_do_not_fit_are_refused(arguments):
    with pytest.raises(UsageError, match=r"give a divisor of|give a whole number from 1 on"):
        MultiStreamAttention(*arguments)


TRAINING = "model: {target_model: tiny%s}\ntraining: {num_train_steps: 3}\n%s"


@pytest.mark.parametrize(
    ("draft", "sections", "recipe"),
    [
        ("", "streams: {gamma: 4}\n", "streams"),
        ("", "medusa: {}\n", "medusa"),
        ("", "lora: {r: 8}\n", "lora"),
        ("", "lora: {r: 8}\nstreams: {gamma: 4}\n", "shared"),
        ("", "distillation: {enabled: true}\n", "draft"),
        (", draft_model: small", "", "draft"),
    ],
)
def test_a_training_file_may_leave_the_recipe_out(tmp_path, draft, sections, recipe):
    (tmp_path / "train.yaml").write_text(TRAINING % (draft, sections), encoding="utf-8")
    assert read_config(tmp_path / "train.yaml").recipe == recipe


def test_a_training_file_of_no_recipe_is_refused(tmp_path):
    (tmp_path / "train.yaml").write_text(TRAINING % ("", ""), encoding="utf-8")
    with pytest.raises(UsageError, match="recipe is missing"):
        read_config(tmp_path / "train.yaml")


COLLECT = "prompts: [{file: p.jsonl, domain: chat}]\ncollection: {output: c.jsonl}\n"


@pytest.mark.parametrize("drafts", ["[org/small, other]", "{small: org/small, other: other}"])
def test_draft_models_of_a_router_are_its_drafters(tmp_path, drafts):
    file = tmp_path / "router.yaml"
    file.write_text(f"router: {{draft_models: {drafts}}}\n{COLLECT}", encoding="utf-8")
    found = read_collect_config(file).drafters
    assert {name: each.draft for name, each in found.items()} == {"none": None, "small": "org/small", "other": "other"}
    file.write_text(f"router: {{draft_models: {drafts}}}\ndata: {{files: [c.jsonl]}}\noutput_dir: runs/r\n")
    assert read_router_config(file).data.drafters == ["none", "small", "other"]


@pytest.mark.parametrize("section", ["{draft_models: 3}", "{draft_models: [a], hidden: 4}", "none"])
def test_another_section_router_is_refused_with_its_line(tmp_path, section):
    file = tmp_path / "router.yaml"
    file.write_text(f"{COLLECT}router: {section}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"router\.yaml:3: router is .*give router\.draft_models"):
        read_collect_config(file)


def test_a_router_that_was_never_trained_is_refused_with_the_way_to_one():
    with pytest.raises(UsageError, match="specstream router collect, then specstream router train"):
        specstream.AdaptiveRouter.from_config({"router": {"draft_models": ["small"]}})


def test_content_is_read_as_text(tmp_path):
    for field in ("text", "content"):
        lines = [json.dumps({field: f"one two {at}"}) for at in range(4)]
        (tmp_path / f"{field}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    read = [
        load_examples(DataSection(files=[str(tmp_path / name)], max_length=8, eval_examples=1), tiny_tokenizer(), 0)
        for name in ("text.jsonl", "content.jsonl")
    ]
    assert read[0][0].fingerprint == read[1][0].fingerprint


def test_of_a_large_data_set_only_what_is_used_is_fetched(monkeypatch):
    datasets = pytest.importorskip("datasets")
    fetched = []

    def load_dataset(name, split, streaming):
        assert (name, split, streaming) == ("org/code", "train", True)
        for at in range(10**9):
            fetched.append(at)
            yield {"content": f"x = {at}"}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    section = DataSection(dataset_name="org/code", limit=6, eval_examples=1, max_length=8)
    load_examples(section, tiny_tokenizer(), seed=0)
    assert fetched == list(range(6))


READERS = {
    "benchmark": lambda file: read_benchmark(file, [], []),
    "eval": read_evaluation,
    "router_collect": read_collect_config,
    "router_example": read_collect_config,
    "router_train": read_router_config,
    "deploy": specstream.DeploymentConfig.read,
}


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_configuration_that_is_shipped_is_valid(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    reader = next((own for name, own in READERS.items() if file.stem.startswith(name)), read_config)
    assert reader(str(file)) is not None


def test_every_file_of_another_guide_has_a_command_that_exists():
    rows = re.findall(r"^\| `python ([^`]*)` \| `specstream ([^`]*)` \|", (ROOT / "docs/calls.md").read_text(), re.M)
    files = [words.split()[0] for words, _ in rows]
    assert files == [
        "main.py",
        *(f"scripts/{name}.py" for name in ("train_draft", "collect_router_data", "train_router")),
        "demo/app.py",
    ]
    for _, line in rows:
        command, words = typer.main.get_command(build_app()), shlex.split(line)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        command.make_context("specstream", words)  # parses them
        assert all((ROOT / word).exists() for word in words if word.startswith("configs/"))


def test_the_defaults_are_those_of_the_table():
    import inspect

    from specstream.cli import audit, compare
    from specstream.config import DEEPEST, UNMEASURED, EngineConfig
    from specstream.heads.streams_config import StreamsConfig

    rows = dict(re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|", (ROOT / "docs/calls.md").read_text(), re.M))
    config = EngineConfig()
    assert config.gamma is config.max_speculation_depth is config.acceptance_threshold is None
    assert config.generation.temperature == 0
    assert (UNMEASURED, DEEPEST, StreamsConfig().gamma) == (5, 16, 4)
    fixed = [inspect.signature(each).parameters["k"].default for each in (compare.compare, audit.audit)]
    assert fixed == [4, 4]
    assert rows["`gamma`, `-K`"] == "as many as pay; 4 in `compare` and `audit`"
    assert rows["streams (`streams.gamma`)"] == "4"
    depth = f"as deep as pays, up to {DEEPEST}; {UNMEASURED} where nothing is measured"
    assert rows["`max_speculation_depth`"] == depth
    assert (rows["`temperature`"], rows["`acceptance_threshold`"]) == ("0", "none")
