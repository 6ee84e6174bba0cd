"""Rules of the peft library's methods: what each can go with, and its closed form."""

from dataclasses import dataclass
from typing import Any

from harness.config.errors import ConfigError
from harness.config.schema import Quantization
from harness.methods.peft_counts import (
    ANY_QUANTIZATION,
    NO_QUANTIZATION,
    NOT_4BIT,
    NOT_INT8,
    WITH_CACHE,
    Count,
    Misfit,
    Target,
    WrongOption,
    adalora,
    adamss,
    adaption_prompt,
    boft,
    c3a,
    deft,
    each,
    frequencies,
    frod,
    glora,
    gralora,
    hra,
    ia3,
    lokr,
    lora,
    low_rank,
    miss,
    oft,
    osf,
    p_tuning,
    peanut,
    prefix,
    prompt,
    psoft,
    randlora,
    road,
    shira,
    supertuning,
    tinylora,
    trainable_tokens,
    unilora,
    vblora,
    waveft,
)
from harness.methods.size import LARGEST, Knob, divisors, falling_divisors, multiples_of
from harness.models.architectures import Backbone, Kind


@dataclass(frozen=True)
class Rules:
    """Rules of one configuration class.

    Attributes:
        count: Its closed form.
        conv1d: Whether it can change GPT-2's Conv1D.
        quantization: What the backbone's linear layers may be stored as.
        kinds: What the backbone may be for.
        architectures: The only ones it goes with; empty for all.
        unmergeable: Why it can't be folded into the backbone's weights; null where it can.
        needs_weights: Whether it starts from the weights' values and so can't be attached to a skeleton.
        size: The option that sets what it trains; null where that follows from the backbone.
    """

    count: Count
    conv1d: bool = False
    quantization: tuple[Quantization, ...] = ANY_QUANTIZATION
    kinds: tuple[Kind, ...] = tuple(Kind)
    architectures: tuple[str, ...] = ()
    unmergeable: str | None = None
    needs_weights: bool = False
    size: Knob | None = None


NO_HEAD = (Kind.causal_lm, Kind.seq2seq_lm)
IN_INPUT = "its virtual tokens are part of the input, not of any weight"
IN_ATTENTION = "what it adds to attention depends on the input, so no weight can hold it"
RANK, FREQUENCIES, TOKENS = Knob("r"), Knob("n_frequency"), Knob("num_virtual_tokens")
# Of a prefix that a network makes, which is as large as the network.
PROJECTED_PREFIX = Knob("encoder_hidden_size")

