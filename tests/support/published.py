"""Parameter counts that others published, and what reproduces each: dimensions, a method of conf/method, its values."""

from dataclasses import dataclass
from typing import Any

from harness.models.architectures import Kind

Part = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A published count.

    Attributes:
        model: A file of conf/model.
        parts: Methods of conf/method, with the values that differ from their files; what they train adds up.
        trained: The published number of trained parameters.
        total: The published number of all parameters; null where none was published.
        sources: Where the number stands; several where others published it again.
        with_head: Whether the published number counts the classification head as trained.
        trained_beyond: What the published number has beyond ours, as arithmetic.
        total_beyond: The same of the total.
        why: Who is right about a difference, and why.
    """

    model: str
    kind: Kind
    parts: list[Part]
    trained: int
    total: int | None
    sources: list[str]
    with_head: bool = True
    trained_beyond: int = 0
    total_beyond: int = 0
    why: str = ""


def peft(name: str, **options: Any) -> Part:
    """A configuration class of peft, as `method=peft method.config='{_target_: peft.NAME, ...}'` gives it."""
    return "peft", {"config": {"_target_": f"peft.{name}", **options}}


PEFT = "huggingface/peft@5d602fdb:"
PEFT_BENCH = "kinit-sk/PEFT-Bench@cf6dde2:scripts/peftbench/cal_psqp.py"
ADAPTER_HUB = "adapter-hub/website@9e47a859:posts/2022/09/updates-in-adapter-transformers-v3-1.md"
FOURIER_FT = "FourierFT, arXiv 2405.03003, table 1"
QV = ["q_proj", "v_proj"]


def llama_3b(parts: list[Part], trained: int, total: int, *files: str, beyond: int = 0, why: str = "") -> Row:
    """A result of peft's method comparison on MetaMathQA, with Llama 3.2 3B; what is beyond ours is in both counts."""
    sources = [f"{PEFT}method_comparison/MetaMathQA/results/{file}.json" for file in files]
    return Row("llama_3_2_3b", Kind.causal_lm, parts, trained, total, sources, True, beyond, beyond, why)


