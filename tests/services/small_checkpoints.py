"""Small transformers checkpoints with random weights, one for each family of detectors.

    .spotter/envs/<torch environment>/bin/python -m tests.services.small_checkpoints FOLDER NAME...

writes each one to FOLDER/NAME. It runs in the detector's environment with torch: the one of the tests has no torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

LABELS = {0: "cat", 1: "dog", 2: "hot dog"}
NAMES: dict[str, Any] = {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}

# Scaled in proportion, as DETR's relatives do; two pictures of different shape then differ in size.
PROPORTIONAL = {"size": {"shortest_edge": 64, "longest_edge": 128}}
FIXED = {"size": {"height": 64, "width": 96}}

# Vocabulary of the small text encoders.
WORDS = [
    "a",
    "animal",
    "at",
    "ball",
    "bernard",
    "big",
    "brown",
    "car",
    "cat",
    "dog",
    "hot",
    "last",
    "no",
    "of",
    "photo",
    "red",
    "saint",
    "schnauzer",
    "small",
    "st",
    "teddy",
    "the",
]

# Grounding DINO ends a phrase at these numbers, which are those of BERT's English vocabulary.
BERT = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}

TEXT_TOKENS = 64
"""Tokens that the small Grounding DINOs read at most."""


def resnet() -> Any:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    )


def rt_detr_resnet() -> Any:
    return transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def hgnet() -> Any:
    return transformers.HGNetV2Config(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 12, 16],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 12, 16, 24],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


HYBRID: dict[str, Any] = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [12, 16, 24],
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "feat_strides": [8, 16, 32],
    "d_model": 32,
    "num_queries": 20,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
    "hidden_expansion": 0.5,
    "anchor_image_size": None,
}
TRANSFORMER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 20,
}
OLD_BACKBONE: dict[str, Any] = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}


def rt_detr_v2() -> tuple[Any, Any]:
    config = transformers.RTDetrV2Config(backbone_config=rt_detr_resnet(), **HYBRID, **NAMES)
    return transformers.RTDetrV2ForObjectDetection(config), transformers.RTDetrImageProcessorPil(**FIXED)


def d_fine() -> tuple[Any, Any]:
    config = transformers.DFineConfig(backbone_config=hgnet(), decoder_n_points=[4, 4, 4], **HYBRID, **NAMES)
    return transformers.DFineForObjectDetection(config), transformers.RTDetrImageProcessorPil(**FIXED)


def deimv2() -> tuple[Any, Any]:
    config = transformers.Deimv2Config(backbone_config=hgnet(), decoder_n_points=[4, 4, 4], **HYBRID, **NAMES)
    return transformers.Deimv2ForObjectDetection(config), transformers.RTDetrImageProcessorPil(**FIXED)


def detr() -> tuple[Any, Any]:
    config = transformers.DetrConfig(backbone_config=resnet(), **OLD_BACKBONE, **TRANSFORMER, **NAMES)
    return transformers.DetrForObjectDetection(config), transformers.DetrImageProcessorPil(**PROPORTIONAL)


def conditional_detr() -> tuple[Any, Any]:
    config = transformers.ConditionalDetrConfig(backbone_config=resnet(), **OLD_BACKBONE, **TRANSFORMER, **NAMES)
    processor = transformers.ConditionalDetrImageProcessorPil(**PROPORTIONAL)
    return transformers.ConditionalDetrForObjectDetection(config), processor


def deformable_detr() -> tuple[Any, Any]:
    config = transformers.DeformableDetrConfig(
        backbone_config=resnet(), num_feature_levels=3, **OLD_BACKBONE, **TRANSFORMER, **NAMES
    )
    processor = transformers.DeformableDetrImageProcessorPil(**PROPORTIONAL)
    return transformers.DeformableDetrForObjectDetection(config), processor


def yolos() -> tuple[Any, Any]:
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[64, 96],
        num_detection_tokens=20,
        **NAMES,
    )
    return transformers.YolosForObjectDetection(config), transformers.YolosImageProcessorPil(**PROPORTIONAL)


def rf_detr() -> tuple[Any, Any]:
    backbone = {
        "model_type": "rf_detr_dinov2",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 96,
        "patch_size": 16,
        "num_windows": 1,
        "out_features": ["stage2", "stage3"],
    }
    config = transformers.RfDetrConfig(
        backbone_config=backbone,
        d_model=32,
        decoder_layers=2,
        decoder_ffn_dim=32,
        num_queries=20,
        group_detr=1,
        **NAMES,
    )
    processor = transformers.RTDetrImageProcessorPil(size={"height": 96, "width": 96}, do_normalize=True)
    return transformers.RfDetrForObjectDetection(config), processor


def bert_tokenizer() -> Any:
    """A tokenizer of BERT's kind: words of WORDS and single letters, the rest is unknown."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [f"[unused{number}]" for number in range(1100)]
    for token, number in BERT.items():
        vocabulary[number] = token
    text = ["!", "'", "-", ",", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary += text + [word for word in WORDS if word not in text]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    )


def swin() -> Any:
    return transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )


def grounding(config_class: Any, model_class: Any) -> tuple[Any, Any]:
    tokenizer = bert_tokenizer()
    text = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=TEXT_TOKENS,
    )
    config = config_class(
        backbone_config=swin(),
        text_config=text,
        max_text_len=TEXT_TOKENS,
        num_feature_levels=4,
        **{**TRANSFORMER, "d_model": 64, "num_queries": 30, "encoder_layers": 2},
    )
    images = transformers.GroundingDinoImageProcessorPil(**PROPORTIONAL)
    return model_class(config), transformers.GroundingDinoProcessor(images, tokenizer)


def grounding_dino() -> tuple[Any, Any]:
    return grounding(transformers.GroundingDinoConfig, transformers.GroundingDinoForObjectDetection)


def mm_grounding_dino() -> tuple[Any, Any]:
    return grounding(transformers.MMGroundingDinoConfig, transformers.MMGroundingDinoForObjectDetection)


def clip_tokenizer() -> Any:
    """A tokenizer of CLIP's kind: bytes as tokens, and words of WORDS."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in ("photo", "dog", "cat", "hot"):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = ["".join(parts[:2]), *parts[2:]]
            vocabulary += [parts[0]] if parts[0] not in vocabulary else []
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]  # last, since the text encoder reads at the largest number
    return transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges)


def owlv2() -> tuple[Any, Any]:
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    }
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)
    images = transformers.Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    return transformers.Owlv2ForObjectDetection(config), transformers.Owlv2Processor(images, tokenizer)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    make.__name__: make
    for make in (
        rt_detr_v2,
        d_fine,
        deimv2,
        detr,
        conditional_detr,
        deformable_detr,
        yolos,
        rf_detr,
        grounding_dino,
        mm_grounding_dino,
        owlv2,
    )
}


def enliven(model: Any) -> None:
    """Spread the random weights: as they are initialised, all queries of a family give nearly the same box."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            elif name.endswith("bias"):
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def write(name: str, folder: Path) -> None:
    """Save one family's model and processor; remove the suffix that would keep other environments from reading it."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name]()
    enliven(model)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    for path in folder.glob("*processor*.json"):
        path.write_text(path.read_text().replace('ProcessorPil"', 'Processor"'))
        json.loads(path.read_text())


if __name__ == "__main__":
    for each in sys.argv[2:]:
        write(each, Path(sys.argv[1]) / each)
