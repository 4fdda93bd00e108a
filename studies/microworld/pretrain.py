"""Train the micro-world's base model from scratch: `python -m studies.microworld.pretrain --out DIR`.

It learns the general skills, the formats and the three tasks of stage 1 and the teacher (raft/demo/tasks.py). It never
sees the facts of a domain: here a domain's names have facts that are drawn anew for every example. This script with its
defaults made the packaged model in `raft/demo/base`; `training.json` there has the seed, the mixture, the hours and the
scores.
"""

import argparse
import copy
import json
import random
import time
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from raft.demo.domains import DOMAINS
from raft.demo.formats import FORMATS
from raft.demo.skills import SKILLS, Exercise
from raft.demo.tasks import TASKS
from raft.demo.tokenizer import build_tokenizer
from raft.demo.world import draw_world

# Weight of each task in the examples. Tasks that search the prompt (sort, reverse, reading) take longer to learn than
# tasks that look up a word.
MIXTURE: dict[str, float] = {
    "copy": 2,
    "reverse": 3,
    "sort": 4,
    "count": 3,
    "arithmetic": 5,
    "compare": 4,
    "odd_one_out": 5,
    "dates": 2,
    "opposite": 1.5,
    "category": 2,
    "common_fact": 1.5,
    "known_fact": 8,
    "two_known_facts": 6,
    **dict.fromkeys(FORMATS, 1.5),
    "reading": 18,
    "rewriting": 10,
    "fusing": 8,
}
GENERATORS = {**SKILLS, **FORMATS, **TASKS}


def build_model(tokenizer, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of about 2M parameters, float32."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=512,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def encode(tokenizer, example: Exercise) -> tuple[list[int], int]:
    """Token ids of the chat and the length of its prompt."""
    prompt = f"<|user|>{example.question}<|end|><|assistant|>"
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    answer_ids = tokenizer(example.answer, add_special_tokens=False).input_ids
    return prompt_ids + answer_ids + [tokenizer.eos_token_id], len(prompt_ids)


def batches(tokenizer, rng: random.Random, batch_size: int, pool: int = 16):
    """Endless (input_ids [B, L], labels [B, L]) of examples of similar lengths; labels are -100 outside the answers."""
    names = list(MIXTURE)
    weights = list(MIXTURE.values())
    while True:
        drawn = [encode(tokenizer, GENERATORS[name](rng)) for name in rng.choices(names, weights, k=batch_size * pool)]
        drawn.sort(key=lambda pair: len(pair[0]))
        groups = [drawn[i : i + batch_size] for i in range(0, len(drawn), batch_size)]
        rng.shuffle(groups)
        for group in groups:
            length = max(len(ids) for ids, _ in group)
            ids = torch.full((len(group), length), tokenizer.pad_token_id)
            labels = torch.full((len(group), length), -100)
            for row, (tokens, prompt_length) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, prompt_length : len(tokens)] = torch.tensor(tokens[prompt_length:])
            yield ids, labels


def train(
    model, tokenizer, *, steps: int, batch_size: int, lr: float, seed: int, log_every: int = 50, save=None
) -> None:
    rng = random.Random(f"pretrain {seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    warmup = min(200, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / max(1, warmup), max(0.02, (steps - s) / max(1, steps - warmup)))
    )
    start, tokens, total = time.monotonic(), 0, 0.0
    for step, (ids, labels) in zip(range(1, steps + 1), batches(tokenizer, rng, batch_size), strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=ids).last_hidden_state  # causal, so padding on the right is not attended to
            wanted = labels[:, 1:] != -100
            logits = model.lm_head(hidden[:, :-1][wanted])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens, total = tokens + ids.numel(), total + float(loss.detach())
        if step % log_every == 0:
            seconds = time.monotonic() - start
            print(
                f"step {step}/{steps} loss {total / log_every:.4f} {tokens / seconds:.0f} tokens/s {seconds:.0f} s",
                flush=True,
            )
            total = 0.0
            if save and step % (log_every * 10) == 0:
                save(model)


def scores(model, tokenizer, *, per_skill: int = 40, seed: int = 1) -> dict[str, float]:
    """Accuracy of greedy answers per skill, with the demo's checks."""
    result = {}
    for name, draw in GENERATORS.items():
        rng = random.Random(f"score {name} {seed}")
        result[name] = accuracy(model, tokenizer, [draw(rng) for _ in range(per_skill)])
    return result


def domain_scores(model, tokenizer, *, seed: int = 0, most: int | None = None) -> dict[str, float]:
    """Accuracy on the (first `most`) test questions of each domain, which the base model can only guess."""
    result = {}
    for name in DOMAINS:
        items = [item for item in draw_world(name, seed).test if item["suite"] == "domain"][:most]
        examples = [Exercise(item["question"], item["answer"], item["check"]) for item in items]
        result[name] = accuracy(model, tokenizer, examples)
    return result


@torch.no_grad()
def accuracy(model, tokenizer, examples: list[Exercise]) -> float:
    from raft.evaluate.checks import score

    model.eval()
    prompts = [
        tokenizer(f"<|user|>{example.question}<|end|><|assistant|>", add_special_tokens=False).input_ids
        for example in examples
    ]
    inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=40, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    model.train()
    texts = tokenizer.batch_decode(out, skip_special_tokens=True)
    right = [score(example.check, text.strip()) for example, text in zip(examples, texts, strict=True)]
    return sum(right) / len(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.seed)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.2f}M parameters, {len(tokenizer)} tokens")

    def save(model) -> None:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)

    start = time.monotonic()
    train(model, tokenizer, steps=args.steps, batch_size=args.batch_size, lr=args.lr, seed=args.seed, save=save)
    hours = (time.monotonic() - start) / 3600
    model.to(torch.bfloat16).to(torch.float32)  # scored in the saved precision
    by_skill, by_domain = scores(model, tokenizer), domain_scores(model, tokenizer)
    save(model)
    record = {
        "command": f"python -m studies.microworld.pretrain --steps {args.steps} --batch-size {args.batch_size} "
        f"--lr {args.lr} --seed {args.seed}",
        "seed": args.seed,
        "parameters": parameters,
        "examples": args.steps * args.batch_size,
        "hours": round(hours, 2),
        "mixture": MIXTURE,
        "scores": by_skill,
        "unknown_domains": by_domain,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(by_skill, indent=2))


if __name__ == "__main__":
    main()
