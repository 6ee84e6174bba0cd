"""Perplexity is what a hand would compute, and what an unbatched loop computes on real models."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from harness.config.sources import PACKAGE
from harness.tasks.micro import corpus
from harness.tracking.record import finite
from harness.training.perplexity import TextScore, Window, encode, exponential, score, windows

CPU = torch.device("cpu")
MICRO = PACKAGE / "pretrained" / "micro_decoder"


class Words:
    """A tokenizer of the words a, b and c, with or without `<s>` (id 3) in front."""

    eos_token_id = None

    def __init__(self, bos: bool = False) -> None:
        self.bos_token_id = 3 if bos else None

    def __call__(self, text, add_special_tokens=True, verbose=True):
        front = [3] if add_special_tokens and self.bos_token_id is not None else []
        return {"input_ids": front + ["abc".index(word) for word in text.split()]}


class Bigrams(torch.nn.Module):
    """Foretells the next token from the last one: a fixed table of logits, with `virtual` positions in front."""

    def __init__(self, logits, virtual=0):
        super().__init__()
        self.table = torch.tensor(logits)
        self.virtual = virtual

    def forward(self, input_ids, attention_mask):
        logits = self.table[input_ids]
        wrong = torch.full((len(logits), self.virtual, logits.shape[2]), 50.0)
        return SimpleNamespace(logits=torch.cat([wrong, logits], 1))


# Rows: the token that was read; columns: a, b, c, <s>. The probabilities are powers of two.
HALVES = [[0.5, 0.25, 0.125, 0.125], [0.125, 0.125, 0.5, 0.25], [0.25, 0.25, 0.25, 0.25], [0.125, 0.125, 0.25, 0.5]]
TABLE = [[math.log(p) + 7 for p in row] for row in HALVES]  # a constant added to all logits changes nothing


def by_hand(text: str, bos: bool = False, **options) -> TextScore:
    settings = {"window": 3, "stride": 2, "batch_size": 2, "device": CPU} | options
    return score(Bigrams(TABLE, settings.pop("virtual", 0)), Words(bos), [text], **settings)


def test_perplexity_is_what_a_hand_computes():
    """`a b c c a`: 1/4, 1/2, 1/4, 1/4 of probability, so 2 + 1 + 2 + 2 = 7 bits on 4 tokens, 5 words and 9 bytes."""
    found = by_hand("a b c c a")
    assert found.nll == pytest.approx(7 * math.log(2), abs=1e-6)
    assert (found.tokens, found.words, found.bytes) == (4, 5, 9)
    assert found.loss == pytest.approx(7 / 4 * math.log(2), abs=1e-6)
    assert found.perplexity == pytest.approx(2 ** (7 / 4), abs=1e-6)
    assert found.word_perplexity == pytest.approx(2 ** (7 / 5), abs=1e-6)
    assert found.bits_per_byte == pytest.approx(7 / 9, abs=1e-6)
    assert found.scores() == {
        "loss": found.loss,
        "perplexity": found.perplexity,
        "word_perplexity": found.word_perplexity,
        "bits_per_byte": found.bits_per_byte,
    }


def test_a_beginning_of_sequence_token_is_context_and_not_scored():
    """`<s> a b`: the first word is foretold from `<s>` (3 bits), the second from the first (2 bits)."""
    found = by_hand("a b", bos=True)
    assert found.tokens == 2
    assert found.nll == pytest.approx(5 * math.log(2), abs=1e-6)


def test_windows_are_paired_with_their_documents():
    """In the order of the text, each with its likelihood and tokens; none reaches over the end of a document."""
    found = score(Bigrams(TABLE), Words(), ["a b c c a", "b", "c a"], 3, 2, 2, CPU)
    assert found.window_tokens == [2, 2, 1]
    assert found.window_document == [0, 0, 2]
    assert found.window_nll == pytest.approx([3 * math.log(2), 4 * math.log(2), 2 * math.log(2)], abs=1e-6)
    assert (found.words, found.bytes) == (7, 12), "a document without a scored token does not count"


@pytest.mark.parametrize("virtual", [1, 5])
def test_virtual_positions_are_left_out(virtual):
    """Logits of a prompt's virtual tokens stand in front of those of the text."""
    assert by_hand("a b c c a", virtual=virtual) == by_hand("a b c c a")


def test_bytes_are_those_of_utf8():
    """Two letters of two bytes each and a space are five bytes."""

    class Letters(Words):
        def __call__(self, text, add_special_tokens=True, verbose=True):
            return {"input_ids": ["é ".index(letter) for letter in text]}

    assert score(Bigrams(TABLE), Letters(), ["é é"], 3, 2, 1, CPU).bytes == 5


def test_a_text_of_one_token_has_no_perplexity():
    """There is nothing to score, which is said instead of a figure."""
    found = by_hand("a")
    assert (found.tokens, found.nll) == (0, 0.0)
    for name in ("loss", "perplexity", "word_perplexity", "bits_per_byte"):
        with pytest.raises(ValueError, match="0 tokens to score"):
            getattr(found, name)


def test_a_text_shorter_than_the_window_is_scored_whole():
    """One window, all tokens but the first."""
    assert windows([7, 8, 9], 100, 50) == [Window([7, 8, 9], 1)]


