"""Holds one server process and ends it in order as soon as nobody wants it any more.

A script of the standard library alone, so that it stays small: `guardian.py SIGNAL GRACE UID GID COMMAND...`. Its
standard input is a pipe whose other end the asking process keeps open; end of file means stop, whether that process
closed it or was killed. The exit status is the server's.
"""

import os
import signal
import subprocess
import sys
import threading

_QUIT_SECONDS = 5
"""How long the server has after SIGQUIT, before SIGKILL."""


def _end(server: subprocess.Popen[bytes], stop_signal: int, grace: float) -> None:
    for number, seconds in ((stop_signal, grace), (signal.SIGQUIT, _QUIT_SECONDS)):
        server.send_signal(number)
        try:
            server.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        return
    server.kill()


def _end_after_last_byte(server: subprocess.Popen[bytes], stop_signal: int, grace: float) -> None:
    while os.read(0, 1):
        pass
    _end(server, stop_signal, grace)


def main(stop_signal: int, grace: float, uid: int, gid: int, command: list[str]) -> int:
    """Run the command (as another user where uid is not negative) until it ends or standard input does."""
    if uid < 0:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the caller's own command
    else:
        server = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, user=uid, group=gid, extra_groups=[]
        )
    # A handler rather than SIG_IGN, which the server would inherit had it been set earlier.
    signal.signal(signal.SIGTERM, lambda *_: server.send_signal(stop_signal))
    signal.signal(signal.SIGINT, lambda *_: None)
    threading.Thread(target=_end_after_last_byte, args=(server, stop_signal, grace), daemon=True).start()
    status = server.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]))
