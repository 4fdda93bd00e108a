"""One copy of the weights for a model under training and for vLLM: the parameters are views of vLLM's storage.

vLLM stores the q, k and v projections of a layer in one tensor, the rows of one below those of the other, and likewise
gate and up; it adds rows of padding at the end of the vocabulary. So every weight of a Hugging Face model is a
contiguous block of rows of one of vLLM's tensors, and the model's parameter can be a view of that block. Training then
writes into the memory that generation reads, and nothing has to be copied between them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from raft.errors import EngineError
from raft.models.adapters import base_model, has_adapters
from raft.models.checkpoint import named_weights

Load = Callable[[Mapping[str, Tensor]], None]
"""Writes tensors, by their names in a checkpoint, into the engine's storage."""


class CannotShare(Exception):
    """The model and the engine cannot use one copy of the weights; the message gives the reason."""


class SharedWeights:
    """The model's parameters are views of the engine's storage. A refresh only checks that they still are."""

    mode = "shared"

    def __init__(
        self,
        model: nn.Module,
        engine_model: nn.Module,
        load: Load,
        copies: Mapping[str, Tensor] | None = None,
    ):
        """Makes every parameter of `model` a view of its rows in `engine_model`, or raises CannotShare.

        This goes through the engine's parameters one at a time, so that no second copy of the model is in memory:
        `load` writes the model's numbers into the engine's storage by the engine's own rules, the rows are compared
        with them, and the model's parameters become views of the rows, which frees their old memory. The comparison
        finds an engine that stores rows in another order or form.
        copies: numbers of the parameters that have no memory (`OffGPU`), by name.
        """
        copies = copies or {}
        self._model, self._engine_model = model, engine_model
        parameters = named_weights(model)
        if sharded := [name for name, parameter in parameters.items() if hasattr(parameter, "full_tensor")]:
            raise CannotShare(f"{sharded[0]} is sharded")
        if buffers := _saved_buffers(model):
            raise CannotShare(f"{min(buffers)} is a buffer")
        slices = rows_of(engine_model, parameters)
        for name, rows in slices.items():
            if parameters[name].dtype != rows.dtype:
                raise CannotShare(f"{name} is {parameters[name].dtype}, the engine's is {rows.dtype}")
        moved: list[nn.Parameter] = []
        try:
            for names in _by_storage(slices):
                numbers = {name: copies.get(name, parameters[name].detach()) for name in names}
                load(numbers)
                _compare({name: slices[name] for name in names}, numbers)
                for name in names:
                    parameters[name].data = slices[name]
                    moved.append(parameters[name])
        except BaseException:
            _move_out(moved)
            raise
        self._homes = {name: parameter.data_ptr() for name, parameter in parameters.items()}
        self._adapted = has_adapters(model)
        self._engine_homes = _addresses(engine_model)

    def check_engine(self) -> None:
        """Raises CannotShare if the engine has since replaced its storage; the model then gets memory of its own."""
        now = _addresses(self._engine_model)
        if changed := [name for name, address in self._engine_homes.items() if now.get(name) != address]:
            _move_out(named_weights(self._model).values())
            raise CannotShare(f"the engine has repacked {changed[0]}")

    def refresh(self) -> None:
        """Raises EngineError where a parameter is no longer a view: the engine would generate with its old numbers."""
        now = {name: parameter.data_ptr() for name, parameter in named_weights(self._model).items()}
        if moved := [name for name, address in now.items() if address != self._homes.get(name)]:
            raise EngineError(
                f"{len(moved)} of {len(self._homes)} parameters no longer live in the engine's storage, the first is "
                f"{moved[0]!r}: something replaced them (param.data = ..., model.to(...), FSDP, DeepSpeed); "
                "build the engine after that, or with weights='copied'"
            )
        if not self._adapted and has_adapters(self._model):
            raise EngineError(
                "the model got LoRA adapters after this engine was built, which it does not see; build it anew"
            )


