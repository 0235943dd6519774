"""Faults inside the processes of a run. Python imports this module by itself when its folder is on PYTHONPATH.

FAULT_ERRNO=28 FAULT_NTH=17 FAULT_COUNTER=FILE   the 17th file the run opens for writing, renames or makes fails
FAULT_CLOCK=-86400                                the clock is a day behind
QLORA_FLOW_STORE                                  only files below it are counted
"""

import os
import sys
import time

STORE = os.environ.get("QLORA_FLOW_STORE", "")
EVENTS = {"open", "os.rename", "os.mkdir"}


def _writes(event: str, arguments: tuple) -> bool:
    if event not in EVENTS or not str(arguments[0]).startswith(STORE + "/"):
        return False
    return event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))


def _fail_at(number: int, nth: int, counter: str) -> None:
    def hook(event: str, arguments: tuple) -> None:
        if _writes(event, arguments):
            descriptor = os.open(counter, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, b".")  # one byte a call, of all processes together
            count = os.lseek(descriptor, 0, os.SEEK_CUR)
            os.close(descriptor)
            if count == nth:
                raise OSError(number, os.strerror(number), str(arguments[0]))

    sys.addaudithook(hook)


def _shift_clock(seconds: int) -> None:
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + seconds * 10**9


if "FAULT_ERRNO" in os.environ:
    _fail_at(int(os.environ["FAULT_ERRNO"]), int(os.environ["FAULT_NTH"]), os.environ["FAULT_COUNTER"])
if "FAULT_CLOCK" in os.environ:
    _shift_clock(int(os.environ["FAULT_CLOCK"]))
