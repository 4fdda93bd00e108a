"""The lines that a training prints before its first step."""

from collections.abc import Sequence

from raft.train.config import RAFTConfig
from raft.train.data import Example, Notes


def describe(
    args: RAFTConfig, answers: str, examples: Sequence[Example], notes: Notes | None, max_steps: int, engine: str
) -> list[str]:
    """Derived numbers, such as rows per step and tokens per step, one line each. answers: from `raft.train.targets`."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    prompt, target = (sum(len(getattr(e, name)) for e in examples) / len(examples) for name in ("prompt", "target"))
    tokens = batch * (prompt + target)
    lines = [
        (
            f"method {args.method} on {len(examples)} rows ({answers}), {max_steps} steps of {batch} rows "
            f"({args.per_device_train_batch_size} x {args.gradient_accumulation_steps} micro-batches "
            f"x {args.world_size} ranks)"
        )
    ]
    if args.preset.distills:
        most = tokens + batch * args.rollouts_per_prompt * (prompt + args.rollout_max_tokens)
        drawn = batch // args.world_size * args.rollouts_per_prompt * args.steps_per_refresh
        weight = (
            f"fixed at {args.fixed_lambda:g}"
            if args.fixed_lambda is not None
            else f"by moving averages of {_averaged(args)}, beta {args.ema_beta:g}"
        )
        lines += [
            (
                f"{drawn} rollouts of at most {args.rollout_max_tokens} tokens a rank and refresh, "
                f"a refresh every {args.steps_per_refresh} steps, from {engine}"
            ),
            (
                f"{tokens:.0f} tokens a step for the answers, {most:.0f} at most with rollouts; "
                f"K {args.top_k}, T {args.temperature:g}, lambda {weight}"
            ),
        ]
    else:
        lines.append(f"{tokens:.0f} tokens a step")
    return [f"raft: {line}" for line in [*lines, *(_noted(notes) if notes is not None else [])]]


def _noted(notes: Notes) -> list[str]:
    """How rendering changed the rows' texts."""
    lines = []
    if notes.cut_targets or notes.cut_references:
        lines.append(f"cut to fit: {notes.cut_targets} answers, {notes.cut_references} references of the teacher")
    if notes.ended:
        lines.append(f"{notes.ended} answers ended with an end token of their own, which was taken off")
    if notes.controls:
        lines.append(
            f"{notes.controls} rows have control tokens in their texts, which are trained as plain characters "
            f"(first {notes.controls_first})"
        )
    if notes.thoughts_dropped:
        lines.append(f"{notes.thoughts_dropped} rows have a thought that the chat template leaves out")
    if notes.inside_thought:
        lines.append(
            f"{notes.inside_thought} prompts end inside a thought, so rollouts begin with one, though the answers have "
            'none; where the template knows it, chat_template_kwargs {"enable_thinking": false} turns it off'
        )
    return lines


def _averaged(args: RAFTConfig) -> str:
    return "the gradients' norms" if args.balances_gradients else "the losses"