class OffGPU:
    """Frees the GPU memory of parameters and keeps their numbers on the CPU, in `copies`, until `restore`.

    The parameters keep their device and dtype: one that changed either would lose DDP's hooks, which reduce gradients.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], device_type: str = "cuda"):
        self.copies: dict[str, Tensor] = {}
        self._parameters = dict(parameters)
        users = Counter(parameter.untyped_storage().data_ptr() for parameter in parameters.values())
        for name, parameter in parameters.items():
            storage = parameter.untyped_storage()
            # A storage can belong to several parameters, and a larger one than the parameter to another engine.
            own = users[storage.data_ptr()] == 1 and storage.nbytes() == parameter.nbytes
            if own and parameter.device.type == device_type:
                self.copies[name] = parameter.detach().to("cpu", copy=True)
                storage.resize_(0)

    def restore(self) -> None:
        """Gives memory and numbers back to the parameters that are still without."""
        for name, copy in self.copies.items():
            parameter = self._parameters[name]
            if not parameter.untyped_storage().nbytes():
                parameter.untyped_storage().resize_(copy.nbytes)
                parameter.data.copy_(copy)


def rows_of(engine_model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each of `tensors` its rows in the engine's parameters, as views: name -> [rows, ...]. Raises CannotShare.

    It goes by names and shapes only, so the caller must compare the numbers.
    """
    fused: Mapping[str, list[str]] = getattr(engine_model, "packed_modules_mapping", {})
    slices: dict[str, Tensor] = {}
    for name, theirs in engine_model.named_parameters():
        *above, module, leaf = name.split(".")
        parts = [".".join([*above, part, leaf]) for part in fused.get(module, [module])]
        row = 0
        for part in parts:
            if part not in tensors:
                raise CannotShare(f"the engine's {name} has no counterpart {part} in the model")
            ours = tensors[part]
            if (
                ours.dim() != theirs.dim()
                or ours.shape[1:] != theirs.shape[1:]
                or row + ours.shape[0] > theirs.shape[0]
            ):
                raise CannotShare(
                    f"{part} {list(ours.shape)} does not fit into rows of the engine's {name} {list(theirs.shape)}"
                )
            slices[part] = theirs.data[row : row + ours.shape[0]]
            row += ours.shape[0]
        if row != theirs.shape[0] and not hasattr(
            engine_model.get_submodule(".".join([*above, module])), "num_embeddings_padded"
        ):
            raise CannotShare(f"the engine's {name} has {theirs.shape[0] - row} rows more than the model gives")
    # A tied head has two names and one storage.
    placed = {tensors[name].data_ptr() for name in slices} - {0}  # 0: its memory was freed (OffGPU)
    if missing := [name for name, t in tensors.items() if name not in slices and t.data_ptr() not in placed]:
        raise CannotShare(f"the engine has no parameter for {missing[0]}")
    return slices


def match(engine_model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`rows_of`, for an engine that has loaded `tensors` already. Raises CannotShare where its numbers differ."""
    slices = rows_of(engine_model, tensors)
    _compare(slices, tensors)
    return slices


def _compare(slices: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> None:
    for name, rows in slices.items():
        if not torch.equal(rows, numbers[name].to(rows)):
            raise CannotShare(f"the engine keeps {name} in another form")


def _move_out(parameters: Iterable[nn.Parameter]) -> None:
    """Gives each parameter memory of its own."""
    for parameter in parameters:
        parameter.data = parameter.data.clone()


def _by_storage(slices: Mapping[str, Tensor]) -> list[list[str]]:
    """The names, grouped by the engine's parameter that holds their rows."""
    groups: dict[int, list[str]] = {}
    for name, rows in slices.items():
        groups.setdefault(rows.untyped_storage().data_ptr(), []).append(name)
    return list(groups.values())


def _saved_buffers(model: nn.Module) -> set[str]:
    base = base_model(model)
    return base.state_dict(keep_vars=True).keys() - dict(base.named_parameters(remove_duplicate=False)).keys()


def _addresses(model: nn.Module) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
