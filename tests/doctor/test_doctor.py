"""The doctor says what a run would be told, and finds where the rules are wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness import models
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.schema import Experiment, Precision, Quantization
from harness.config.sources import conf_root
from harness.doctor import __main__ as doctor
from harness.doctor import compatibility, machine, tables
from harness.doctor.compatibility import Finding, ask, attempt, backbones, experiments
from harness.models.architectures import Kind

METHODS = ["full", "head", "bitfit", "lora"]


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return ask(experiments(METHODS))


def test_every_architecture_is_asked_and_what_writes_twice() -> None:
    """Twenty-two for classification, eleven of them for language modeling, three as an encoder with a decoder."""
    asked = list(backbones())
    assert len(asked) == len(set(asked)) == 36
    assert sum(kind is Kind.causal_lm for _, kind in asked) == 11
    assert sum(kind is Kind.seq2seq_lm for _, kind in asked) == 3


@pytest.fixture(scope="module")
def everything() -> dict[str, Experiment]:
    return experiments(None)


@pytest.mark.slow
def test_every_method_of_conf_that_needs_no_further_key_is_asked(everything: dict[str, Experiment]) -> None:
    """`peft` alone has no configuration of its own."""
    names = {path.stem for path in (conf_root() / "conf/method").glob("*.yaml")}
    assert names - set(everything) == {"peft"}


@pytest.mark.slow
def test_the_published_table_is_what_the_rules_say(everything: dict[str, Experiment]) -> None:
    """Apart from the versions that it was made with."""
    published = (conf_root() / "reports/methods.md").read_text()
    made = tables.markdown(ask(everything)) + "\n"
    a, b = ([line for line in text.splitlines() if not line.startswith("peft-harness ")] for text in (published, made))
    assert a == b, f"run {tables.MARKDOWN_COMMAND}"


def test_a_refusal_is_what_a_run_is_told(findings: list[Finding], tiny_model: Callable[[str], Path]) -> None:
    """The same sentence, from the configuration of a run."""
    told = {(f.method, f.architecture, f.quantization): f.refusal for f in findings if f.kind is Kind.classification}
    folder = tiny_model("llama")
    experiment = build(compose("config", [f"model.path={folder}", "method=bitfit", "task=glue/sst2"]))
    with pytest.raises(ConfigError) as caught:
        experiment.method.expected_parameters(models.empty_model(models.load_config(folder, 2, False)))
    assert told["bitfit", "llama", Quantization.none] == str(caught.value)
    experiment = build(compose("config", [f"model.path={folder}", "method=full", "model.quantization=nf4"]))
    with pytest.raises(ConfigError) as caught:
        models.choose_quantization(experiment)
    assert told["full", "llama", Quantization.nf4] == str(caught.value)
    assert all(told["lora", "llama", stored] is None for stored in compatibility.STORED)


def test_the_same_reason_on_several_backbones_is_one_footnote(findings: list[Finding]) -> None:
    """It names them all."""
    (classification, language, pairs), legend = tables.grids(findings)
    cells = dict(zip(classification.architectures, classification.rows["bitfit"], strict=False))
    assert cells["bert"] == "yes"
    assert cells["llama"] == cells["gemma"] != "yes"
    assert "llama/mistral/gemma/" in (reason := legend[int(cells["llama"]) - 1])
    assert "backbone has no bias terms" in reason
    assert set(language.rows["head"][:-2]) == {language.rows["head"][0]} != {"yes"}
    assert language.rows["head"][-2:] == ["-", "-"]
    assert classification.rows["lora"] == ["yes"] * 24
    assert pairs.rows["lora"] == ["yes"] * 5
    assert "model.quantization=nf4/int8: method=full needs unquantized weights" in legend


@pytest.mark.slow
def test_the_rules_agree_with_what_happens(tmp_path: Path) -> None:
    """On one encoder, one decoder and one of both here; `doctor.live=true` tries every pair."""
    tasks = experiments(METHODS)
    some = [f for f in ask(tasks) if f.architecture in ("distilbert", "llama", "bart")]
    tried = list(attempt(some, tasks, tmp_path))
    assert len(tried) == len(METHODS) * 3 * 5
    assert [f for f in tried if f.disagrees] == []
    assert any(f.failure for f in tried)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_architecture_trains_live_in_either_precision(precision: str, tmp_path: Path) -> None:
    """A method that wraps layers and one that adds some, unquantized, for every kind of head."""
    tasks = experiments(["lora", "houlsby"])
    some = [f for f in ask(tasks) if f.quantization is Quantization.none]
    tried = list(attempt(some, tasks, tmp_path, Precision[precision]))
    assert len(tried) == 2 * len(list(backbones()))
    assert [f for f in tried if f.disagrees] == []


def test_a_rule_that_is_wrong_is_found(tmp_path: Path) -> None:
    """Either way: allowed but failing, or refused but training."""
    tasks = experiments(["lora", "bitfit"])
    pairs = {f.method: f for f in ask(tasks) if (f.architecture, f.kind, f.quantization) == (
        "llama", Kind.classification, Quantization.none)}  # fmt: skip
    wrong = [replace(pairs["lora"], refusal="I think not"), replace(pairs["bitfit"], refusal=None)]
    assert [f.disagrees for f in attempt(wrong, tasks, tmp_path)] == [True, True]


@pytest.mark.parametrize("kind", [Quantization.nf4, Quantization.fp4, Quantization.int8])
def test_a_quantized_layer_is_probed_forward_and_backward(kind: Quantization) -> None:
    """Four bits lose about a tenth, eight bits about a hundredth."""
    import torch

    assert 0.001 < machine.probe(kind, torch.device("cpu")) < (0.02 if kind is Quantization.int8 else 0.2)


def test_a_probe_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor goes on."""

    def fail(*_: object) -> float:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(machine, "probe", fail)
    assert set(machine.quantized_support().values()) == {"fails on cpu: no kernel image"}


