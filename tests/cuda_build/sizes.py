#!/usr/bin/env python3
"""Write the config.json of the presets' models at their full size, and print the size of their weights as JSON.

The sizes are those that the models' authors publish; the weights are counted on torch's meta device, which holds none.
Runs in vLLM's environment. With the configs, vLLM's own code resolves the presets without a file of the hub.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers


def gemma_3n_e4b() -> Any:
    return transformers.Gemma3nConfig()  # transformers' own defaults


def gemma_3n_e2b() -> Any:
    layers = {"num_hidden_layers": 30, "num_kv_shared_layers": 10, "intermediate_size": 8192}
    pattern = (["sliding_attention"] * 4 + ["full_attention"]) * 6
    sparse = [0.95] * 10 + [0.0] * 20
    text = {"hidden_size": 2048, "layer_types": pattern, "activation_sparsity_pattern": sparse, **layers}
    return transformers.Gemma3nConfig(text_config=text)


def gemma_4_e4b() -> Any:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    layers = {"num_hidden_layers": 42, "num_kv_shared_layers": 18, "intermediate_size": 10240}
    text = transformers.Gemma4TextConfig(hidden_size=2560, **heads, **layers)
    towers = {"vision_config": transformers.Gemma4VisionConfig(), "audio_config": transformers.Gemma4AudioConfig()}
    config = transformers.Gemma4Config(text_config=text, **towers)
    config.vision_config.default_output_length = 280
    return config


def qwen3_vl_4b() -> Any:
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    text = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "vocab_size": 151936, **heads}
    width = {"hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2560, "num_heads": 16}
    vision = {"depth": 24, "deepstack_visual_indexes": [5, 11, 17], **width}
    return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


MODELS = {
    "google/gemma-3n-E4B-it": (gemma_3n_e4b, "Gemma3nForConditionalGeneration"),
    "google/gemma-3n-E2B-it": (gemma_3n_e2b, "Gemma3nForConditionalGeneration"),
    "google/gemma-4-E4B-it": (gemma_4_e4b, "Gemma4ForConditionalGeneration"),
    "Qwen/Qwen3-VL-4B-Instruct": (qwen3_vl_4b, "Qwen3VLForConditionalGeneration"),
}


def main() -> int:
    """Write a folder for each model, by the last part of its name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    sizes = {}
    for name, (make, architecture) in MODELS.items():
        config = make()
        config.architectures, config.dtype = [architecture], "bfloat16"
        config.save_pretrained(arguments.folder / name.rpartition("/")[2])
        with torch.device("meta"):
            model = getattr(transformers, architecture)(config)
        parts = [(part, 2 * weight.numel() / 2**30) for part, weight in model.named_parameters()]
        audio = sum(gib for part, gib in parts if "audio" in part)
        sizes[name] = {"weights_gib": sum(gib for _, gib in parts), "audio_gib": audio}
    print(json.dumps(sizes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
