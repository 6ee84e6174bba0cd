"""Metrics agree with scikit-learn and SciPy, and with what a hand computes."""

from decimal import Decimal

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from harness.config.errors import ConfigError
from harness.training.metrics import METRICS, PER_ROW, compute, higher_is_better, metric
from harness.training.text_metrics import _patterns, final_number, normalized, words

REFERENCES = {
    "accuracy": lambda p, r: sklearn_metrics.accuracy_score(r, p),
    "f1": lambda p, r: sklearn_metrics.f1_score(r, p, zero_division=0),
    "f1_macro": lambda p, r: sklearn_metrics.f1_score(r, p, average="macro", zero_division=0),
    "matthews_correlation": lambda p, r: sklearn_metrics.matthews_corrcoef(r, p),
    "pearson": lambda p, r: scipy.stats.pearsonr(p, r).statistic,
    "spearman": lambda p, r: scipy.stats.spearmanr(p, r).statistic,
}
CLASSES = ("accuracy", "f1", "f1_macro", "matthews_correlation")
NUMBERS = ("pearson", "spearman")


def one(name, predictions, references):
    return compute([name], predictions, references)[name]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("seed", range(20))
def test_classification_agrees_with_scikit_learn(name, seed):
    """On random labels of any balance and length."""
    generator = np.random.default_rng(seed)
    size, share = int(generator.integers(2, 500)), generator.uniform(0.02, 0.98)
    predictions, references = (generator.random((2, size)) < share).astype(int)
    assert one(name, predictions, references) == pytest.approx(REFERENCES[name](predictions, references), abs=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "matthews_correlation"])
def test_more_than_two_classes_agree_with_scikit_learn(name):
    """Matthews is the R_K statistic there."""
    predictions, references = np.random.default_rng(0).integers(0, 4, (2, 300))
    assert one(name, predictions, references) == pytest.approx(REFERENCES[name](predictions, references), abs=1e-12)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("seed", range(20))
