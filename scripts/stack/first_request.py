"""Send a service that is up one real request of the job: only a valid answer makes it ready."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from pipeline.clients import probe, probe_model
from pipeline.errors import UsageError
from pipeline.job import load as load_job
from pipeline.settings import Settings
from scripts.settings import NotReady
from scripts.stack import api_key
from scripts.stack.service import Service
from scripts.vllm.startup_causes import remedy_for


async def ask_model(settings: Settings) -> None:
    """Send one image with the job's question; the answer must match the job's schema."""
    await probe_model.try_model(settings, load_job(settings.job), await probe_model.find_model(settings))


def ask(service: Service, job: Settings) -> None:
    """Send a service one request of the job's shape.

    Raises:
        NotReady: it was refused, or answered in another form than the job's; with the remedy where it is known.
    """
    address = "{0.scheme}://{0.netloc}".format(urlsplit(service.ready_url))
    try:
        if service.kind == "vllm":
            key = {"api_key": SecretStr(api_key.ensure(service.key_file))} if service.key_file else {}
            asyncio.run(ask_model(job.model_copy(update={"model_url": f"{address}/v1", **key})))
        elif service.name == "detector":
            here = job.model_copy(update={"detector_url": address})
            asyncio.run(probe.try_detector(here, load_job(job.job)))
    except (UsageError, ValidationError) as error:
        message = " ".join(str(error).split())
        remedy = remedy_for(message)
        raise NotReady(
            f"{service.name} is up, but does not answer this job: {message}" + (f" -> {remedy}" if remedy else "")
        ) from error
