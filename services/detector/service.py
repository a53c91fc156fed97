"""The HTTP service: settings in, a running Mosec server, an exit code out.

    POST /detect   msgpack {"image": encoded bytes, "labels": {label: 0..1 or nil} or nil, "threshold": 0..1 or nil}
           labels: each with its lowest score, nil for `threshold`; nil in place of the map: any label of the model
           threshold: nil for DETECTOR_THRESHOLD
      200  msgpack {"boxes": [{"box": [x1, y1, x2, y2], "label", "score"}], "width", "height", "input": [width, height],
           "model", "revision", "settings": {"threshold", "nms_iou", "dtype"}}; a larger image than `input`, the size
           in pixels that the model takes, gives no better boxes
      400  an invalid request, or no usable image       413  body over DETECTOR_MAX_BODY_MB
      422  labels that the model does not know          429  DETECTOR_QUEUE requests wait already: try later
      500  the model failed on this image               408  no answer within DETECTOR_TIMEOUT_S
      503  the service is stopping
    GET /          200 once the model is loaded and warm; the port is closed before, 503 while stopping
    GET /metrics   Prometheus, names beginning with detector_

An error's body is one line of text. Mosec itself answers an empty POST: 200 and the text "no data provided".

With the default model, a request takes 17 ms of CPU in all processes, 7 of them in the model; the six processes share
260 MB.
"""

from __future__ import annotations

import errno
import socket
import sys
from types import FrameType

from services.detector.backends import backend
from services.detector.checkpoint import Checkpoint, CheckpointError
from services.detector.settings import Settings, variable

NAMESPACE = "detector"

EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_BAD_SETTINGS = 2


def serve(settings: Settings) -> int:
    """Run the service until a signal stops it, and return the exit code of the process.

    0: stopped by SIGTERM or SIGINT, after the open requests were answered. 1: the port is taken, or a stage of the
    service died. 2: the settings' model cannot be served. The reason of a failure goes to stderr.
    """
    try:
        checkpoint = backend(settings).read(settings.model, settings.revision)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    if problem := _port_problem(str(settings.host), settings.port):
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_FAILED
    return _run(settings, checkpoint)


def server_arguments(settings: Settings) -> list[str]:
    """Mosec's own command line for these settings."""
    return [
        f"--address={settings.host}",
        f"--port={settings.port}",
        f"--capacity={settings.queue}",
        f"--timeout={settings.timeout_s * 1000}",
        f"--max-request-size={settings.max_body_mb * 2**20}",
        f"--namespace={NAMESPACE}",
    ]


def _run(settings: Settings, checkpoint: Checkpoint) -> int:
    # Mosec reads the command line of the process, here and in each worker, partly during its import.
    sys.argv[1:] = server_arguments(settings)
    from mosec import Server

    from services.detector.stages import Answer, Decode, Detect, worker_environment

    class DetectorServer(Server):  # type: ignore[misc]  # no Mosec where types are checked
        """A server that remembers why it stopped: Mosec's exit code is 0 even when its workers die."""

        failure: str | None = "the server ended by itself"

        def _terminate(self, signum: int, framestack: FrameType | str | None) -> None:
            # Mosec stops only through this method: its signal handler passes a frame, a failure passes a text.
            if not self._server_shutdown:
                self.failure = framestack if isinstance(framestack, str) else None
            super()._terminate(signum, framestack)

    environment = worker_environment(settings, checkpoint)
    server = DetectorServer()
    stages = ((Decode, settings.decode_workers, 1), (Detect, 1, settings.max_batch), (Answer, 1, 1))
    for stage, processes, batch in stages:
        server.append_worker(
            stage,
            num=processes,
            max_batch_size=batch,
            max_wait_time=settings.max_wait_ms,
            env=[environment] * processes,
            route="/detect",
        )
    server.run()
    if server.failure is not None:
        print(f"error: the detector service stopped: {server.failure} (see above)", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_STOPPED


def _port_problem(host: str, port: int) -> str | None:
    """The reason why the service cannot listen there, or None. Mosec would notice only after loading the model."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"{variable('port')}={port}: another process listens on {host}:{port}; stop it or take another"
            return f"cannot listen on {host}:{port} ({error.strerror}): check {variable('host')} and {variable('port')}"
    return None
