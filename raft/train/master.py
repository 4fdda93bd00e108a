"""fp32 master weights for parameters in bf16.

AdamW changes a weight by about the learning rate, and bf16 has 8 significant bits. At the paper's learning rate of 5e-6
nearly every update of a bf16 weight would be lost by rounding. So the optimizer works on fp32 copies. After each step
their rounded values are copied into the parameters in place, so that an engine that shares the storage sees them.
"""

import torch
from torch import Tensor, nn
from torch.optim.optimizer import StateDict

KEY = "master_weights"


def keep_masters(optimizer: torch.optim.Optimizer) -> int:
    """Replaces the bf16 parameters in `optimizer` by fp32 copies, before its first step; returns their number.

    The copies are part of the optimizer's state_dict. Gradients are computed and clipped on the bf16 parameters.
    """
    parameters: list[nn.Parameter] = []
    masters: list[Tensor] = []
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            if parameter.dtype == torch.bfloat16:
                parameters.append(parameter)
                masters.append(parameter.detach().float())
                group["params"][i] = masters[-1]
    if not parameters:
        return 0

    def take_gradients(*_: object) -> None:
        for parameter, master in zip(parameters, masters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()

    @torch.no_grad()
    def write_back(*_: object) -> None:
        torch._foreach_copy_(tuple(parameters), tuple(masters))
        for master in masters:
            master.grad = None

    def save(_: torch.optim.Optimizer, state: StateDict) -> StateDict:
        return state | {KEY: masters}

    @torch.no_grad()
    def load(_: torch.optim.Optimizer, state: StateDict) -> StateDict:
        if KEY not in state:
            raise ValueError(
                f"the optimizer's saved state has no {KEY}: it was saved with parameters of another precision"
            )
        torch._foreach_copy_(masters, [saved.to(m.device) for saved, m in zip(state[KEY], masters, strict=True)])
        write_back()
        return {name: value for name, value in state.items() if name != KEY}

    optimizer.register_step_pre_hook(take_gradients)
    optimizer.register_step_post_hook(write_back)
    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load)
    return len(parameters)
