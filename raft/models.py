"""Models on disk: what a checkpoint must have is checked from its files, in milliseconds, before torch is imported to load it."""

import copy
import json
import logging
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt", "consolidated.00.pth")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")

logger = logging.getLogger(__name__)


def check_model(path: str | os.PathLike[str]) -> str:
    """Checks that a local folder holds config, safetensors weights, tokenizer and chat template; gives `path` back as text.

    A name that is no folder is left to the Hub, unless it looks like a path here, or HF_HUB_OFFLINE is set and the
    cache does not have it.
    """
    try:
        return _check_model(path)
    except (OSError, RuntimeError) as error:  # a name too long, files that may not be read, ~ without a home
        raise ModelError(f"{path}: cannot be read as the folder of a checkpoint: {_one_line(error)}") from error


def _check_model(path: str | os.PathLike[str]) -> str:
    folder = Path(path).expanduser()
    if not folder.exists():
        return _check_hub_name(str(path))
    if not folder.is_dir():
        raise ModelError(f"{path}: expected the folder of a checkpoint, found a file")
    _check_config(folder)
    _check_weights(folder)
    _check_tokenizer(folder)
    return str(folder)


def vocab_size(path: str | os.PathLike[str]) -> int | None:
    """The vocabulary's size as config.json states it; None where there is no such file yet (a name on the Hub)."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        file: Any = folder / "config.json"
    else:
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(str(path), "config.json")
        if not isinstance(file, str):
            return None
    config = _json(Path(file), str(path))
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return size if isinstance(size, int) else None


def check_top_k(path: str | os.PathLike[str], top_k: int) -> None:
    """Refuses a K that no token distribution of this model has."""
    size = vocab_size(path)
    if size is not None and top_k > size:
        raise ConfigError(f"train.top_k: expected at most {size}, the vocabulary of {path}, found {top_k}")


def load_tokenizer(path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint, with its chat template."""
    from transformers import AutoTokenizer

    path = check_model(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"{path}: the tokenizer cannot be loaded: {_one_line(error)}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"{path}: the tokenizer has no chat template, expected an instruction model")
    return tokenizer


def load_model(
    path: str | os.PathLike[str], dtype: Any = None, *, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """The causal language model of a checkpoint, from safetensors only. `dtype` None: the one that the checkpoint states."""
    from transformers import AutoModelForCausalLM

    path = check_model(path)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelError(f"{path}: the model cannot be loaded: {_one_line(error)}") from error
    if info["missing_keys"]:
        # transformers would go on with random numbers in their place
        names = sorted(info["missing_keys"])
        raise ModelError(f"{path}: the weights lack {len(names)} tensors that the model needs, the first is {names[0]}")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config = _savable(model.generation_config, path)
    return model


def _savable(generation: Any, path: str) -> Any:
    """The generation configuration, or a mended copy of it: transformers loads some that it then refuses to save."""
    try:
        generation.validate(strict=True)
        return generation
    except ValueError:
        mended = copy.deepcopy(generation)
    if mended.do_sample is None:  # older checkpoints have flags of sampling alone, and mean it
        mended.do_sample = True
    elif not mended.do_sample:
        for flag in SAMPLING:
            setattr(mended, flag, None)
    try:
        mended.validate(strict=True)
    except ValueError as error:
        raise ModelError(
            f"{path}: transformers would not save its generation_config.json again, mend it there: {_one_line(error)}"
        ) from error
    logger.info("%s: do_sample of its generation_config.json did not go with its flags of sampling: mended", path)
    return mended


def _check_hub_name(name: str) -> str:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    expected = "expected a checkpoint with config.json, safetensors weights and tokenizer"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModelError(f"{name}: no such folder, {expected}") from error
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return name
    parent = Path(name).parent
    if parent != Path() and parent.is_dir():  # a slip in a path, for which the Hub would be asked for most of a minute
        raise ModelError(f"{name}: no such folder in {parent}, {expected}")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ModelError(
            f"{name}: no such folder, and not in the cache of the Hub, which HF_HUB_OFFLINE keeps from downloading it"
        )
    return name


def _check_config(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder}: has no config.json but is a LoRA adapter, expected a checkpoint; merge it into its base first"
            )
        raise ModelError(f"{folder}: has no config.json, expected a Hugging Face checkpoint")
    if not _json(folder / "config.json", str(folder)).get("model_type"):
        raise ModelError(
            f'{folder}: config.json has no "model_type", expected the configuration of a Hugging Face checkpoint'
        )


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _json(index, str(folder)).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f'{folder}: {index.name} has no "weight_map", expected the file of every tensor')
        shards = sorted(set(map(str, weight_map.values())))
    elif (folder / "model.safetensors").is_file():
        shards = ["model.safetensors"]
    else:
        pickled = [name for name in PICKLES if (folder / name).is_file()]
        found = (
            f"{pickled[0]}, which is not loaded because pickles can run code; convert it" if pickled else "no weights"
        )
        raise ModelError(f"{folder}: expected weights in model.safetensors (or its index with shards), found {found}")
    for shard in shards:
        if not (folder / shard).is_file():
            raise ModelError(f"{folder}: {index.name} names {shard}, which is missing")
        problem = _safetensors_problem(folder / shard)
        if problem:
            raise ModelError(f"{folder}: {shard} is no whole safetensors file: {problem}")


def _safetensors_problem(path: Path) -> str | None:
    """What is wrong with a file's header or length; reads the header only. A download cut short is found here."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, 100_000_000):
            return f"it has {size} bytes and no header"
        try:
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "its header is not readable"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"expected {expected} bytes, found {size}"


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ModelError(f"{folder}: has no tokenizer, expected tokenizer.json (or tokenizer.model, vocab.json)")
    if any((folder / name).is_file() for name in TEMPLATES):
        return
    config = folder / "tokenizer_config.json"
    if not config.is_file() or not _json(config, str(folder)).get("chat_template"):
        raise ModelError(
            f"{folder}: has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), expected an instruction model"
        )


def _json(path: Path, place: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{place}: {path.name} is not readable JSON: {_one_line(error)}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{place}: {path.name} holds no JSON object")
    return value


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
