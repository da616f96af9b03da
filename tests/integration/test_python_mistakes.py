"""Mistakes in Python, by kind: one line of the package's own, with the value and the remedy."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TextStreamer, ViTConfig, ViTModel

import specstream
from specstream import DeploymentConfig, LoRAAdapter, MultiStreamAttention, SpeculativeEngine, speculative_decode
from specstream.config import EngineConfig, GenerationConfig
from specstream.drafters.lookup import LookupDrafter
from specstream.engine.routed import AdaptiveRouter
from specstream.errors import SpecStreamError, TrainingError, UsageError
from specstream.evaluation.audit import audit
from specstream.heads.folder import describe_base
from specstream.heads.medusa import MedusaHeads
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from specstream.routing.config import DrafterSpec, RouterConfig
from specstream.routing.features import CLASSES
from specstream.routing.model import Network, RouterModel
from specstream.training.config import TrainConfig
from specstream.training.data import Examples
from specstream.training.quantize import quantize
from specstream.training.run import train
from tests.tiny import tiny_model, tiny_tokenizer

WORDS = "one two three four five six seven eight nine ten"


@pytest.fixture(scope="module")
def made():
    """What the calls below are made with."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    other = tiny_tokenizer()
    other.add_tokens(["<more>"])
    unbound, bound, untold = (AdaptiveRouter(_table(model), RouterConfig(router=""), None) for _ in range(3))
    bound.bind(model, tokenizer)
    untold.bind(model)
    engine, adapter = SpeculativeEngine(model, tokenizer), LoRAAdapter(tiny_model(), {"r": 2}, tokenizer)
    models = {"M": model, "SMALL": tiny_model(vocab_size=200), "AD": adapter, "E": engine, "R": unbound}
    models |= {"B": bound, "N": untold, "F": bound.choose(WORDS).features, "BASE": tiny_model(), "DRAFT": tiny_model(1)}
    models |= {"VISION": ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))}
    classes = {"EngineConfig": EngineConfig, "GenerationConfig": GenerationConfig, "Silent": _Silent}
    classes |= {"Streams": Streams, "StreamsConfig": StreamsConfig, "MedusaHeads": MedusaHeads}
    classes |= {"RouterConfig": RouterConfig, "TextStreamer": TextStreamer, "TrainConfig": TrainConfig}
    processor = {
        "tiny": tiny_model,
        "Processor": RepetitionPenaltyLogitsProcessor,
        "audit": audit,
        "quantize": quantize,
        "train": train,
        "torch": torch,
        "np": np,
    }
    given = {"IDS": torch.tensor([[1, 2, 3]]), "P": WORDS, "MSA": MultiStreamAttention(64, 4, 2)}
    return {"TOK": tokenizer, "ADDED": other, **models, **classes, **processor, **given}


def _table(model):
    return RouterModel(
        network=Network(embedding=0, reduced=0, hidden=2, outputs=1),
        table=torch.zeros(300, 1 + len(CLASSES), dtype=torch.uint8),
        drafters={name: DrafterSpec(drafter=name) for name in ("none", "lookup")},
        noise={"lookup": 0.1},
        base=describe_base(model),
        embedding={"name": "none"},
        plain_tokens_per_second=1.0,
    )


class _Silent(LookupDrafter):
    def begin(self, prompts, samplings, session):
        return None


def refused(code, made, told):
    with pytest.raises(SpecStreamError) as caught:
        exec(f"import copy, pickle\nfrom dataclasses import replace\nfrom specstream import *\n{code}", dict(made))
    message = str(caught.value)
    assert told in message and "\n" not in message