LLAMA_3B = [
    llama_3b(
        [peft("AdaptionPromptConfig", target_modules="self_attn", adapter_len=100, adapter_layers=28)],
        8601628,
        3221351452,
        "adaptionprompt--llama-3.2-3B-lr_0.0005",
        "adaptionprompt--llama-3.2-3B-lr_5e-3",
    ),
    llama_3b(
        [peft("BeftConfig", target_modules=["v_proj"])],
        28672,
        3212778496,
        "beft--llama-3.2-3B-target-v_proj",
    ),
    llama_3b(
        [peft("DeloraConfig", target_modules=QV, r=32)],
        9175096,
        3221924920,
        "delora--llama-3.2-3B-rank32",
    ),
    llama_3b(
        [peft("FourierFTConfig", target_modules=QV, n_frequency=1000)],
        56000,
        3212805824,
        "fourierft--llama-3.2-3B-default",
    ),
    llama_3b(
        [peft("FourierFTConfig", target_modules=QV, n_frequency=5000)],
        280000,
        3213029824,
        "fourierft--llama-3.2-3B-n_frequency-5000",
    ),
    llama_3b(
        [peft("GloraConfig", target_modules=QV, r=8, config_A_B="lora", config_C="lora", config_D_E="constant")],
        4587520,
        3217337344,
        "glora--llama-3.2-3B-default",
    ),
    llama_3b(
        [peft("HiraConfig", target_modules=QV, r=32)],
        9175040,
        3221924864,
        "hira--llama-3.2-3B-rank32-lr4.5e-3",
    ),
    llama_3b(
        [peft("IA3Config", target_modules=["down_proj", "k_proj", "v_proj"], feedforward_modules=["down_proj"])],
        286720,
        3213036544,
        "ia3--llama-3.2-3B-default",
        "ia3--llama-3.2-3B-lr_0.001",
    ),
    llama_3b(
        [peft("LNTuningConfig", target_modules=["input_layernorm", "norm", "post_attention_layernorm"])],
        175104,
        3212924928,
        "ln_tuning--llama-3.2-3B-default",
    ),
    llama_3b([peft("LoHaConfig", target_modules=QV, r=32)], 18350080, 3231099904, "loha--llama-3.2-3B-rank32"),
    llama_3b(
        [peft("LoKrConfig", target_modules=QV, r=32, decompose_factor=4)],
        2294656,
        3215044480,
        "lokr--llama-3.2-3B-rank32-factor4-lr0.003",
    ),
    llama_3b(
        [("dora", {"rank": 32, "alpha": 64})],
        9289728,
        3222039552,
        "lora--llama-3.2-3B-rank32-dora",
    ),
    # MiCA trains A alone, from the smallest singular directions, with B frozen: 28 layers, rank 32, and both queries
    # and values read 3,072.
    Row(
        "llama_3_2_3b",
        Kind.causal_lm,
        [],
        5505024,
        3221924864,
        [f"{PEFT}method_comparison/MetaMathQA/results/lora--llama-3.2-3B-rank32-mica.json"],
        trained_beyond=28 * 32 * (3072 + 3072),
        total_beyond=28 * 32 * (3072 + 3072 + 3072 + 1024),
        why="the catalog lacks MiCA; the total counts its frozen B as well",
    ),
    llama_3b([("lora", {"rank": 32, "alpha": 64})], 9175040, 3221924864, "lora--llama-3.2-3B-rank32"),
    llama_3b([("rslora", {"rank": 64, "alpha": 64})], 18350080, 3231099904, "lora--llama-3.2-3B-rank64-rslora"),
    llama_3b([("lora", {"rank": 64, "alpha": 128})], 18350080, 3231099904, "lora--llama-3.2-3B-rank64"),
    llama_3b(
        [peft("MissConfig", target_modules=QV, r=64, mini_r=1)], 7340032, 3220089856, "miss--llama-3.2-3B-default"
    ),
    # All but the 128 smallest singular directions are frozen: of 3,072, and of the 1,024 of keys and values.
    llama_3b(
        [
            peft(
                "OSFConfig",
                target_modules=["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                effective_rank=3072 - 128,
            ),
            peft("OSFConfig", target_modules=["k_proj", "v_proj"], effective_rank=1024 - 128),
        ],
        194535936,
        3407285760,
        "osf--llama-3.2-3B-rank128",
    ),
    llama_3b(
        [peft("PeanutConfig", target_modules=QV, r=1)],
        229376,
        3212979200,
        "peanut--llama-3.2-3B-rank1-relu-depth0-s32.0",
    ),
    llama_3b(
        [peft("PeanutConfig", target_modules=QV, r=32)],
        7340032,
        3220089856,
        "peanut--llama-3.2-3B-rank32-relu-depth0-s2.0",
    ),
    llama_3b(
        [peft("PrefixTuningConfig", num_virtual_tokens=200)],
        11468800,
        3224218624,
        "prefixtuning--llama-3.2-3B-lr_0.001",
        "prefixtuning--llama-3.2-3B-lr_0.005_zero_init",
    ),
    llama_3b(
        [peft("PrefixTuningConfig", num_virtual_tokens=50)],
        2867200,
        3215617024,
        "prefixtuning--llama-3.2-3B-tokens50-init_prefix-lr_0.005",
    ),
    llama_3b(
        [peft("PromptTuningConfig", num_virtual_tokens=200)],
        614400,
        3213364224,
        "prompt_tuning--llama-3.2-3B-default",
        "prompt_tuning--llama-3.2-3B-lr_0.001",
    ),
    llama_3b(
        [peft("PsoftConfig", target_modules=QV, r=256, psoft_mag_b=True, psoft_mag_a=True)],
        1856512,
        3214606336,
        "psoft--llama-3.2-3B-default",
        "psoft--llama-3.2-3B-fast",
    ),
    llama_3b([peft("PveraConfig", target_modules=QV, r=64)], 121856, 3212871680, "pvera--llama-3.2-3B-rank64"),
    llama_3b([peft("RandLoraConfig", target_modules=QV, r=32)], 9289728, 3222039552, "randlora--llama-3.2-3B-default"),
    llama_3b(
        [peft("ShiraConfig", target_modules=QV, r=32)],
        9175040,
        3221924864,
        "shira--llama-3.2-3B-lr_0.0003-random_seed_42",
    ),
    llama_3b(
        [peft("TinyLoraConfig", target_modules=QV, r=2, u=64, weight_tying=1.0)],
        64,
        3212749888,
        "tinylora--llama-3.2-3B-weight-tying",
    ),
    llama_3b(
        [peft("TrainableTokensConfig", token_indices=[128000, 128001], target_modules="model.embed_tokens")],
        6144,
        3212755968,
        "trainable_tokens--llama-3.2-3B-sos+eos",
    ),
    llama_3b(
        [peft("UniLoraConfig", target_modules=QV, r=32, theta_d_length=256)],
        256,
        3212750080,
        "unilora--llama-3.2-3B-default",
    ),
    llama_3b(
        [peft("VBLoRAConfig", target_modules=QV, r=4, num_vectors=256, vector_length=256, topk=2)],
        1212416,
        3213962240,
        "vblora--llama-3.2-3B-default",
    ),
    llama_3b(
        [peft("WaveFTConfig", target_modules=QV, n_frequency=5000)],
        280000,
        3213029824,
        "waveft--llama-3.2-3B-n_frequency-5000",
    ),
]

HEAD_TWICE = "peft's total counts the head twice, once as the frozen copy that it keeps"


def roberta(size: str, width: int, part: Part, trained: int, total: int) -> Row:
    """An example of peft's for RoBERTa, whose head is a dense layer and two classes."""
    example = part[1]["config"]["_target_"].removeprefix("peft.").removesuffix("Config")
    source = f"{PEFT}examples/sequence_classification/{example}.ipynb"
    head = width * width + width + 2 * width + 2
    return Row(
        f"roberta_{size}", Kind.classification, [part], trained, total, [source], total_beyond=head, why=HEAD_TWICE
    )


DOCUMENTED = [
    Row(
        "bloomz_560m",
        Kind.causal_lm,
        [peft("PrefixTuningConfig", num_virtual_tokens=20)],
        983040,
        560197632,
        [f"{PEFT}docs/source/package_reference/prefix_tuning.md"],
    ),
    Row(
        "bloomz_560m",
        Kind.causal_lm,
        [peft("LNTuningConfig", target_modules=["input_layernorm", "post_attention_layernorm", "ln_f"])],
        100352,
        559314944,
        [f"{PEFT}examples/causal_language_modeling/peft_ln_tuning_clm.ipynb"],
    ),
    Row("qwen2_5_3b", Kind.causal_lm, [("lora", {"rank": 16, "alpha": 32})], 3686400, 3089625088, [f"{PEFT}README.md"]),
    Row(
        "opt_125m",
        Kind.causal_lm,
        [("qlora", {"rank": 8, "target_modules": ["attention_qv"]})],
        294912,
        125534208,
        [f"{PEFT}tests/test_common_gpu.py:test_print_4bit_expected"],
    ),
    Row(
        "opt_125m",
        Kind.causal_lm,
        [peft("HiraConfig", r=32, target_modules=["k_proj", "q_proj", "v_proj", "fc1", "fc2"])],
        4718592,
        129957888,
        [f"{PEFT}docs/source/package_reference/hira.md"],
    ),
    Row(
        "bert_base_cased",
        Kind.classification,
        [peft("PrefixTuningConfig", num_virtual_tokens=20)],
        370178,
        108680450,
        [f"{PEFT}src/peft/peft_model.py:PeftModelForSequenceClassification"],
    ),
    Row(
        "gpt2_large",
        Kind.causal_lm,
        [peft("PrefixTuningConfig", num_virtual_tokens=20)],
        1843200,
        775873280,
        [f"{PEFT}src/peft/peft_model.py:PeftModelForCausalLM"],
    ),
    Row(
        "t5_base",
        Kind.seq2seq_lm,
        [("lora", {"rank": 8, "alpha": 32, "target_modules": ["attention_qv"]})],
        884736,
        223843584,
        [f"{PEFT}src/peft/peft_model.py:PeftModelForSeq2SeqLM"],
        total_beyond=72 * 768,
        why="the total has a bias for each of the 72 adapted projections, which T5's do not have",
    ),
    Row(
        "bert_base_cased",
        Kind.classification,
        [("lora", {"rank": 8, "target_modules": ["query", "key"]})],
        296450,
        108608260,
        [f"{PEFT}examples/evaluation/lora-lm-eval.ipynb"],
        total_beyond=2 * 768 + 2,
        why=HEAD_TWICE,
    ),
    Row(
        "mt0_large",
        Kind.seq2seq_lm,
        [peft("IA3Config", target_modules=["k", "v", "wi_1"])],
        282624,
        1229863936,
        [f"{PEFT}examples/conditional_generation/peft_ia3_seq2seq.ipynb"],
        total_beyond=250112 * 1024,
        why="the published model has an output layer of its own; transformers 5 ties it to the embeddings",
    ),
    roberta("base", 768, peft("C3AConfig", target_modules=["query", "value"], block_size=768), 610562, 125257732),
    roberta(
        "large",
        1024,
        peft(
            "VBLoRAConfig",
            r=4,
            num_vectors=90,
            target_modules=["key", "value", "query", "output.dense", "intermediate.dense"],
        ),
        1696770,
        357058564,
    ),
    Row(
        "opt_6_7b",
        Kind.causal_lm,
        [("lora_int8", {"rank": 16, "alpha": 32, "target_modules": ["attention_qv"]})],
        8388608,
        6666862592,
        [f"{PEFT}examples/int8_training/Finetune_opt_bnb_peft.ipynb"],
    ),
    Row(
        "llama_3_8b",
        Kind.causal_lm,
        [peft("IA3Config", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])],
        196608,
        None,
        [PEFT_BENCH],
        trained_beyond=32 * 4096 - 32 * 14336,
        why="its feedforward_modules is a string, which peft holds against the whole name of a module: none matches, "
        "and the 4,096 outputs of the down-projection are scaled instead of its 14,336 inputs",
    ),
    Row(
        "llama_3_8b",
        Kind.causal_lm,
        [peft("PrefixTuningConfig", num_virtual_tokens=32, prefix_projection=True, encoder_hidden_size=512)],
        34177536,
        None,
        [PEFT_BENCH],
    ),
    Row("llama_3_8b", Kind.causal_lm, [peft("LNTuningConfig")], 266240, None, [PEFT_BENCH]),
    # BitFit refuses a Llama, which has no biases to train; these are new ones.
    Row("llama_3_8b", Kind.causal_lm, [peft("BeftConfig", target_modules=QV)], 163840, None, [PEFT_BENCH]),
    Row(
        "roberta_base",
        Kind.classification,
        [peft("FourierFTConfig", n_frequency=1000, target_modules=["query", "value"])],
        24000,
        None,
        [FOURIER_FT],
        with_head=False,
    ),
    Row("roberta_base", Kind.classification, [("lora", {"rank": 8})], 294912, None, [FOURIER_FT], with_head=False),
]


