"""Claims: every rule on evidence whose outcome is known, verdicts from outcomes, and the ledger that is shipped."""

import csv
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import simulate_statistics as simulated
from omegaconf import OmegaConf
from run_directories import write_run
from scipy.stats import t

from harness.claims import __main__ as command
from harness.claims import architecture, costs, ledger, pages, scores
from harness.claims.evidence import Evidence, Selection
from harness.claims.verdict import Case, Finding, Verdict, decide, of_cases, of_tests
from harness.config.errors import ConfigError
from harness.config.sources import conf_root
from harness.report.family import compare_family
from harness.report.plots.style import KINDS
from harness.report.spread import spreads
from harness.report.stats import holm

ROWS = 200
EVIL = "<script>alert(1)</script>"
IDS = (
    "adapters-match-full lora-10000x lora-197k lora-memory-3x lora-matches-full lora-lr-10x rank-and-targets-matter "
    "attention-has-most size-linear-in-bits blockwise-separates qlora-matches-lora lora-int8 ia3-beats-lora "
    "peft-forgets-less adapters-swap merge-costs-nothing soft-prompts-semantic few-percent selective-mixed"
).split()
HOLDS, FAILS, UNDECIDED, NONE = Finding.holds, Finding.fails, Finding.undecided, Finding.no_evidence


def add(
    folder: Path, method: str, every: int = 5, shift: int = 0, seeds: Sequence[int] = (0, 1, 2), **more: Any
) -> None:
    """Write runs that are wrong on every n-th row, beginning with the row `shift`, and keep their predictions."""
    wrong = [row % every == shift for row in range(ROWS)]
    for seed in seeds:
        run_dir = write_run(folder, method=method, seed=seed, score=1 - sum(wrong) / ROWS, **more)
        table = {"split": "validation", "idx": range(ROWS), "label": 0, "prediction": [int(flag) for flag in wrong]}
        pd.DataFrame(table).to_parquet(run_dir / "predictions.parquet", index=False)


def on(folder: Path) -> Evidence:
    return Evidence([str(folder)], {"grid": "harness -cn grid", "other": "harness -cn other"})


def outcomes(cases: Sequence[Case]) -> list[Finding]:
    return [case.outcome for case in cases]


# --- Outcomes and verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-1, 1, HOLDS),
        (0, 0, HOLDS),
        (1.1, 3, FAILS),
        (-3, -2, FAILS),
        (0, 1.1, UNDECIDED),
        (math.nan, math.nan, UNDECIDED),
    ],
)
def test_an_interval_decides_only_on_one_side_of_the_margin(low: float, high: float, outcome: Finding) -> None:
    """Inside, ends included, the claim holds; outside it fails; across an end, or unknown, it is undecided."""
    assert decide(low, high, -1, 1) is outcome


@pytest.mark.parametrize(
    ("cases", "verdict"),
    [
        ([HOLDS, HOLDS, NONE], Verdict.supported),
        ([FAILS, NONE], Verdict.refuted),
        ([HOLDS, FAILS], Verdict.mixed),
        ([HOLDS, UNDECIDED], Verdict.mixed),
        ([UNDECIDED, UNDECIDED], Verdict.untestable),
        ([NONE], Verdict.untestable),
        ([], Verdict.untestable),
    ],
)
def test_cases_make_the_verdict_on_a_test(cases: list[Finding], verdict: Verdict) -> None:
    """Cases without evidence do not count, and what was never decided is not called mixed."""
    assert of_cases(cases) is verdict


@pytest.mark.parametrize(
    ("tests", "verdict"),
    [
        ([Verdict.supported, Verdict.supported], Verdict.supported),
        ([Verdict.supported, Verdict.untestable], Verdict.untestable),
        ([Verdict.refuted, Verdict.untestable], Verdict.refuted),
        ([Verdict.refuted, Verdict.supported], Verdict.mixed),
        ([Verdict.mixed, Verdict.supported], Verdict.mixed),
        ([Verdict.untestable], Verdict.untestable),
    ],
)
def test_a_claim_needs_all_of_its_tests(tests: list[Verdict], verdict: Verdict) -> None:
    """A test that can't be made keeps a claim from being supported, and from nothing else."""
    assert of_tests(tests) is verdict


# --- Rules on scores ------------------------------------------------------------------------------------------------


