"""Makes PEFT adapters of random numbers, the same for the same seed, without any package: adapters-load, bench-peers and the
client tests take them where what an adapter says does not matter, only that it says something of its own."""

import json
import pathlib
import random

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
ALL = (*ATTENTION, *MLP)

# The upper byte of a float of either sign: numbers from 2^-7 to 2^-5, and from 2^-5 to 2^-3.
SMALL, MIDDLE = (0x3C, 0xBC), (0x3D, 0xBD)

WIDTHS = {"F32": 4, "BF16": 2}


def shape_of(config):
    """(hidden, q, kv, inner, layers) of a model by its config.json, or what has the same members."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head = config.get("head_dim") or hidden // heads
    return hidden, heads * head, config["num_key_value_heads"] * head, config["intermediate_size"], config["num_hidden_layers"]


def linears(shape):
    """(inputs, outputs) of every linear layer of a llama."""
    hidden, q, kv, inner, _ = shape
    of_attention = {"q_proj": (hidden, q), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (q, hidden)}
    return of_attention | {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}


def numbers(source, count, dtype, upper):
    """`count` numbers as little-endian bytes: random but for sign and exponent, which `upper` bounds."""
    width = WIDTHS[dtype]
    data = bytearray(source.randbytes(count * width))
    signs = bytes(upper[byte & 1] for byte in range(256))
    data[width - 1 :: width] = data[width - 1 :: width].translate(signs)
    return bytes(data)


def tensors(shape, seed, rank, targets, dtype, upper):
    """(name, [rows, columns], bytes) of every factor."""
    source = random.Random(seed)
    for layer in range(shape[-1]):
        for target in targets:
            inputs, outputs = linears(shape)[target]
            block = "self_attn" if target in ATTENTION else "mlp"
            for factor, dims in (("lora_A", [rank, inputs]), ("lora_B", [outputs, rank])):
                name = f"base_model.model.model.layers.{layer}.{block}.{target}.{factor}.weight"
                yield name, dims, numbers(source, dims[0] * dims[1], dtype, upper)


def write(directory, shape, seed, rank=8, targets=ALL, dtype="F32", upper=SMALL, alpha=None):
    """Makes the PEFT directory; returns its path."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    header, offset, chunks = {}, 0, []
    for name, dims, data in tensors(shape, seed, rank, targets, dtype, upper):
        header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        chunks.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(directory / WEIGHTS, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(chunks)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha or rank}
    config |= {"target_modules": list(targets), "bias": "none", "lora_dropout": 0.0, "base_model_name_or_path": "base"}
    (directory / CONFIG).write_text(json.dumps(config))
    return directory