OF_ANOTHER_KIND = [
    ("E.generate([{'role': 'user', 'text': 'x'}])", "a turn of the prompt is {'role': 'user', 'text': 'x'}; give a m"),
    ("LoRAAdapter(tiny(), {'r': 2}).train(['x'])", "texts need a tokenizer and there is none; give LoRAAdapter"),
    ("SpeculativeEngine(M, TOK, drafter='ngram')", "'mixed' or 'router'; did you mean 'lookup'?"),
    ("create_backend('smollm2-135m', dtype='int8')", "bfloat16, float16, or an engine's quantization='int8'"),
    ("SpeculativeEngine(M, TOK, prefix_cache_gb=9999999)", "prefix_cache_gb is 9999999 and this machine has "),
    ("E.generate([1] * 600)", "the prompt has 600 tokens and the model's context holds 512; shorten it"),
    ("E.generate([[1], [1] * 600])", "prompt 1 has 600 tokens and the model's context holds 512; shorten it"),
    ("SpeculativeEngine(M, TOK, memory=5)", "memory is 5; give True, False or the name of a file"),
    ("SpeculativeEngine(M, TOK, memory=None)", "memory is None; give True, False or the name of a file"),
    (
        "SpeculativeEngine(M, TOK, memory='true')",
        "memory is 'true', a word and no file; give the name of one (in Python",
    ),
    ("SpeculativeEngine(M, TOK, memory='')", "memory is '', a word and no file; give the name of one"),
    (
        "SpeculativeEngine(M, TOK, memory='/dev/null/x')",
        "memory is '/dev/null/x', where '/dev/null' is no folder; give",
    ),
    ("SpeculativeEngine(M, TOK, memory='/proc/x/y')", "memory '/proc/x/y' cannot be written: No such file or dir"),
    ("del E.tokenizer", "tokenizer cannot be deleted: an engine needs it"),
    ("copy.copy(E.stream('one'))", "a stream cannot be pickled or copied: it is being read; send its pieces"),
    ("pickle.dumps(E.stream('one'))", "a stream cannot be pickled or copied: it is being read; send its pieces"),
    ("E.generate(IDS.to_sparse())", "the prompt is a sparse tensor, whose zeros are no tokens; give input_ids.to_de"),
    ("E.generate('one', n=2)", "unknown setting 'n'; give the prompt so many times, in a list"),
    ("custom_generate(TOK)", "draft_model is a TokenizersBackend: it is no transformers model; give one"),
    ("custom_generate(5)", "draft_model is a int: it is no transformers model; give one"),
    ("LoRAAdapter(BASE, {'r': 49})", "lora_config.r is 49 and no layer to adapt has a rank above 48; give less"),
    ("AD.load_weights('/no/such')", "'/no/such' holds no LoRA weights: No such file or directory; give a folder"),
    ("B.save_state('/proc/x')", "path '/proc/x' cannot be written: No such file or directory; give another"),
    ("DeploymentConfig(model_name=M)", "model_name is LlamaForCausalLM( (model)"),
    ("DeploymentConfig(models={'a': 5})", "models.a is 5; give names and where each is loaded from"),
    ("DeploymentConfig(cors_origins=['http://a.b', 5])", "cors_origins.1 is 5; give a list of origins"),
    ("quantize(M, 'int8', 'out')", "; give a catalog name, a local folder or a hub id"),
    ("quantize(None, 'int8', 'out')", "model is None; give a catalog name, a local folder or a hub id"),
    ("SpeculativeEngine(M, 'gpt2')", "tokenizer is 'gpt2'; give the tokenizer itself"),
    ("LoRAAdapter(M, {'r': 2}, 'gpt2')", "tokenizer is 'gpt2'; give the tokenizer itself"),
    ("custom_generate(tokenizer='gpt2', stop=['.'])", "tokenizer is 'gpt2'; give the tokenizer itself"),
    ("SpeculativeEngine(AD, TOK)", "it has adapters for a model; give its get_adapted_model()"),
    ("LoRAAdapter(E)", "it holds a model; give that, its .model"),
    ("SpeculativeEngine(E.target, TOK)", "it holds a model; give that, its .model"),
    ("speculative_decode(E.target, None, IDS)", "it holds a model; give that, its .model"),
    ("SpeculativeEngine(M.model, TOK)", "; load one with AutoModelForCausalLM"),
    ("SpeculativeEngine(M, TOK, EngineConfig())", "give a draft; settings by their names"),
    ("SpeculativeEngine(M, TOK, heads=torch.nn.Linear(3, 3))", "give a folder"),
    ("SpeculativeEngine(M, TOK, drafter='router', router=R)", "give a folder"),
    ("R.bind('gpt2')", "it is a name, no transformers model; load it"),
    ("R.route_and_decode('gpt2', None, IDS)", "it is a name, no transformers model; load it"),
    ("R.route_and_decode(E, None, IDS)", "it holds a model; give that, its .model"),
    ("R.observe(torch.zeros(3), 'lookup', 5.0)", "features is tensor([0., 0., 0.]); give those of choose(prompt)."),
    ("R.observe(R, 'lookup', 5.0)", "give those of choose(prompt).features"),
    ("R.route_and_decode(M, {'wrong': M}, IDS)", "belongs to no drafter; leave it out: none drafts with a model"),
    ("B.bind(M, M)", "tokenizer is a LlamaForCausalLM; give the tokenizer itself"),
    ("B.bind(M, ADDED.__class__)", "; give the tokenizer itself"),
    ("B.observe(F, 'lookup', 'fast')", "tokens_per_second is 'fast'; give a positive number"),
    ("B.observe(F, 'lookup', 10**400)", "; give a positive number"),
    ("B.observe(F, 'lookup', True)", "tokens_per_second is True; give a positive number"),
    ("B.observe(F, 'lookup', 5.0, plain='x')", "plain is 'x'; give a positive number"),
    ("B.observe(F * float('nan'), 'lookup', 5.0)", "give those of choose(prompt).features"),
    ("B.choose(P).learn(None, plain=1.0)", "tokens_per_second is None; give a positive number"),
    ("B.route_and_decode(M, {5: M, 'a': M}, IDS)", "draft model 5 belongs to no drafter; leave it out"),
    ("train('train.yaml')", "config is 'train.yaml'; give training.config.read_config(FILE)"),
    ("TrainConfig()", "recipe is missing; give it"),
    ("TrainConfig(recipe='lora', lora={'r': True})", "lora.r is True; give a value that is a number"),
    ("RouterConfig()", "router is missing; give it"),
    ("RouterConfig(router=5)", "router is 5; give a value that is a text"),
    ("RouterConfig(router='x', seed=True)", "seed is True; give a value that is a number"),
    ("RouterConfig(router='x').seed = 5", "seed cannot be set to 5 any more; give it when the configuration is made"),
    ("EngineConfig().gamma = 3", "gamma cannot be set to 3 any more; give it when the configuration is made"),
    ("AdaptiveRouter()", "AdaptiveRouter.from_config({'router': FOLDER})"),
    ("audit(M, [P])", "engine is a LlamaForCausalLM; give a SpeculativeEngine"),
    ("audit(E, P)", "prompts is of the type str; give a list of prompts"),
    ("E.benchmark([P], num_runs=1, on_run=lambda: None)", "; give a function of the number of rounds"),
    ("audit(E, [P], on_batch=lambda: None)", "; give a function of the number of prompts"),
    ("E.benchmark([P], n_runs=1)", "unknown setting 'n_runs'; benchmark counts its rounds by num_runs"),
    ("E.benchmark(P)", "test_prompts is of the type str; give a list of prompts"),
    ("E.benchmark(x for x in [P])", "of the type generator; give a list of prompts, each a text, a chat or token ids"),
    ("E.benchmark({'prompt': [P]})", "without input_ids; give a list of prompts, each a text"),
    ("E.benchmark([{'prompt': P}])", "; give the texts in the records"),
    ("M.generate(IDS, custom_generate=speculative_decode, max_new_tokens=3)", "custom_generate=custom_generate(draft)"),
    (
        "speculative_decode(M, DRAFT, IDS, draft_model=DRAFT)",
        "give it to SpeculativeEngine, or to speculative_decode",
    ),
    ("SpeculativeEngine(M, TOK, draft_model=MedusaHeads(M))", "call its save(FOLDER), and give heads=FOLDER"),
    ("speculative_decode(M, SMALL, IDS)", "; give a draft of the same tokenizer, or leave draft_model out"),
    ("import pickle; pickle.dumps(B)", "a router cannot be pickled or copied; save_state(FILE)"),
    ("B.observe(F, B.choose(P), 5.0)", "drafter Choice(drafter="),
    (
        "B.choose_for([P, P]).learn(5.0, plain=1.0)",
        "the choice is of 2 prompts, and a router learns of one; choose",
    ),
    (
        "B.observe(B.choose_for([P, P]).features, 'lookup', 5.0)",
        "features are of 2 prompts, and a router learns of one",
    ),
    (
        "AdaptiveRouter.from_config({'router': 'x', 'draft_models': ['a']})",
        "draft_models is given; a router is trained",
    ),
    ("audit(E, None)", "prompts is None"),
    ("audit(E, [])", "prompts is empty; give at least one prompt"),
    ("audit(E, [P], on_batch=3)", "on_batch is 3; give a function"),
    ("E.benchmark([P], num_runs=1, on_run=5)", "on_run is 5; give a function"),
    ("E.benchmark([P], num_runs=2.0)", "num_runs is 2.0; give a whole number from 1 on"),
    ("E.benchmark([P], num_runs=True)", "num_runs is True; give a whole number from 1 on"),
    ("custom_generate(streamer=print)", "give an object with put and end, such as a TextStreamer"),
    ("M.generate(IDS, max_new_tokens=4, custom_generate=custom_generate)", "give custom_generate=custom_generate()"),
    ("custom_generate(M, DRAFT)", "takes the draft alone; give custom_generate=custom_generate(draft) to generate()"),
    ("custom_generate(streamer=TextStreamer)", "give an object with put and end, such as a TextStreamer"),
    ("SpeculativeEngine(M, TOK.__class__)", "; give the tokenizer itself"),
    ("SpeculativeEngine(M, TOK, VISION)", "draft_model cannot draft: vit cannot be a target"),
    (
        "SpeculativeEngine(M, TOK, 'lookup')",
        "'lookup' is a drafter, not a model; give a model here, or drafter='lookup'",
    ),
    (
        "SpeculativeEngine(M, TOK, 'self')",
        "'self' is a draft made of its target, not a model; give self:int8 or self:int4",
    ),
    ("SpeculativeEngine(M, TOK, drafter=DRAFT)", "a model that drafts is given as draft_model="),
    ("E.parts = replace(E.parts, drafter=Silent)", "give an object of a class of Drafter"),
    ("E.generate(P, stop_token_ids=[True])", "stop_token_ids is [True]; give a value that is a number"),
    ("E.generate(P, logits_processor=[lambda scores: scores])", "too many positional arguments; give functions of"),
    (
        "E.generate(P, logits_processor=[lambda i, s: s - float('inf')])",
        "leave no token: all scores are -inf; leave one",
    ),
    ("LoRAAdapter(VISION)", "it is not a causal language model"),
    (
        "LoRAAdapter(BASE, {'target_modules': ['q_proj', 'lm_head']})",
        "'lm_head', which gets no adapter: it is",
    ),
    ("LoRAAdapter(BASE, {'r': True})", "lora_config.r is True; give a value that is a number"),
    ("AD.get_adapted_model(merge='no')", "merge is 'no'; give True or False"),
    ("MultiStreamAttention(True, 1, 1)", "hidden_size is True; give a whole number from 1 on"),
    ("MultiStreamAttention(64, 5, 2)", "num_heads is 5; give a divisor of 64, the hidden size"),
    (
        "MSA(torch.zeros(1, 2, 64), torch.zeros(1, 2, 2, 64, device='meta'))",
        "streams are on meta and the main stream on",
    ),
    ("E.parts = replace(E.parts, drafter='bigram')", "drafter is 'bigram'; give an object of a class of Drafter"),
    ("E.parts = 'bigram'", "parts is 'bigram'; give dataclasses.replace(engine.parts, drafter=drafter)"),
    (
        "e = SpeculativeEngine(M, TOK); e.parts = replace(e.parts, drafter=Silent()); e.generate(P)",
        "give a DraftSession",
    ),
    ("E.generate(P, logits_processor=[Processor])", "has the class RepetitionPenaltyLogitsProcessor; give one that is"),
    ("DeploymentConfig.read(None, {'SPECSTREAM_PORT': 5})", "SPECSTREAM_PORT is 5; give a text"),
    ("DeploymentConfig.read(None, ['SPECSTREAM_PORT'])", "environment is ['SPECSTREAM_PORT']; give a mapping"),
    ("DeploymentConfig.model_validate({'port': -1})", "port is -1; give a value that is greater than or equal to 0"),
    ("DeploymentConfig.model_validate(5)", "the configuration is 5; give a mapping"),
    ("DeploymentConfig(drafter='router')", "drafter is 'router'; give a value that is 'auto', 'none', 'lookup'"),
    (
        "DeploymentConfig(speculative_config={'a': 1})",
        "unknown setting 'speculative_config'; known are acceptance_threshold, api_key",
    ),
    ("DeploymentConfig(gamma=True)", "gamma is True; give a number"),
    ("DeploymentConfig(vllm_args=5)", "vllm_args is 5; give a text or a list"),
    ("DeploymentConfig(cors_origins=5)", "cors_origins is 5; give a list of origins"),
    ("DeploymentConfig(api_key=5)", "api_key is not shown; give a text; a number in quotes"),
    ("EngineConfig(gama=3)", "unknown setting 'gama'; known are"),
    ("GenerationConfig(max_new_tokens=-1)", "max_new_tokens is -1; give a value that is greater"),
]


