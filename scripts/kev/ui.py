# SPDX-License-Identifier: GPL-2.0
"""What the user sees: progress of long steps, and failures that say what to do."""

import contextlib
import fcntl
import os
import re
import selectors
import signal
import subprocess
import sys
import time

from kev import config

TTY = sys.stdout.isatty() and not os.environ.get("CI")
#: Seconds between progress lines when the output is not a terminal.
QUIET_INTERVAL = 30


class Failure(Exception):
    """What failed, why, what to do about it (a command), and where the log is."""

    def __init__(self, what, why="", do="", log=None):
        super().__init__(what)
        self.what, self.why, self.do, self.log = what, why, do, log

    def __str__(self):
        lines = [f"FAILED: {self.what}"]
        for label, text in (("why", self.why), ("do", self.do), ("log", self.log)):
            if text:
                lines.append(f"  {label + ':':5}" + str(text).replace("\n", "\n       "))
        return "\n".join(lines)

    def line(self):
        """What and why, in one line."""
        return " ".join(f"{self.what}: {self.why}".split())


def say(text=""):
    print(text, flush=True)


def duration(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class Progress:
    """One line which is updated on a terminal, or repeated now and then without one."""

    def __init__(self, title):
        self.title, self.start, self.shown = title, time.monotonic(), 0
        say(f"{title} ...") if not TTY else self.update("", force=True)

    def elapsed(self):
        return time.monotonic() - self.start

    def update(self, state, force=False):
        now = time.monotonic()
        if not force and now - self.shown < (0.5 if TTY else QUIET_INTERVAL):
            return
        if TTY:
            print(f"\r\033[K{self.title} ... {state} {duration(self.elapsed())}",
                  end="", flush=True)
        elif self.shown and not force:
            say(f"  {self.title}: {state} {duration(self.elapsed())}")
        self.shown = now

    def done(self, state=""):
        line = f"{self.title}: {state or 'done'} ({duration(self.elapsed())})"
        say(f"\r\033[K{line}" if TTY else f"  {line}")


#: What this process does alone.
ALONE = set()


@contextlib.contextmanager
def alone(what):
    """Of all scripts one at a time does this; the others wait, and then may find it done.

    Who takes several takes them in this order: each, tree, the folder of a kernel, set-up.
    """
    if what in ALONE:
        yield
        return
    with open(config.cache("lock") / what, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress = Progress(f"{what}: waiting for another script that is at it")
            fcntl.flock(file, fcntl.LOCK_EX)
            progress.done()
        ALONE.add(what)
        try:
            yield
        finally:
            ALONE.remove(what)


def stop(process):
    """End a child that leads its own session, with all it started."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sig)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def run(cmd, title, log, *, do="", env=None, cwd=None, counts=None, unit="lines",
        check=True, append=False, limit=None):
    """Run a long command with progress; all output goes to the file `log`.

    `counts` is a pattern: the lines that match it are the progress. On failure
    the error lines and the path of the log are in the Failure. A command which takes
    more than `limit` seconds is stopped and has failed.
    """
    pattern = re.compile(counts or "")
    progress, count, tail = Progress(title), 0, b""
    with open(log, "ab" if append else "wb") as out:
        out.write(("$ " + " ".join(map(str, cmd)) + "\n").encode())
        out.flush()
        child = subprocess.Popen(list(map(str, cmd)), stdin=subprocess.DEVNULL, cwd=cwd,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 env=env or config.environment(), start_new_session=True)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(child.stdout, selectors.EVENT_READ)
                while True:
                    if selector.select(1):
                        data = os.read(child.stdout.fileno(), 65536)
                        if not data:
                            break
                        out.write(data)
                        *lines, tail = (tail + data).split(b"\n")
                        count += sum(bool(pattern.search(x.decode(errors="replace")))
                                     for x in lines)
                    progress.update(f"{count} {unit},")
                    if limit and progress.elapsed() > limit:
                        out.write(f"\nerror: stopped, took more than {limit} s\n".encode())
                        stop(child)
                        break
            child.wait()
        except BaseException:
            stop(child)
            raise
    if child.returncode == 0:
        progress.done(f"{count} {unit}" if counts else "")
    else:
        progress.done(f"exit status {child.returncode}")
        if check:
            raise Failure(title, error_lines(log), do, log)
    return child.returncode


def error_lines(path, limit=12):
    """The lines of a log that say why: from the first error on, or else the last ones."""
    lines = path.read_text(errors="replace").rstrip().split("\n")
    pattern = r"\berror(\[E\d+\])?:|\*\*\*|^E: |undefined reference|panicked at"
    wanted = [i for i, x in enumerate(lines) if re.search(pattern, x, re.I)]
    if not wanted:
        return "\n".join(lines[-limit:])
    return "\n".join(lines[wanted[0]:wanted[0] + limit])


def output(cmd, *, env=None, cwd=None, check=True, data=None):
    """Run a short command and give its standard output (text)."""
    done = subprocess.run(list(map(str, cmd)), input=data, stdout=subprocess.PIPE,
                          stdin=None if data is not None else subprocess.DEVNULL,
                          stderr=subprocess.PIPE, env=env or config.environment(), cwd=cwd,
                          text=True, errors="replace")
    if check and done.returncode:
        raise Failure(" ".join(map(str, cmd)),
                      (done.stderr + done.stdout).strip()[-2000:]
                      or f"exit status {done.returncode}")
    return done.stdout
