"""The command line: `banlib`, or `python -m banlib`.

Results go to standard output, as a table or with --json as JSON and nothing else; progress and
warnings go to standard error. Everything slow is imported inside the command that needs it, after
the checks that can do without, so that help and bad input are answered at once.
"""

import os
import signal
import sys
import threading

FAILED, BAD_INPUT = 1, 2
# 75 is EX_TEMPFAIL of sysexits.h, 130 what a shell makes of SIGINT.
STOPS = {
    signal.SIGTERM: (75, "stopped by SIGTERM; what is finished is kept, start it again to go on"),
    signal.SIGINT: (130, "interrupted; what is finished is kept, run it again to go on"),
}


class Stopped(KeyboardInterrupt):
    """A signal asked to stop: locks are freed, workers end, training is saved."""


def main(args=None):
    """Run a command and leave with its exit code."""
    in_main_thread = threading.current_thread() is threading.main_thread()  # handlers need it
    before = {number: signal.signal(number, stop) for number in STOPS if in_main_thread}
    try:
        from banlib.cli.group import run

        sys.exit(run(args))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def stop(number, frame):
    """Leave at once while something is imported, where exceptions are caught and wrapped and no
    work is lost that a crash would keep; else raise `Stopped`. A second signal kills."""
    code, sentence = STOPS[number]
    while frame := frame.f_back:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, f"banlib: {sentence}\n".encode())
            os._exit(code)
    for each in STOPS:
        signal.signal(each, signal.SIG_DFL)
    raise Stopped(number)
