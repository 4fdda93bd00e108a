"""A data folder with the files and fields of the real one; every text was made up for it."""

import json
from pathlib import Path

ISLES = ("Alba", "Brin", "Corro", "Dunn", "Elva", "Fenn", "Garra", "Holm", "Inver", "Jura", "Kell", "Lorn")
PATTERNS = {
    "information": ("What is (are) {} fever ?", "{} fever is an invented illness of the isle of {}."),
    "treatment": ("What are the treatments for {} fever ?", "{} fever goes away with tea from {}."),
    "prevention": ("How to keep off {} fever ?", "{} fever stays away from whoever avoids {}."),  # no known pattern
}


def write(folder: Path) -> Path:
    """24 + 12 domain rows of three types, 6 questions and 3 prompts, in `folder`."""
    rows = []
    for number, isle in enumerate(ISLES):
        for kind, (question, answer) in PATTERNS.items():
            row = {"id": f"{number % 6}-{kind}", "source": "Isles", "focus": f"{isle} fever", "qtype": kind}
            texts = {"question": question.format(isle), "answer": answer.format(isle, isle)}
            rows.append({**row, **texts, "split": "train" if number < 8 else "test"})
    lines(folder / "domain_medical_medquad.jsonl", rows)
    arc = [
        {"id": f"a{n}", "task": "arc-easy", "question": f"What is {n} and one?", "answer": n % 4}
        | {"choices": [str(n + 1 + (c - n) % 4) for c in range(4)]}
        for n in range(6)
    ]
    lines(folder / "mc_commonsense.jsonl", [*arc, {**arc[0], "id": "b", "task": "piqa"}])
    prompts = [
        {"key": n, "prompt": f"Greet me {n} times without commas.", "instruction_id_list": ["punctuation:no_comma"]}
        | {"kwargs": [{}]}
        for n in range(2)
    ]
    words = {"relation": "at least", "num_words": 200}
    two = {"instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"], "kwargs": [{}, words]}
    lines(folder / "ifeval.jsonl", [*prompts, {"key": 9, "prompt": "Tell a long tale without commas.", **two}])
    # Found by name when lm-eval is imported; none of the instructions above splits sentences.
    (folder / "nltk_data" / "tokenizers" / "punkt_tab" / "english").mkdir(parents=True)
    return folder


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class LetterCounts:
    """An embedder without a model."""

    name = "letters"

    def encode(self, texts):
        import numpy as np

        return np.array([[text.lower().count(chr(97 + i)) + 1e-3 for i in range(26)] for text in texts])
