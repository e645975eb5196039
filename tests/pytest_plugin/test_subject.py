"""A subject: what it takes, what it refuses, and what is made of it when a check asks."""

from __future__ import annotations

import inspect
import random

import pytest
import torch

from pytest_ftcheck import Recipe, Subject, diagnose, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.instruments import tiny_architectures
from pytest_ftcheck.instruments.environment import WORKERS, thread_share
from pytest_ftcheck.instruments.parameter_roles import roles
from pytest_ftcheck.instruments.tiny_tasks import CLASSES, batches_for
from pytest_ftcheck.pytest_plugin.build_subject import build
from pytest_ftcheck.pytest_plugin.model_spec import definition_of, subject_named
from pytest_ftcheck.pytest_plugin.subject import as_subject
from pytest_ftcheck.training.finetune_arguments import ARGUMENTS, OwnArguments


def test_it_takes_what_finetune_takes():
    taken = {*inspect.signature(finetune).parameters, *OwnArguments.__annotations__} - {"model", "batches", "arguments"}
    assert set(ARGUMENTS) == taken
    for name in Recipe.field_names():
        assert name not in ARGUMENTS or name == "optimizer"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, tiny_distilbert), TypeError, "name=3: expected a text"),
        (("", tiny_distilbert), ValueError, "name=''"),
        (("a::b", tiny_distilbert), ValueError, "without '::'"),
        (("a\nb", tiny_distilbert), ValueError, "line breaks"),
        (("x", 3), TypeError, r"Subject\('x'\): model is an int: expected a module, or a function"),
        (("x", tiny_distilbert, 3), TypeError, r"batches is an int: expected batches, or a function"),
    ],
)
def test_what_can_be_no_subject(arguments, error, message):
    with pytest.raises(error, match=message):
        Subject(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, r"Subject\('x'\): steps=0: expected a whole number >= 1"),
        ({"stepz": 3}, TypeError, "has no argument 'stepz'; did you mean step"),
        ({"zzz": 3}, TypeError, "has no argument 'zzz': expected some of recipe, optimizer"),
        (
            {"expected_failures": {"weights_mov": "?"}},
            ValueError,
            "there is no check 'weights_mov'; did you mean weights_move",
        ),
        ({"expected_failures": {"weights_move": ""}}, TypeError, "expected the reason, a text"),
        ({"expected_failures": ["weights_move"]}, TypeError, "is a list: expected a mapping check -> reason"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        Subject("x", tiny_distilbert, toy_batches(), **arguments)


def test_prefixes_of_checks_do_not_matter():
    subject = Subject("x", tiny_distilbert, expected_failures={"assert_head_init": "a", "check_head_needed": "b"})
    assert subject.expected_failures == {"head_init": "a", "head_needed": "b"}


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (lambda: None, "without a name of its own"),
        (3, "is an int: expected a Subject"),
        ({"name": "x"}, "including name and model"),
    ],
)
def test_what_does_not_stand_for_a_subject(thing, message):
    with pytest.raises(TypeError, match=message):
        as_subject(thing)


# ---------------------------------------------------------------------- what is made
def pair():
    return tiny_distilbert(), toy_batches(2, 4)


