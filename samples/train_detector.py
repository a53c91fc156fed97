"""Train the tiny detector (RT-DETRv2, 0.9 million parameters) from scratch on drawn scenes; one CPU core will do.

Architecture and recipe come from trials under the same constraints (one core, half an hour, 5 MB): a four-stage
ResNet of basic blocks, one encoder and two decoder layers, and no part that needs torchvision or timm to load.
Training is bounded by steps, not by time, so that the same command walks the same way on any machine.
The commands that made the bundled weights are in `samples/models/tiny-detector/README.md`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import (
    AutoModelForObjectDetection,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)
from transformers.utils import logging

from samples import export_detector
from samples.detection_metrics import FloatArray, ScoredBoxes, average_precision
from samples.scenes import LABELS, Scene, make_scene

# What the network sees: 4:3, sides that are multiples of the coarsest stride (32). Pictures of other shapes are
# stretched to it, in training as in use.
INPUT_WIDTH, INPUT_HEIGHT = 256, 192

# Seeds far apart, so that no scene is both learnt and examined. `samples.evaluate_detector` draws from a third range.
TRAINING_SEED = 1_000_000
VALIDATION_SEED = 2_000_000
VALIDATION_SCENES = 120

# Sizes of the training scenes, pixels; the first and most frequent is the generator's default.
SCENE_SIZES = ((640, 480), (640, 480), (640, 480), (800, 600), (480, 640), (512, 512))

STAGE_CHANNELS = (16, 48, 96, 128)
WIDTH = 64

WEIGHT_DECAY = 1e-4
WARMUP_STEPS = 150
# Part of the run at the full learning rate before the cosine begins, and the part of that rate it ends with.
PLATEAU = 0.1
FINAL_RATE = 0.02
GRADIENT_NORM = 1.0
EMA_DECAY = 0.995
# The average starts here: the first steps move too far to be worth remembering.
EMA_START = 100


@dataclass(frozen=True)
class SceneSet:
    """N scenes at the network's size: N x 192 x 256 x 3 bytes, and for each scene M x 4 boxes and M label indices.

    Boxes are centre x, centre y, width, height in parts of the picture, as the network's loss wants them.
    """

    pixels: NDArray[np.uint8]
    boxes: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]


def draw_scenes(first_seed: int, count: int) -> SceneSet:
    """Draw `count` scenes of varying size, from consecutive seeds, and bring them to the network's size."""
    pixels = np.empty((count, INPUT_HEIGHT, INPUT_WIDTH, 3), np.uint8)
    boxes, labels = [], []
    for index in range(count):
        width, height = SCENE_SIZES[index % len(SCENE_SIZES)]
        scene = make_scene(first_seed + index, width, height)
        resized = scene.image.resize((INPUT_WIDTH, INPUT_HEIGHT), Image.Resampling.BILINEAR)
        pixels[index] = np.asarray(resized)
        boxes.append(_relative_boxes(scene))
        labels.append(np.array([LABELS.index(item.label) for item in scene.objects], np.int64))
        if (index + 1) % 500 == 0:
            print(f"drew {index + 1} of {count} scenes", flush=True)
    return SceneSet(pixels, boxes, labels)


def cached_scenes(first_seed: int, count: int, cache: Path | None) -> SceneSet:
    """Like `draw_scenes`, but keep the scenes in the folder `cache` and take them from there the next time.

    The file's name tells seed and count only: empty the folder after a change to the scenes.
    """
    if cache is None:
        return draw_scenes(first_seed, count)
    path = cache / f"scenes-{first_seed}-{count}.npz"
    if not path.exists():
        drawn = draw_scenes(first_seed, count)
        cache.mkdir(parents=True, exist_ok=True)
        sizes = np.array([len(boxes) for boxes in drawn.boxes])
        np.savez(
            path,
            pixels=drawn.pixels,
            sizes=sizes,
            boxes=np.concatenate(drawn.boxes),
            labels=np.concatenate(drawn.labels),
        )
    with np.load(path) as stored:
        ends = np.cumsum(stored["sizes"])[:-1]
        return SceneSet(stored["pixels"], np.split(stored["boxes"], ends), np.split(stored["labels"], ends))