def test_a_model_that_is_sure_and_wrong_has_infinite_perplexity():
    """Above 709 nats exp overflows a float; JSON gets null."""
    sure = Bigrams([[0.0, -2000.0, -2000.0, -2000.0]] * 4)
    found = score(sure, Words(), ["a b b"], 3, 2, 1, CPU)
    assert found.loss == pytest.approx(2000)
    assert found.perplexity == math.inf
    assert finite(found.scores())["perplexity"] is None
    impossible = Bigrams([[0.0, -math.inf, 0.0, 0.0]] * 4)
    assert score(impossible, Words(), ["a b"], 3, 2, 1, CPU).perplexity == math.inf
    assert math.isnan(exponential(math.nan))


def test_every_token_but_the_first_is_scored_once_with_context():
    """For any length, window and stride, and with `window - stride` tokens of context or all there are."""
    rng = random.Random(0)
    for _ in range(500):
        ids = list(range(rng.randrange(60)))
        window = rng.randrange(2, 20)
        stride = rng.randrange(1, window)
        cut = windows(ids, window, stride)
        assert [token for one in cut for token in one.ids[one.first_scored :]] == ids[1:]
        for one in cut:
            assert len(one.ids) <= window
            assert one.scored >= 1
            assert one.ids == list(range(one.ids[0], one.ids[0] + len(one.ids)))
            assert one.first_scored >= min(window - stride, one.ids[one.first_scored])


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_a_stride_that_leaves_tokens_without_context_is_refused(stride):
    """None, the whole window and more are named with what is allowed."""
    with pytest.raises(ValueError, match=f"windows of 8 tokens can't be {stride} tokens apart: from 1 to 7"):
        windows([1, 2, 3], 8, stride)


def unbatched(model, tokenizer, texts, window, stride) -> tuple[float, int]:
    """Each token's likelihood by itself, from the window that scores it: no batch, no padding."""
    nll, tokens = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            ids = encode(tokenizer, text)
            for place in range(1, len(ids)):
                # The first window scores the first `window - 1` tokens, each later one the next `stride`.
                number = max(0, math.ceil((place + 1 - window) / stride))
                context = ids[number * stride : place]
                logits = model(input_ids=torch.tensor([context])).logits[0, -1].double()
                nll -= float(torch.log_softmax(logits, 0)[ids[place]])
                tokens += 1
    return nll, tokens


def agree(folder, texts, window, stride):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = score(model, tokenizer, texts, window, stride, 5, CPU)
    nll, tokens = unbatched(model, tokenizer, texts, window, stride)
    assert found.tokens == tokens
    assert found.nll == pytest.approx(nll, rel=1e-5)
    assert len(set(found.window_tokens)) > 1, "some windows were padded"


def test_batched_windows_agree_with_an_unbatched_loop_on_the_micro_decoder():
    """Windows of 16 tokens that are 8 apart."""
    agree(MICRO, list(corpus("heldout", 12)), 16, 8)


@pytest.mark.slow
def test_batched_windows_agree_with_an_unbatched_loop_on_the_real_decoder(real_data):
    """Windows of 64 tokens that are 48 apart."""
    text = (real_data / "lm/tinystories_sample/validation.txt").read_text(encoding="utf-8")
    agree(real_data / "models/stories260K", text[:1500].split("\n\n"), 64, 48)


def test_the_real_decoder_has_the_loss_that_its_makers_check_found(real_data):
    """1.65 nats a token over all stories, each cut to 512 tokens, `<s>` included."""
    folder = real_data / "models/stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    stories = [
        story
        for split in ("train", "validation", "test")
        for story in (real_data / f"lm/tinystories_sample/{split}.txt").read_text(encoding="utf-8").split("\n\n")
    ]
    # The first window of 512 is the story cut there; no other is scored.
    cut = [tokenizer.decode(encode(tokenizer, story)[1:512]) for story in stories]
    found = score(model, tokenizer, cut, 512, 256, 4, CPU)
    assert found.loss == pytest.approx(1.65, abs=0.02)


def test_positions_count_from_the_left_where_they_are_absolute():
    """A short window scores the same beside a long one, which pads it, as by itself."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    both = score(model, Words(), ["a b c " * 15, "c b"], 64, 32, 2, CPU)
    alone = score(model, Words(), ["c b"], 64, 32, 1, CPU)
    assert both.window_nll[1] == pytest.approx(alone.nll, rel=1e-5)


@pytest.mark.filterwarnings("ignore")  # peft warns of what does not matter here
@pytest.mark.parametrize("name", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"])
def test_a_peft_model_with_virtual_tokens_is_scored_on_the_text_alone(name):
    """As many tokens as without, and the same likelihood whether windows are padded or not."""
    import peft

    model, tokenizer = AutoModelForCausalLM.from_pretrained(MICRO), AutoTokenizer.from_pretrained(MICRO)
    texts = list(corpus("heldout", 6))
    plain = score(model, tokenizer, texts, 24, 12, 4, CPU)
    torch.manual_seed(0)
    prompted = peft.get_peft_model(model, getattr(peft, name)(task_type="CAUSAL_LM", num_virtual_tokens=3))
    together, apart = (score(prompted, tokenizer, texts, 24, 12, size, CPU) for size in (4, 1))
    assert together.window_tokens == plain.window_tokens
    assert together.window_nll == pytest.approx(apart.window_nll, rel=1e-4)
    assert together.nll != pytest.approx(plain.nll, rel=1e-4)