def test_correlations_agree_with_scipy(name, seed):
    """On random numbers with ties, on any scale."""
    generator = np.random.default_rng(seed)
    size, scale = int(generator.integers(3, 300)), 10.0 ** generator.integers(-6, 7)
    predictions = generator.normal(size=size).round(1) * scale
    references = (predictions / scale + generator.normal(size=size)).round(1) * 5 + 1000
    assert one(name, predictions, references) == pytest.approx(REFERENCES[name](predictions, references), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "predictions", "references", "value"),
    [
        ("accuracy", [1, 0, 1, 1], [1, 0, 0, 1], 0.75),
        ("f1", [1, 1, 0, 0], [1, 0, 1, 0], 0.5),  # precision 1/2, recall 1/2
        ("f1", [1, 1, 1, 0], [1, 0, 0, 0], 0.5),  # precision 1/3, recall 1
        ("f1", [0, 0], [0, 0], 0.0),
        # An answer that names no class (-1) costs recall: of the classes 2/3, 1; of the one, 1 of 2 found.
        ("f1_macro", [0, -1, 1], [0, 0, 1], 5 / 6),
        ("f1_macro", [-1, -1], [0, 1], 0.0),
        ("f1", [1, -1, 0], [1, 1, 0], 2 / 3),
        ("f1_macro", [-1, 1, 1], [-1, -1, 1], 2 / 3),  # rows that are labeled so are a class
        # TP 6, TN 3, FP 1, FN 2: (6*3 - 1*2) / sqrt(7*8*4*5)
        ("matthews_correlation", [1] * 6 + [0] * 3 + [1] + [0] * 2, [1] * 6 + [0] * 3 + [0] + [1] * 2, 16 / 1120**0.5),
        ("matthews_correlation", [0, 1], [1, 0], -1.0),
        ("pearson", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
        ("pearson", [1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        ("pearson", [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], 0.8),
        ("spearman", [1.0, 10.0, 100.0], [1.0, 2.0, 3.0], 1.0),
        ("spearman", [1.0, 1.0, 2.0], [1.0, 2.0, 3.0], 0.75**0.5),  # ranks 1.5 1.5 3 against 1 2 3
    ],
)
def test_values_worked_out_by_hand(name, predictions, references, value):
    """Small cases whose value can be checked on paper."""
    assert one(name, predictions, references) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("name", ["matthews_correlation", *NUMBERS])
@pytest.mark.parametrize("constant", [0, 1])
def test_a_correlation_with_something_constant_is_zero_without_a_warning(name, constant):
    """A collapsed run shows at the level of chance; warnings are errors here."""
    varying = [0, 1, 0, 1] if name == "matthews_correlation" else [0.1, 0.7, 0.3, 0.2]
    assert one(name, [constant] * 4, varying) == 0.0
    assert one(name, varying, [constant] * 4) == 0.0
    assert one(name, varying[:1], varying[:1]) == 0.0


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_predictions_that_are_not_numbers_score_nan(name, bad):
    """No score is made up for a model that answers NaN."""
    assert np.isnan(one(name, [0.1, bad, 0.3], [1.0, 2.0, 3.0]))


def test_matthews_does_not_overflow_on_a_large_data_set():
    """The product of four counts of QQP's size is beyond 64 bits."""
    references = np.arange(400_000) % 2
    predictions = np.where(np.arange(400_000) // 2 % 10 == 0, 1 - references, references)
    assert one("matthews_correlation", predictions, references) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("higher", "names"),
    [
        (True, [*METRICS, "mismatched.accuracy", "margin", "option_accuracy", "never.heard_of"]),
        (False, ["loss", "perplexity", "word_perplexity", "bits_per_byte", "masked_loss", "validation.perplexity"]),
        (False, ["forgetting.before", "forgetting.after"]),
    ],
)
def test_losses_and_perplexities_are_better_low_and_all_else_high(higher, names):
    """With a split in front or not; a name that nobody knows is taken for a score."""
    assert [higher_is_better(name) for name in names] == [higher] * len(names)


def test_a_misspelt_metric_is_refused_with_what_may_have_been_meant():
    """In one sentence with the valid names."""
    with pytest.raises(ConfigError, match="metrics=acuracy: there is no such metric; did you mean accuracy"):
        compute(["acuracy"], [1], [1])


@pytest.mark.parametrize(("predictions", "references"), [([], []), ([1], [1, 0])])
def test_no_rows_or_unequal_lengths_are_errors(predictions, references):
    """A score over nothing, or over rows that do not match, is no score."""
    with pytest.raises(ValueError, match=r"no rows|1 predictions for 2 labels"):
        compute(["accuracy"], predictions, references)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_they_work_as_evaluate_metrics_alone_and_combined():
    """The library evaluate accepts each, in batches and combined, without a network."""
    import evaluate

    assert isinstance(metric("f1"), evaluate.Metric)
    assert evaluate.combine([metric("accuracy"), metric("f1")]).compute(
        predictions=[1, 1, 0, 0], references=[1, 0, 1, 0]
    ) == {"accuracy": 0.5, "f1": 0.5}
    for name in REFERENCES:
        module = metric(name)
        values = ([1, 1, 0, 0], [1, 0, 0, 0]) if name in CLASSES else ([0.1, 0.9, 0.4], [1.0, 4.0, 3.0])
        module.add_batch(predictions=values[0][:2], references=values[1][:2])
        module.add_batch(predictions=values[0][2:], references=values[1][2:])
        assert module.compute() == pytest.approx({name: REFERENCES[name](*map(np.asarray, values))})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_metrics_of_text_work_as_evaluate_metrics_combined():
    """They take strings, one per row."""
    import evaluate

    found = evaluate.combine([metric(name) for name in PER_ROW]).compute(
        predictions=["The cat, 5", "dogs"], references=["cat 5", "a bird"]
    )
    by_hand = {
        "exact_match": 0.5,
        "token_f1": 0.5,
        "rouge_l": 0.4,
        "gsm8k_answer": 0.5,
        "rouge_1": 0.4,
        "rouge_2": 1 / 3,
    }
    assert found == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat's\tmat.", "cats mat"),
        ("An apple, a day!", "apple day"),
        ("another theatre", "another theatre"),
        ("a", "a"),
        ("The.", "the"),
        ("...", "..."),
        ("+", "+"),
        ("", ""),
        ("It is \u22123.50, not 1,250.0!", "it is -3.50 not 1250.0"),
        ("from 3-4 at 10:30", "from 3 4 at 10 30"),
        ("C++ or C#.", "c++ or c#"),
        ("A- and B+", "a- and b+"),
        ("well-known\u3002", "wellknown"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_squads_normalization_takes_case_articles_punctuation_and_spacing_away(text, expected):
    """Articles go as words alone, not from within words."""
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("name", "prediction", "reference", "value"),
    [
        ("exact_match", "the red Ball.", "red ball", 1),
        ("exact_match", "red balls", "red ball", 0),
        ("exact_match", "", "red ball", 0),
        ("exact_match", "red ball", "", 0),
        ("exact_match", "", "", 1),
        ("exact_match", "the", ".", 0),  # an answer of one article or sign is that article or sign
        ("exact_match", "", "an", 0),
        ("exact_match", "7", "-7", 0),
        ("exact_match", "25", "2.5", 0),
        ("exact_match", "F", "F#", 0),
        ("token_f1", "the red ball", "A ball, red!", 1),  # order does not count
        ("token_f1", "red red ball", "red ball", 4 / 5),  # 2 shared; precision 2/3, recall 1
        ("token_f1", "cat dog", "cat bird fish", 2 / 5),  # 1 shared; precision 1/2, recall 1/3
        ("token_f1", "cat", "dog", 0),
        ("token_f1", "", "dog", 0),
        ("token_f1", "cat", "", 0),
        ("token_f1", "", "the", 0),
        ("token_f1", "\u5c71\u6c34", "\u5c71\u706b", 1 / 2),  # characters, where there are no spaces
        # Lin 2004, section 3.1: the second and third sentence against the first
        ("rouge_l", "police kill the gunman", "police killed the gunman", 3 / 4),
        ("rouge_l", "the gunman kill police", "police killed the gunman", 2 / 4),
        ("rouge_l", "The cat; sat.", "the CAT sat", 1),
        ("rouge_1", "the cat the cat", "the cat sat", 4 / 7),  # each word as often as it occurs
        ("rouge_1", "c b a", "a b c", 1),
        ("rouge_1", "", " ", 1),
        ("rouge_1", "", "dog", 0),
        ("rouge_2", "the cat sat down", "down the cat sat", 4 / 6),
        ("rouge_2", "c b a", "a b c", 0),
        ("rouge_2", "cat", "cat", 0),  # of one word there is no pair
        ("rouge_2", "", "", 1),
        ("rouge_l", "a x b y c", "a b c", 6 / 8),  # 3 in order; precision 3/5, recall 1
        ("rouge_l", "c b a", "a b c", 1 / 3),
        ("rouge_l", "b a b", "a b b", 2 / 3),
        ("rouge_l", "Käse süß", "käse sauer", 1 / 2),  # two words each, not four
        ("rouge_l", "cat", "dog", 0),
        ("rouge_l", "", "dog", 0),
        ("rouge_l", "cat", "", 0),
        ("rouge_l", "", "!", 0),
        ("rouge_l", "!", "?", 0),
        ("rouge_l", "", " ", 1),
        ("rouge_l", "\u092a\u0941\u0932", "\u092a\u0932", 0),  # a vowel sign is a part of its word
        ("rouge_l", "\u064a\u064e\u062f", "\u064a\u0650\u062f", 0),
        ("rouge_l", "\u5c71\u9ad8\u6c34\u957f", "\u5c71\u9ad8\u6c34", 6 / 7),
        ("rouge_l", "na\u0131\u0308ve", "na\u0131\u0308ve", 1),
        ("gsm8k_answer", "16 - 3 = 13. #### 18", "So 9 * 2 = <<9*2=18>>18.\n#### 18", 1),
        ("gsm8k_answer", "#### $1,250.00", "#### 1250", 1),
        ("gsm8k_answer", "#### 18\n#### 19", "#### 18", 1),  # what a model goes on with does not count
        ("gsm8k_answer", "She makes 18 dollars.", "#### 18", 1),  # no mark: the last number
        ("gsm8k_answer", "18 of 20", "#### 18", 0),
        ("gsm8k_answer", "18 #### none", "#### 18", 0),  # the mark is followed, not what stands before it
        ("gsm8k_answer", "no idea", "#### 18", 0),
        ("gsm8k_answer", "", "#### 18", 0),
        ("gsm8k_answer", "18", "", 0),
        ("gsm8k_answer", "", "", 0),  # no number is no answer
    ],
)
def test_scores_of_texts_worked_out_by_hand(name, prediction, reference, value):
    """Small cases whose value can be checked on paper, empty texts among them; a metric of one row is the row's."""
    assert PER_ROW[name](prediction, reference) == pytest.approx(value, abs=1e-12)
    assert one(name, [prediction], [reference]) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### -7", "-7"),
        ("#### $-7", "-7"),
        ("#### -$7", "-7"),
        ("10 - 7", "7"),
        ("10-7", "7"),
        ("is it -7?", "-7"),
        ("1,2,3", "3"),
        ("€ 1,234,567.5 in all", "1234567.5"),
        ("12.50.", "12.5"),
        ("a share of .5", "0.5"),
        ("50%", "50"),
        ("####18", "18"),
        ("#### the 18", None),
        ("none", None),
    ],
)
def test_the_final_number_of_a_text(text, number):
    """Signs, thousands, currencies and decimals as people write them."""
    assert final_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize("name", PER_ROW)
def test_a_metric_of_texts_is_the_mean_of_its_rows(name):
    """So that differences between two models can be paired row by row."""
    predictions, references = ["a red ball 5", "cat 7", ""], ["red ball 5", "dog 8", "bird 9"]
    rows = [PER_ROW[name](*row) for row in zip(predictions, references, strict=True)]
    assert 0 < sum(rows) < 3
    assert one(name, predictions, references) == pytest.approx(sum(rows) / 3)


@given(st.text(st.characters(max_codepoint=127)))
def test_the_words_of_an_ascii_text_are_those_of_any_text(text: str) -> None:
    """The short way for ASCII gives what the rules for all scripts do."""
    assert words(text) == (_patterns().words.findall(text.lower()) or text.lower().split())
