"""What every engine and trainer is given: a model of random weights, a tokenizer of made-up words, and rows; or a
checkpoint with rows of a file.

Lengths decide what a step costs, so they are mixed as in real data: prompts and answers are log-normal. A random model
never ends an answer by itself; here one word in `rollout_mean` of the vocabulary ends it, so rollouts have geometric
lengths with a cap, the same distribution for every engine.
"""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAD, START, END, UNKNOWN = SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<start> ' + message['role'] + ' ' + message['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start> assistant ' }}{% endif %}"
)
TEMPLATE_TOKENS = 32  # of the chat template and of the words around a teacher's reference, at most
LONGEST_CYCLE = 16  # steps that one call of the engine feeds at most; a pass over the rows must be whole cycles


@dataclass(frozen=True)
class Lengths:
    """Log-normal numbers of tokens: many short, a few long."""

    median: int
    sigma: float
    most: int

    def draw(self, generator: random.Random) -> int:
        return min(max(round(generator.lognormvariate(math.log(self.median), self.sigma)), 1), self.most)


@dataclass(frozen=True)
class Work:
    name: str  # of the model's shape
    config: dict[str, Any]  # fields of its transformers configuration, model_type among them
    dtype: str
    k: int  # ids of the teacher that are kept
    batch: int  # rows of a step
    prompts: Lengths
    answers: Lengths
    rollout_mean: int  # of the geometric distribution, before the cap
    rollout_most: int
    folder: str = ""  # of a checkpoint; none: random weights and made-up words
    data: str = ""  # JSONL with its rows

    @property
    def rows(self) -> int:
        return self.batch * LONGEST_CYCLE

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt with its answer or rollout."""
        return self.prompts.most + max(self.answers.most, self.rollout_most) + TEMPLATE_TOKENS

    @property
    def teacher_max_length(self) -> int:
        return self.prompts.most + self.answers.most + self.rollout_most + 2 * TEMPLATE_TOKENS

    @property
    def vocabulary(self) -> int:
        return self.config["vocab_size"]


def _shape(
    model_type: str, hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int, v: int, **more: Any
) -> dict[str, Any]:
    """Fields of a transformers configuration; `more` are those that have a default, or that only some models have."""
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": v,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        **more,
    }


def _large(name: str, config: dict[str, Any]) -> Work:
    """The paper's batch, K and lengths of answers in its domains; rollouts end at 512 tokens."""
    return Work(name, config, "bfloat16", 512, 16, Lengths(192, 0.7, 768), Lengths(320, 0.7, 1024), 256, 512)


_QUICK = _shape("qwen3", 64, 128, 2, 2, 2, 1024, head_dim=32, max_position_embeddings=4096)
_16M = _shape("qwen3", 384, 1024, 8, 6, 2, 8192, head_dim=64, max_position_embeddings=4096)
_SMOLLM3 = _shape("smollm3", 2048, 11008, 36, 16, 4, 128256, no_rope_layer_interval=4, max_position_embeddings=65536)
_LLAMA = _shape("llama", 3072, 8192, 28, 24, 8, 128256, head_dim=128)
_PHI4 = _shape("phi3", 3072, 8192, 32, 24, 8, 200064, partial_rotary_factor=0.75, original_max_position_embeddings=4096)
WORKS: dict[str, Work] = {
    # Takes seconds on any machine: it shows that a benchmark runs, not how fast anything is.
    "quick": Work("qwen3-quick", _QUICK, "float32", 64, 4, Lengths(8, 0.6, 24), Lengths(10, 0.8, 32), 8, 16),
    # A fifth of its products are the head, as in models of 3B.
    "cpu": Work("qwen3-16m", _16M, "float32", 512, 16, Lengths(24, 0.6, 96), Lengths(40, 0.8, 224), 40, 160),
    "smollm3-3b": _large("SmolLM3-3B", _SMOLLM3),
    # The same in small: whether an engine runs at all on a machine that is new to it.
    "smollm3-2-layers": _large("SmolLM3-2-layers", {**_SMOLLM3, "num_hidden_layers": 2}),
    "llama-3.2-3b": _large("Llama-3.2-3B", _LLAMA),
    "phi-4-mini": _large("Phi-4-mini", _PHI4),
}
ON_GPU = ["smollm3-3b", "llama-3.2-3b", "phi-4-mini"]


