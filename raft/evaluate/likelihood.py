"""Likelihood of given answers under a model: the mean log p of their tokens after a chat, without padding."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from raft.progress import call
from raft.prompts import Message
from raft.rendering import chat_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raft.models.language_model import LanguageModel

# Tokens per forward pass. SmolLM2-135M on two CPU cores takes about the same time per token with 764 to 3,056 tokens,
# and 1.5 times as long with 191.
PACK_TOKENS = 2048


class Turn(NamedTuple):
    number: int  # index in the call's lists
    prompt: tuple[int, ...]
    answer: list[int]


def log_likelihoods(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[Message]],
    answers: Sequence[str],
    *,
    max_tokens: int | None = None,
    pack_tokens: int = PACK_TOKENS,
) -> list[float | None]:
    """Mean over the answer's tokens of log p(token | chat, tokens before), in nats; None for an answer without tokens.

    `answers[i]` follows the chat `prompts[i]`; answers to the same chat share one copy of it in a forward pass.
    `max_tokens`: number of first tokens of an answer that count. The token that ends a turn is not scored.
    `pack_tokens`: most tokens of a forward pass, unless one chat with its answer has more.
    The head runs at the answers' positions only, in chunks. ModelError unless the model is a plain decoder with a head.
    """
    import torch

    from raft.models.language_model import LanguageModel

    turns = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"][:max_tokens]
        if ids:
            turns.append(Turn(number, tuple(chat_ids(tokenizer, prompt)), ids))
    result: list[float | None] = [None] * len(prompts)
    language_model = LanguageModel(model)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), call(len(prompts)) as progress:
            language_model.check()
            progress.finished(len(prompts) - len(turns))
            for part in _packs(turns, pack_tokens):
                for turn, value in zip(part, _mean_log_p(language_model, part), strict=True):
                    result[turn.number] = value
                progress.finished(len(part))
    finally:
        model.train(was_training)
    return result


def _mean_log_p(model: "LanguageModel", turns: Sequence[Turn]) -> list[float]:
    """Mean log p of each turn of one pack."""
    import torch

    from raft.models.packing import pack_turns
    from raft_kernels import linear_cross_entropy

    head = model.head()
    device = head.weight.device
    packed, positions = pack_turns([(turn.prompt, turn.answer) for turn in turns], share=model.shares_prompts)
    with model.attention():
        hidden = model.hidden(packed.to(device))
    states = hidden[positions.to(device)]  # [N, H], N tokens of all answers
    labels = torch.tensor([token for turn in turns for token in turn.answer], device=device)
    bias = head.bias
    if head.scale != 1.0:
        states = states * head.scale
        bias = None if bias is None else bias * head.scale
    losses = linear_cross_entropy(states, head.weight, labels, reduction="none", bias=bias, softcap=head.softcap)
    return [-part.double().mean().item() for part in losses.split([len(turn.answer) for turn in turns])]


def _packs(turns: Sequence[Turn], most: int) -> Iterator[list[Turn]]:
    """Packs of at most `most` tokens, or of one longer turn. Turns of one chat are neighbours, and long ones come
    first: with similar lengths in a pack the attention pads little."""
    longest: dict[tuple[int, ...], int] = {}
    for turn in turns:
        longest[turn.prompt] = max(longest.get(turn.prompt, 0), len(turn.prompt) + len(turn.answer))
    pack: list[Turn] = []
    tokens = 0
    for turn in sorted(turns, key=lambda turn: (-longest[turn.prompt], turn.prompt, turn.number)):
        shared = bool(pack) and pack[-1].prompt == turn.prompt
        cost = len(turn.answer) + (0 if shared else len(turn.prompt))
        if pack and tokens + cost > most:
            yield pack
            pack, tokens, cost = [], 0, len(turn.answer) + len(turn.prompt)
        pack.append(turn)
        tokens += cost
    if pack:
        yield pack
