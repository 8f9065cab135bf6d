"""Makes the model files that scripts/bench-peers measures, out of the default GGUF: SmolLM2 as a Hugging Face directory
and in other quantisations, and the shape of a 1B llama with random weights. bench-peers runs it with the Python of its
tools folder (numpy, gguf, tokenizers); what is already there is not made again.

usage: models.py FOLDER DEFAULT_GGUF LLAMA_QUANTIZE FAMILY...      (families: smollm2, random-1b)
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import gguf
import numpy as np

# GGUF's tensor names of a llama layer, and Hugging Face's.
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}

# What Hugging Face's config.json calls the dimensions; those of the 1B shape are Llama 3.2 1B's.
RANDOM_1B = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
}


class Source:
    """The default GGUF: its shape, tokenizer and tensors."""

    def __init__(self, path):
        self.reader = gguf.GGUFReader(path)
        self.tokens = self.field("tokenizer.ggml.tokens")
        self.types = self.field("tokenizer.ggml.token_type")
        self.merges = self.field("tokenizer.ggml.merges")
        self.template = self.field("tokenizer.chat_template")
        self.shape = {
            "hidden_size": self.field("llama.embedding_length"),
            "num_hidden_layers": self.field("llama.block_count"),
            "num_attention_heads": self.field("llama.attention.head_count"),
            "num_key_value_heads": self.field("llama.attention.head_count_kv"),
            "intermediate_size": self.field("llama.feed_forward_length"),
            "vocab_size": len(self.tokens),
            "rope_theta": self.field("llama.rope.freq_base"),
            "max_position_embeddings": self.field("llama.context_length"),
            "rms_norm_eps": self.field("llama.attention.layer_norm_rms_epsilon"),
        }

    def field(self, name):
        return self.reader.fields[name].contents()

    def tensors(self):
        """(Hugging Face name, float32 array) of every tensor."""
        heads = {"attn_q": self.shape["num_attention_heads"], "attn_k": self.shape["num_key_value_heads"]}
        for tensor in self.reader.tensors:
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
            if part in heads:
                values = rows_of_hugging_face(values, heads[part])
            yield hugging_face_name(tensor.name), values


def hugging_face_name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


# The rows of a head of q and k: Hugging Face's files have its two halves one after the other, GGUF's in turns.


def rows_of_hugging_face(values, heads):
    return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def rows_of_gguf(values, heads):
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def bfloat16(values):
    """The bits of `values` in bfloat16, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path, tensors):
    """`tensors`: (name, bfloat16 bits) pairs. numpy has no bfloat16, so the format, a JSON header, is written by hand."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, bits in tensors:
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, bits in tensors:
            bits.tofile(file)


def write_tokenizer(folder, source):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: place for place, token in enumerate(source.tokens)}
    merges = [tuple(merge.split(" ")) for merge in source.merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(source.tokens, source.types) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(f"{folder}/tokenizer.json")
    names = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, "add_prefix_space": False}
    settings |= {"clean_up_tokenization_spaces": False, "add_bos_token": False, "chat_template": source.template}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))


def write_directory(folder, shape, tensors, source):
    """A Hugging Face directory; named only when it is whole."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    fixed = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}
    fixed |= {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    fixed |= {"head_dim": shape["hidden_size"] // shape["num_attention_heads"], "rope_scaling": None}
    (part / "config.json").write_text(json.dumps(fixed | ids | shape, indent=1))
    (part / "generation_config.json").write_text(json.dumps(ids))
    write_safetensors(part / "model.safetensors", tensors)
    write_tokenizer(part, source)
    part.rename(folder)


def write_gguf(path, shape, tensors, source):
    """A GGUF file in BF16 of (Hugging Face name, bfloat16 bits) pairs, for llama-quantize to take."""
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_rope_dimension_count(shape["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    write_gguf_tokenizer(writer, shape["vocab_size"], source)
    back = {there: here for here, there in LAYER_NAMES.items()}
    for name, bits in tensors:
        if name.endswith("embed_tokens.weight"):
            here = "token_embd.weight"
        elif name == "model.norm.weight":
            here = "output_norm.weight"
        else:
            layer, part = name.split(".", 3)[2:]
            here = f"blk.{layer}.{back[part.removesuffix('.weight')]}.weight"
        if bits.ndim == 1:
            writer.add_tensor(here, (bits.astype(np.uint32) << 16).view(np.float32))
            continue
        if ".attn_q." in here or ".attn_k." in here:
            bits = np.ascontiguousarray(rows_of_gguf(bits, heads if ".attn_q." in here else kv_heads))
        raw = bits.view(np.uint8).reshape(bits.shape[0], -1)
        writer.add_tensor(here, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf_tokenizer(writer, vocabulary, source):
    spare = vocabulary - len(source.tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(source.tokens) + [f"[PAD{place}]" for place in range(len(source.tokens), vocabulary)])
    writer.add_token_types(list(source.types) + [gguf.TokenType.UNUSED] * spare)
    writer.add_token_merges(source.merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(source.template)


def random_tensors(source):
    """(name, bfloat16 bits) of the 1B shape, the same at every call."""
    shape, generator = RANDOM_1B, np.random.default_rng(0)
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    kv = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]

    def normal(rows, columns):
        return generator.standard_normal((rows, columns), np.float32) * np.float32(0.02)

    # Greedy answers must be text that a stream shows token by token: tokens of plain letters keep their full scale.
    scale = np.full((shape["vocab_size"], 1), 0.25, np.float32)
    for place, token in enumerate(source.tokens):
        word = token.replace("\u0120", " ")
        letters = all(sign == " " or (sign.isascii() and sign.isalpha()) for sign in word)
        if source.types[place] == gguf.TokenType.NORMAL and len(word) > 1 and letters:
            scale[place] = 1.0
    ones = np.ones(hidden, np.float32)
    yield "model.embed_tokens.weight", bfloat16(normal(shape["vocab_size"], hidden) * scale)
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", bfloat16(ones)
        for name, rows, columns in (("q", hidden, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, hidden)):
            yield f"{prefix}self_attn.{name}_proj.weight", bfloat16(normal(rows, columns))
        yield prefix + "post_attention_layernorm.weight", bfloat16(ones)
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            yield f"{prefix}mlp.{name}_proj.weight", bfloat16(normal(rows, columns))
    yield "model.norm.weight", bfloat16(ones)


def quantise(quantize, origin, target, kind):
    part = target.with_name(target.name + ".part")
    command = [quantize, "--allow-requantize", origin, part, kind, str(os.cpu_count())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=1800)
    part.rename(target)
    print(f"made {target.name}", file=sys.stderr)


def make_smollm2(folder, default, quantize, source):
    directory = folder / "SmolLM2-135M-hf"
    if not directory.exists():
        write_directory(
            directory, source.shape, [(name, bfloat16(values)) for name, values in source.tensors()], source
        )
        print(f"made {directory.name}", file=sys.stderr)
    for kind in ("Q8_0", "Q4_0"):
        target = folder / f"SmolLM2-135M.{kind}.gguf"
        if not target.exists():
            quantise(quantize, default, target, kind)


def make_random_1b(folder, _default, quantize, source):
    directory = folder / "random-llama-1B-hf"
    missing = [kind for kind in ("Q8_0", "Q4_0") if not (folder / f"random-llama-1B.{kind}.gguf").exists()]
    if directory.exists() and not missing:
        return
    tensors = list(random_tensors(source))
    if not directory.exists():
        write_directory(directory, RANDOM_1B, tensors, source)
        print(f"made {directory.name}", file=sys.stderr)
    if missing:
        origin = folder / "random-llama-1B.BF16.part.gguf"
        write_gguf(origin, RANDOM_1B, tensors, source)
        for kind in missing:
            quantise(quantize, origin, folder / f"random-llama-1B.{kind}.gguf", kind)
        origin.unlink()


FAMILIES = {"smollm2": make_smollm2, "random-1b": make_random_1b}


def main():
    folder, default, quantize, *families = sys.argv[1:]
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = Source(default)
    for family in families:
        FAMILIES[family](folder, pathlib.Path(default), quantize, source)


if __name__ == "__main__":
    main()