MOST_CHARACTERS = 2_000  # of a question and answer from a file: some 500 tokens, so that no trainer cuts a row


def real(folder: str, data: str, batch: int) -> Work:
    """A checkpoint in fp32, as it would be trained on a CPU, with rows of a file. ValueError if one cannot be read."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().to_dict()
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no checkpoint can be read there ({str(error).splitlines()[0]})") from error
    name = Path(folder).resolve().name
    work = Work(
        name, config, "float32", 512, batch, Lengths(32, 1.0, 256), Lengths(128, 1.0, 768), 64, 64, folder, data
    )
    if len(make_rows(work)) < work.rows:
        raise ValueError(
            f"{data}: {work.rows} rows of question and answer under {MOST_CHARACTERS} characters are needed"
        )
    return work


def _rows_of(path: str, count: int) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            short = len(row["question"]) + len(row["answer"]) <= MOST_CHARACTERS
            if row.get("split", "train") == "train" and row["answer"].strip() and short:
                rows.append({"id": f"r{len(rows)}", "question": row["question"], "answer": row["answer"]})
            if len(rows) == count:
                break
    return rows


def ends(work: Work) -> int:
    """How many words of the vocabulary end an answer."""
    return max(1, round(work.vocabulary / work.rollout_mean))


def make_tokenizer(work: Work) -> Any:
    """One token a word. The last `ends(work)` words are those that end an answer; no text contains them."""
    if work.folder:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(work.folder, local_files_only=True, padding_side="left")
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, "user", "assistant"]
    words += [f"w{i}" for i in range(work.vocabulary - len(words))]
    level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    level.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=level,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=work.config["max_position_embeddings"],
    )


def make_model(work: Work, device: str, seed: int = 0) -> Any:
    """Random weights, made on their device; SDPA, since all machines have it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if work.folder:
        return AutoModelForCausalLM.from_pretrained(
            work.folder, dtype=getattr(torch, work.dtype), attn_implementation="sdpa", local_files_only=True
        ).to(device)
    pad, _, end, _ = range(len(SPECIAL))
    config = AutoConfig.for_model(**work.config, pad_token_id=pad, eos_token_id=end, bos_token_id=None)
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, work.dtype), attn_implementation="sdpa", trust_remote_code=False
        )
    last = work.vocabulary
    model.generation_config.eos_token_id = [end, *range(last - ends(work), last)]
    model.generation_config.pad_token_id = pad
    return model


def make_rows(work: Work, seed: int = 0) -> list[dict[str, str]]:
    """Questions and answers of made-up words, or of a file; the same rows at every call."""
    if work.data:
        return _rows_of(work.data, work.rows)
    generator = random.Random(seed)
    first, last = len(SPECIAL) + 2, work.vocabulary - ends(work)

    def text(lengths: Lengths) -> str:
        words = (generator.randrange(first, last) - first for _ in range(lengths.draw(generator)))
        return " ".join(f"w{i}" for i in words)

    return [{"id": f"r{i}", "question": text(work.prompts), "answer": text(work.answers)} for i in range(work.rows)]


def make_prompts(work: Work, count: int, seed: int = 0) -> list[list[int]]:
    """Token ids of `count` prompts of mixed lengths, for engines alone."""
    if work.folder:
        tokenizer, questions = make_tokenizer(work), [row["question"] for row in make_rows(work)]
        turns = [[{"role": "user", "content": questions[i % len(questions)]}] for i in range(count)]
        return [
            tokenizer.apply_chat_template(t, add_generation_prompt=True, return_dict=True)["input_ids"] for t in turns
        ]
    generator = random.Random(seed)
    first, last = len(SPECIAL) + 2, work.vocabulary - ends(work)
    return [[generator.randrange(first, last) for _ in range(work.prompts.draw(generator))] for _ in range(count)]


def parameter_bytes(model: Any) -> int:
    """Of one copy of the weights, a tied head counted once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def answer_tokens(work: Work, seed: int = 0) -> float:
    """Of a step, with the token that ends a turn; the mean over all rows."""
    answers = [row["answer"] for row in make_rows(work, seed)]
    tokens = (
        make_tokenizer(work)(answers, add_special_tokens=False)["input_ids"] if work.folder else map(str.split, answers)
    )
    return work.batch * sum(len(words) + 1 for words in tokens) / work.rows
