import pytest

from daemoneye_mesh import errors
from daemoneye_mesh.errors import Code, DaemoneyeError, ErrorReason, OverloadedError

CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, DaemoneyeError)
]


@pytest.mark.parametrize("cls", CLASSES)
def test_error_class_stands_in_the_drawn_tree_with_its_code(cls):
    line = next(line for line in errors.__doc__.splitlines() if line.split()[:1] == [cls.__name__])
    assert line.split()[1] == cls.code.name


@pytest.mark.parametrize("cls", CLASSES)
def test_error_class_is_public(cls):
    assert cls.__name__ in errors.__all__


def test_error_knows_no_time_to_come_back_unless_told():
    assert OverloadedError("full; retry later").retry_after_s is None


def test_rate_limit_is_an_overload_that_says_when_to_come_back():
    error = errors.RateLimitedError("too fast; wait", retry_after_s=0.5, limit=7)

    assert isinstance(error, OverloadedError)
    assert error.retryable
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, ErrorReason.RATE_LIMITED)
    assert (error.retry_after_s, error.metadata) == (0.5, {"limit": "7"})


def test_rate_limit_cannot_be_raised_without_saying_when_to_come_back():
    with pytest.raises(TypeError):
        errors.RateLimitedError("too fast; wait")
