"""How the wording of the teacher's prompt changes its answers, its first token and its likelihood of the reference.

    python -m studies.real.teacher --model FOLDER --data-dir DIR --out results/real/teacher_prompt.json

For each wording of `WORDINGS` and each data set, on the same rows: the model gets the reference in its prompt, as the
frozen teacher does (Eq. 7), and answers greedily.
"""

import argparse
import random
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from raft.chat import generate_text
from raft.cpu import share_cpu
from raft.prompts import TEACHER_PROMPTS, teacher, teacher_messages
from raft.real.evaluate import Model
from raft.real.files import data_folder, draw, read_file
from raft.real.measures import measure
from raft.refine.embed import load_embedder
from raft.rendering import chat_ids
from raft.rows import Row, normalize_rows
from raft.runs import write_json
from raft.runs.provenance import provenance

FILES = {
    "medquad": "domain_medical_medquad.jsonl",
    "agxqa": "domain_agriculture_agxqa.jsonl",
}
WORDINGS: dict[str, Callable[[str, str], str]] = {
    **TEACHER_PROMPTS,
    "paper without its label": lambda question, reference: teacher(question, reference).removesuffix("\nAnswer:"),
}
ANSWER_TOKENS = 96
REFERENCE_WORDS = 150  # the teacher gets the first words of a reference only, to save time
TOP = 8  # number of most probable first tokens in the result
# Beginnings of answers that continue the prompt's labels or talk about the reference.
LABEL = re.compile(
    r"(?:(?:a|q|answer|question|reference|ref|background)\b[^.\n]{0,30}:)"
    r"|(?:based on|according to) the (?:\w+ )?(?:reference|background|knowledge|text|information|passage)"
    r"|the (?:reference|background|text|passage|given)\b|the answer (?:to|is)\b",
    re.IGNORECASE,
)


class Entry(TypedDict):
    """What a line of both files has."""

    id: str
    question: str
    answer: str
    split: str


def study(
    model: Model, rows: Sequence[Row], alone: Sequence[str], wording: Callable[[str, str], str], embedder: Any
) -> dict[str, Any]:
    """The measures of one wording. alone: the model's greedy answers without the reference.

    "label": share of the answers that match `LABEL`. "similarity", "recall": means between answer and reference.
    "words": mean number of words of an answer. "first": the tokens with the highest mean probability as first token of
    the answer, at T = 1. "reference": mean log p per token of the reference under the teacher. "student": the same for
    `alone`.
    """
    import torch

    from raft.evaluate.likelihood import log_likelihoods

    chats = [teacher_messages(row["prompt"], row["answer"], wording) for row in rows]
    answers = answered(model, chats)
    model.release()
    found = measure(answers, [row["answer"] for row in rows], embedder)
    first: Any = 0
    with torch.no_grad():
        for chat in chats:
            ids = torch.tensor([chat_ids(model.tokenizer, chat)], device=model.weights.device)
            logits = model.weights(input_ids=ids, logits_to_keep=1).logits[0, -1]
            first = first + torch.softmax(logits.double(), -1) / len(chats)
    mass, tokens = first.topk(TOP)
    texts = [model.tokenizer.decode([token]) for token in tokens.tolist()]
    return {
        "label": statistics.fmean(bool(LABEL.match(answer)) for answer in answers),
        **{name: statistics.fmean(float(one[name]) for one in found) for name in ("similarity", "recall", "words")},
        "first": dict(zip(texts, mass.tolist(), strict=True)),
        "reference": _mean(log_likelihoods(model.weights, model.tokenizer, chats, [row["answer"] for row in rows])),
        "student": _mean(log_likelihoods(model.weights, model.tokenizer, chats, alone)),
        "answers": answers,
    }


def answered(model: Model, chats: Sequence[Any]) -> list[str]:
    from raft.engines import Sampling

    return generate_text(model.engine, chats, Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS))


def _mean(values: Sequence[float | None]) -> float:
    return statistics.fmean(value for value in values if value is not None)


def read(folder: Path, file: str, n: int, seed: int) -> list[Row]:
    """`n` training rows with references cut to REFERENCE_WORDS words."""
    learnable = [row for row in read_file(folder, file, Entry) if row["split"] == "train"]
    drawn = draw(random.Random(seed), learnable, n, f"training rows of {file}")
    cut = [{**row, "id": str(i), "answer": _cut(row["answer"])} for i, row in enumerate(drawn)]
    return normalize_rows(cut, file)


def _cut(text: str) -> str:
    words = list(re.finditer(r"\S+", text))
    return text if len(words) <= REFERENCE_WORDS else text[: words[REFERENCE_WORDS - 1].end()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answers", type=Path, help="also writes the answers, to read them")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    share_cpu()
    folder = data_folder(args.data_dir)
    rows = {name: read(folder, file, args.rows, args.seed) for name, file in FILES.items()}
    model, embedder = Model(args.model), load_embedder("minilm")
    measured: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    try:
        for data, asked in rows.items():
            alone = answered(model, [row["prompt"] for row in asked])
            for name, wording in WORDINGS.items():
                found = study(model, asked, alone, wording, embedder)
                answers.setdefault(data, {})[name] = found.pop("answers")
                measured.setdefault(data, {})[name] = found
                print(data, name, found, flush=True)
    finally:
        model.close()
    record = {
        "measured": measured,
        "rows": args.rows,
        "seed": args.seed,
        "model": args.model.name,
        **provenance(
            f"python -m studies.real.teacher --model {args.model.name} --data-dir DIR --rows {args.rows} "
            f"--seed {args.seed} --out FILE"
        ),
    }
    write_json(args.out, record)
    if args.answers:
        write_json(args.answers, answers)
    print(args.out)


if __name__ == "__main__":
    main()
