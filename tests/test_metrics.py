import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as sklearn_metrics

from harness.config import ConfigError
from harness.metrics import METRICS, compute, higher_is_better, metric

REFERENCES = {
    "accuracy": lambda p, r: sklearn_metrics.accuracy_score(r, p),
    "f1": lambda p, r: sklearn_metrics.f1_score(r, p, zero_division=0),
    "matthews_correlation": lambda p, r: sklearn_metrics.matthews_corrcoef(r, p),
    "pearson": lambda p, r: scipy.stats.pearsonr(p, r).statistic,
    "spearman": lambda p, r: scipy.stats.spearmanr(p, r).statistic,
}
CLASSES = ("accuracy", "f1", "matthews_correlation")
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


@pytest.mark.parametrize("name", ["accuracy", "matthews_correlation"])
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
    for name in METRICS:
        module = metric(name)
        values = ([1, 1, 0, 0], [1, 0, 0, 0]) if name in CLASSES else ([0.1, 0.9, 0.4], [1.0, 4.0, 3.0])
        module.add_batch(predictions=values[0][:2], references=values[1][:2])
        module.add_batch(predictions=values[0][2:], references=values[1][2:])
        assert module.compute() == pytest.approx({name: REFERENCES[name](*map(np.asarray, values))})
