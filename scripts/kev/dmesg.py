# SPDX-License-Identifier: GPL-2.0
"""Judge a guest's kernel log. A log that could not be read whole is a failure."""

import re

#: What must not be in the log of a good boot. Boot messages of the debugging aids
#: themselves ("Lock dependency validator", "kasan: ... initialized") do not match.
DENY = re.compile("|".join((
    r"\bWARNING:", r"\bBUG:", r"\bOops\b", r"kernel BUG at", r"Kernel panic", r"Call Trace:",
    r"general protection fault", r"unable to handle", r"rust_kernel: panicked",
    r"possible recursive locking", r"possible circular locking", r"possible deadlock",
    r"inconsistent lock state", r"suspicious RCU usage", r"DEBUG_LOCKS_WARN_ON",
    r"turning off the locking correctness validator", r"lockdep is turned off",
    r"trying to register non-static key", r"held lock freed", r"bad unlock balance",
    r"scheduling while atomic", r"sleeping function called from invalid context",
    r"detected stalls", r"self-detected stall", r"rcu.*kthread starved", r"soft lockup",
    r"hard LOCKUP", r"blocked for more than \d+ seconds", r"\bKASAN:", r"\bKCSAN:", r"\bUBSAN:",
    r"\bKFENCE:", r"kmemleak: \d+ new suspected", r"unreferenced object", r"refcount_t:",
    r"list_(add|del) corruption", r"ODEBUG:", r"page allocation failure", r"Out of memory:",
)))


#: What the guest's first process writes to the log is not the kernel's.
NOT_KERNEL = re.compile(r"^(\[[ .\d]+\] )?virtme-ng-init: ")


def problems(text, release, marker):
    """Why this log is not that of a good boot of `release`; empty if it is.

    `marker` is what the guest wrote to the log just before it was read.
    """
    if not text:
        return ["the kernel log could not be read"]
    found = []
    if f"Linux version {release} " not in text:
        found.append(f'the log has no "Linux version {release}": its beginning is missing, '
                     "or another kernel ran")
    if marker not in text:
        found.append(f'the log has no end marker "{marker}"')
    return found + splats(text)


def splats(text):
    """The lines that a good kernel does not print."""
    return [line.strip() for line in text.splitlines()
            if DENY.search(line) and not NOT_KERNEL.match(line)]