RULES: dict[str, Rules] = {
    "AdaLoraConfig": Rules(each(adalora), conv1d=True),
    "AdamssConfig": Rules(each(adamss), quantization=NO_QUANTIZATION, needs_weights=True),
    "AdaptionPromptConfig": Rules(
        adaption_prompt,
        conv1d=True,
        kinds=NO_HEAD,
        architectures=("llama", "mistral", "gpt2"),
        unmergeable=IN_ATTENTION,
        size=Knob("adapter_len"),
    ),
    "BOFTConfig": Rules(each(boft), size=Knob("boft_block_size", divisors)),
    "BeftConfig": Rules(each(lambda config, target: target.rows)),
    "C3AConfig": Rules(each(c3a), quantization=NO_QUANTIZATION, size=Knob("block_size", falling_divisors)),
    "DeftConfig": Rules(each(deft), conv1d=True, quantization=NO_QUANTIZATION, size=RANK),
    "DeloraConfig": Rules(each(lambda c, t: low_rank(c, t) + 1), quantization=NO_QUANTIZATION, size=RANK),
    "FourierFTConfig": Rules(each(frequencies), conv1d=True, size=FREQUENCIES),
    "FrodConfig": Rules(each(frod), conv1d=True, quantization=NO_QUANTIZATION, needs_weights=True),
    "GloraConfig": Rules(each(glora), quantization=NO_QUANTIZATION, size=RANK),
    "GraloraConfig": Rules(
        each(gralora), conv1d=True, quantization=NO_QUANTIZATION, size=Knob("r", multiples_of("gralora_k"))
    ),
    "HRAConfig": Rules(each(hra), quantization=NO_QUANTIZATION, size=RANK),
    "HiraConfig": Rules(each(low_rank), conv1d=True, size=RANK),
    "IA3Config": Rules(ia3, conv1d=True),
    "LNTuningConfig": Rules(each(lambda config, target: target.parameters), conv1d=True),
    "LoHaConfig": Rules(each(lambda c, t: 2 * low_rank(c, t)), quantization=NOT_4BIT, size=RANK),
    "LoKrConfig": Rules(each(lokr), quantization=NOT_4BIT, size=RANK),
    "LoraConfig": Rules(each(lora), conv1d=True),
    "MissConfig": Rules(each(miss), size=RANK),
    "OFTConfig": Rules(each(oft), size=Knob("oft_block_size", divisors)),
    "OSFConfig": Rules(each(osf), quantization=NO_QUANTIZATION),
    "PeanutConfig": Rules(each(peanut), quantization=NO_QUANTIZATION, size=RANK),
    "PrefixTuningConfig": Rules(prefix, conv1d=True, architectures=WITH_CACHE, unmergeable=IN_ATTENTION, size=TOKENS),
    "PromptEncoderConfig": Rules(p_tuning, conv1d=True, unmergeable=IN_INPUT, size=Knob("encoder_hidden_size")),
    "PromptTuningConfig": Rules(prompt, conv1d=True, unmergeable=IN_INPUT, size=TOKENS),
    "PsoftConfig": Rules(each(psoft), quantization=NO_QUANTIZATION, size=RANK),
    "PveraConfig": Rules(each(lambda config, target: target.rows + 2 * config.r), conv1d=True, size=RANK),
    "RandLoraConfig": Rules(each(randlora), conv1d=True),
    "RoadConfig": Rules(each(road)),
    "ShiraConfig": Rules(each(shira), quantization=NOT_INT8, needs_weights=True, size=RANK),
    "SupertuningConfig": Rules(each(supertuning), quantization=NO_QUANTIZATION),
    "TinyLoraConfig": Rules(tinylora, conv1d=True, quantization=NO_QUANTIZATION, size=Knob("u")),
    "TrainableTokensConfig": Rules(trainable_tokens, conv1d=True, kinds=NO_HEAD),
    "UniLoraConfig": Rules(unilora, conv1d=True, size=Knob("theta_d_length")),
    "VBLoRAConfig": Rules(
        vblora, conv1d=True, size=Knob("num_vectors", lambda values, width: range(values["topk"], LARGEST))
    ),
    "VeraConfig": Rules(each(lambda config, target: target.rows + config.r), conv1d=True, size=RANK),
    "WaveFTConfig": Rules(each(waveft), conv1d=True, size=FREQUENCIES),
}
# Classes that have no place here, and why; together with RULES they are all that peft has.
LEFT_OUT: dict[str, str] = {
    "CartridgeConfig": "it is filled from the key-value cache of a document and distilled from it, not trained on rows",
    "CPTConfig": "its context is a set of worked examples with masks over their parts, which a task here does not give",
    "LilyConfig": "its router takes the mean over the whole batch, so a row's score depends on the rows beside it",
    "MultitaskPromptTuningConfig": "it shares a prompt among tasks and needs a task number with every row",
    "PolyConfig": "it routes among skills by task and needs a task number with every row",
    "XLoraConfig": "it mixes LoRA adapters that were trained before",
    "ShadowConfig": "it trains a second model beside the first, which has no closed form over the first one's shapes",
}


def expected(method: str, config: Any, targets: list[Target], backbone: Backbone) -> int:
    """Trained parameters apart from the head.

    Raises:
        ConfigError: The class, or one of its options, can't go with this backbone.
    """
    cls = type(config).__name__
    rules, kind = RULES[cls], backbone.model.config.model_type
    try:
        if rules.architectures and kind not in rules.architectures:
            raise Misfit(f"peft has it for {', '.join(rules.architectures)}, not for {kind}")
        if backbone.kind not in rules.kinds:
            raise Misfit("peft can't train a new head beside it, so it is for language models only")
        if backbone.quantization not in rules.quantization:
            allowed = ", ".join("unquantized" if q is Quantization.none else q.value for q in rules.quantization)
            raise Misfit(f"it computes with the weights' own values, and works on {allowed} weights only")
        if not rules.conv1d and any(t.transposed for t in targets) and backbone.quantization is Quantization.none:
            raise Misfit(f"peft can't put it on the Conv1D modules of {kind}")
        if cls == "PrefixTuningConfig" and backbone.model.is_gradient_checkpointing:
            raise Misfit("its prefix lies in the key-value cache, which gradient checkpointing switches off")
        return rules.count(config, targets, backbone)
    except WrongOption as reason:
        raise ConfigError(f"method.config.{reason}") from None
    except Misfit as reason:
        raise ConfigError(f"method={method}: {reason}") from None
