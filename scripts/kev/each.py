# SPDX-License-Identifier: GPL-2.0
"""Build the kernel after every patch of the series, without kevent and with it, and boot it."""

import time

from kev import boot, build, series, tree, ui

#: Seconds for a guest that has nothing to do.
LIMIT = 60
#: Nothing there is part of a kernel.
NO_KERNEL = ("Documentation/", "tools/testing/selftests/")


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


def has_option(source):
    """Whether the configuration that is checked out can have kevent."""
    return "config KEVENT\n" in tree.git(source, "grep", "-h", "^config KEVENT$", "--",
                                         "*Kconfig*", check=False)


def changes_kernel(source):
    """Whether the commit that is checked out changes anything that a kernel is made of."""
    changed = tree.git(source, "diff", "--name-only", "--no-renames", "HEAD^", "HEAD").splitlines()
    return not all(path.startswith(NO_KERNEL) for path in changed)


def command(args):
    """Every patch with CONFIG_KEVENT=n, then with =y; gives the exit status.

    One output folder for all, and one pass for each value, so that a build costs what the
    patch changed. Before the option exists there is one kernel, without it.
    `args.first` is the patch to begin with.
    """
    machine, base = args.arch, tree.get(args.tree, series.applies)
    commits = series.commits(base.repo, base.commit, series.applied(base))
    if args.first > len(commits):
        raise ui.Failure(f"there is no patch {args.first}", f"the last one is {len(commits)}")
    source, off = build.other_commits(base)
    rows = {number: [f"{number:3}"] for number in range(args.first, len(commits) + 1)}
    failed, start = 0, time.monotonic()
    for value, fragment in (("n", off), ("y", build.FRAGMENT)):
        before = False
        for number, row in rows.items():
            tree.git(source, "checkout", "-q", "--force", "--detach", commits[number - 1])
            subject = tree.git(source, "log", "-1", "--format=%s").strip()
            ui.say(f"\npatch {number}/{len(commits)}, CONFIG_KEVENT={value}: {subject}")
            if value == "y" and not has_option(source):
                well, words = True, "no option yet"
            elif before and not changes_kernel(source):
                well, words = True, "as before    "
            else:
                well, words = one(base, source, machine, fragment, f"each-{number:02}-{value}")
                before = well
            row.append(f"{value}: {words}")
            failed += not well
            if value == "y":
                row.append(subject)
    ui.say("\n" + "\n".join("  ".join(row) for row in rows.values()))
    ui.say(f"{len(rows)} patches, {failed} kernels failed, in {ui.duration(time.monotonic() - start)}")
    return 1 if failed else 0