def _relative_boxes(scene: Scene) -> NDArray[np.float32]:
    corners = np.array([item.box for item in scene.objects], np.float32).reshape(-1, 4)
    size = np.array([scene.image.width, scene.image.height], np.float32)
    centre = (corners[:, :2] + corners[:, 2:]) / 2 / size
    sides = (corners[:, 2:] - corners[:, :2]) / size
    return np.concatenate([centre, sides], axis=1)


def batches(
    scenes: SceneSet, size: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, list[dict[str, torch.Tensor]]]]:
    """Yield batches without end: pixels (B x 3 x H x W, 0..1, augmented) and the targets that the loss wants.

    Each pass takes the scenes in a new order. Half of them are mirrored; each channel gets its own contrast and
    brightness.
    """
    while True:
        order = rng.permutation(len(scenes.pixels))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            pixels = torch.from_numpy(scenes.pixels[chosen]).permute(0, 3, 1, 2).float() / 255
            targets = []
            for row, index in enumerate(chosen):
                boxes = torch.from_numpy(scenes.boxes[index]).clone()
                if rng.random() < 0.5:
                    pixels[row] = pixels[row].flip(-1)
                    boxes[:, 0] = 1 - boxes[:, 0]
                contrast = torch.from_numpy(rng.uniform(0.75, 1.25, (3, 1, 1)).astype(np.float32))
                pixels[row] = (pixels[row] * contrast + float(rng.uniform(-0.08, 0.08))).clamp(0, 1)
                targets.append({"class_labels": torch.from_numpy(scenes.labels[index]), "boxes": boxes})
            yield pixels.contiguous(memory_format=torch.channels_last), targets


def build_model() -> RTDetrV2ForObjectDetection:
    """Return the detector with random weights."""
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
    backbone = RTDetrResNetConfig(
        embedding_size=STAGE_CHANNELS[0],  # must equal the first stage's width
        hidden_sizes=list(STAGE_CHANNELS),
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_indices=[2, 3, 4],
        **names,  # unused there, but the default would be LABEL_0, LABEL_1
    )
    config = RTDetrV2Config(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,  # they start from scratch too
        encoder_in_channels=list(STAGE_CHANNELS[1:]),
        encoder_hidden_dim=WIDTH,
        d_model=WIDTH,
        encoder_layers=1,
        encoder_ffn_dim=2 * WIDTH,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        decoder_in_channels=[WIDTH] * 3,
        decoder_ffn_dim=2 * WIDTH,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_n_points=4,
        num_queries=30,  # a scene holds at most ten things
        num_denoising=10,
        **names,
    )
    return RTDetrV2ForObjectDetection(config)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the rate of a step: linear warm-up, a plateau, then a cosine to `FINAL_RATE` of the peak."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    progress = max(0.0, step / steps - PLATEAU) / (1 - PLATEAU)
    return peak * warmup * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    """Return AdamW that decays weights of two or more dimensions, and neither biases nor norms."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    free = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate)


def start_average(model: torch.nn.Module) -> AveragedModel:
    """Return an exponential moving average that begins at the model's weights; batch statistics included."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True)


def validate(model: torch.nn.Module, processor: RTDetrImageProcessorPil, scenes: SceneSet) -> dict[str, float]:
    """Return the AP50 of each label, before non-maximum suppression."""
    model.eval()
    found: dict[str, list[ScoredBoxes]] = {label: [] for label in LABELS}
    truth: dict[str, list[FloatArray]] = {label: [] for label in LABELS}
    for index, image in enumerate(scenes.pixels):
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            output = model(pixel_values=pixels)
        result = processor.post_process_object_detection(output, 0.01, target_sizes=[(1, 1)])[0]
        centre, sides = np.split(scenes.boxes[index].astype(np.float64), 2, axis=1)
        corners = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
        for number, label in enumerate(LABELS):
            here = result["labels"] == number
            boxes, scores = result["boxes"][here], result["scores"][here]
            found[label].append(ScoredBoxes(boxes.double().numpy(), scores.double().numpy()))
            truth[label].append(corners[scenes.labels[index] == number])
    model.train()
    return {label: average_precision(found[label], truth[label]) for label in LABELS}


