"""The weights of the real encoder are the right ones: as sentence embeddings they score what is published for them."""

import json
from pathlib import Path

import pytest

# all-MiniLM-L6-v2 on the test split of STSBenchmark, cosine, Spearman: embeddings-benchmark/results.
PUBLISHED = 0.8203


@pytest.mark.slow
def test_mean_pooled_embeddings_rank_pairs_as_published(minilm: Path, real_data: Path) -> None:
    """Cosines of the mean over tokens against the scores of all 1,379 labeled test pairs of STS-B, to four places."""
    import torch
    from scipy.stats import spearmanr
    from transformers import AutoModel, AutoTokenizer

    rows = [json.loads(line) for line in (real_data / "glue/stsb/test.jsonl").read_text().splitlines()]
    assert len(rows) == 1379
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm).eval()

    def embedded(texts: list[str]) -> torch.Tensor:
        parts = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                texts[start : start + 64], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            mask = batch["attention_mask"].unsqueeze(-1)
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state
            parts.append((hidden * mask).sum(dim=1) / mask.sum(dim=1))
        return torch.cat(parts)

    one, other = (embedded([row[name] for row in rows]) for name in ("sentence1", "sentence2"))
    cosine = torch.nn.functional.cosine_similarity(one, other)
    found = float(spearmanr(cosine.numpy(), [row["label"] for row in rows]).statistic)
    assert found == pytest.approx(PUBLISHED, abs=5e-5)
