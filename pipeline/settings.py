"""The job's settings: read once, from the command line, the environment and `.env`, in that order.

Nothing else in the pipeline reads the environment.
"""

from __future__ import annotations

import difflib
import inspect
import io
import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from dotenv import dotenv_values
from pydantic import (
    AnyHttpUrl,
    BeforeValidator,
    ByteSize,
    Field,
    NonNegativeInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    CliSuppress,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pipeline.errors import InvalidSetting, Unreadable
from pipeline.locations import CREDENTIALS, is_object, read_addresses

T = TypeVar("T")

PREFIX = "SPOTTER_"
ENV_FILE = Path(".env")
ENV_ENCODING = "utf-8-sig"  # UTF-8 with or without a byte order mark

# One service may have several addresses: they share its requests.
Addresses = Annotated[str, BeforeValidator(read_addresses)]


class EmptyIsDefault(EnvSettingsSource):
    """The environment, where an empty variable stands for its setting's default: so one in `.env` can be undone."""

    def __call__(self) -> dict[str, Any]:
        """The values by their settings' names."""
        fields = self.settings_cls.model_fields
        return {
            name: fields[name].get_default() if value == "" and name in fields else value
            for name, value in super().__call__().items()
        }


# What `--help` calls a value, by its type.
METAVARS = {
    "str": "TEXT",
    "int": "NUMBER",
    "float": "NUMBER",
    "Path": "PATH",
    "AnyHttpUrl": "URL",
    "ByteSize": "SIZE",
    "{{all,none},int}": "{all,none,NUMBER}",
}


class Settings(BaseSettings):
    """Find things in images, cut them out, ask a model about each, write rows.

    Each option can be given as an environment variable or in a file .env: --images is SPOTTER_IMAGES.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_file_encoding=ENV_ENCODING,
        extra="ignore",  # .env holds the stack's settings too; `refuse_unknown` looks after misspelt ones
        cli_prog_name="./spotter run",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )

    images: str = Field(
        "samples/images",
        description="a folder, a glob in quotes, one file, a list (.txt), a table (.parquet, .csv ...), or s3://bucket/...",
    )
    column: str | None = Field(
        None,
        description="a table's column with images' bytes, paths or addresses; by default the only one with any",
    )
    every: str | None = Field(None, description="frames of videos: 1s, 0.5s, 30f (each 30th) or key (key frames)")
    boxes: str | None = Field(
        None,
        description="boxes of a job with `boxes: input`: a COCO JSON file, an earlier run's folder, or column:NAME",
    )
    truth: str | None = Field(
        None, description="a labels file to evaluate the run against: COCO JSON, or a table with a row for each object"
    )
    from_run: str | None = Field(
        None, description="ask the job about detections and crops of an earlier run: its folder, or its name in output"
    )
    limit: int | None = Field(None, ge=1, description="a trial: only the first so many images, as a run of its own")
    sample: int | None = Field(None, ge=1, description="a trial: so many images drawn by chance, as a run of its own")
    sample_seed: int = Field(0, description="another number draws another sample")
    shard: str | None = Field(
        None, description="do a share of the images: 2/8 is the second of eight; `./spotter merge` joins the shards"
    )
    try_one: bool = Field(False, description="show box, request and answer for the first image; write nothing")
    output: str = Field("runs", description="parent folder of the runs; s3://bucket/... publishes them there")
    work: Path = Field(Path("runs"), description="folder in which a run for an s3:// output is made")
    s3_endpoint: AnyHttpUrl | None = Field(
        None, description="an S3 server other than Amazon's; by default AWS_ENDPOINT_URL"
    )
    run_name: str | None = Field(None, description="name of the run's folder; default: the job's, with a fingerprint")
    job: str = Field("dog_breeds", description="a bundled job's name or a job file's path")
    runner: Literal["native", "ray"] = Field("native", description="where rows are made; ray: on a Ray cluster")

    detector_url: Addresses = Field(
        "http://127.0.0.1:8001/", description="the detector service; several addresses with commas share the images"
    )
    model_url: Addresses = Field(
        "http://127.0.0.1:8000/v1",
        description="an OpenAI-compatible API, with its /v1; several addresses with commas share the crops",
    )
    model: str | None = Field(None, description="the model's name at that server; by default the only one it serves")
    api: Literal["auto", "chat", "responses"] = Field(
        "auto", description="the model server's API: chat completions, or OpenAI's Responses; auto: tries both"
    )
    schema_form: Literal["auto", "json_schema", "structured_outputs", "json_object", "none"] = Field(
        "auto", description="how the server gets an answer's schema; auto: the first that it takes, in this order"
    )
    confidence: Literal["auto", "on", "off"] = Field(
        "auto", description="columns of how sure the model was of each choice; auto: where the server gives logprobs"
    )
    price_input: float = Field(0.0, ge=0, description="price of a million input tokens, in any currency")
    price_output: float = Field(0.0, ge=0, description="price of a million output tokens")
    model_revision: str | None = Field(None, description="a note for run.json: no server reports its revision")
    api_key: CliSuppress[SecretStr | None] = Field(
        None, description="sent to the model server; a variable only, since any user can read a command line"
    )

    ca_file: Path | None = Field(
        None, description="certificates (PEM) to trust at both services, besides the system's: a self-signed one, a CA"
    )

    detector_concurrency: int = Field(16, ge=1, le=1024, description="most images at the detector at once")
    model_concurrency: int = Field(64, ge=1, le=4096, description="most crops at the model server at once")
    bytes_in_flight: ByteSize = Field(
        # Some 40 images, twice each, of up to 6 MB: photos never wait for each other, scans of 100 MB do.
        ByteSize(512 * 1024**2),
        gt=0,
        description="most bytes of encoded images and crops in memory, such as 512MiB; one larger image goes alone",
    )
    request_timeout_s: float = Field(120.0, gt=0, description="longest time of one request")
    attempts: int = Field(5, ge=1, le=100, description="most tries of a request whose failure can heal")
    outage_limit_s: float = Field(900.0, gt=0, description="stop the run when a service is gone for this long")
    stall_limit_s: float = Field(
        # Above what the first rows may take to fail by themselves: all their attempts, each with the wait for another's
        # turn, since a stage holds twice the rows that it asks about at once.
        1200.0,
        gt=0,
        description="stop the run when no row ends for this long; keep it above 2 x attempts x request timeout",
    )
    failure_limit: float = Field(
        0.5, ge=0, le=1, description="stop the run when a larger share of the last rows fails at a service"
    )
    annotated: Literal["all", "none"] | NonNegativeInt = Field(
        # 0.02 to 0.1 s of a core for each: some minutes at most.
        10_000,
        description="copies of images with boxes and answers to draw: the first so many with an object, all or none",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the lowest level that run.log in the run's folder records"
    )
    retry_failed: bool = Field(False, description="do failed rows again")
    force: bool = Field(False, description="remove the run and begin anew")
    profile: bool = Field(False, description="also write Daft's explain-analyze into the run's profile/")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *_: object, **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The usual sources, but that an empty variable is one that is not set, also where `.env` sets it."""
        return (sources["init_settings"], EmptyIsDefault(settings_cls), sources["dotenv_settings"])

    @field_validator("images")
    @classmethod
    def refuse_nowhere(cls, images: str) -> str:
        """See that an empty name is not taken for the folder that Spotter runs in."""
        if not images.strip():
            raise PydanticCustomError("nowhere", "it is empty: give a folder, a file, a table or s3://...")
        return images

    @field_validator("images", "truth", "output", "s3_endpoint")
    @classmethod
    def refuse_credentials(cls, address: T) -> T:
        """See that an address holds no secret: addresses are written into run.json, and shown."""
        if is_object(str(address)) and "@" in str(address).partition("://")[2].partition("/")[0]:
            raise PydanticCustomError(CREDENTIALS, "it holds a user or a password, and run.json shows it")
        return address

    @field_validator("sample")
    @classmethod
    def refuse_both(cls, sample: int | None, given: ValidationInfo) -> int | None:
        """See that a trial is one of the two kinds."""
        if sample is not None and given.data.get("limit") is not None:
            raise PydanticCustomError("trial", "SPOTTER_LIMIT is set too: give one of them")
        return sample

    @property
    def trial(self) -> str | None:
        """Which images of the listing are taken, in words; None: all."""
        if self.limit is not None:
            return f"the first {self.limit}"
        return f"{self.sample} drawn by seed {self.sample_seed}" if self.sample is not None else None

    @property
    def copies(self) -> int | None:
        """How many annotated copies are drawn; None: of all images that have a detection."""
        return {"all": None, "none": 0}[self.annotated] if isinstance(self.annotated, str) else self.annotated

    @property
    def prices(self) -> tuple[float, float]:
        """Of a million tokens in and out; 0 where unknown."""
        return self.price_input, self.price_output

    @property
    def runs(self) -> Path:
        """The folder in which a run is made."""
        return (self.work if is_object(self.output) else Path(self.output)).expanduser()

    @property
    def endpoint(self) -> str | None:
        """The S3 server's address; None for Amazon's. The variables are those of Amazon's own tools."""
        chosen = self.s3_endpoint and str(self.s3_endpoint)
        return chosen or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None

    @property
    def published(self) -> str | None:
        """The prefix that runs are published under; None where the output is a folder of this host."""
        return self.output.rstrip("/") if is_object(self.output) else None

    def public(self) -> dict[str, object]:
        """The settings as they may be written down: without secrets."""
        return self.model_dump(mode="json", exclude={"api_key"}) | {"api_key": "set" if self.api_key else "not set"}


def variables() -> list[str]:
    """The environment variables that `Settings` reads."""
    return [PREFIX + name.upper() for name in Settings.model_fields]


def read_env_file(path: Path) -> dict[str, str | None]:
    """The variables of an .env file; none where there is no file.

    Raises:
        Unreadable: it cannot be read, or is not UTF-8.
    """
    if not path.is_file():
        return {}
    try:
        content = path.read_bytes()
        if b"\0" in content:  # also UTF-16 without a byte order mark
            raise Unreadable(f"{path} is not UTF-8 text but UTF-16 or binary: save it as UTF-8")
        return dotenv_values(stream=io.StringIO(content.decode(ENV_ENCODING)))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"{path} is not UTF-8 text (line {line}): save it as UTF-8") from error
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from error


