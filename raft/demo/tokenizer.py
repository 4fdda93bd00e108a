"""The micro-world's tokenizer, one token per word or sign, with a chat template. transformers and vLLM can load it."""

import random
import re

from raft.demo import words
from raft.demo.domains import DOMAINS, draw_entity, foreign_answer
from raft.demo.formats import FORMATS
from raft.demo.known import free_names, known_entities
from raft.demo.skills import SKILLS
from raft.demo.tasks import TASKS

PAD, UNKNOWN, SYSTEM, USER, ASSISTANT, END = (
    "<|pad|>",
    "<|unknown|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
SPECIAL = (PAD, UNKNOWN, SYSTEM, USER, ASSISTANT, END)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_PIECE = r"\n|[A-Za-z]+|[0-9]+|[-/<>]+|[^\sA-Za-z0-9]"
_NO_SPACE_BEFORE = (".", ",", "?", "!", ":", "”", "\n")
_NO_SPACE_AFTER = ("“", "\n")


def vocabulary() -> list[str]:
    """The special tokens, then every word and sign of the world, sorted; independent of a run's seed."""
    texts: list[str] = ["system user assistant"]
    texts += [word for group in words.CATEGORIES.values() for word in group]
    texts += [word.upper() for word in words.THINGS] + [word.upper() for pair in words.OPPOSITES for word in pair]
    texts += [word for pair in words.OPPOSITES for word in pair]
    texts += [*words.DAYS, *words.MONTHS, *words.NUMBERS, *words.FIRST_NAMES, *words.LAST_NAMES, *free_names()]
    texts += [f"{asked} {statement} {value}" for asked, statement, value in words.COMMON_FACTS]
    texts += [value for domain in DOMAINS.values() for relation in domain.relations for value in relation.values]
    texts += [fact.entity for facts in known_entities() for fact in facts]
    rng = random.Random("vocabulary")
    for domain in DOMAINS.values():
        for entity in domain.entities:
            texts.append(entity.format(n="Acorn"))
        for style in range(len(domain.foreign)):
            texts.append(foreign_answer(domain, draw_entity(domain, "Acorn", rng)[0], style, "May"))
    for draw in (*SKILLS.values(), *FORMATS.values(), *TASKS.values()):
        for _ in range(300):  # enough draws for every wording of every template
            example = draw(rng)
            texts += [example.question, example.answer]
    return [*SPECIAL, *sorted({piece for text in texts for piece in re.findall(_PIECE, text)})]


def build_tokenizer():
    """A `PreTrainedTokenizerFast` over `vocabulary()`. Decoding an encoded text gives the text back."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(vocabulary())}, unk_token=UNKNOWN))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[ \t]+"), "removed"),
            pre_tokenizers.Split(Regex(_PIECE), "isolated"),
        ]
    )
    glue = [decoders.Replace(f" {sign}", sign) for sign in _NO_SPACE_BEFORE]
    glue += [decoders.Replace(f"{sign} ", sign) for sign in _NO_SPACE_AFTER]
    # Every piece gets a space in front and the pieces are joined; then the spaces beside signs that English does not
    # write are removed.
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex("^"), " "), decoders.Fuse(), *glue, decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