def print_with(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["harness-doctor", *arguments])
    status = doctor.main()
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_tables_fit_80_columns(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside the longest of names."""
    monkeypatch.setattr(
        doctor, "examine", lambda options: ask({"prefix_tuning_projected": experiments(["head"])["head"]})
    )
    status, out, _ = print_with(capsys, monkeypatch)
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "ber rob xlm ele dis deb alb mod gp2 opt lla qw2 mis" in out
    assert "gea qw3 ge2 get phi gpx t5  mt5 bar nf4 int8" in out
    for name in ("torch", "transformers", "peft", "bitsandbytes", "memory", "GPU", "nf4", "int8"):
        assert name in out


def test_json_and_markdown_hold_every_pair(
    findings: list[Finding], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For programs, and for documents."""
    monkeypatch.setattr(doctor, "examine", lambda options: findings)
    content = json.loads(print_with(capsys, monkeypatch, "doctor.format=json")[1])
    assert len(content["methods"]) == 36 * len(METHODS) * 3
    assert {entry["works"] for entry in content["methods"]} == {True, False}
    assert content["machine"]["memory_bytes"] > 0
    text = print_with(capsys, monkeypatch, "doctor.format=markdown")[1]
    assert text.splitlines()[0] == f"<!-- Made by {tables.MARKDOWN_COMMAND} -->"
    assert "| lora |" + " yes |" * 24 in text
    assert "## Reasons\n\n1. " in text


def test_disagreement_is_exit_status_1(
    findings: list[Finding], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the pair, the rule and what happened."""
    wrong = [replace(findings[0], tried=True, failure="RuntimeError: no"), *findings[1:]]
    monkeypatch.setattr(doctor, "examine", lambda options: wrong)
    status, _, error = print_with(capsys, monkeypatch, "doctor.format=json")
    assert status == 1
    assert error == "full on bert (classification): allowed, but tried: RuntimeError: no\n"


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("doctor.format=xml", "doctor.format=xml: table or json or markdown is allowed"),
        ("doctor.live=perhaps", "doctor.live=perhaps: true or false is allowed"),
        ("doctor.metods=lora", "doctor.metods=lora: there is no key doctor.metods; did you mean doctor.methods"),
        ("--live", "--live: there is no key of this name, and arguments are key=value; "),
        ("doctor.methods=lroa", "doctor.methods=lroa: there is no such method; did you mean "),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_2(
    argument: str, sentence: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the other commands."""
    status, out, error = print_with(capsys, monkeypatch, argument)
    assert (status, out) == (2, "")
    assert error.startswith(sentence)
    assert len(error.splitlines()) == 1


def test_help_needs_nothing_heavy() -> None:
    """Neither torch nor hydra is imported for it."""
    code = "import sys; sys.argv = ['d', '--help']; from harness.doctor import __main__ as doctor; doctor.main(); " \
        "assert not {'torch', 'hydra', 'transformers'} & set(sys.modules)"  # fmt: skip
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "doctor.live=true" in printed
