"""The `secateur` command. Whatever happens in it ends here, on one line and with an `ExitCode`.

Nothing heavy is imported before `main` is at work: torch and transformers take seconds to load, and
Ctrl-C must be answered then, too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from secateur.cli import streams
from secateur.errors import ExitCode, OutputError, SecateurError, is_out_of_memory, no_memory

_STATUS_OF = {
    getattr(signal, name): status
    for name, status in (
        ("SIGINT", ExitCode.INTERRUPTED),
        ("SIGTERM", ExitCode.TERMINATED),
        ("SIGHUP", ExitCode.HUNG_UP),
    )
    if hasattr(signal, name)  # Windows has no SIGHUP
}
_WORD_OF = {
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "terminated",
    ExitCode.HUNG_UP: "hung up",
}


class _Signalled(BaseException):
    """A signal that ends the command; not an Exception, so that nothing on the way keeps it."""

    def __init__(self, status: ExitCode) -> None:
        self.status = status
        super().__init__(status)


def main() -> None:
    """Run the command; whatever goes wrong is one line on standard error and an `ExitCode`.

    Processes that torchrun started do it together, and the first of them prints.
    """
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    status, answers = 0, {number: signal.getsignal(number) for number in _STATUS_OF}
    try:
        streams.prepare_streams()
        if sys.flags.optimize > 1:
            raise SecateurError(
                "Python runs without docstrings, from which transformers makes its classes",
                wanted="PYTHONOPTIMIZE=1 at most, and no -OO",
            )
        with _answering(_leave_at_once):  # nothing is done yet that would have to be undone
            from secateur.cli import terminal
            from secateur.machine.waiting import doing

            with terminal.watch(), doing("loading torch and transformers"):
                from secateur.cli import commands
        with _answering(_unwind):
            status = commands.run_command(arguments)
    except BaseException as fault:
        status, line = _told(fault)
        if debug and status not in _WORD_OF:
            traceback.print_exception(fault)
        elif "secateur.machine.processes" in sys.modules:
            from secateur.machine import processes

            processes.tell_once(lambda: streams.tell_line(line))
        else:
            streams.tell_line(line)
    streams.let_go()
    if status in _WORD_OF:
        for number, answer in answers.items():  # none was answered since the first
            with suppress(ValueError, TypeError):  # not the main thread, not Python's handler
                signal.signal(number, answer)
    sys.exit(status)


def _told(fault: BaseException) -> tuple[int, str]:
    """The exit status of whatever ended the command, and the line that tells of it."""
    if isinstance(fault, SecateurError):
        return fault.exit_code, f"error: {fault}"
    if isinstance(fault, KeyboardInterrupt | _Signalled):
        status = fault.status if isinstance(fault, _Signalled) else ExitCode.INTERRUPTED
        return status, _WORD_OF[status]
    if is_out_of_memory(fault):
        return ExitCode.REFUSED, f"error: {no_memory(fault)}"
    if isinstance(fault, OSError) and fault.errno is not None:
        return ExitCode.REFUSED, f"error: {_of_system(fault)}"
    if isinstance(fault, UnicodeEncodeError) and fault.reason == "surrogates not allowed":
        name = SecateurError("a name is no UTF-8", wanted="names of files and folders in UTF-8")
        return ExitCode.REFUSED, f"error: {name}"
    reason = str(fault).strip().partition("\n")[0][:_LONGEST]
    kind = type(fault).__name__
    unexpected = SecateurError(
        f"unexpected {kind}{': ' * bool(reason)}{reason}",
        hint="the same command with --debug, which shows where",
    )
    return ExitCode.UNEXPECTED, f"error: {unexpected}"


_LONGEST = 300
"""Characters of another library's message that are repeated; its first line is seldom as long."""


def _of_system(fault: OSError) -> SecateurError:
    """What the system refused: a full disk, a missing right, a name that is too long."""
    names = [str(name) for name in (fault.filename, fault.filename2) if name is not None]
    hint = "another place, or its rights and free space"
    if isinstance(fault, BrokenPipeError):
        hint = "a pipe that does not end before the command does"
    return OutputError(
        f"the system says: {fault.strerror or type(fault).__name__}",
        where=" and ".join(names) or None,
        hint=hint,
    )


@contextmanager
def _answering(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, `handler` answers the signals that would end the process; ignored ones stay so."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _STATUS_OF:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            if signal.getsignal(number) is handler:  # else it was given: the end is not to be ended
                signal.signal(number, earlier)


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    """End the process without unwinding: an import may swallow an exception, or die of it."""
    status = _STATUS_OF[signal.Signals(number)]
    with suppress(OSError):
        os.write(2, f"{_WORD_OF[status]}\n".encode())
    os._exit(status)


def _unwind(number: int, frame: FrameType | None) -> None:
    """End the command as an exception does: what is unfinished is put away, scratch is removed."""
    for one in _STATUS_OF:
        signal.signal(one, signal.SIG_IGN)  # `timeout` sends it twice, and so do people
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise _Signalled(_STATUS_OF[signal.Signals(number)])
