"""Writes PEFT adapters of lora.py as GGUF, for llama-server. bench-peers runs it with the Python of its tools folder (gguf,
numpy).

usage: lora_gguf.py CONFIG_JSON (PEFT_DIRECTORY GGUF)...
"""

import json
import pathlib
import sys

import gguf
import numpy as np

import lora
from models import LAYER_NAMES, rows_of_gguf

NAMES = {there: here for here, there in LAYER_NAMES.items()}


def tensors(path):
    """(name, array) of a safetensors file in F32."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        yield name, np.frombuffer(data[begin:end], np.float32).reshape(entry["shape"])


def write(directory, path, heads):
    """`heads`: of queries and of keys, whose rows GGUF has in another order."""
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    alpha = json.loads((directory / lora.CONFIG).read_text())["lora_alpha"]
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    for name, values in tensors(directory / lora.WEIGHTS):
        layer, *block, factor, _ = name.removeprefix("base_model.model.model.layers.").split(".")
        here = NAMES[".".join(block)]
        if factor == "lora_B" and here in heads:
            values = np.ascontiguousarray(rows_of_gguf(values, heads[here]))
        writer.add_tensor(f"blk.{layer}.{here}.weight.{factor.lower()}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def main():
    config, *pairs = map(pathlib.Path, sys.argv[1:])
    config = json.loads(config.read_text())
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for directory, path in zip(pairs[::2], pairs[1::2], strict=True):
        write(directory, path, heads)


if __name__ == "__main__":
    main()
