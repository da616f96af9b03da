from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from specstream.errors import HeadMismatchError, ModelNotFoundError, NumericalError, UsageError
from specstream.heads.folder import describe_base
from specstream.routing.learn import FitSection, Samples, fit
from specstream.routing.model import RouterModel
from tests.tiny import tiny_model
from tests.unit.routing.synthetic import model_of, prompts, samples, trained, worth


def test_it_learns_which_drafter_is_faster_on_which_prompt():
    """On prompts that it never saw, the best drafter by the table is the best there is."""
    model = trained()
    questions = prompts(40, seed=99)
    ratios, hidden = model.predict(samples(questions).features)
    assert model.names == ["none", "lookup", "draft"]
    assert bool((ratios[:, 0] == 0).all())
    assert bool((hidden.abs() <= 1).all())
    for (kind, _), row in zip(questions, ratios, strict=True):
        assert model.names[int(row.argmax())] == ("lookup" if kind == "sums" else "draft")
        assert row[1:].tolist() == pytest.approx([worth(kind, name) for name in ("lookup", "draft")], abs=0.2)


def test_the_noise_is_that_of_the_measurements():
    quiet, loud = (fit(samples(prompts(80, 0), noise), FitSection(epochs=150, hidden=8)) for noise in (0.02, 0.3))
    assert max(quiet.noise) < 0.15 < min(loud.noise) < 0.5


def test_where_nothing_can_be_known_it_stops_early_and_believes_the_mean():
    chance = torch.Generator().manual_seed(0)
    features = samples(prompts(60, 0)).features
    ratios = 0.2 + 0.3 * torch.randn(60, 2, generator=chance)
    fitted = fit(Samples(features=features, ratios=ratios, weights=torch.ones(60)), FitSection(patience=20))
    assert fitted.epochs < 100
    predicted, _ = model_of(fitted).predict(features)
    assert predicted[:, 1:].mean(0).tolist() == pytest.approx(ratios.mean(0).tolist(), abs=0.05)
    assert float(predicted[:, 1:].std(0).max()) < 0.2


def test_what_more_is_at_stake_in_counts_more():
    features = torch.zeros(20, samples(prompts(2, 0)).features.shape[1])
    ratios = torch.tensor([[0.4]] * 10 + [[-0.4]] * 10)
    weights = torch.tensor([9.0] * 10 + [1.0] * 10)
    fitted = fit(Samples(features=features, ratios=ratios, weights=weights), FitSection(epochs=30))
    assert float(model_of_one(fitted, features[:1])) > 0.2


def model_of_one(fitted, features):
    with torch.no_grad():
        return fitted.network(fitted.network.standardise(features))[0]


def test_a_seed_repeats():
    data = samples(prompts(30, 0))
    with torch.random.fork_rng():
        one = fit(data, FitSection(epochs=20))
        torch.manual_seed(7)
        again = fit(data, FitSection(epochs=20))
    other = fit(data, FitSection(epochs=20, seed=1))
    assert model_of(one).fingerprint == model_of(again).fingerprint != model_of(other).fingerprint


def test_saved_and_loaded_it_says_the_same(tmp_path):
    model = trained()
    model.save(tmp_path / "router")
    loaded = RouterModel.load(tmp_path / "router")
    features = samples(prompts(10, 5)).features
    for one, other in zip(model.predict(features), loaded.predict(features), strict=True):
        assert torch.equal(one, other)
    assert loaded.drafters == model.drafters
    assert loaded.noise == model.noise
    assert loaded.fingerprint == model.fingerprint
    assert torch.equal(loaded.table, model.table)
    assert sorted(path.name for path in (tmp_path / "router").iterdir()) == ["config.json", "router.safetensors"]


def test_another_target_is_refused_by_name(tmp_path):
    own, other = tiny_model(), tiny_model(seed=3)
    own.config.name_or_path, other.config.name_or_path = "mine", "theirs"
    model = model_of(fit(samples(prompts(10, 0)), FitSection(epochs=2)), base=describe_base(own))
    model.features(own)
    with pytest.raises(HeadMismatchError, match=r"belongs to mine \(.*\) and the model is theirs \("):
        model.features(other)


def test_a_folder_that_holds_no_router_is_refused(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no router in"):
        RouterModel.load(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "streams"}')
    with pytest.raises(ModelNotFoundError, match="holds 'streams'; give a folder that specstream router train wrote"):
        RouterModel.load(tmp_path)


def changed_settings(folder, **changes):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **changes}))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"drafters": {"none": {"drafter": "none"}}},
            UsageError,
            r"has 1 drafter to choose from \(none\); give .* two",
        ),
        (
            {"drafters": {"a": {"drafter": "none", "speed": 1}, "none": {}}},
            UsageError,
            "unknown setting 'drafters.a.sp",
        ),
        ({"drafters": {"a": {"drafter": "none"}, "b": {"drafter": "lookup"}}}, ModelNotFoundError, "no drafter 'none'"),
        ({"hints": ["length"]}, ModelNotFoundError, "hints.*this version has"),
        ({"noise": {}}, ModelNotFoundError, "KeyError"),
        ({"plain_tokens_per_second": "fast"}, ModelNotFoundError, "ValueError"),
        ({"embedding": None}, ModelNotFoundError, "TypeError"),
    ],
)
def test_settings_that_cannot_be_are_one_line(tmp_path, changes, error, message):
    trained().save(tmp_path)
    changed_settings(tmp_path, **changes)
    with pytest.raises(error, match=message) as caught:
        RouterModel.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_are_refused(tmp_path):
    trained().save(tmp_path)
    tensors = load_file(tmp_path / "router.safetensors")
    save_file({**tensors, "output.bias": tensors["output.bias"] * float("nan")}, tmp_path / "router.safetensors")
    with pytest.raises(NumericalError, match="NaN or infinity"):
        RouterModel.load(tmp_path)
    save_file({**tensors, "output.bias": torch.zeros(7)}, tmp_path / "router.safetensors")
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        RouterModel.load(tmp_path)
    (tmp_path / "router.safetensors").write_bytes(b"half")
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        RouterModel.load(tmp_path)
