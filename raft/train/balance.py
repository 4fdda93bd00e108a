"""lambda, the weight of L_KL: the ratio of two moving averages, one for each loss (Eqs. 11-12 of the paper).

    m_k    = beta * m_k + (1 - beta) * x_k            k in {SFT, KL}, updated once per optimizer step s
    mhat_k = m_k / (1 - beta**s)
    lambda = mhat_SFT / (mhat_KL + eps)

balance: ema, as in the paper: x_k is the loss L_k.
balance: gradient: x_k is ||dL_k / dh||_2, the norm of the gradient of the loss with respect to the hidden states h that
enter the head, one for each predicted token ([M, H] for the answers, [N, H] for the rollouts). L_SFT and lambda * L_KL
then have gradients of equal norm at h. Equal losses can have gradients of very different norm.

Gradient accumulation: the lambda of a micro-batch of step s follows from the averages of step s - 1, updated with x_k
over the micro-batches of step s so far, including this one. For a loss x_k is their mean; for a gradient it is the
estimate `mean_norm`. `commit` keeps the update that used the whole step. With one micro-batch per step this is exactly
Eqs. 11-12. The caller passes numbers that are already reduced over all ranks.

A step without rollout tokens has no L_KL. It changes neither average nor lambda and is not counted in s. The same holds
for a step with a number that is not finite. All values stay on the device, so that no step waits for them.
"""

from typing import TypedDict

import torch
from torch import Tensor

# As it is in a checkpoint: m_SFT, m_KL and s of Eqs. 11-12, and the last lambda, a word that cannot name a field.
BalanceState = TypedDict("BalanceState", {"sft": float, "kl": float, "steps": float, "lambda": float})


class Balance:
    """lambda by Eqs. 11-12 within optional bounds, or a constant (`fixed`)."""

    def __init__(
        self,
        beta: float = 0.9,
        eps: float = 1e-8,
        *,
        lambda_min: float | None = None,
        lambda_max: float | None = None,
        fixed: float | None = None,
    ):
        self.beta, self.eps, self.fixed = beta, eps, fixed
        self.lambda_min, self.lambda_max = lambda_min, lambda_max
        self._state = torch.zeros(3, dtype=torch.float64)  # m_SFT, m_KL, s
        self._lambda = torch.tensor(0.0 if fixed is None else fixed, dtype=torch.float64)
        self._next = self._state

    def weigh(self, sft: Tensor | float, kl: Tensor | float) -> Tensor:
        """lambda for a micro-batch: a float64 scalar without gradient.

        sft, kl: x_k over the current step so far, this micro-batch included. If either is not finite, lambda keeps its
        last value; `kl` is 0 / 0 as long as the step has no rollout token.
        """
        if self.fixed is not None:
            return self._lambda
        seen = torch.stack([torch.as_tensor(x, dtype=torch.float64).detach() for x in (sft, kl)])
        seen = seen.clamp(min=0)  # rounding can make a divergence of 0 negative, and so lambda
        state = self._state.to(seen.device)
        average = self.beta * state[:2] + (1 - self.beta) * seen
        step = state[2] + 1
        corrected = average / (1 - self.beta**step)
        weight = corrected[0] / (corrected[1] + self.eps)
        if self.lambda_min is not None or self.lambda_max is not None:
            weight = torch.clamp(weight, self.lambda_min, self.lambda_max)
        usable = torch.isfinite(seen).all()
        self._next = torch.where(usable, torch.cat((average, step[None])), state)
        self._lambda = torch.where(usable, weight, self._lambda.to(seen.device))
        return self._lambda

    def commit(self) -> None:
        """Ends an optimizer step: keeps its update of the averages."""
        self._state = self._next

    def state_dict(self) -> BalanceState:
        sft, kl, steps = self._state.tolist()
        return {"sft": sft, "kl": kl, "steps": steps, "lambda": self._lambda.item()}

    def load_state_dict(self, state: BalanceState) -> None:
        self._state = torch.tensor([state["sft"], state["kl"], state["steps"]], dtype=torch.float64)
        self._next = self._state
        if self.fixed is None:
            self._lambda = torch.tensor(state["lambda"], dtype=torch.float64)


def mean_norm(
    squares: Tensor,  # squared norm of the gradient of the summed loss, over the micro-batches so far
    seen: Tensor,  # terms of this sum: tokens or rollouts
    count: Tensor | int,  # terms of the whole step
) -> Tensor:
    """Norm of the gradient of the step's mean loss, estimated from its micro-batches so far; exact after the last one.

    Each predicted token has its own hidden state, so squared norms add up. That of the whole step is about
    squares * count / seen; division by count**2 turns the gradient of the sum into that of the mean.
    """
    return (squares / (seen * count)).sqrt()
