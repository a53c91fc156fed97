"""A host that does not answer costs seconds, not hours, and is asked again when it may be back."""

from __future__ import annotations

from pipeline.sources.hosts import MOST_FAILED, PAUSE_S, Hosts, host_of
from pipeline.sources.objects import NoObject, Unreachable


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def ask(known: Hosts, address: str, error: Exception | None = None) -> str:
    """Ask once; `asked` when it came to that, else the reason."""
    asked = ""
    try:
        with known.asked(address):
            asked = "asked"
            if error:
                raise error
    except Unreachable as refused:
        return asked or str(refused)
    except NoObject:
        pass
    return asked


def test_a_host_is_left_alone_after_some_failures_and_tried_again() -> None:
    clock = Clock()
    known, dead = Hosts(clock), Unreachable("no answer")
    for number in range(MOST_FAILED):
        assert ask(known, f"http://dead.org/{number}.jpg", dead) == "asked"
    said = ask(known, "http://dead.org/x.jpg", dead)
    assert said == f"dead.org gave none of the last {MOST_FAILED} images and was not asked for this one"
    assert ask(known, "http://well.org/x.jpg") == "asked"
    clock.now += PAUSE_S
    assert ask(known, "http://dead.org/y.jpg", dead) == "asked"  # one try, not one for each image
    assert ask(known, "http://dead.org/z.jpg", dead).startswith("dead.org gave none")
    clock.now += PAUSE_S
    assert ask(known, "http://dead.org/y.jpg") == "asked"
    assert ask(known, "http://dead.org/z.jpg") == "asked"


def test_an_answer_that_there_is_no_image_is_an_answer() -> None:
    known = Hosts()
    for _ in range(2 * MOST_FAILED):
        assert ask(known, "http://a.org/gone.jpg", NoObject("none")) == "asked"
    assert known.answers("http://a.org/other.jpg")
    assert not known.answers("http://b.org/other.jpg")


def test_buckets_are_hosts() -> None:
    assert host_of("s3://bucket/a/b.jpg") == "s3://bucket"
    assert host_of("https://a.org:8443/b.jpg?x=1") == "a.org:8443"