@pytest.mark.parametrize(("code", "told"), OF_ANOTHER_KIND)
def test_an_object_of_another_kind(made, code, told):
    refused(code, made, told)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("SpeculativeEngine.from_config({'model': 'gpt2'})", "{'model': 'gpt2'}; give a YAML file; settings in a map"),
        ("SpeculativeEngine.from_config(None)", "path is None; give a YAML file"),
        ("AdaptiveRouter.from_config(None)", "config is None; give {'router': FOLDER}, or a YAML file"),
        ("AdaptiveRouter.from_config(5)", "config is 5; give {'router': FOLDER}, or a YAML file"),
        ("DeploymentConfig.read({'port': 1})", "config is {'port': 1}; give a YAML file"),
        ("AD.save_weights(None)", "path is None; give a folder"),
        ("AD.load_weights(None)", "path is None; give a folder"),
        ("AD.save_merged(None)", "path is None; give a folder"),
        ("AD.save_merged('file')", "path is 'file', which is a file; give a folder"),
        ("AD.save_weights('file')", "path is 'file', which is a file; give a folder"),
        ("AD.save_weights('file/in')", "path is 'file/in', which cannot be made: Not a directory; give a folder"),
        ("R.load_state('nowhere.state')", "path is 'nowhere.state', where no file is; give one that save_state wrote"),
        ("R.save_state(None)", "path is None; give a file"),
        ("R.save_state('.')", "path is '.', which is a folder; give the name of a file"),
        ("R.load_state('file')", "give a file that save_state of this router wrote"),
        ("AD.load_weights('damaged')", "'damaged' holds no LoRA weights: Error while deserializing header"),
        ("Streams.from_pretrained(M, 'file')", "folder is a LlamaForCausalLM; give a folder of heads"),
        ("MedusaHeads.from_pretrained(None, M)", "folder is None; give a folder of Medusa heads"),
        ("MedusaHeads.from_pretrained(M, 'medusa')", "; give a folder of Medusa heads, and the model behind it"),
        (
            "MedusaHeads.from_pretrained('streams', M)",
            "heads in 'streams' are 'streams', not 'medusa'; give Medusa",
        ),
        (
            "SpeculativeEngine(M, TOK, heads='unsaid')",
            "does not say whose heads it holds; give a folder of streams, medusa, block, eagle3 or dflash",
        ),
        (
            "SpeculativeEngine(M, TOK, heads='medusa', pruning=0.1)",
            "'medusa' holds 'medusa'; give streams, or",
        ),
        ("AdaptiveRouter.from_config('table/config.json')", "is that of a router's folder; give {'router': 'table'}"),
        (
            "AdaptiveRouter.from_config({'router': 'table', 'state': '.'})",
            "router_state is '.', which is a folder",
        ),
        ("R.load_state('.')", "path is '.', where no file is; give one"),
        ("MedusaHeads(M).save(None)", "folder is None; give a folder"),
        ("MedusaHeads(M).save('')", "folder is ''; give a folder"),
        ("MedusaHeads(M).save('file')", "folder is 'file', which is a file; give a folder"),
        ("HEADS.save('new', dtype=torch.int8)", "dtype is torch.int8; give auto, float32"),
        (
            "HEADS.save('new', data=M)",
            "no JSON: Object of type LlamaForCausalLM is not JSON serializable; give plain values",
        ),
    ],
)
def test_a_path_that_is_none(made, tmp_path, monkeypatch, code, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    made["AD"].save_weights("damaged")
    (tmp_path / "damaged" / "adapter_model.safetensors").write_bytes(b"x")
    (tmp_path / "unsaid").mkdir()
    (tmp_path / "unsaid" / "config.json").write_text('{"medusa_num_heads": 2}')
    MedusaHeads(made["M"]).save("medusa")
    heads = Streams(made["BASE"], StreamsConfig(layers=1))
    heads.save("streams")
    made["B"].model.save("table")
    refused(code, {**made, "HEADS": heads}, told)


WRITES = [
    "B.save_state('notes.txt')",
    "B.save_state('model/model.safetensors')",
    "B.save_state('another.state')",
    "AD.save_merged('model')",
    "AD.save_merged('adapter')",
    "AD.save_merged('.')",
    "AD.save_merged('with_notes')",
    "AD.save_weights('model')",
    "AD.save_weights('ours')",
    "HEADS.save('model')",
    "HEADS.save('medusa')",
    "MedusaHeads(M).save('model')",
    "B.model.save('model')",
]


@pytest.mark.parametrize("code", WRITES)
def test_what_is_there_is_not_replaced(made, tmp_path, monkeypatch, code):
    """Inputs, models, and what another method wrote; the file of the same kind is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("years of work")
    other = AdaptiveRouter(_table(tiny_model(5)), RouterConfig(router=""), None)
    other.model.network.mean.resize_(0)
    for parameter in other.model.network.parameters():
        parameter.data.add_(1.0)  # another table
    AdaptiveRouter(other.model, RouterConfig(router=""), None).save_state("another.state")
    made["M"].save_pretrained("model")
    made["AD"].save_weights("adapter")
    made["AD"].save_merged("with_notes")
    (tmp_path / "with_notes" / "README.md").write_text("what it is for")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "adapter_config.json").write_text("our own notes")
    MedusaHeads(made["M"]).save("medusa")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused(code, {**made, "HEADS": Streams(made["BASE"], StreamsConfig(layers=1))}, "; give a new")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_the_same_method_wrote_is_replaced(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").touch()  # as mktemp does
    heads = Streams(made["BASE"], StreamsConfig(layers=1))
    for _ in range(2):
        made["B"].save_state("state")
        made["AD"].save_weights("adapter")
        made["AD"].save_merged("merged")
        heads.save("heads", dtype="float32")
        MedusaHeads(made["M"], dtype="auto").save("medusa")
        made["B"].model.save("router")
    made["B"].load_state("state")
    assert Streams.from_pretrained("heads", made["BASE"]).config == heads.config
    assert AdaptiveRouter.from_config(RouterConfig(router=tmp_path / "router")).drafters.keys() == {"none", "lookup"}
    assert json.loads((tmp_path / "merged" / "merged_lora.json").read_text())["lora"]["r"] == 2


HEADS = [
    ("Streams('gpt2')", "it is a name, no transformers model; load it"),
    ("Streams(E)", "it holds a model; give that, its .model"),
    ("Streams(BASE, {'gamma': 2})", "config is {'gamma': 2}; give a StreamsConfig"),
    ("StreamsConfig(gamma='4')", "gamma is '4'; give a whole number from 1 on"),
    ("StreamsConfig(gamma=2.5)", "gamma is 2.5; give a whole number from 1 on"),
    ("StreamsConfig(rank=True)", "rank is True; give a whole number from 0 on"),
    ("StreamsConfig(alpha='x')", "alpha is 'x'; give a number"),
    ("StreamsConfig(start='zero')", "start is 'zero'; give 'identity' or 'linear'"),
    ("Streams(BASE, StreamsConfig(layers=1, targets=['query']))", "give some of down_proj, gate_proj, k_proj, o_proj"),
    ("MedusaHeads(M)(torch.zeros(1, 48))", "MedusaHeads is called; give SpeculativeEngine heads=FOLDER"),
    ("Streams(BASE, StreamsConfig(layers=1))(IDS)", "Streams is called; give SpeculativeEngine heads=FOLDER"),
    ("MedusaHeads(M).logits(torch.zeros(1, 48), 9)", "head is 9; give a whole number below 4"),
    ("MedusaHeads(M).logits(torch.zeros(1, 48), -1)", "head is -1; give a whole number from 0 on"),
    ("MedusaHeads(M).logits(torch.zeros(1, 5), 0)", "states are [1, 5]; give [..., 48], of states_of(tokens)"),
    ("MedusaHeads(M).draft(torch.zeros(1, 48), 9, 2)", "depth is 9; give a whole number from 1 to 4"),
    ("MedusaHeads(M).draft(torch.zeros(1, 48), 2, 0)", "ranks is 0; give a whole number from 1 on"),
    ("StreamsConfig(mode='lossy')", "mode is 'lossy'; give 'lossless' or 'shared'"),
    ("StreamsConfig(targets='q_proj')", "targets is 'q_proj'; give a list of the names of linear layers"),
    ("Streams(BASE, StreamsConfig(layers=1), [1, 900])", "vocabulary has the token 900; the vocabulary is 0 to 299"),
    ("Streams(BASE, StreamsConfig(layers=1), [-1])", "vocabulary has the token -1; the vocabulary is 0 to 299"),
    ("Streams(BASE, StreamsConfig(layers=1), [1.5])", "vocabulary is [1.5]; give token ids: [n] int64"),
    ("Streams(BASE, StreamsConfig(layers=1), [])", "vocabulary is []; give token ids: [n] int64, at least one"),
    ("Streams(BASE, StreamsConfig(layers=1), TOK)", "give token ids: [n] int64"),
    ("Streams(BASE, StreamsConfig(layers=1), [1, 1])", "vocabulary has a token twice; give each once"),
    ("MedusaHeads('gpt2')", "it is a name, no transformers model; load it"),
    ("MedusaHeads(VISION)", "it is not a causal language model"),
    ("MedusaHeads(M, num_heads='4')", "num_heads is '4'; give a whole number from 1 on"),
    ("MedusaHeads(M, num_layers=None)", "num_layers is None; give a whole number from 1 on"),
    ("MedusaHeads(M, token_map=[1, 900])", "token_map has the token 900; the vocabulary is 0 to 299"),
    ("MedusaHeads(M, token_map=5)", "token_map is 5; give token ids: [n] int64"),
    ("MedusaHeads(M, dtype=torch.int8)", "dtype is torch.int8; give auto, float32"),
]


@pytest.mark.parametrize(("code", "told"), HEADS)
def test_heads_of_what_cannot_be(made, code, told):
    refused(code, made, told)


ROUTED = [
    ("N.choose('a text')", "the prompt is 'a text' (str) and there is no tokenizer; give token ids, or bind one"),
    ("B.choose('')", "the prompt '' is empty; give at least one token"),
    ("B.choose([])", "choose is given 0 prompts; give one, or give them to choose_for"),
    ("B.choose([[1, 2], [3]])", "choose is given 2 prompts; give one, or give them to choose_for"),
    ("B.choose(['a', 'b'])", "choose is given 2 prompts; give one, or give them to choose_for"),
    ("B.choose([1, 300])", "the prompt has the token 300; the vocabulary is 0 to 299"),
    ("B.choose([1, -1])", "the prompt has the token -1; the vocabulary is 0 to 299"),
    ("B.choose([1.0, 2.0])", "with 1.0 (float) in it; give a text, a chat"),
    ("B.choose(torch.rand(5))", "is a Tensor [5] of float32; give token ids"),
    ("B.choose(None)", "the prompt is None (NoneType); give a text, a chat"),
    ("B.choose(x for x in [1])", "the prompt is of the type generator; give a text"),
    ("B.choose(P, among='lookup')", "among is 'lookup'; give a list of some of none, lookup"),
    ("B.choose(P, among=5)", "among is 5; give a list of some of none, lookup"),
    ("B.choose(P, among=[['lookup']])", "among is [['lookup']]; give a list of some of none, lookup"),
    ("B.choose(P, settled='no')", "settled is 'no'; give True or False"),
    ("B.choose_for(P)", "prompts is of the type str; give a list of prompts"),
    ("B.choose_for([])", "prompts is empty; give at least one prompt"),
    ("B.choose_for([1, 2])", "prompts is [1, 2] (list); give a list of prompts"),
    ("B.choose_for([[1, 2], [3, 500]])", "the prompt has the token 500; the vocabulary is 0 to 299"),
    ("B.choose_for(None)", "prompts is None (NoneType); give a list of prompts"),
    ("B.features('')", "the prompt '' is empty"),
    ("B.features([P, P])", "features is given 2 prompts; give one, or give them to choose_for"),
]


@pytest.mark.parametrize(("code", "told"), ROUTED)
def test_a_prompt_that_a_router_cannot_choose_for(made, code, told):
    refused(code, made, told)


def test_a_speed_may_be_of_numpy(made):
    made["B"].observe(made["F"], "lookup", np.float32(50.0))  # whose comparison with a larger float warns


def test_a_router_takes_prompts_as_an_engine_does(made):
    router, tokenizer = made["B"], made["TOK"]
    ids = tokenizer(WORDS)["input_ids"]
    forms = [WORDS, ids, tuple(ids), np.array(ids), torch.tensor(ids), torch.tensor([ids]), tokenizer(WORDS)]
    forms.append(tokenizer(WORDS, return_tensors="pt"))
    expected = router.features(ids)
    assert all(torch.equal(router.choose(form).features[0], expected) for form in forms)
    assert router.choose([{"role": "user", "content": "one"}]).drafter in ("none", "lookup")
    several = tokenizer([WORDS, "one"], padding=True, return_tensors="pt")
    assert torch.equal(router.choose_for(several).features, router.choose_for([WORDS, "one"]).features)
    assert len(made["E"].generate([made["IDS"], tokenizer("one")], max_new_tokens=2)) == 2


@pytest.mark.parametrize("name", ["gamma", "temperature", "max_new_tokens", "draft_model", "drafter"])
def test_a_setting_is_not_an_attribute(made, name):
    refused(f"E.{name} = 0.5", made, f"{name} cannot be set to 0.5: it is fixed when the engine is made; give it to ")


@pytest.mark.parametrize("name", ["model", "tokenizer", "config", "target"])
def test_a_part_of_an_engine_is_not_exchanged(made, name):
    refused(f"E.{name} = None", made, f"{name} cannot be set to None: it is fixed when the engine is made")
    refused("E.gama = 2", made, "gama cannot be set to 2: it is no attribute; leave it out")


def test_what_a_subclass_adds_may_be_set(made):
    class Named(SpeculativeEngine):
        label = "a"

    engine = Named(made["M"], made["TOK"])
    engine.label, engine.other = "b", "c"
    assert (engine.label, engine.other) == ("b", "c")
    with pytest.raises(UsageError, match="gamma cannot be set"):
        engine.gamma = 3


PROMPTS = [
    ("torch.randn(1, 5)", "is a Tensor [1, 5] of float32; give token ids: [n] or [rows, n] int64"),
    ("[torch.randn(5)]", "is a Tensor [5] of float32; give token ids"),
    ("np.ones((1, 5))", "is a ndarray [1, 5] of float64; give token ids"),
    ("torch.zeros(2, 3, 4, dtype=torch.long)", "is a Tensor [2, 3, 4] of int64; give token ids: [n] or"),
    ("torch.tensor([1, 2], device='meta')", "the prompt is on the device meta and has no values"),
    ("{'input_ids': IDS, 'attention_mask': torch.tensor([[0, 0, 0]])}", "attention_mask hides all of a prompt; give"),
    ("{'input_ids': IDS, 'attention_mask': [[1, 1]]}", "3 tokens; give the mask of the same call of the tokenizer"),
    ("{'input_ids': [[1, 2]], 'attention_mask': [[1, 5]]}", "attention_mask has 5; give 0 or 1"),
    ("{'input_ids': [[1, 2]], 'attention_mask': [[0.5, 1]]}", "attention_mask has 0.5; give 0 or 1"),
]


@pytest.mark.parametrize(("prompt", "told"), PROMPTS)
def test_a_prompt_of_other_numbers(made, prompt, told):
    refused(f"E.generate({prompt}, max_new_tokens=2)", made, told)
    refused(f"speculative_decode(M, None, {prompt}, max_new_tokens=2)", made, told)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("streamer=print", "unknown setting 'streamer'; engine.stream(prompt) gives the text piece by piece"),
        ("num_return_sequences=3", "give the prompt so many times, in a list"),
        ("generator=torch.Generator()", "give seed=, a whole number"),
        ("stopping_criteria=[print]", "give stop=, texts, or stop_token_ids="),
        ("no_repeat_ngram_size=2", "give logits_processor=[NoRepeatNGramLogitsProcessor(n)], of transformers"),
        ("attention_mask=IDS", "give what the tokenizer returned as one argument, the prompt"),
        ("pad_token_id=0", "unknown setting 'pad_token_id'; leave it out: nothing is padded"),
        ("stream=True", "unknown setting 'stream'; engine.stream(prompt) gives the text piece by piece"),
        ("messages=[]", "unknown setting 'messages'; give the prompt as the first argument"),
        ("prompts=[P]", "give the prompt as the first argument"),
        ("draft_model=DRAFT", "give it to SpeculativeEngine"),
        ("stop_token_ids=['a']", "stop_token_ids.0 is 'a'; give a token id; a text that ends the output is given as"),
    ],
)
def test_what_does_it_instead_is_said(made, setting, told):
    refused(f"E.generate(P, {setting})", made, told)


def test_what_a_tokenizer_returns_is_one_argument(made):
    refused("E.generate(**TOK(P, return_tensors='pt'))", made, "give what the tokenizer returned as one argument")
    refused("E.generate()", made, "the prompt is None")


@pytest.mark.parametrize("settings", ["repetition_penalty=1e-300", "temperature=1e-300, seed=1"])
def test_a_setting_under_which_logits_overflow_is_blamed(made, settings):
    refused(f"E.generate(P, max_new_tokens=2, {settings})", made, "or a logits processor; give values nearer to 1")


def test_a_checkpoints_own_setting_without_a_meaning_is_named(made):
    model = tiny_model()
    engine = SpeculativeEngine(model, made["TOK"])
    model.generation_config.repetition_penalty = "high"
    with pytest.raises(UsageError, match="has no meaning: repetition_penalty 'high'"):
        engine.generate(WORDS)


def test_a_tokenizer_of_another_model_is_noticed_by_its_size(made):
    told = "the tokenizer has 300 tokens and the model's vocabulary is 0 to 199: it is another model's, give this"
    refused("SpeculativeEngine(SMALL, TOK, drafter='lookup')", made, told)
    refused("LoRAAdapter(SMALL, {'r': 2}, TOK)", made, told)
    larger = tiny_model(vocab_size=310)  # padded, as many models are
    assert SpeculativeEngine(larger, made["TOK"]).generate(WORDS, max_new_tokens=2).new_tokens == 2
    assert len(made["ADDED"]) == 301  # a token was added, and the embedding was not resized
    assert SpeculativeEngine(made["M"], made["ADDED"]).generate(WORDS, max_new_tokens=2).new_tokens == 2


TRAINING = [
    ("[torch.tensor([1, 2, 3])]", "item 0 is tensor([1, 2, 3]); give a text, a record or a list of token ids"),
    ("[5]", "item 0 is 5; give a text"),
    ("[[True, False]]", "item 0 is [True, False]; give a text"),
    ("iter(['a b c'])", "give a list of texts, records or token ids"),
    ("torch.utils.data.DataLoader(['a b c'])", "training_data is a DataLoader; give a list of texts"),
    ("[[1, 2], [1, 60000]]", "item 1 has the token 60000; the vocabulary is 0 to 299"),
    ("[[-1, 5]]", "item 0 has the token -1; the vocabulary is 0 to 299"),
    ("[{'prompt_token_ids': [1, 2], 'answer_token_ids': [-3]}]", "item 0 has token -3, which this tokenizer has not"),
    ("['a b'], batch_size=0", "batch_size is 0; give a whole number from 1 on"),
    ("['a b'], batch_size=-1", "batch_size is -1; give a whole number from 1 on"),
    ("['a b'], epochs=1.5", "epochs is 1.5; give a whole number from 1 on"),
    ("['a b'], epochs=True", "epochs is True; give a whole number from 1 on"),
    ("['a b'], max_length=1", "max_length is 1; give a whole number from 2 on"),
    ("[{'prompt': 'a b c', 'completion': ''}]", "training_data has no token to learn"),
    ("[[]]", "training_data has no token to learn"),
    ("[P], output_dir='out'", "output_dir is 'out', and here nothing is written; leave it out, and call save_weights"),
    ("[P], save_steps=1", "save_steps is 1, and here nothing is written; leave it out"),
    ("[P], learning_rate=True", "learning_rate is True; give a value that is a number"),
    ("[{'ask': 'a', 'reply': 'b'}]", "it has ['ask', 'reply']; give prompt and completion, messages, or text"),
    ("[{'messages': 'hi'}]", "item 0 has messages, which is 'hi'; give a list of turns"),
    ("[P], epochs=2, per_device_batch_size=0", "batch_size is 0; give a whole number from 1 on"),
    ("[P], num_train_epochs=2", "warmup_steps, weight_decay; did you mean 'epochs'?"),
    ("[P], max_seq_length=64", "did you mean 'max_length'?"),
    ("[P], per_device_train_batch_size=2", "did you mean 'batch_size'?"),
    ("[P], mixed_precision='fp16'", "mixed_precision is 'fp16', in which a CPU does not train; give bf16, or no"),
]


@pytest.mark.parametrize(("data", "told"), TRAINING)
def test_what_cannot_be_trained_on(made, data, told):
    refused(f"AD.train({data})", made, told)


@pytest.mark.parametrize("given", [{}, {"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 4}])
def test_every_example_is_seen_once_an_epoch(monkeypatch, given):
    """Where neither batches nor steps divide: 7 examples are 4 batches of 2, and 2 epochs are 8."""
    seen, adapter = [], LoRAAdapter(tiny_model(), {"r": 2}, tiny_tokenizer())
    examples = [[number, number + 1, 5] for number in range(10, 17)]
    batch = Examples.batch
    monkeypatch.setattr(Examples, "batch", lambda self, chosen: seen.extend(chosen) or batch(self, chosen))
    rows = adapter.train(examples, 3, batch_size=2, **given)
    assert sorted(seen) == sorted(3 * list(range(7)))
    accumulate = given.get("gradient_accumulation_steps", 1)
    assert [row["epoch"] for row in rows] == [step * accumulate // 4 + 1 for step in range(12 // accumulate)]
    assert rows[-1]["tokens"] == 63


def test_a_last_step_is_smaller_and_counts_what_it_has():
    """3 batches in steps of 2: the last has one, whose loss is not halved."""
    norms = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        adapter = LoRAAdapter(tiny_model(), {"r": 2}, tiny_tokenizer())
        rows = adapter.train(
            [[7, 8, 9]] * 3, 1, batch_size=1, gradient_accumulation_steps=accumulate, learning_rate=1e-9
        )
        norms.append([row["grad_norm"] for row in rows])
    assert [len(each) for each in norms] == [3, 2]
    assert norms[1] == pytest.approx(norms[0][:2], rel=1e-3)


def test_texts_are_packed_before_the_size_of_a_batch_is_known(made):
    assert len(made["AD"].train([WORDS] * 3, 1, per_device_batch_size=2)) == 1


def test_steps_may_be_given_in_place_of_epochs(made):
    assert len(made["AD"].train([[1, 2, 3]] * 3, batch_size=2, num_train_steps=5)) == 5


def test_a_training_that_fails_leaves_the_adapters_as_they_were():
    adapter = LoRAAdapter(tiny_model(), {"r": 2}, tiny_tokenizer())
    before = [each.detach().clone() for each in adapter.trainable_parameters()]
    with pytest.raises(TrainingError):
        adapter.train([WORDS], learning_rate=1e30, epochs=3)
    assert all(map(torch.equal, adapter.trainable_parameters(), before))
    assert adapter.train([WORDS], epochs=1)[0]["loss"] > 0


def test_adapters_are_saved_as_any_dtype_of_weights(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("AD.save_merged('merged', dtype=torch.int8)", made, "dtype is torch.int8; give auto, float32")
    assert made["AD"].save_merged("merged", dtype="float16").dtype == torch.float16
    made["AD"].save_weights("saved")
    told = "have r 2 and this adapter has 4; make one with lora_config={'r': 2}"
    refused(
        "LoRAAdapter(NAMES_MODEL, {'r': 4}, TOK).load_weights('saved')", {**made, "NAMES_MODEL": tiny_model()}, told
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("torch.randn(5, 64), torch.randn(5, 2, 64)", "the main stream is (5, 64); give tensors [rows, length, 2, 64]"),
        ("torch.randn(2, 5, 32), torch.randn(2, 5, 2, 32)", "beside [rows, length, 64]"),
        ("torch.randn(2, 0, 64), torch.randn(2, 0, 2, 64)", "none of them empty"),
        ("np.ones((2, 5, 64)), np.ones((2, 5, 2, 64))", "float64; give torch.float32, as the weights"),
        ("None, None", "streams are a NoneType and the main stream is a NoneType"),
        ("torch.ones(2, 5, 64).double(), torch.ones(2, 5, 2, 64).double()", "give torch.float32, as the weights"),
        ("torch.ones(2, 5, 64).long(), torch.ones(2, 5, 2, 64).long()", "give torch.float32, as the weights"),
    ],
)
def test_states_of_another_form(made, given, told):
    refused(f"MSA({given})", made, told)


def test_a_backend_takes_the_older_name_of_dtype(made, tmp_path):
    made["M"].save_pretrained(tmp_path)
    made["TOK"].save_pretrained(tmp_path)
    assert specstream.create_backend(str(tmp_path), torch_dtype="bfloat16").model.dtype == torch.bfloat16
    refused(f"create_backend({str(tmp_path)!r}, dtype='float16', torch_dtype='float32')", made, "give one of them")


def test_a_stream_goes_on_where_it_stopped(made):
    whole = made["E"].generate(WORDS, max_new_tokens=16, ignore_eos=True)
    stream = made["E"].stream(WORDS, max_new_tokens=16, ignore_eos=True)
    pieces = [next(iter(stream))]
    for piece in stream:
        pieces.append(piece)
        break
    pieces += list(stream)
    assert "".join(pieces) == whole.text == stream.result.text
    assert len(pieces) > 2 and list(stream) == []


def test_a_stream_is_read_by_one_thread(made):
    waiting, go_on = threading.Event(), threading.Event()

    def hold(ids, scores):
        waiting.set()
        assert go_on.wait(60)
        return scores

    stream = made["E"].stream(WORDS, max_new_tokens=2, logits_processor=[hold])
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    try:
        assert waiting.wait(60)
        with pytest.raises(UsageError, match="the stream is read by another thread; read one stream in one thread"):
            next(stream)
    finally:
        go_on.set()
        reader.join()
    assert stream.result.new_tokens == 2


def test_settings_given_as_they_are_meant_still_work(made):
    """What stands beside the refusals above."""
    ids = {"input_ids": made["IDS"], "attention_mask": torch.tensor([[False, True, True]])}
    assert made["E"].generate(ids, max_new_tokens=2)[0].new_tokens == 2
    assert speculative_decode(made["M"], None, np.array([1, 2, 3]), max_new_tokens=2)[0].shape == (1, 5)
    assert audit(made["E"], [WORDS], max_new_tokens=2).passed
    assert DeploymentConfig(vllm_args="-a b").vllm_args == ("-a", "b")


@pytest.mark.parametrize("stop", ["", [""], ["a", ""]])
def test_an_empty_stop_string_is_refused(made, stop):
    told = "give a value that is not empty, or leave it out"
    with pytest.raises(UsageError, match=told):
        made["E"].generate("x", stop=stop)
    with pytest.raises(UsageError, match=told):
        SpeculativeEngine(made["M"], tiny_tokenizer(), stop=stop)
    with pytest.raises(UsageError, match=told):
        specstream.custom_generate(tokenizer=tiny_tokenizer(), stop=stop)


@pytest.mark.parametrize("kind", [EngineConfig, GenerationConfig, DeploymentConfig, RouterConfig, TrainConfig])
def test_a_configuration_of_a_mapping_or_a_text_is_refused_in_one_line(kind):
    for made_of in (kind.model_validate, lambda values: kind.model_validate_json(json.dumps(values))):
        with pytest.raises(UsageError, match="unknown setting 'promt'") as caught:
            made_of({"promt": 1})
        assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)
    for value in (5, "{"):
        with pytest.raises(UsageError, match=r"the configuration is (5; give a mapping|not JSON)"):
            kind.model_validate(value) if value == 5 else kind.model_validate_json(value)


def test_a_configuration_of_its_own_fields_is_made():
    assert EngineConfig.model_validate({"gamma": 3}).gamma == 3
    assert GenerationConfig.model_validate_json('{"top_p": 0.5}').top_p == 0.5
    assert EngineConfig.model_validate(config := EngineConfig(gamma=2)) is config


@pytest.mark.parametrize(
    ("engine", "call", "notes"),
    [
        ({}, {"top_p": 0.9}, ["top_p is 0.9, without effect at temperature 0; give temperature=0.7, or another above"]),
        ({"top_k": 5, "seed": 1}, {}, ["top_k is 5 and seed is 1, without effect at temperature 0"]),
        ({"drafter": "none", "gamma": 4}, {}, ["gamma is 4, without effect as drafter is 'none'; leave gamma out"]),
        ({}, {"max_new_tokens": 1000}, ["max_new_tokens is 1000 and the context holds 16: the text ended there"]),
        ({"acceptance_threshold": 0.3}, {}, ["acceptance_threshold is 0.3, without effect at temperature 0"]),
        ({"top_p": 0.9}, {"temperature": 1.0, "seed": 1}, []),
        ({}, {"top_p": 1.0, "top_k": 0, "min_p": 0.0}, []),
    ],
)
def test_a_result_says_which_settings_had_no_effect(engine, call, notes):
    model, own = tiny_model(context=16), {"max_new_tokens": 4, "ignore_eos": True, **call}
    made_with = SpeculativeEngine(model, tiny_tokenizer(), **engine)
    stream = made_with.stream([1, 2, 3], **own)
    list(stream)
    _, metrics = speculative_decode(model, None, [[1, 2, 3]], **engine, **own)
    for found in (made_with.generate([1, 2, 3], **own).notes, stream.result.notes, metrics["notes"]):
        assert len(found) == len(notes)
        assert all(each.startswith(begin) for each, begin in zip(found, notes, strict=True)), found


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("num_beams", "one beam is decoded; leave it out"),
        ("suppress_tokens", "give logits_processor=, a list of transformers' own"),
        ("assistant_tokenizer", "a draft has the target's vocabulary; leave it out"),
    ],
)
def test_what_generate_of_transformers_takes_is_told_what_does_it(made, name, told):
    with pytest.raises(UsageError, match=f"unknown setting '{name}'; {told}"):
        made["E"].generate("x", **{name: 2})


@pytest.mark.parametrize("name", ["revision", "token", "trust_remote_code", "attn_implementation"])
def test_what_from_pretrained_takes_is_told_where_to_give_it(made, name):
    with pytest.raises(UsageError, match=f"unknown setting '{name}'; load the model with transformers, and give model"):
        SpeculativeEngine("no-such-folder", **{name: "x"})


@pytest.mark.parametrize(
    ("name", "engines"),
    [("assistant_model", "draft_model"), ("load_in_4bit", "quantization"), ("device_map", "device")],
)
def test_what_the_engine_calls_otherwise_is_told_a_generation(made, name, engines):
    with pytest.raises(UsageError, match=f"unknown setting '{name}'; give {engines} to SpeculativeEngine"):
        made["E"].generate("x", **{name: made["M"]})


def test_a_table_of_prompts_is_refused_in_words(made):
    class Rows:
        """As a data set of `datasets`: it has a shape, and its rows are mappings."""

        shape = (1, 1)

        def __iter__(self):
            yield {"prompt": "one"}

    with pytest.raises(UsageError, match=r"the prompt is .*Rows.*; give a text, a chat"):
        made["E"].generate(Rows())


def test_an_adapter_is_made_without_a_warning_that_nobody_can_mend():
    LoRAAdapter(tiny_model(), {"r": 2}, tiny_tokenizer())