def refuse_unknown(environment: dict[str, str | None]) -> None:
    """Refuse a SPOTTER_ variable that nothing reads, so that a misspelt one is not dropped.

    Raises:
        InvalidSetting: names the variable and the nearest one that exists.
    """
    known = variables()
    for name in environment:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InvalidSetting(f"unknown variable {name} (environment or {ENV_FILE}): {hint}")


def refuse_unknown_options(arguments: list[str]) -> None:
    """See that no option is misspelt.

    Raises:
        InvalidSetting: one is; names the nearest.
    """
    known = ["--help", *(f"--{name.replace('_', '-')}" for name in Settings.model_fields)]
    negated = {f"--no-{name[2:]}" for name in known}
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in known and option not in negated:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "./spotter run --help lists the options"
            raise InvalidSetting(f"unknown option {option}: {hint}")


def add_option(parser: ArgumentParser, *names: str, **given: Any) -> None:
    """Add an option to a parser as `--help` shows it to people."""
    if "metavar" in given:
        given["metavar"] = METAVARS.get(given["metavar"], given["metavar"])
    given["help"] = given.get("help", "").removesuffix(" (default: None)")
    parser.add_argument(*names, **given)


def load(arguments: list[str]) -> Settings:
    """Read the settings; `--help` prints them and exits.

    Raises:
        InvalidSetting: an option is unknown, or a value is invalid; gives its name, source, value and what is accepted.
    """
    from_file = read_env_file(ENV_FILE)
    refuse_unknown({**from_file, **os.environ})
    if any(argument.partition("=")[0] == "--api-key" for argument in arguments):
        raise InvalidSetting(f"--api-key: any user of this host can read a command line: set {PREFIX}API_KEY instead")
    refuse_unknown_options(arguments)
    try:
        source: CliSettingsSource[ArgumentParser] = CliSettingsSource(Settings, add_argument_method=add_option)
        source.root_parser.description = inspect.cleandoc(Settings.__doc__ or "")
        return CliApp.run(Settings, cli_args=arguments, cli_settings_source=source)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        variable, option = PREFIX + field.upper(), "--" + field.replace("_", "-")
        if any(argument.split("=")[0] == option for argument in arguments):
            where = option
        elif variable in os.environ:
            where = f"{variable} in the environment"
        else:
            where = f"{variable} in {ENV_FILE}"
        expected = "; or: ".join(each["msg"] for each in error.errors() if each["loc"][0] == field)  # one for each type
        value = "(hidden)" if field == "api_key" or first["type"] == CREDENTIALS else repr(first["input"])
        raise InvalidSetting(f"{where}: {value} is invalid: {expected}") from error