def weight(subject, seed=0):
    """Of the head, as ``finetune`` gets it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return subject.model().classifier[0].weight


def test_a_pair_becomes_a_model_and_batches_under_the_seed():
    torch.manual_seed(7)
    before, python = torch.get_rng_state(), random.getstate()
    one, two, other = (build(Subject("x", pair), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python
    weights = [weight(one), weight(two), weight(other, 1)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
    assert len(one.batches) == 2


def test_another_seed_gets_another_model_of_a_pair():
    subject = build(Subject("x", pair), 0)
    first, second = subject.model(), subject.model()
    assert first is not second


def tiny():
    return tiny_architectures.tiny("distilbert")


@pytest.mark.parametrize("make", [pair, tiny])
def test_the_same_seed_is_the_same_run_whichever_model_it_gets(make):
    """The first call gets the model that was made along with the batches, later ones another."""
    subject = build(Subject("x", make), 3)
    other = build(Subject("x", make), 0)  # its first model was made under another seed
    runs = [finetune(s.model, s.batches, seed=3, steps=4, probes=()) for s in (subject, subject, other)]
    assert runs[0].losses == runs[1].losses == runs[2].losses


def test_what_one_function_draws_does_not_depend_on_another():
    def held_out():
        torch.rand(9)
        return toy_batches(1, 4, seed=1)

    alone, beside = (weight(build(Subject("x", pair, **more), 0)) for more in ({}, {"eval_batches": held_out}))
    assert alone.equal(beside)


def test_the_outer_subject_goes_before_the_inner_one():
    inner = Subject("inner", tiny_distilbert, toy_batches, lr=1e-3, steps=9, expected_failures={"head_init": "inner"})
    subject = Subject("outer", lambda: inner, steps=5, expected_failures={"head_needed": "outer"})
    found = build(subject, 0)
    assert (found.name, dict(found.arguments)) == ("outer", {"lr": 1e-3, "steps": 5})
    assert found.expected_failures == {"head_init": "inner", "head_needed": "outer"}
    assert len(found.batches) == 16


def test_a_mapping_is_as_good():
    found = build(Subject("outer", lambda: {"model": tiny_distilbert, "batches": toy_batches(2, 4), "steps": 5}), 0)
    assert (len(found.batches), found.arguments) == (2, {"steps": 5})


def test_held_out_batches_may_come_from_a_function():
    found = build(Subject("x", tiny_distilbert, toy_batches, eval_batches=lambda: toy_batches(1, 4, seed=1)), 0)
    assert len(found.arguments["eval_batches"]) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 3, "x: its function returned an int: expected a model"),
        (lambda: (3, 4), "a pair that begins with an int"),
        (lambda: None, "returned a NoneType"),
    ],
)
def test_a_function_that_gives_something_else(make, message):
    with pytest.raises(TypeError, match=message):
        build(Subject("x", make), 0)


def test_a_model_that_no_batches_can_be_made_for():
    with pytest.raises(ValueError, match=r"x: it has no batches, and none can be made: Linear has no config"):
        build(Subject("x", lambda: torch.nn.Linear(2, 2)), 0)


def test_a_config_tells_what_batches_must_be():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    sizes = {"vocab_size": 50, "dim": 8, "n_heads": 2, "n_layers": 1, "hidden_dim": 8}

    def batches(**config):
        model = DistilBertForSequenceClassification(DistilBertConfig(**sizes, **config))
        return build(Subject("x", model), 0).batches

    assert {int(y) for b in batches(num_labels=3) for y in b["labels"]} == {0, 1, 2}
    assert batches(num_labels=1)[0]["labels"].dtype == torch.float32
    multi = batches(num_labels=3, problem_type="multi_label_classification")[0]["labels"]
    assert multi.shape == (8, 3)
    padded = batches(pad_token_id=4)[0]
    assert set(padded["input_ids"][padded["attention_mask"] == 0].tolist()) == {4}
    sizes["vocab_size"] = 20
    with pytest.raises(ValueError, match="vocabulary of 20 words is too small for 8 classes"):
        batches(num_labels=9)


# ---------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny:distlbert", "has no class for text-classification of 'distlbert'; did you mean distilbert"),
        ("tiny:vit", "of 'vit'; it has one for image-classification: tiny:vit/image-classification"),
        (
            "tiny:distilbert/ner",
            "'ner' is no task of a tiny model; expected one of text-classification, token-classification",
        ),
        ("tiny:", "expected pkg.module:make_model"),
        ("json", "expected pkg.module:make_model"),
        ("nowhere:make", "there is no module 'nowhere'"),
        ("xml.nowhere:make", "the package 'xml' has no module 'nowhere'"),
        ("xml.etree.Nope.deeper:make", r"the package 'xml.etree' has no module 'Nope'"),
        ("json:dumpz", "json has no 'dumpz'; did you mean dump, dumps"),
        ("json:decoder.nope", r"json.decoder has no 'nope'"),
        ("json:__name__", r"json.__name__ is a str: expected a function"),
        ("a b:c", "is not a module name"),
    ],
)
def test_a_name_that_does_not_resolve_says_which_part(name, message):
    with pytest.raises(ValueError, match=message):
        subject_named(name, {})


def test_a_module_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_more.py").write_text("import not_installed_at_all\n")
    (tmp_path / "raises_it.py").write_text("1 / 0\n")
    (tmp_path / "leaves_it.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "skips_it.py").write_text("import pytest\npytest.skip('no GPU', allow_module_level=True)\n")
    for name, message in (
        ("needs_more", "needs_more cannot be imported: No module named 'not_installed_at_all'"),
        ("raises_it", "raises_it cannot be imported: ZeroDivisionError: division by zero"),
        ("leaves_it", "leaves_it cannot be imported: SystemExit: 3"),
        ("skips_it", "skips_it cannot be imported: Skipped: no GPU"),
    ):
        with pytest.raises(ValueError, match=message):
            subject_named(f"{name}:make", {})


def test_an_attribute_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lazily.py").write_text("def __getattr__(name):\n    raise RuntimeError('no weights')\n")
    with pytest.raises(ValueError, match=r"^lazily.make cannot be read: RuntimeError: no weights$"):
        subject_named("lazily:make", {})


def test_ctrl_c_while_a_module_is_imported_is_no_bad_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stopped_here.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        subject_named("stopped_here:make", {})


def test_the_session_goes_before_what_we_choose_for_tiny_models():
    assert subject_named("tiny:bert", {}).arguments == {"lr": 1e-3, "steps": 60}
    assert subject_named("tiny:bert", {"lr": 0.1}).arguments == {"steps": 60}


def test_the_place_of_a_model_is_its_function(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "placed_here.py").write_text("\n\ndef make():\n    return None\n")
    subject = subject_named("placed_here:make", {})
    assert definition_of(subject, tmp_path) == ("placed_here.py", 3)
    assert definition_of(subject, tmp_path / "elsewhere") is None
    assert definition_of(subject_named("tiny:bert", {}), tmp_path) is None


def test_a_checkpoint_comes_from_a_folder_without_pickle(tmp_path):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(vocab_size=60, n_embd=8, n_head=2, n_layer=1, n_positions=32, num_labels=2, eos_token_id=1)
    model = GPT2ForSequenceClassification(config)
    model.save_pretrained(tmp_path / "saved")
    loaded = subject_named(f"hf:{tmp_path / 'saved'}", {}).model()
    assert loaded.score.weight.equal(model.score.weight)
    assert loaded.config.pad_token_id == 1  # it has none, and would refuse batches
    torch.save(model.state_dict(), tmp_path / "saved" / "pytorch_model.bin")
    (tmp_path / "saved" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="the folder has no sequence classifier"):
        subject_named(f"hf:{tmp_path / 'saved'}", {}).model()


def test_a_checkpoint_that_cannot_be_had_offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"hf:nobody/nothing is not a folder, is not in the cache.*Without a network"):
        subject_named("hf:nobody/nothing", {})


@pytest.mark.parametrize("kind", ["xlnet", "roc_bert", "canine", "t5", "deepseek_v3", "zamba2", "gemma3"])
def test_tiny_architectures_of_every_sort_take_their_batches(kind):
    """Biases of two dimensions, further inputs, no vocabulary, two stacks, latent attention, no attention, a part that sees."""
    model = tiny_architectures.tiny(kind)
    batch = batches_for(model)[0]
    with torch.no_grad():
        out = model(**batch)
    assert out.logits.shape == (8, CLASSES)
    assert sum(p.numel() for p in model.parameters()) < 1e6
    assert not any(p.requires_grad for n, p in model.named_parameters() if "vision" in n)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("bert", "multiple-choice"),  # the other tasks have pages of the documentation that are run
        ("vit", "image-classification"),
    ],
)
def test_a_tiny_model_of_each_task_learns_and_passes_every_check(kind, task):
    subject = build(subject_named(f"tiny:{kind}/{task}", {}), seed=0)
    trace = finetune(subject.model, subject.batches, **subject.arguments)
    diagnosis = diagnose(trace)
    assert diagnosis.status == "healthy", str(diagnosis)
    assert trace.reading.task == "single_label"
    assert trace.probe_loss.points[-1].reference < 0.75 * trace.probe_loss.prior_entropy
    assert trace.metrics


def test_a_bias_of_two_dimensions_is_a_bias():
    found = roles(tiny_architectures.tiny("xlnet"))
    assert found["transformer.layer.0.rel_attn.r_w_bias"] == "bias"
    assert found["transformer.layer.0.rel_attn.q"] == "matrix"


def test_what_cannot_be_made_tiny():
    with pytest.raises(ValueError, match="'nope' is no architecture"):
        tiny_architectures.tiny("nope")


# ---------------------------------------------------------------------- processors
@pytest.mark.parametrize(
    ("told", "threads", "expected"),
    [("", 6, 6), ("1", 6, 6), ("nonsense", 6, 6), ("2", 6, 4), ("3", 6, 2), ("99", 6, 1), ("2", 1, 1)],
)
def test_workers_share_the_processors(monkeypatch, told, threads, expected):
    monkeypatch.setenv(WORKERS, told)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert thread_share() == expected
