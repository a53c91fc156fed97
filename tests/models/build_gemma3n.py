#!/usr/bin/env python3
"""Build a checkpoint of the production architecture (Gemma-3n) that is tiny and knows nothing: random weights.

It lets the real server run the production presets, the chat template's rules and the image-token arithmetic on a CPU.
As in google/gemma-3n-E4B-it: 256 image tokens, the special tokens' names, a BPE tokenizer over "▁" with byte fallback,
vision and audio tokens after the text vocabulary, hidden states for each layer, layers that share a KV cache, sparse
activations. Smaller: vocabulary, layers, towers, and pictures of 512 pixels, from which the small vision tower makes
the 16x16 features that 256 image tokens are.

Runs in vLLM's environment with timm and torchvision beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.gemma3n import (
    Gemma3nAudioConfig,
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nProcessor,
    Gemma3nTextConfig,
    Gemma3nVisionConfig,
)
from transformers.models.siglip import SiglipImageProcessor

CHAT_TEMPLATE = Path(__file__).with_name("gemma3n_chat_template.jinja")

PAD, EOS, BOS, UNKNOWN = "<pad>", "<eos>", "<bos>", "<unk>"
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
START_OF_IMAGE, IMAGE, END_OF_IMAGE = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
START_OF_AUDIO, AUDIO, END_OF_AUDIO = "<start_of_audio>", "<audio_soft_token>", "<end_of_audio>"
SPACE = "▁"

# The text vocabulary, then two blocks whose embeddings belong to the vision and the audio tower.
TEXT_VOCABULARY = 1024
VISION_VOCABULARY = 128
AUDIO_VOCABULARY = 128
MAX_POSITIONS = 4096
IMAGE_TOKENS = 256
AUDIO_TOKENS = 188
# A stride of 32 makes 16x16 features of it.
IMAGE_SIDE = 512


def byte_pairs(corpus: Sequence[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn a vocabulary of at most `size` pieces: the special tokens, all 256 bytes, newlines, the corpus' pieces."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    # Pieces begin at a space and hold no newline: runs of newlines are pieces of their own.
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(rf"\n+|{SPACE}?[^\n{SPACE}]+|{SPACE}"), "isolated")
    reserved = [PAD, EOS, BOS, UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = [SPACE, "\n", *(chr(code) for code in range(0x21, 0x7F))]
    trainer = trainers.BpeTrainer(vocab_size=size - 3, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(corpus, trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    # vLLM's Gemma-3n processor looks up runs of one to four newlines.
    newlines = [("\n", "\n"), ("\n\n", "\n"), ("\n\n", "\n\n")]
    pieces += ["".join(pair) for pair in newlines]
    merges = newlines + [tuple(merge) for merge in learnt["merges"]]
    return {piece: index for index, piece in enumerate([*reserved, *pieces])}, merges


def pieces_of(corpus: Sequence[str]) -> Tokenizer:
    """A byte-pair tokenizer of Gemma's make, without special tokens."""
    # Bytes and special tokens take 260 of the ids, the markers another 4.
    vocabulary, merges = byte_pairs(corpus, size=640)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def with_template(tokenizer: Tokenizer, named: dict[str, str], template: str) -> PreTrainedTokenizerFast:
    """A tokenizer as a checkpoint holds it, with special tokens by the names that its processor asks for."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        extra_special_tokens=named,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=template,
    )


def build_tokenizer(corpus: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of Gemma's make, with pieces learnt from `corpus`."""
    tokenizer = pieces_of(corpus)
    tokenizer.add_special_tokens([PAD, EOS, BOS, UNKNOWN, START_OF_TURN, END_OF_TURN, START_OF_IMAGE, START_OF_AUDIO])
    for block, size, names in (
        ("text", TEXT_VOCABULARY, []),
        ("vision", VISION_VOCABULARY, [END_OF_IMAGE, IMAGE]),
        ("audio", AUDIO_VOCABULARY, [END_OF_AUDIO, AUDIO]),
    ):
        tokenizer.add_special_tokens(names)
        end = {"text": 0, "vision": TEXT_VOCABULARY, "audio": TEXT_VOCABULARY + VISION_VOCABULARY}[block] + size
        missing = end - tokenizer.get_vocab_size()
        tokenizer.add_tokens([AddedToken(f"<unused_{block}_{index}>", normalized=False) for index in range(missing)])
        if tokenizer.get_vocab_size() != end:
            raise ValueError(f"the {block} block ends at {tokenizer.get_vocab_size()} instead of {end}: shorten corpus")

    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[bos]
    )
    named = {
        "image_token": IMAGE,
        "boi_token": START_OF_IMAGE,
        "eoi_token": END_OF_IMAGE,
        "audio_token": AUDIO,
        "boa_token": START_OF_AUDIO,
        "eoa_token": END_OF_AUDIO,
    }
    return with_template(tokenizer, named, CHAT_TEMPLATE.read_text())


