"""Headings of tables in words, what they mean, and which verdicts are good or bad news."""

import re

# Figures of a run, as the store names them -> a heading for people; the others are made of their names.
HEADINGS = {
    "cost.train_peak_bytes": "peak memory",
    "cost.evaluation_peak_bytes": "peak in evaluation",
    "cost.adapter_file_bytes": "adapter",
    "cost.trainable_parameters": "trainable",
    "cost.train_flops_per_token": "FLOP per token",
    "cost.flops_ceiling_share": "of ceiling",
    "cost.swap_ms": "swap (ms)",
    "cost.energy_joules": "energy (J)",
    "cost.step_seconds": "step (s)",
    "cost.train_seconds": "seconds",
}
UNITS = {"bytes": "", "seconds": " (s)", "ms": " (ms)", "joules": " (J)"}
# Metrics whose names are not words; of the others the underscores become blanks.
METRICS = {"f1": "F1", "f1_macro": "macro F1", "matthews_correlation": "Matthews correlation"}
METRICS |= {"pearson": "Pearson", "spearman": "Spearman", "rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2"}
METRICS |= {"rouge_l": "ROUGE-L", "token_f1": "token F1", "gsm8k_answer": "GSM8K answer"}
# Heading -> what a reader who points at it is told.
EXPLAINED = {
    "method": "What was fine-tuned, and what sets it apart from the other rows of its method.",
    "accuracy": "Share of right answers. The dot is the mean, the bar its 95% interval, the dashed line the majority "
    "class.",
    "± sd": "Sample standard deviation over the runs (ddof=1).",
    "n": "Runs that finished and have a score.",
    "95% interval": "Where the true mean lies with 95% confidence; of two runs both scores.",
    "groups": "Methods that share a letter were not distinguished from each other.",
    "best": "★ the highest observed, ≈ not distinguished from it; the number is the probability of being the best.",
    "backbone alone": "Score of the backbone before any training.",
    "after": "The same measure on general text after training.",
    "trainable": "Parameters that were trained, the new head included.",
    "share": "Trained parameters as a share of all parameters.",
    "seconds": "Seconds of training, evaluation left out.",
    "tokens/s": "Real tokens trained on per second, padding left out.",
    "adapter": "Bytes of what is saved for the task (1 MB is a million bytes).",
    "peak memory": "Bytes that the training step with most tokens held at once.",
    "remarks": "What has to be known before a mean is believed.",
    "difference": "Mean of the method less that of the baseline.",
    "p": "How probable a difference at least as large is by chance alone.",
    "p, Holm": "p corrected for all pairs that were tested together (Holm).",
    "q, BH": "p corrected by Benjamini and Hochberg: of those below 0.05 some five in a hundred are wrong.",
    "verdict": "What these runs can say.",
    "average rank": "Mean of the ranks over the tasks that the methods share; 1 is best.",
    "win rate": "Share of duels won against each other method on each shared task; ties count half.",
    "IQM": "Interquartile mean of scores on which 0 is the majority class and 1 full fine-tuning.",
    "rank": "As high and as low as the pairs that are distinguished leave it.",
    "tie": "★ the highest observed, ≈ not distinguished from it.",
    "of ceiling": "Operations per second as a share of what this device reaches in a plain matrix product.",
    "stage": "run: asked for as it is; tune: a trial that chose a learning rate; final: with the rate that was chosen.",
    "development": "Score on the split that chose the checkpoint, never the validation split.",
    "validation": "Score on the split that chose nothing.",
    "found": "What was measured.",
    "holds where": "The range in which the claim holds.",
    "no evidence": "Cases for which the stores hold no runs.",
    "undecided": "Cases whose interval lies across an end of the claim's range.",
}
# A cell that is one of these is good news, bad news, or neither.
TONES = {
    "supported": "good",
    "holds": "good",
    "better": "good",
    "finished": "",
    "refuted": "bad",
    "fails": "bad",
    "worse": "bad",
    "failed": "bad",
    "diverged": "bad",
    "out_of_memory": "bad",
    "mixed": "open",
    "undecided": "open",
    "not testable at this scale": "open",
}


def metric_name(metric: str) -> str:
    """A metric as people write it; a run without one has a score."""
    return METRICS.get(metric, metric.replace("_", " ")) or "score"


def heading(name: str) -> str:
    """Write the name of a figure as a heading: `loss (validation)` of `validation.loss`."""
    if name in HEADINGS:
        return HEADINGS[name]
    section, dot, rest = name.partition(".")
    if not dot:
        return name
    if section != "cost":
        return f"{metric_name(rest)} ({section})"
    found = re.fullmatch(rf"(.+)_({'|'.join(UNITS)})", rest)
    words, unit = (found[1], UNITS[found[2]]) if found else (rest, "")
    return words.replace("_", " ").replace(".", " ") + unit


def explained(column: str) -> str:
    """What a heading means, or nothing where it says so itself."""
    if column in EXPLAINED:
        return EXPLAINED[column]
    if column.endswith(" before"):
        return "Measured on general text before training, with the adapter switched off."
    return ""