def test_no_inferiority_is_an_interval_above_the_margin(tmp_path: Path) -> None:
    """The same rows wrong hold, half of the rows wrong fail, as many others are undecided, no runs no evidence."""
    for method, every, shift in (("full", 5, 0), ("lora", 5, 0), ("ia3", 2, 0), ("houlsby", 5, 1)):
        add(tmp_path, method, every, shift, majority=0.3)
    rule = scores.KeepsUp(["grid", "other"], ["lora", "ia3", "houlsby"], "full", margin=0.05, margin_share=0.05)
    cases = rule.judge(on(tmp_path))
    assert outcomes(cases) == [HOLDS, FAILS, UNDECIDED, NONE]
    assert cases[1].value == pytest.approx(-0.3)
    assert cases[2].low < -0.05 < 0.05 < cases[2].high
    assert "times the evidence" in cases[2].remark
    assert cases[3].remark == "no evidence yet: run harness -cn other"


def test_equivalence_fails_for_the_better_too(tmp_path: Path) -> None:
    """What is better by more than the margin is not equal, though it keeps up."""
    add(tmp_path, "full", 2, majority=0.3)
    add(tmp_path, "lora", 5, majority=0.3)
    for two_sided, outcome in ((False, HOLDS), (True, FAILS)):
        rule = scores.KeepsUp(["grid"], ["lora"], "full", 0.05, 0.05, two_sided)
        assert outcomes(rule.judge(on(tmp_path))) == [outcome]


def test_one_run_and_nothing_learned_decide_nothing(tmp_path: Path) -> None:
    """Equal predictions are no equality of methods where one has one run, or both are at the commonest answer."""
    add(tmp_path, "full", seeds=[0])
    add(tmp_path, "lora")
    add(tmp_path, "full", 2, task="micro/entailment")
    add(tmp_path, "lora", 2, task="micro/entailment")
    cases = scores.KeepsUp(["grid"], ["lora"], "full", 0.05, 0.05).judge(on(tmp_path))
    assert outcomes(cases) == [UNDECIDED, UNDECIDED]
    assert [case.remark for case in cases] == [scores.NOTHING_LEARNED, scores.ONE_RUN]


def test_perplexities_are_compared_as_shares(tmp_path: Path) -> None:
    """Perplexity exp(0.5) against exp(0.4) is 10.5% above, and a lower one is the better."""
    for method, loss in (("full", 0.4), ("lora", 0.5)):
        for seed in range(3):
            found = {"primary_metric": "perplexity", "validation": {"perplexity": math.exp(loss)}}
            run_dir = write_run(tmp_path, method=method, seed=seed, task="lm/micro", scores=found)
            # Where nothing varies there is no interval.
            losses = [loss + (0.01 if (row + (method == "lora")) % 4 < 2 else -0.01) for row in range(ROWS)]
            table = {"split": "validation", "idx": range(ROWS), "loss": losses, "tokens": 7}
            pd.DataFrame(table).to_parquet(run_dir / "predictions.parquet", index=False)
    for share, outcome in ((0.2, HOLDS), (0.05, FAILS)):
        (case,) = scores.KeepsUp(["grid"], ["lora"], "full", 9.0, share).judge(on(tmp_path))
        assert (case.outcome, case.unit, case.value) == (outcome, "change", pytest.approx(1 - math.exp(0.1)))


def test_better_is_told_apart_from_no_detectable_difference(tmp_path: Path) -> None:
    """By Holm's correction, in both directions; as many other rows wrong tell nothing."""
    for method, every, shift in (("lora", 3, 0), ("ia3", 2, 0), ("dora", 20, 0), ("vera", 3, 1)):
        add(tmp_path, method, every, shift, majority=0.3)
    cases = scores.Better(["grid", "other"], ["dora", "ia3", "vera"], "lora").judge(on(tmp_path))
    assert outcomes(cases) == [HOLDS, FAILS, UNDECIDED, NONE]
    assert "not equality" in cases[2].remark


def test_many_methods_are_corrected_as_the_page_says(tmp_path: Path) -> None:
    """By Holm over all pairs, also where a report of so many methods would explore."""
    for number, name in enumerate(["full", *(f"method_{number}" for number in range(10))]):
        add(tmp_path, name, 3 + number, majority=0.3)
    compared = on(tmp_path).sweep("grid").compared["micro/sentiment"]
    found = compared.comparisons
    assert [one.corrected_p for one in found] == pytest.approx(list(holm([one.p for one in found])))
    assert (len(found), compared.correction) == (55, "Holm")