def adapter_hub(parts: list[Part], trained: int, beyond: int = 0, why: str = "", source: str = ADAPTER_HUB) -> Row:
    """A count of AdapterHub's on RoBERTa base; its total is that of the backbone with its pooler, and nothing more.

    The pooler is as large as the dense layer of the classification head, whose last layer and the adapter are ours.
    """
    total_beyond = -(trained - beyond) - (2 * 768 + 2)
    why = "; ".join(filter(None, [why, "its total is that of the backbone alone, whatever is added"]))
    return Row(
        "roberta_base", Kind.classification, parts, trained, 124645632, [source], False, beyond, total_beyond, why
    )


PARALLEL: Part = ("parallel_adapter", {"reduction_factor": 2, "learned_scale": False})


def prefix(hidden: int) -> Part:
    """A prefix of 30 made by a network of this width."""
    return peft("PrefixTuningConfig", num_virtual_tokens=30, prefix_projection=True, encoder_hidden_size=hidden)


ADAPTER_HUB_ROWS = [
    adapter_hub([("pfeiffer", {"reduction_factor": 16})], 894528),
    adapter_hub(
        [("houlsby", {"reduction_factor": 16})],
        2085120,
        # Two halves of 384 that transform each other, both through a bottleneck of 192 (reduction 2).
        2 * (384 * 192 + 192 + 192 * 384 + 384),
        "with invertible adapters on the embeddings (Pfeiffer et al. 2020), which the catalog lacks",
    ),
    adapter_hub([("compacter", {"phm_dim": 4, "reduction_factor": 32})], 57088),
    adapter_hub([prefix(512)], 9872384),
    adapter_hub([PARALLEL], 7091712),
    adapter_hub(
        [peft("IA3Config", target_modules=["key", "value", "intermediate.dense"])],
        18432,
        -12 * 3072,
        "it has the scales of keys and values, 12 x (768 + 768), and lacks those of the feed-forward block's inner "
        "activations, which Liu et al. 2022 (arXiv 2205.05638, section 3.3) have too",
    ),
    # Mix-and-match: a prefix through a bottleneck of 800, beside the parallel adapter.
    adapter_hub([prefix(800), PARALLEL], 22493984),
    adapter_hub(
        [],
        36888,
        # At the prefix and at the suffix of 12 layers, rank 1: a rotation of 768 and a linear source of 768 + 1.
        24 * (768 + 768 + 1),
        "the catalog lacks LoReFT (Wu et al. 2024, arXiv 2404.03592)",
        "adapter-hub/adapters@88f18ebd:notebooks/ReFT_Adapters_Finetuning.ipynb",
    ),
]

ROWS = [*LLAMA_3B, *DOCUMENTED, *ADAPTER_HUB_ROWS]
