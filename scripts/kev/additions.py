# SPDX-License-Identifier: GPL-2.0
"""A merge driver of git for changes that only add lines: `additions.py BASE OURS THEIRS`.

Lists (of modules, of headers, of system calls) differ between versions of Linux
just where a patch adds to them, which git calls a conflict. If theirs is the base
with lines added, ours with these lines at the end of the part in question is what
was meant. Every other conflict is left as it is, for a person.
"""

import subprocess
import sys
from pathlib import Path

OURS, BASE, THEIRS, END = "<<<<<<<", "|||||||", "=======", ">>>>>>>"


def added(base, theirs):
    """The lines that `theirs` has besides those of `base`; None if it lacks one of those."""
    rest, found = list(base), []
    for line in theirs:
        if rest and line == rest[0]:
            del rest[0]
        else:
            found.append(line)
    return None if rest else found


def settle(text):
    """(a merge in git's diff3 style with the conflicts settled, how many are left)."""
    result, parts, conflict, left = [], None, [], 0
    for line in text.splitlines(keepends=True):
        mark = line.split(" ")[0].rstrip("\n")
        if mark == OURS:
            parts, conflict = {OURS: [], BASE: [], THEIRS: []}, []
            now = parts[OURS]
        elif parts and mark in (BASE, THEIRS):
            now = parts[mark]
        elif parts and mark != END:
            now.append(line)
        if not parts:
            result.append(line)
            continue
        conflict.append(line)
        if mark == END:
            new = added(parts[BASE], parts[THEIRS])
            result += conflict if new is None else parts[OURS] + new
            left, parts = left + (new is None), None
    return "".join(result), left


def main(base, ours, theirs):
    merged = subprocess.run(["git", "merge-file", "-p", "--diff3", ours, base, theirs],
                            capture_output=True, text=True, check=False)
    if merged.returncode < 0 or merged.returncode >= 128:
        sys.stderr.write(merged.stderr)
        return 128
    text, left = settle(merged.stdout)
    Path(ours).write_text(text)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
