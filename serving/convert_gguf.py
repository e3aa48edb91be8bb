"""Run inside the vLLM environment: turn a GGUF file into a folder of safetensors that vLLM loads.
`convert_gguf.py GGUF FOLDER`; a line a step.

vLLM reads GGUF only by way of another library; a plain bfloat16 model it reads everywhere. Needs `accelerate`
and `gguf` beside transformers, and no torchvision (its builds for other devices fail at import). Knows
nothing of the rest of the product, which is not installed here.
"""

import functools
import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """The weights are dequantized to bfloat16. Every trace of quantization must go, or saving refuses."""
    import gguf as gguf_library
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Tokenizer, configuration and weights are read one after the other, each time with the whole vocabulary,
    # and the names of tensors are made anew for each module: together half of all that this takes.
    gguf_library.GGUFReader = functools.cache(gguf_library.GGUFReader)
    gguf_library.get_tensor_name_map = functools.cache(gguf_library.get_tensor_name_map)
    print("reading the GGUF file", flush=True)
    where, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    print("writing safetensors", flush=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
