"""The command as people type it."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from specstream.cli import main
from specstream.cli.loading import load_engine
from specstream.models.invariance import selftest_cache
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = [
    "Name three rivers.",
    "Write a haiku about rain.",
    "What is 12 times 12?",
    "Translate to French: good morning.",
    "def fibonacci(n):",
    "List the planets.",
    "Repeat after me: one two three one two three one two",
    "Why is the sky blue?",
    "Summarize: The cat sat on the mat. The dog sat on the cat.",
    "The future of artificial intelligence is",
]


def run(capsys, *words):
    """Exit code, stdout and stderr of a command, in this process."""
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    out, err = capsys.readouterr()
    return exit_.value.code, out, err


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A target, one of a short context, a draft and a draft of another vocabulary, saved as folders."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    models = {"target": tiny_model(), "short": tiny_model(context=64), "draft": tiny_model(noise=0.02)}
    for name, model in models.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    tiny_model(vocab_size=310).save_pretrained(root / "other")
    tokenizer.add_tokens(["strange"])
    tokenizer.save_pretrained(root / "other")
    return root


@pytest.mark.model
@pytest.mark.timeout(900)  # of a real model, beside another process of tests
def test_generate_equals_transformers_on_ten_prompts(capsys, default_model_path, monkeypatch, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The first start tests the model and keeps what it found, as on a user's machine; the second one finds it, and the
    # other prompts are the second one's too.
    monkeypatch.setattr(selftest_cache, "cache_folder", lambda: tmp_path)
    loaded = []

    def load(*given, **how):
        if len(loaded) < 2:
            loaded.append(load_engine(*given, **how))
        return loaded[-1]

    monkeypatch.setattr("specstream.cli.generate.load_engine", load)
    model = AutoModelForCausalLM.from_pretrained(default_model_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(default_model_path)
    for prompt in PROMPTS:
        code, out, _ = run(capsys, "generate", prompt, "-n", "16", "--dtype", "float32", "--json")
        assert code == 0
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        expected = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert json.loads(out)["token_ids"] == expected.tolist(), prompt
    assert len(loaded) == 2


def test_json_is_one_object_with_every_field(capsys, tiny):
    code, out, _ = run(capsys, "generate", "one two", "--model", str(tiny / "target"), "-n", "8", "--json", "--no-chat")
    assert code == 0
    result = json.loads(out)
    fields = "text token_ids new_tokens seconds tokens_per_second acceptance_rate mean_accepted_length target_passes"
    for key in [*fields.split(), "speedup", "finish_reason", "drafter", "model", "dtype", "exact"]:
        assert key in result
    assert result["drafter"] == "lookup"


def test_text_goes_to_stdout_and_the_account_of_it_to_stderr(capsys, tiny):
    words = ("generate", "--prompt", "one two", "--model", str(tiny / "target"), "-n", "8")
    code, out, err = run(capsys, *words)
    assert code == 0
    text = json.loads(run(capsys, *words, "--json")[1])["text"]
    assert out == text + "\n"
    assert "x plain decoding" in err or "plain decoding: not known" in err, "where other work disturbs the timing"
    assert "lossless" in err


def test_a_prompt_from_a_file_or_the_standard_input_is_the_prompt(capsys, tiny, tmp_path, monkeypatch):
    text, common = "one two\nthree", ["--model", str(tiny / "target"), "--json", "-n", "6"]
    file = tmp_path / "prompt.txt"
    file.write_text(f"{text}\n", encoding="utf-8")
    expected = json.loads(run(capsys, "generate", text, *common)[1])["token_ids"]
    for words in (["--prompt-file", str(file)], ["-"], ["--prompt", "-"], ["--prompt-file", "-"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{text}\n".encode())))
        code, out, err = run(capsys, "generate", *words, *common)
        assert code == 0, err
        assert json.loads(out)["token_ids"] == expected, words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt-file", "/nowhere/a.txt"], "--prompt-file '/nowhere/a.txt' cannot be read: No such file"),
        (["one", "--prompt-file", "a.txt"], "two prompts were given, 'one' and 'a.txt'; give one"),
    ],
)
def test_a_prompt_file_that_cannot_be_taken(capsys, tiny, words, message):
    code, _, err = run(capsys, "generate", *words, "--model", str(tiny / "target"))
    assert code == 2 and message in err


def test_seed_and_sampling(capsys, tiny):
    words = f"generate one --model {tiny / 'target'} -n 12 -t 1 --top-k 50 --json --seed".split()
    texts = [json.loads(run(capsys, *words, seed)[1])["text"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_stop_token_ids_end_the_text(capsys, tiny):
    words = ("generate", "one two", "--model", str(tiny / "target"), "-n", "12", "--json", "--no-chat")
    free = json.loads(run(capsys, *words)[1])["token_ids"]
    code, out, _ = run(capsys, *words, "--stop-token-ids", str(free[4]), "--stop-token-ids", "299")
    assert code == 0
    assert json.loads(out)["token_ids"] == free[: free.index(free[4]) + 1]
    assert json.loads(out)["finish_reason"] == "stop"
    code, _, err = run(capsys, *words, "--stop-token-ids", "300")
    assert code == 2 and "the vocabulary is 0 to 299" in err and err.count("\n") == 1


def test_the_checkpoints_penalty_holds_unless_another_is_given(capsys, tiny, tmp_path):
    model = tiny_model()
    model.generation_config.repetition_penalty = 1.3
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    capsys.readouterr()  # the progress bar of saving
    words = ("generate", "one two three one two", "-n", "24", "--json", "--no-chat", "--model")
    plain = json.loads(run(capsys, *words, str(tiny / "target"))[1])["token_ids"]
    told = json.loads(run(capsys, *words, str(tiny / "target"), "--repetition-penalty", "1.3")[1])["token_ids"]
    own = json.loads(run(capsys, *words, str(tmp_path))[1])["token_ids"]
    without = json.loads(run(capsys, *words, str(tmp_path), "--repetition-penalty", "1")[1])["token_ids"]
    assert own == told != plain == without


def test_compare_with_one_model_rejects_nothing(capsys, tiny):
    model = str(tiny / "target")
    words = ["compare", "--target-model", model, "--draft-model", model, "--input-str", "one two", "--num-runs", "2"]
    words += ["--N", "10", "-K", "3", "--temperature", "0.6", "--top-k", "25", "--top-p", "0.9"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    for heading in ("Method", "num_runs", "time", "+/- std", "speedup", "plain", "speculative"):
        assert heading in out
    assert "Rejected: nothing of" in out


def test_compare_json_counts_rejections(capsys, tiny):
    words = ["compare", "--target-model", str(tiny / "target"), "--draft-model", str(tiny / "draft"), "--json"]
    code, out, _ = run(capsys, *words, "--input-str", "one two three", "--num-runs", "2", "--N", "20", "-K", "4")
    report = json.loads(out)
    assert code == 0
    assert 0 < report["rejected"] < report["drafted"]
    assert report["methods"]["plain"]["speedup"] == 1.0
    assert report["arguments"]["N"] == 20


def test_compare_says_what_was_measured_where_the_context_ends_first(capsys, tiny):
    words = ["compare", "--target-model", str(tiny / "short"), "--draft-model", "self:int8", "--input-str", "one"]
    started = time.perf_counter()
    code, out, _ = run(capsys, *words, "--num-runs", "1", "--N", "100000", "--json")
    whole, report = time.perf_counter() - started, json.loads(out)
    assert code == 0
    for method in ("plain", "speculative"):
        assert 0 < report["methods"][method]["time"] < whole
        assert 0 < report["methods"][method]["new_tokens"] < 64
    assert (
        f"run of {report['methods']['plain']['new_tokens']} tokens"
        in run(capsys, *words, "--num-runs", "1", "-n", "100000")[1]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate"], "the prompt is empty"),
        (["generate", "x", "--prompt", "y"], "two prompts"),
        (["generate", "x", "--model", "no pe"], "unknown model 'no pe'"),
        (["generate", "x", "-K", "-1"], "-K is -1"),
        (["generate", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["generate", "x", "--top-p", "-1"], "--top-p is -1.0"),
        (["generate", "x", "--top-p", "1.5"], "--top-p is 1.5"),
        (["generate", "x", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["generate", "x", "--drafter", "magic"], "drafter is 'magic'"),
        (["generate", "x", "--drafter", "draft_model"], "no --draft"),
        (["generate", "x", "--device", "cuda:77"], "device is 'cuda:77'"),
        (["generate", "x", "--dtype", "int7"], "dtype is 'int7'"),
        (["generate", "x", "--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(capsys, words, message):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_prompt_longer_than_the_context(capsys, tiny):
    code, _, err = run(capsys, "generate", "one two " * 600, "--model", str(tiny / "target"))
    assert code == 2
    assert "context holds 512" in err


def test_a_draft_with_another_vocabulary(capsys, tiny):
    code, _, err = run(capsys, "generate", "x", "-m", str(tiny / "target"), "--draft", str(tiny / "other"))
    assert code == 2
    assert "another vocabulary" in err
    assert err.count("\n") == 1


def test_nan_logits(capsys, tiny, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    capsys.readouterr()  # the progress bar of saving
    code, _, err = run(capsys, "generate", "one", "--model", str(tmp_path))
    assert code == 1
    assert "NaN" in err
    assert err.count("\n") == 1


def test_an_interrupt_is_one_line_and_exit_code_130(tiny):
    words = ["generate", "one two", "--model", str(tiny / "target"), "-n", "480", "--drafter", "none"]
    program = "import sys; from specstream.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with interrupts ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.read(1)  # the first piece of text is out: the loop is running
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
