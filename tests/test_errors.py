"""The exception tree."""

from __future__ import annotations

import inspect

import pytest

from nvmeof import errors
from nvmeof.errors import (
    CommandError,
    ConfigurationError,
    ConnectionLost,
    ConnectTimeout,
    LocalProtocolError,
    NvmeofError,
    NvmeStatusError,
    PduError,
    RemoteTermination,
    TransportError,
)


def test_every_exception_has_the_root_and_is_in_the_drawing() -> None:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
    assert len(classes) == 14
    for cls in classes:
        assert issubclass(cls, NvmeofError)
        assert cls.__name__ in (errors.__doc__ or "")


def test_pdu_error_carries_fes_and_fei() -> None:
    error = PduError(0x01, 8, "PLEN is wrong")
    assert (error.fes, error.fei, str(error)) == (1, 8, "PLEN is wrong")
    assert PduError(2).fei == 0
    assert "0x02" in str(PduError(2))


def test_remote_termination_names_the_status() -> None:
    error = RemoteTermination(0x03, 5)
    assert (error.fes, error.fei) == (3, 5)
    assert "0x03" in str(error)
    assert not issubclass(RemoteTermination, PduError)


def test_command_error_defaults() -> None:
    error = CommandError(0x002)
    assert (error.status, error.error_location, error.dnr, error.dw0) == (2, 0xFFFF, True, 0)
    error = CommandError(0x182, 0x2C, dnr=False, dw0=7, message="no")
    assert (error.status, error.error_location, error.dnr, error.dw0, str(error)) == (0x182, 0x2C, False, 7, "no")


def test_status_error_has_a_separate_sentence() -> None:
    assert "0x281" in str(NvmeStatusError(0x281))
    error = NvmeStatusError(0x281, "bad", dnr=True, dw0=3)
    assert (error.status, str(error), error.dnr, error.dw0) == (0x281, "bad", True, 3)


def test_the_exceptions_that_callers_catch() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(ConnectTimeout, TransportError) and issubclass(ConnectTimeout, TimeoutError)
    assert issubclass(ConnectionLost, TransportError) and issubclass(ConnectionLost, ConnectionError)
    assert str(ConnectTimeout("no answer from 192.0.2.1")) == "no answer from 192.0.2.1"
    assert not issubclass(TransportError, OSError)  # most of it is no error of the system's
    for unrelated in (CommandError, PduError, LocalProtocolError):
        assert not issubclass(unrelated, TransportError)
    with pytest.raises(NvmeofError):
        raise ConfigurationError("size is negative")
