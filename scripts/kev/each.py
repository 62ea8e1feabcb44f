# SPDX-License-Identifier: GPL-2.0
"""Build the kernel after every patch of the series, without kevent and with it, and boot it."""

import time

from kev import boot, build, series, tree, ui

#: Seconds for a guest that has nothing to do.
LIMIT = 60


def boots(kernel):
    """Boot it, if it is of the host's architecture; a Failure unless that goes well."""
    if not kernel.machine.native:
        return
    result = boot.run(kernel, "each", "true\n", LIMIT)
    result.require("the guest")
    result.require_clean()


def one(base, source, machine, fragment, name):
    """Build and boot what is checked out; gives whether that went well, and the words for it."""
    start = time.monotonic()
    try:
        boots(build.kernel(source, build.out_folder(base, machine.label("each")),
                           build.fragments(machine, fragment), machine.label(name), machine))
        return True, f"ok {ui.duration(time.monotonic() - start):>9}"
    except ui.Failure as failure:
        ui.say(failure)
        return False, "FAILED      "


def command(args):
    """Every patch with CONFIG_KEVENT=n and =y; gives the exit status.

    One output folder for all, so that a build costs what the patch changed. Before
    the option exists there is one kernel, without it. `args.first` is the patch to begin with.
    """
    machine, base = args.arch, tree.get(args.tree, series.applies)
    commits = series.commits(base.repo, base.commit, series.applied(base))
    if args.first > len(commits):
        raise ui.Failure(f"there is no patch {args.first}", f"the last one is {len(commits)}")
    source, off = build.other_commits(base)
    rows, failed, start = [], 0, time.monotonic()
    for number, commit in enumerate(commits[args.first - 1:], args.first):
        tree.git(source, "checkout", "-q", "--force", "--detach", commit)
        subject = tree.git(source, "log", "-1", "--format=%s").strip()
        ui.say(f"\npatch {number}/{len(commits)}: {subject}")
        row = [f"{number:3}"]
        exists = "config KEVENT\n" in tree.git(source, "grep", "-h", "^config KEVENT$", "--",
                                               "*Kconfig*", check=False)
        for value, fragment in (("n", off), ("y", build.FRAGMENT)):
            if value == "y" and not exists:
                row.append("y: no option yet")
                continue
            well, words = one(base, source, machine, fragment, f"each-{number:02}-{value}")
            row.append(f"{value}: {words}")
            failed += not well
        rows.append("  ".join([*row, subject]))
    ui.say("\n" + "\n".join(rows))
    ui.say(f"{len(rows)} patches, {failed} kernels failed, in {ui.duration(time.monotonic() - start)}")
    return 1 if failed else 0
