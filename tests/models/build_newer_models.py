#!/usr/bin/env python3
"""Build tiny checkpoints of Gemma 4 and Qwen3-VL with random weights, for the presets of the same names.

As in google/gemma-4-E4B-it and Qwen/Qwen3-VL-4B-Instruct: the kinds of layers, the special tokens' names, the patches
and so the image tokens. Smaller: vocabulary, layers, widths. A byte-pair tokenizer of Gemma's make serves both.

Runs in vLLM's environment with timm, torchvision and this repository beside it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers as hf
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4.video_processing_gemma4 import Gemma4VideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from tests.models.build_gemma3n import BOS, EOS, MAX_POSITIONS, PAD, UNKNOWN, pieces_of, with_template

VOCABULARY = 1024

GEMMA_4 = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "sot_token": "<|turn>",
    "eot_token": "<turn|>",
    "video_token": "<|video|>",
}
QWEN3_VL = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "sot_token": "<|im_start|>",
    "eot_token": "<|im_end|>",
}
# The conversation format of each: turns between markers, media where the content has them.
TEMPLATE = """{%- for turn in messages -%}
    {{- SOT ~ turn.role ~ "\\n" -}}
    {%- if turn.content is string -%}
        {{- turn.content -}}
    {%- else -%}
        {%- for item in turn.content -%}
            {%- if item.type == "text" -%}{{- item.text -}}{%- else -%}{{- IMAGE -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- EOT ~ "\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- SOT ~ ROLE ~ "\\n" -}}{%- endif -%}
"""


def tokenizer(corpus: Sequence[str], named: dict[str, str], image: str, role: str) -> hf.PreTrainedTokenizerFast:
    """A tokenizer with these special tokens, and the model's template."""
    made = pieces_of(corpus)
    made.add_special_tokens([PAD, EOS, BOS, UNKNOWN, *named.values()])
    template = TEMPLATE
    for name, value in (("SOT", named["sot_token"]), ("EOT", named["eot_token"]), ("IMAGE", image), ("ROLE", role)):
        template = template.replace(name, f'"{value}"')
    return with_template(made, named, template)


def specials(tokens: hf.PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids that each part of a configuration takes."""
    return {f"{name}_token_id": getattr(tokens, f"{name}_token_id") for name in ("bos", "pad", "eos")}


def gemma_4(corpus: Sequence[str]) -> tuple[hf.PreTrainedModel, hf.ProcessorMixin]:
    """Gemma 4: per-layer inputs, sliding and full attention, shared KV layers; its vision tower, its audio tower."""
    tokens = tokenizer(corpus, GEMMA_4, GEMMA_4["image_token"], "model")
    identify = tokens.convert_tokens_to_ids
    special = specials(tokens)
    text = hf.Gemma4TextConfig(
        vocab_size=VOCABULARY,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size=64,
        hidden_size_per_layer_input=16,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        global_head_dim=128,
        max_position_embeddings=MAX_POSITIONS,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        **special,
    )
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision = hf.Gemma4VisionConfig(
        hidden_size=64, intermediate_size=128, num_key_value_heads=2, head_dim=32, default_output_length=280, **layers
    )
    audio = hf.Gemma4AudioConfig(hidden_size=32, output_proj_dims=32, subsampling_conv_channels=[8, 4], **layers)
    ids = {f"{name}_id": identify(GEMMA_4[name]) for name in ("image_token", "video_token", "audio_token")}
    ids |= {f"{name}_id": identify(GEMMA_4[name]) for name in ("boi_token", "eoi_token", "boa_token")}
    config = hf.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        eoa_token_index=identify(GEMMA_4["eoa_token"]),
        **ids,
        **special,
    )
    processor = hf.Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessor(),
        tokens,
        Gemma4VideoProcessor(),
        chat_template=tokens.chat_template,
    )
    return hf.Gemma4ForConditionalGeneration(config), processor


def qwen3_vl(corpus: Sequence[str]) -> tuple[hf.PreTrainedModel, hf.ProcessorMixin]:
    """Qwen3-VL: M-RoPE, and features of several vision layers added to those of the language model."""
    image = QWEN3_VL["vision_start_token"] + QWEN3_VL["image_token"] + QWEN3_VL["vision_end_token"]
    tokens = tokenizer(corpus, QWEN3_VL, image, "assistant")
    identify = tokens.convert_tokens_to_ids
    special = specials(tokens)
    text = hf.Qwen3VLTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [12, 10, 10],
            "mrope_interleaved": True,
        },
        **special,
    )
    vision = hf.Qwen3VLVisionConfig(
        depth=3,
        hidden_size=64,
        intermediate_size=128,
        num_heads=2,
        out_hidden_size=64,
        deepstack_visual_indexes=[0, 1, 2],
    )
    config = hf.Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=identify(QWEN3_VL["image_token"]),
        video_token_id=identify(QWEN3_VL["video_token"]),
        vision_start_token_id=identify(QWEN3_VL["vision_start_token"]),
        vision_end_token_id=identify(QWEN3_VL["vision_end_token"]),
        tie_word_embeddings=True,
        **special,
    )
    pixels = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    processor = hf.Qwen3VLProcessor(
        Qwen2VLImageProcessor(**pixels, size={"shortest_edge": 65536, "longest_edge": 16777216}),
        tokens,
        Qwen3VLVideoProcessor(**pixels),
        chat_template=tokens.chat_template,
    )
    return hf.Qwen3VLForConditionalGeneration(config), processor


BUILDERS: dict[str, Callable[[Sequence[str]], tuple[hf.PreTrainedModel, hf.ProcessorMixin]]] = {
    "gemma-4-e4b": gemma_4,
    "qwen3-vl-4b": qwen3_vl,
}


def main() -> int:
    """Build the checkpoint that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=BUILDERS)
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("corpus", type=Path, nargs="+", help="text files that the tokenizer learns its pieces from")
    arguments = parser.parse_args()
    partial = arguments.output.with_name(f"{arguments.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    torch.manual_seed(0)
    corpus = [line for path in arguments.corpus for line in path.read_text().splitlines()]
    model, processor = BUILDERS[arguments.preset](corpus)
    model.to(torch.bfloat16).save_pretrained(partial)
    processor.save_pretrained(partial)
    partial.rename(arguments.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
