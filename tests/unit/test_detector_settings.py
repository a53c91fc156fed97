"""The detector service's settings: each wrong variable is one line that names it, its value and what is accepted."""

import pytest

from services.detector.service import server_arguments
from services.detector.settings import Settings, SettingsError, read_settings, variable


def problems(**environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read_settings(environ)
    return str(caught.value).splitlines()


def test_defaults_need_no_variable() -> None:
    assert read_settings({"PATH": "/bin"}) == Settings()


def test_variables_are_read_and_typed() -> None:
    settings = read_settings({"DETECTOR_PORT": "9000", "DETECTOR_HOST": "0.0.0.0", "DETECTOR_MEMORY_SHARE": "0.15"})
    assert (settings.port, str(settings.host), settings.memory_share) == (9000, "0.0.0.0", 0.15)


def test_an_empty_variable_is_not_set() -> None:
    assert read_settings({"DETECTOR_REVISION": "", "DETECTOR_PORT": ""}) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("DETECTOR_PORT", "abc", "integer"),
        ("DETECTOR_PORT", "70000", "65535"),
        ("DETECTOR_THRESHOLD", "1.5", "less than or equal to 1"),
        ("DETECTOR_THRESHOLD", "nan", "less than or equal to 1"),
        ("DETECTOR_DEVICE", "gpu", "'auto', 'cpu' or 'cuda'"),
        ("DETECTOR_DTYPE", "int8", "'auto', 'float32', 'float16' or 'bfloat16'"),
        ("DETECTOR_QUEUE", "0", "greater than or equal to 1"),
        ("DETECTOR_MEMORY_SHARE", "0", "greater than 0"),
        ("DETECTOR_HOST", "localhost", "IPv4"),
    ],
)
def test_a_bad_value_names_the_variable_the_value_and_what_is_accepted(name: str, value: str, accepted: str) -> None:
    (line,) = problems(**{name: value})
    assert line.startswith(f"{name}={value!r}: ")
    assert accepted in line


def test_an_unknown_variable_is_refused_with_the_nearest_name() -> None:
    assert problems(DETECTOR_TRESHOLD="0.5") == [
        "DETECTOR_TRESHOLD is not a setting of the detector service: did you mean DETECTOR_THRESHOLD?"
    ]


def test_a_variable_of_the_server_underneath_is_refused() -> None:
    (line,) = problems(MOSEC_PORT="1")
    assert line.startswith("MOSEC_PORT is set")


def test_a_share_of_gpu_memory_on_a_cpu_is_refused() -> None:
    (line,) = problems(DETECTOR_DEVICE="cpu", DETECTOR_MEMORY_SHARE="0.5")
    assert line.startswith("DETECTOR_MEMORY_SHARE=0.5 limits a GPU")


def test_every_problem_is_shown_at_once() -> None:
    assert len(problems(DETECTOR_PORT="x", DETECTOR_QUEUE="-1", DETECTOR_NOPE="1")) == 3


def test_settings_survive_the_way_to_a_worker() -> None:
    settings = read_settings({"DETECTOR_HOST": "0.0.0.0", "DETECTOR_REVISION": "main", "DETECTOR_MEMORY_SHARE": "0.5"})
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_variable_names() -> None:
    assert variable("max_body_mb") == "DETECTOR_MAX_BODY_MB"


def test_the_server_gets_bytes_and_milliseconds() -> None:
    arguments = server_arguments(Settings(max_body_mb=2, timeout_s=3, queue=5))
    assert {"--max-request-size=2097152", "--timeout=3000", "--capacity=5"} <= set(arguments)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    known = "known are auto, onnx, open_vocabulary, moondream2, transformers"
    with pytest.raises(SettingsError, match=f"DETECTOR_BACKEND='yolo': {known}"):
        read_settings({"DETECTOR_BACKEND": "yolo"})