@pytest.mark.parametrize(
    ("ranks", "outcome"),
    [
        ({"1": (2, 0), "8": (20, 0)}, HOLDS),
        ({"1": (5, 0), "8": (5, 0)}, FAILS),
        ({"1": (5, 0), "8": (5, 1)}, UNDECIDED),
        ({"1": (5, 0)}, NONE),
    ],
)
def test_a_choice_matters_where_two_differ(tmp_path: Path, ranks: dict[str, tuple[int, int]], outcome: Finding) -> None:
    """Some pair beyond the margin holds; all pairs within it fail; one configuration is no choice."""
    for rank, (every, shift) in ranks.items():
        add(tmp_path, "lora", every, shift, options={"rank": int(rank)}, majority=0.3)
    cases = scores.ChoiceMatters(["grid"], ["lora"], 0.05, 0.05).judge(on(tmp_path))
    assert outcomes(cases) == [outcome]


def test_a_choice_cannot_fail_while_some_have_one_run(tmp_path: Path) -> None:
    """What is equal so far may yet differ from what has one seed."""
    for rank, seeds in ((1, [0, 1, 2]), (8, [0, 1, 2]), (64, [0])):
        add(tmp_path, "lora", seeds=seeds, options={"rank": rank})
    (case,) = scores.ChoiceMatters(["grid"], ["lora"], 0.05, 0.05).judge(on(tmp_path))
    assert (case.outcome, case.remark.rpartition("; ")[2]) == (UNDECIDED, "some have too few runs yet")