def build_config(tokenizer: PreTrainedTokenizerFast) -> Gemma3nConfig:
    """The production architecture's configuration in miniature."""
    identify = tokenizer.convert_tokens_to_ids
    special = {"bos_token_id": identify(BOS), "pad_token_id": identify(PAD)}
    text = Gemma3nTextConfig(
        vocab_size=TEXT_VOCABULARY + VISION_VOCABULARY + AUDIO_VOCABULARY,
        vocab_size_per_layer_input=TEXT_VOCABULARY,
        hidden_size=64,
        hidden_size_per_layer_input=16,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        laurel_rank=8,
        activation_sparsity_pattern=[0.95, 0.0, 0.0, 0.0],
        eos_token_id=identify(EOS),
        **special,
    )
    vision = Gemma3nVisionConfig(
        architecture="test_efficientnet",  # timm's smallest whose features have this stride
        model_args={},
        hidden_size=256,
        vocab_size=VISION_VOCABULARY,
        vocab_offset=TEXT_VOCABULARY,
    )
    audio = Gemma3nAudioConfig(
        hidden_size=32,
        conf_num_attention_heads=2,
        conf_num_hidden_layers=1,
        sscp_conv_channel_size=[8, 4],
        vocab_size=AUDIO_VOCABULARY,
        vocab_offset=TEXT_VOCABULARY + VISION_VOCABULARY,
    )
    return Gemma3nConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        vision_soft_tokens_per_image=IMAGE_TOKENS,
        audio_soft_tokens_per_image=AUDIO_TOKENS,
        image_token_id=identify(IMAGE),
        boi_token_id=identify(START_OF_IMAGE),
        eoi_token_id=identify(END_OF_IMAGE),
        audio_token_id=identify(AUDIO),
        boa_token_id=identify(START_OF_AUDIO),
        eoa_token_id=identify(END_OF_AUDIO),
        eos_token_id=[identify(EOS), identify(END_OF_TURN)],
        **special,
    )


def build(output: Path, corpus: Sequence[str]) -> None:
    """Write the checkpoint into the folder `output`, which appears only when it is complete."""
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer = build_tokenizer(corpus)
    config = build_config(tokenizer)
    torch.manual_seed(0)
    model = Gemma3nForConditionalGeneration(config).to(torch.bfloat16)
    model.generation_config.update(
        eos_token_id=config.eos_token_id, bos_token_id=config.bos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(partial)
    Gemma3nProcessor(
        feature_extractor=Gemma3nAudioFeatureExtractor(),
        image_processor=SiglipImageProcessor(
            size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}, do_normalize=False, resample=2
        ),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(partial)
    partial.rename(output)


def main() -> int:
    """Build the checkpoint that the command line asks for."""
    parser = argparse.ArgumentParser(description="Build a tiny Gemma-3n checkpoint with random weights, for tests.")
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("corpus", type=Path, nargs="+", help="text files that the tokenizer learns its pieces from")
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists: name a folder that does not")
    build(arguments.output, [line for path in arguments.corpus for line in path.read_text().splitlines()])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