def save(model: torch.nn.Module, processor: RTDetrImageProcessorPil, folder: Path) -> None:
    """Write weights, configuration and processor as `from_pretrained` reads them, and the same model as ONNX."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    export_detector.export(folder)


def train(args: argparse.Namespace) -> None:
    """Train as the command line says; write the averaged model at every validation and at the end."""
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    training = cached_scenes(args.first_scene, args.scenes, args.cache)
    validation = cached_scenes(VALIDATION_SEED, VALIDATION_SCENES, args.cache)

    model = AutoModelForObjectDetection.from_pretrained(args.init) if args.init else build_model()
    model = model.to(memory_format=torch.channels_last).train()
    processor = RTDetrImageProcessorPil(size={"height": INPUT_HEIGHT, "width": INPUT_WIDTH})
    optimizer = make_optimizer(model, args.learning_rate)
    average = start_average(model)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters", flush=True)

    began, smooth_loss = time.monotonic(), math.nan
    for step, (pixels, targets) in zip(range(args.steps), batches(training, args.batch_size, rng), strict=False):
        rate = learning_rate(step, args.steps, args.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(pixel_values=pixels, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        if step == EMA_START:
            average = start_average(model)
        elif step > EMA_START:
            average.update_parameters(model)

        smooth_loss = loss.item() if math.isnan(smooth_loss) else 0.98 * smooth_loss + 0.02 * loss.item()
        done = step + 1
        if done % 100 == 0:
            elapsed = time.monotonic() - began
            left = elapsed / done * (args.steps - done) / 60
            print(f"step {done}/{args.steps}  loss {smooth_loss:.3f}  rate {rate:.1e}  {left:.0f} min left", flush=True)
        if done % args.validate_every == 0 or done == args.steps:
            scores = validate(average.module, processor, validation)
            print("AP50 " + "  ".join(f"{label} {score:.3f}" for label, score in scores.items()), flush=True)
            save(average.module, processor, args.output)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for weights, configuration and processor")
    add("--steps", type=int, default=6000, help="training steps, 5 a second on one free core (default: %(default)s)")
    add("--scenes", type=int, default=3000, help="training scenes to draw (default: %(default)s)")
    add("--first-scene", type=int, default=TRAINING_SEED, help="seed of the first of them (default: %(default)s)")
    add("--batch-size", type=int, default=8, help="scenes in a step (default: %(default)s)")
    add("--learning-rate", type=float, default=8e-4, help="peak of the schedule (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of weights, order and augmentation (default: %(default)s)")
    add("--init", type=Path, help="continue from the checkpoint in this folder (default: from random weights)")
    add("--cache", type=Path, help="folder that keeps the drawn scenes between runs (default: they are not kept)")
    add("--threads", type=int, default=1, help="more pay only on cores that are free (default: %(default)s)")
    add("--validate-every", type=int, default=1000, help="steps between validations (default: %(default)s)")
    args = parser.parse_args()
    if args.init is not None and not args.init.is_dir():
        parser.error(f"--init {args.init}: no such folder; give one that this script wrote")
    if args.scenes < args.batch_size:
        parser.error(f"--scenes {args.scenes} do not fill one step of --batch-size {args.batch_size}: draw more")
    if not TRAINING_SEED <= args.first_scene <= VALIDATION_SEED - args.scenes:
        parser.error(
            f"--first-scene {args.first_scene} with --scenes {args.scenes}: training scenes lie from seed "
            f"{TRAINING_SEED} to {VALIDATION_SEED - 1}, so that no other set holds one of them"
        )
    train(args)


if __name__ == "__main__":
    main()