def drawn_choice(generator: np.random.Generator, apart: float) -> list[scores.Pair]:
    """Pairs of ten configurations with five runs each, of which every other one is truly better by as much."""
    shift = np.where(np.arange(10) % 2, apart, 0.0)
    members, runs = simulated.world(generator, np.full(10, 0.01), 5, shift)
    best_first = sorted(members, key=lambda name: -members[name].mean)
    pairs = list(itertools.combinations(best_first, 2))
    return [
        scores.Pair(
            *("grid", "task", "accuracy", one.a, one.b, one.difference, one.low, one.high, one.p, one.corrected_p),
            *(one.runs_a, False, one.over_seeds, True, ()),
        )
        for one in compare_family(members, spreads(runs, simulated.ROW_VARIANCE), pairs)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("margin", [0.0, 0.005, 0.05])
def test_what_differs_by_just_the_margin_seldom_differs_by_more(margin: float) -> None:
    """In at most 6 of a hundred tables some two of ten do, although 25 pairs lie right at it."""
    generator = np.random.default_rng(0)
    assert sum(bool(scores.beyond(drawn_choice(generator, margin), margin)) for _ in range(300)) / 300 <= 0.06


def test_what_differs_by_far_more_than_the_margin_is_found() -> None:
    """Ten points against a margin of two, in each of ten tables."""
    generator = np.random.default_rng(0)
    assert all(scores.beyond(drawn_choice(generator, 0.1), 0.02) for _ in range(10))


@pytest.mark.parametrize("freedom", [1.0, 4.0, 1000.0])
@pytest.mark.parametrize("difference", [1.0, 3.0, 6.0, 15.0])
def test_the_chance_beyond_a_margin_is_never_taken_for_less_than_it_is(difference: float, freedom: float) -> None:
    """Against Student's t, which is a mixture of normal distributions; without a margin it is the two-sided p."""
    half, p = float(t.ppf(0.975, freedom)), float(2 * t.sf(difference, freedom))
    pair = scores.Pair(
        *("grid", "task", "accuracy", "a", "b", difference, difference - half, difference + half, p, p),
        *(3, False, True, True, ()),
    )
    assert scores.beyond_p(pair, 0.0) == pytest.approx(p)
    for margin in (0.2 * difference, 0.5 * difference, 0.9 * difference):
        true = t.sf(difference - margin, freedom) + t.sf(difference + margin, freedom)
        assert true <= scores.beyond_p(pair, margin) <= 1
    assert math.isnan(scores.beyond_p(replace(pair, p=math.nan), 0.0))


def test_forgetting_is_compared_by_the_factor_that_it_grows(tmp_path: Path) -> None:
    """Growing by 2 instead of 4 is half, to be distinguished over three runs that agree; by 8 is worse."""
    for method, factors in {
        "full": (4, 4.1, 3.9),
        "lora": (2, 2.1, 1.9),
        "ia3": (8, 8.2, 7.8),
        "vera": (1, 4, 16),
    }.items():
        for seed, factor in enumerate(factors):
            found = {"primary_metric": "accuracy", "validation": {"accuracy": 0.9}, "development": {"accuracy": 0.9}}
            found["forgetting"] = {"metric": "perplexity", "before": 3.0, "after": 3.0 * factor}
            write_run(tmp_path, method=method, seed=seed, scores=found)
    cases = scores.ForgetsLess(["grid", "other"], ["lora", "ia3", "vera"], "full").judge(on(tmp_path))
    assert outcomes(cases) == [HOLDS, FAILS, UNDECIDED, NONE]
    assert cases[0].value == pytest.approx(0.5, rel=0.01)


# --- Rules on costs -------------------------------------------------------------------------------------------------


def timed(folder: Path, method: str, milliseconds: Sequence[float], **more: float) -> None:
    for seed, value in enumerate(milliseconds):
        latency = {"latency_ms": {"base": {"1": 10.0}, "attached": {"1": value}}}
        write_run(folder, method=method, seed=seed, cost=latency | more)


def test_ratios_of_costs(tmp_path: Path) -> None:
    """Half the time holds, twice the time fails, times that scatter are undecided, and so is a single run."""
    times = {"full": (10, 10.1, 9.9), "lora": (5, 5.1, 4.9), "ia3": (20, 21, 19), "vera": (2, 10, 50), "dora": (5,)}
    for method, values in times.items():
        timed(tmp_path, method, values)
    ours = ["lora", "ia3", "vera", "dora"]
    across = costs.CostRatio(["grid", "other"], ours, "full", "latency_ms.attached.1", most=0.9).judge(on(tmp_path))
    within = costs.SameRunRatio(["grid"], ours, "latency_ms.attached.1", "latency_ms.base.1", most=0.9)
    bound = costs.CostWithin(["grid"], ours, "latency_ms.attached.1", most=9)
    assert outcomes(across) == [HOLDS, FAILS, UNDECIDED, UNDECIDED, NONE]
    assert outcomes(within.judge(on(tmp_path))) == [HOLDS, FAILS, UNDECIDED, UNDECIDED]
    assert outcomes(bound.judge(on(tmp_path))) == [HOLDS, FAILS, UNDECIDED, UNDECIDED]
    assert across[0].value == pytest.approx(0.5, rel=0.01)
    assert across[3].remark == scores.ONE_RUN


def test_only_runs_on_one_model_are_compared(tmp_path: Path) -> None:
    """Unless a selection names the model: then it is what is compared."""
    for model, size in (("small", 100), ("large", 1000)):
        write_run(tmp_path, method="full", model=model, cost={"weight_bytes": size})
        write_run(tmp_path, method="lora", model=model, cost={"weight_bytes": size / 4})
    for method, against, ratios in (("lora", "full", [0.25, 0.25]), ("lora model=large", "lora model=small", [10])):
        cases = costs.CostRatio(["grid"], [method], against, "weight_bytes").judge(on(tmp_path))
        assert [case.value for case in cases] == pytest.approx(ratios)


def test_what_is_counted_is_known_from_one_run(tmp_path: Path) -> None:
    """Bytes are no draw: a sum of three categories has a ratio without an interval; what lacks one is not measured."""
    memory = {"weight_bytes": 100, "gradient_bytes": 100, "optimizer_bytes": 200}
    write_run(tmp_path, method="full", cost=memory)
    write_run(tmp_path, method="lora", cost=memory | {"gradient_bytes": 1, "optimizer_bytes": 2})
    write_run(tmp_path, method="ia3")
    rule = costs.CostRatio(["grid"], ["lora", "ia3"], "full", "weight_bytes+gradient_bytes+optimizer_bytes", most=1 / 3)
    cases = rule.judge(on(tmp_path))
    assert outcomes(cases) == [HOLDS, NONE]
    assert cases[0].low == cases[0].value == cases[0].high == pytest.approx(103 / 400)


def test_shares_that_methods_train(tmp_path: Path) -> None:
    """The median and the largest share of the backbone, heads and full fine-tuning left out."""
    for method, share in (("full", 1.0), ("lora", 0.01), ("ia3", 0.02), ("masks", 0.5)):
        own, head = 1000 * share, 10
        frozen = 1000 if method != "full" else 0
        counts = {
            "adapter_parameters": own,
            "trainable_parameters": own + head,
            "total_parameters": own + head + frozen,
        }
        write_run(tmp_path, method=method, cost=counts)
    found = []
    for take, most in (("median", 0.05), ("largest", 0.2), ("largest", 0.6)):
        rule = costs.TrainedShare(["grid"], ["full"], costs.Statistic(take), most)
        found += rule.judge(on(tmp_path))
    assert outcomes(found) == [HOLDS, FAILS, HOLDS]
    assert [case.value for case in found] == pytest.approx([0.02, 0.5, 0.5])
    assert found[1].remark == "3 methods, 1 of them above: masks 50%"


@pytest.mark.parametrize(("sizes", "outcome"), [((320, 160, 80), HOLDS), ((320, 310, 80), FAILS), ((320, 160), NONE)])
def test_bytes_on_a_line_over_bits(tmp_path: Path, sizes: tuple[int, ...], outcome: Finding) -> None:
    """Proportional bytes correlate by 1; a way to store weights that no run has leaves no line."""
    for name, size in zip(("float32", "bfloat16", "int8"), sizes, strict=False):
        write_run(tmp_path, model=name, cost={"weight_bytes": size})
    rule = costs.LinearInBits(
        ["grid"], {"lora model=float32": 32, "lora model=bfloat16": 16, "lora model=int8": 8}, 0.99
    )
    assert outcomes(rule.judge(on(tmp_path))) == [outcome]


def test_soft_prompts_are_held_against_random_vectors(tmp_path: Path) -> None:
    """From the files that runs keep; a run without one says nothing."""
    for method, gains in (("prompt_tuning", (0.2, 0.21)), ("p_tuning", (-0.2, -0.21)), ("prefix_tuning", (0.3, -0.3))):
        for gain in gains:
            run_dir = write_run(tmp_path, method=method, score=0.8)
            columns = {"split": ["validation"], "idx": [0], "label": [0], "prediction": [0]}
            pd.DataFrame(columns).to_parquet(run_dir / "predictions.parquet")
            table = {"tightness": [0.5 + gain, 0.5 + gain], "random_words": [0.5, 0.5]}
            pd.DataFrame(table).to_csv(run_dir / "soft_prompt.csv", index=False)
    write_run(tmp_path, method="lora")
    methods = ["prompt_tuning", "p_tuning", "prefix_tuning", "lora"]
    rule = costs.SoftPrompts(["grid"], methods, "tightness", costs.Kept.mean, "random_words", least=0.0)
    assert outcomes(rule.judge(on(tmp_path))) == [HOLDS, FAILS, UNDECIDED, NONE]


def test_swapped_scores_are_read_from_their_file(tmp_path: Path) -> None:
    """Equal scores and a quarter of the bytes hold; another score fails; without the file the command is named."""
    rule = costs.SwappedScores("swapped.json", "harness -cn multi_task", most=0.001, most_share=0.5)
    (missing,) = rule.judge(on(tmp_path))
    assert (missing.outcome, missing.remark) == (NONE, "no evidence yet: run harness -cn multi_task")
    tasks = [{"task": "a", "score": 0.5, "recorded": 0.5}, {"task": "b", "score": 0.5, "recorded": 0.6}]
    storage = {"backbone_bytes": 80, "adapters_bytes": 20, "copies_bytes": 400}
    Path("swapped.json").write_text(json.dumps({"tasks": tasks, "storage": storage}))
    assert outcomes(rule.judge(on(tmp_path))) == [HOLDS, FAILS, HOLDS]
    Path("swapped.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"swapped\.json is damaged"):
        rule.judge(on(tmp_path))


# --- Rules on architectures -----------------------------------------------------------------------------------------


def shipped(name: str) -> ledger.Claim:
    return next(claim for claim in ledger.load(ledger.default_path()).claims if claim.id == name)


@pytest.mark.slow
def test_lora_trains_196608_of_150_million_and_20_of_100(tmp_path: Path) -> None:
    """2 x 12,288 x 8 for a matrix of 12,288 x 12,288, and 2 x 10 x 1 for one of 10 x 10."""
    judged = ledger.judge(shipped("lora-197k"), Evidence([], {}))
    assert [case.value for case in judged.cases] == [196_608, 12_288**2, 20, 100]
    assert judged.verdict is Verdict.supported


@pytest.mark.slow
def test_lora_cuts_gpt3_ten_thousand_times() -> None:
    """174.6 billion over 96 layers x 2 matrices x 2 x 12,288 at rank 1: 37,003 times; at rank 4 a quarter of that."""
    judged = ledger.judge(shipped("lora-10000x"), Evidence([], {}))
    whole = 50_257 * 12_288 + 2048 * 12_288 + 96 * (12 * 12_288**2 + 13 * 12_288) + 2 * 12_288
    assert [case.value for case in judged.cases] == [whole / (96 * 4 * 12_288), whole / (96 * 4 * 12_288 * 4)]
    assert judged.cases[0].value > 37_000
    assert judged.verdict is Verdict.supported


def test_attention_has_a_quarter_of_bert() -> None:
    """12 layers of 4 x 768 x 769 weights and biases of 109 million; of Llama 2 7B 32 of 4 x 4,096 x 4,096: a third."""
    rule = architecture.ParametersByKind(["bert_base", "llama_2_7b"], "attention", 0.5)
    bert, llama = rule.judge(Evidence([], {}))
    assert (bert.outcome, llama.outcome) == (FAILS, FAILS)
    assert bert.value == pytest.approx(12 * 4 * 768 * 769 / 109_482_240, rel=1e-6)
    assert llama.value == pytest.approx(32 * 4 * 4096**2 / 6_607_343_616, rel=1e-6)
    with pytest.raises(ConfigError, match="did you mean attention"):
        architecture.ParametersByKind(["bert_base"], "atention", 0.5).judge(Evidence([], {}))


@pytest.mark.slow
def test_planned_memory_of_lora_against_full() -> None:
    """Without activations 4 bytes per parameter against 16; a bound of a fifth fails."""
    point = "model=bert_base task=glue/sst2 plan.batch_size=2 plan.length=16"
    for most, outcome in ((1 / 3, HOLDS), (0.2, FAILS)):
        held = "weight_bytes+gradient_bytes+optimizer_bytes"
        (case,) = architecture.PlannedRatio([point], "method=lora", "method=full", held, most=most).judge(
            Evidence([], {})
        )
        assert case.outcome is outcome
        assert case.value == pytest.approx(0.25, abs=0.01)


def test_a_figure_that_no_plan_has_is_named() -> None:
    """With what may have been meant."""
    point = architecture.Point(["method=lora"], "adapter_shares")
    with pytest.raises(ConfigError, match="did you mean adapter_share"):
        architecture.Planned([point]).judge(Evidence([], {}))


def test_blocks_keep_apart_what_a_tensor_merges() -> None:
    """On the shipped encoder's matrices the block merges less, and the tensor not less; other weights are not here."""
    ours = architecture.WeightsError(["micro_encoder", "elsewhere"], "block_collisions", "int4_block", "int4_tensor")
    turned = architecture.WeightsError(["micro_encoder"], "block_collisions", "int4_tensor", "int4_block")
    cases = ours.judge(Evidence([], {})) + turned.judge(Evidence([], {}))
    assert outcomes(cases) == [HOLDS, NONE, FAILS]
    assert cases[0].value == pytest.approx(-cases[2].value)


# --- Evidence -------------------------------------------------------------------------------------------------------


def test_a_selection_narrows_runs_down(tmp_path: Path) -> None:
    """By model, and by any setting, numbers as numbers; null is a setting that was not made."""
    write_run(tmp_path, model="int8", options={"rank": 8})
    write_run(tmp_path, model="nf4")
    frame = on(tmp_path).sweep("grid").runs
    for text, count in (("lora", 2), ("lora model=int8", 1), ("lora method.rank=8", 1), ("lora method.rank=null", 1)):
        assert Selection.parse(text).among(frame).sum() == count
    # A store writes a float of the configuration as Python does, and a claim as its author did.
    rates = frame.assign(**{"param.sweep.budget": ["82944.0", None], "param.train.learning_rate": ["0.001", "nan"]})
    for text, count in (("lora sweep.budget=82944", 1), ("lora train.learning_rate=1e-3", 1), ("lora model=8", 0)):
        assert Selection.parse(text).among(rates).sum() == count
    with pytest.raises(ConfigError, match="selects no runs"):
        Selection.parse("lora rank")


def test_several_stores_are_one_body_of_evidence(tmp_path: Path) -> None:
    """Runs of one sweep in two places are compared with each other; a run that both hold counts once."""
    add(tmp_path / "one", "full")
    add(tmp_path / "two", "lora")
    evidence = Evidence([str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path)], {"grid": "harness -cn grid"})
    assert len(evidence.sweep("grid").runs) == 6
    assert outcomes(scores.KeepsUp(["grid"], ["lora"], "full", 0.05, 0.05).judge(evidence)) == [HOLDS]


# --- The ledger -----------------------------------------------------------------------------------------------------


def test_every_claim_is_in_the_shipped_ledger() -> None:
    """Each with a sentence, a source, what it would need, and tests whose sweeps can be run."""
    found = ledger.load(ledger.default_path())
    assert [claim.id for claim in found.claims] == IDS
    sweeps = {path.stem for path in (conf_root() / "sweeps").glob("*.yaml")}
    assert all(text.partition("harness -cn ")[2].split()[0] in sweeps for text in found.evidence.values())
    used = {sweep for claim in found.claims for test in claim.tests for sweep in getattr(test.judge, "sweeps", ())}
    assert used == set(found.evidence)


def test_without_any_store_the_command_for_each_sweep_is_named() -> None:
    """No claim that rests on runs alone crashes or is decided."""
    found = ledger.load(ledger.default_path())
    for name in ("lora-matches-full", "ia3-beats-lora", "peft-forgets-less", "few-percent", "soft-prompts-semantic"):
        judged = ledger.judge(next(claim for claim in found.claims if claim.id == name), Evidence([], found.evidence))
        assert judged.verdict is Verdict.untestable
        assert judged.cases
        assert all("harness -cn" in case.remark for case in judged.cases)


SOUND = {
    "evidence": {"grid": "harness -cn grid"},
    "claims": {
        "one": {
            "claim": f"LoRA is {EVIL}.",
            "source": "a | b",
            "needs": "nothing",
            "tests": [
                {
                    "rule": "better",
                    "says": f"It is {EVIL}.",
                    "sweeps": ["grid"],
                    "methods": ["lora", EVIL],
                    "against": "full",
                }
            ],
        }
    },
}


def spoilt(change: dict[str, Any]) -> Path:
    path = Path("ledger.yaml")
    OmegaConf.save(OmegaConf.merge(SOUND, change), path)
    return path


def with_test(**change: Any) -> dict[str, Any]:
    test = {key: value for key, value in ({**SOUND["claims"]["one"]["tests"][0], **change}).items() if value != "gone"}
    return {"claims": {"one": {"tests": [test]}}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"claim": {}}, "claim: no such key; did you mean claims?"),
        ({"claims": {"one": {"sources": "x"}}}, "claims.one.sources: no such key; did you mean source?"),
        ({"claims": {"one": {"source": None}}}, "claims.one.source=None: a text is needed"),
        ({"claims": {"one": {"tests": []}}}, "claims.one.tests: a list of tests is needed"),
        (with_test(rule="bettr"), "claims.one.tests.1.rule=bettr: there is no such rule; did you mean better?"),
        (with_test(rule="gone"), "claims.one.tests.1.rule: a value is needed"),
        (with_test(against="gone"), "claims.one.tests.1.against: "),
        (with_test(againts="full"), "claims.one.tests.1.againts: no such key; did you mean against?"),
        (with_test(sweeps=["gird"]), "claims.one.tests.1.sweeps: evidence lists no sweep gird; did you mean grid?"),
        (with_test(methods=["lora rank"]), "claims.one.tests.1: 'lora rank' selects no runs"),
        (with_test(rule="keeps_up", margin="wide", margin_share=0.1), "claims.one.tests.1.margin: "),
        (with_test(rule="keeps_up", margin=0.0, margin_share=0.1), "both must be above 0"),
    ],
)
def test_a_mistake_in_a_ledger_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    """With the dotted key, and what may have been meant."""
    with pytest.raises(ConfigError) as error:
        ledger.load(spoilt(change))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["only=lora-10000"], "only=lora-10000: there is no such claim; did you mean lora-10000x"),
        (["store=a.db"], "store=a.db: there is no key store; did you mean stores?"),
        (["stores=a.db"], "stores=a.db: there is no such store and no such folder"),
        (["ledger=none.yaml"], "none.yaml: it can't be read"),
        (["backbones=none"], "backbones=none: there is no such folder"),
        (["out="], "out=: a value is needed"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 and nothing written."""
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"claims: {sentence}")
    assert not Path("claims").exists()


# --- What is written ------------------------------------------------------------------------------------------------


def test_the_same_evidence_gives_the_same_bytes_with_everything_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names from runs and sentences from a ledger are text in the page; every file of two runs is equal."""
    add(tmp_path / "runs", "full", 3, majority=0.3)
    add(tmp_path / "runs", "lora", 20, majority=0.3)
    add(tmp_path / "runs", EVIL, 2, majority=0.3)
    path = spoilt({})
    for name in ("one", "two"):
        assert command.main([f"stores={tmp_path / 'runs'}", f"ledger={path}", f"out={name}"]) == 0
    printed = capsys.readouterr().out
    assert "1 claim: 0 supported, 0 refuted, 1 mixed, 0 not testable at this scale." in printed
    names = sorted(file.name for file in Path("one").iterdir())
    assert names == sorted(["cases.csv", "claims.csv", "claims.html", "claims.md", *(f"claims.{k}" for k in KINDS)])
    assert all((Path("one") / name).read_bytes() == (Path("two") / name).read_bytes() for name in names)
    for name in ("claims.html", "claims.md", "claims.svg"):
        assert EVIL not in (Path("one") / name).read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in (Path("one") / "claims.html").read_text()
    with Path("one/cases.csv").open(newline="") as file:
        assert [(row["name"], row["outcome"]) for row in csv.DictReader(file)] == [
            ("accuracy of lora less that of full", "holds"),
            (f"accuracy of {EVIL} less that of full", "fails"),
        ]


def test_stored_cases_give_the_same_pages(tmp_path: Path) -> None:
    """What is decided, what is not for want of runs, and what is not for want of learning."""
    add(tmp_path / "runs", "full", 3, majority=0.3)
    add(tmp_path / "runs", "lora", 20, majority=0.3)
    add(tmp_path / "runs", EVIL, 2, seeds=[0], majority=0.3)
    add(tmp_path / "runs", "full", 2, task="micro/entailment")
    add(tmp_path / "runs", "lora", 2, task="micro/entailment")
    path = spoilt({})
    assert command.main([f"stores={tmp_path / 'runs'}", f"ledger={path}", "out=one"]) == 0
    assert command.main(["cases=one/cases.csv", f"ledger={path}", "out=two"]) == 0
    # Pictures are drawn from figures of nine digits and may differ in the last place.
    for name in ("cases.csv", "claims.csv", "claims.md"):
        assert (Path("one") / name).read_text() == (Path("two") / name).read_text()
    with Path("one/cases.csv").open(newline="") as file:
        told = {row["remark"] or row["outcome"]: row["runs"] for row in csv.DictReader(file)}
    assert told == {"holds": "3", scores.ONE_RUN: "1", scores.NOTHING_LEARNED: "3"}


@pytest.mark.parametrize(("rule", "fewest"), [("better", 3), ("same_run_ratio", 2), ("bytes", 0)])
@pytest.mark.parametrize("runs", [1, 2, 3, None])
def test_stored_cases_of_too_few_runs_decide_nothing(rule: str, fewest: int, runs: int | None) -> None:
    """By today's rule, three for scores, two for times, and any for bytes; where nobody wrote how many they stay."""
    keys = {"sweeps": ["grid"], "methods": ["lora"]}
    test = {
        "better": {"rule": "better", **keys, "against": "full"},
        "same_run_ratio": {"rule": "same_run_ratio", **keys, "figure": "latency_ms", "over": "train_seconds"},
        "bytes": {"rule": "cost_ratio", **keys, "against": "full", "figure": "weight_bytes"},
    }[rule]
    claim = ledger.load(spoilt({"claims": {"one": {"tests": [{"says": "It is.", **test}]}}})).claims[0]
    columns = {"id": "one", "test": 1, **vars(Case("grid, task", "lora", HOLDS, 1, 1, 1, 0, 2)), "remark": ""}
    columns |= {"runs": runs}
    table = pd.DataFrame([{key: value for key, value in columns.items() if key != "runs" or value is not None}])
    table.to_csv("cases.csv", index=False)
    (judged,) = ledger.rejudge([claim], Path("cases.csv"))
    (case,) = judged.cases
    few = runs is not None and runs < fewest
    assert case.outcome is (UNDECIDED if few else HOLDS)
    assert judged.verdict is (Verdict.untestable if few else Verdict.supported)
    assert (f"from {runs} run" in case.remark) == few


def test_figures_are_written_with_their_units() -> None:
    """Points of a score with a sign, shares in percent, large ratios without places, and a dash for what is unknown."""
    cases = {
        (0.0123, "score"): "+0.0123",
        (-0.105, "change"): "-10.50%",
        (0.036, "share"): "3.6%",
        (0.25, "ratio"): "0.250x",
        (37003.2, "times"): "37,003x",
        (4.9586, "times"): "4.96x",
        (5.0, "times"): "5x",
        (11.41, "times"): "11x",
        (196_608.0, "count"): "196,608",
        (math.nan, "score"): "–",
    }
    assert {key: pages.written(*key) for key in cases} == cases


def test_the_readme_says_what_the_published_claims_say() -> None:
    """Its sentence counts the verdicts of reports/claims/claims.csv."""
    published = conf_root() / "reports" / "claims" / "claims.csv"
    if not published.is_file():
        pytest.skip("reports/claims is not published: python -m harness.claims stores=... out=reports/claims")
    with published.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == IDS
    readme = (conf_root() / "README.md").read_text(encoding="utf-8")
    assert pages.counted([row["verdict"] for row in rows]) in " ".join(readme.split())
