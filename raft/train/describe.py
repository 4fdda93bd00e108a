"""What a run says of itself before its first step."""

from collections.abc import Sequence

from raft.train.config import RAFTConfig
from raft.train.data import Cuts, Example


def describe(
    args: RAFTConfig, examples: Sequence[Example], cuts: Cuts | None, max_steps: int, engine: str
) -> list[str]:
    """The settings that follow from others, a line each."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    prompt, target = (sum(len(getattr(e, name)) for e in examples) / len(examples) for name in ("prompt", "target"))
    tokens = batch * (prompt + target)
    lines = [
        (
            f"method {args.method} on {len(examples)} rows ({args.answer_target} answers), {max_steps} steps of {batch} rows "
            f"({args.per_device_train_batch_size} x {args.gradient_accumulation_steps} micro-batches x {args.world_size} ranks)"
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
    if cuts is not None and (cuts.targets or cuts.references):
        lines.append(f"cut to fit: {cuts.targets} answers, {cuts.references} references of the teacher")
    return [f"raft: {line}" for line in lines]


def _averaged(args: RAFTConfig) -> str:
    return "the gradients' norms" if args.balances_gradients else "the losses"
