"""The weight of L_KL: moving averages of one number of each loss, and their ratio (Eqs. 11-12 of the paper).

    m_k    = beta * m_k + (1 - beta) * x_k            k in {SFT, KL}, once an optimizer step s
    mhat_k = m_k / (1 - beta**s)
    lambda = mhat_SFT / (mhat_KL + eps)

x_k is the loss L_k in the paper (balance: ema). With balance: gradient it is ||dL_k / dh||_2, the norm of the loss's
gradient at the hidden states h that enter the head, one for each predicted token ([M, H] of the answers, [N, H] of
the rollouts): then the two parts of L_SFT + lambda * L_KL pull equally hard there, where equal losses may pull very
differently.

Gradient accumulation: micro-batch i of step s is weighted by what the averages of step s - 1 become with x_k of the
step as far as it was seen, itself included; `commit` then keeps the update with x_k of the whole step. Of a loss that
is the mean over what was seen. Of a gradient it is `mean_norm`, where the squares of what was seen stand for those of
the whole step. With one micro-batch a step this is Eqs. 11-12 to the letter. The caller passes numbers that are
already reduced over all ranks.

A step without any rollout token has no L_KL: it touches neither average, does not count in s, and lambda stays as it was.
The same holds for a step whose numbers are not finite. All values stay on the device, so no step waits for them.
"""

import torch
from torch import Tensor


class Balance:
    """lambda by Eqs. 11-12, within optional bounds, or a constant."""

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
        """lambda, a float64 scalar without gradient, for a micro-batch.

        sft, kl: x_k of what was seen of the current step, the micro-batch included. Without any rollout token so far
        that of L_KL is 0 / 0, and like anything that is not finite leaves lambda as it was.
        """
        if self.fixed is not None:
            return self._lambda
        seen = torch.stack([torch.as_tensor(x, dtype=torch.float64).detach() for x in (sft, kl)])
        seen = seen.clamp(min=0)  # rounding may put a divergence of 0 below it, and lambda would change its sign
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
        """Ends an optimizer step: its update of the averages stays."""
        self._state = self._next

    def state_dict(self) -> dict[str, float]:
        sft, kl, steps = self._state.tolist()
        return {"sft": sft, "kl": kl, "steps": steps, "lambda": self._lambda.item()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._state = torch.tensor([state["sft"], state["kl"], state["steps"]], dtype=torch.float64)
        self._next = self._state
        if self.fixed is None:
            self._lambda = torch.tensor(state["lambda"], dtype=torch.float64)


def mean_norm(
    squares: Tensor,  # squared norm of the gradient of the summed loss, over what was seen
    seen: Tensor,  # terms of the sum so far: tokens, or rollouts
    count: Tensor | int,  # terms of the whole step
) -> Tensor:
    """Norm of the gradient of the step's mean loss, estimated from what was seen of it; exact once all was seen.

    Each predicted token has a hidden state of its own, so squares add up, and those of the whole step are about
    squares * count / seen. Divided by count**2 they are those of the mean.
    """
    return (squares / (seen * count)).sqrt()
