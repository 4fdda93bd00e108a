"""Checkpoints on disk: checked by their files alone, in milliseconds and without torch, and then loaded.

A checkpoint is a folder in Hugging Face's format: config.json, weights in safetensors files, tokenizer, chat template.
"""

import copy
import json
import logging
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json")
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt", "consolidated.00.pth")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")

logger = logging.getLogger(__name__)


def check_model(path: str | os.PathLike[str]) -> str:
    """`path` as text, after checking that the folder is a complete checkpoint with a chat template; else ModelError.

    A name that is no folder is taken for a model on the Hub. It is refused where it looks like a path on this machine,
    and where HF_HUB_OFFLINE is set and the Hub's cache does not hold the model.
    """
    try:
        return _check_model(path)
    except (OSError, RuntimeError) as error:  # a name that is too long, files without read permission, ~ without a home
        raise ModelError(f"{path}: cannot be read as the folder of a checkpoint: {one_line(error)}") from error


def _check_model(path: str | os.PathLike[str]) -> str:
    folder = Path(path).expanduser()
    if not folder.exists():
        return _check_hub_name(str(path))
    if not folder.is_dir():
        raise ModelError(f"{path}: expected the folder of a checkpoint, found a file")
    _check_config(folder)
    check_weights(folder)
    _check_tokenizer(folder)
    return str(folder)


def check_top_k(path: str | os.PathLike[str], top_k: int) -> None:
    """Raises ConfigError where K exceeds the vocabulary by config.json, if that file is on this machine already."""
    folder = Path(path).expanduser()
    file = folder / "config.json"
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(str(path), "config.json")
        if not isinstance(cached, str):
            return
        file = Path(cached)
    config = _json(file, str(path))
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if isinstance(size, int) and top_k > size:
        raise ConfigError(f"train.top_k: expected at most {size}, the vocabulary of {path}, found {top_k}")


def load_tokenizer(path: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint; ModelError where it has no chat template."""
    from transformers import AutoTokenizer

    path = check_model(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{path}: the tokenizer cannot be loaded: {one_line(error)}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"{path}: the tokenizer has no chat template, expected an instruction model")
    return tokenizer


def load_model(path: str | os.PathLike[str], dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """The causal language model of a checkpoint, from safetensors alone. dtype: None for that of config.json."""
    from transformers import AutoModelForCausalLM

    path = check_model(path)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelError(f"{path}: the model cannot be loaded: {one_line(error)}") from error
    if info["missing_keys"]:
        # transformers would train on with random numbers in their place
        names = sorted(info["missing_keys"])
        raise ModelError(f"{path}: the weights lack {len(names)} tensors that the model needs, the first is {names[0]}")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config = _savable(model.generation_config, path)
    return model


def _savable(generation: "GenerationConfig", path: str) -> "GenerationConfig":
    """`generation`, or a corrected copy: transformers loads configurations that it later refuses to save."""
    try:
        generation.validate(strict=True)
        return generation
    except ValueError:
        mended = copy.deepcopy(generation)
    if mended.do_sample is None:  # older checkpoints set temperature or top_p without do_sample, and mean to sample
        mended.do_sample = True
    elif not mended.do_sample:
        for flag in SAMPLING:
            setattr(mended, flag, None)
    try:
        mended.validate(strict=True)
    except ValueError as error:
        raise ModelError(
            f"{path}: transformers would not save its generation_config.json again, mend it there: {one_line(error)}"
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
    if parent != Path() and parent.is_dir():  # a mistyped path; asking the Hub for it would take most of a minute
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
                f"{folder}: has no config.json but is a LoRA adapter, expected a checkpoint; "
                "merge it into its base first"
            )
        raise ModelError(f"{folder}: has no config.json, expected a Hugging Face checkpoint")
    if not _json(folder / "config.json", str(folder)).get("model_type"):
        raise ModelError(
            f'{folder}: config.json has no "model_type", expected the configuration of a Hugging Face checkpoint'
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a checkpoint names, sorted; ModelError where it names none."""
    if (folder / "model.safetensors").is_file():  # before an index that an earlier save has left, as transformers does
        return [folder / "model.safetensors"]
    index = folder / INDEX
    if index.is_file():
        weight_map = _json(index, str(folder)).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f'{folder}: {index.name} has no "weight_map", expected the file of every tensor')
        return [folder / shard for shard in sorted(set(map(str, weight_map.values())))]
    pickled = [name for name in PICKLES if (folder / name).is_file()]
    found = f"{pickled[0]}, which is not loaded because pickles can run code; convert it" if pickled else "no weights"
    raise ModelError(f"{folder}: expected weights in model.safetensors (or its index with shards), found {found}")


def check_weights(folder: Path) -> None:
    """ModelError where a file of the weights is missing or cut short."""
    for file in weight_files(folder):
        if not file.is_file():
            raise ModelError(f"{folder}: {INDEX} names {file.name}, which is missing")
        problem = _safetensors_problem(file)
        if problem:
            raise ModelError(f"{folder}: {file.name} is no whole safetensors file: {problem}")


def _safetensors_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file by its header and size, as after a download cut short; None if nothing."""
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
            f"{folder}: has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), "
            "expected an instruction model"
        )


def _json(path: Path, place: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{place}: {path.name} is not readable JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{place}: {path.name} holds no JSON object")
    return value


def one_line(error: Exception) -> str:
    """The message of an error on one line of at most 300 characters; the name of its class where it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
