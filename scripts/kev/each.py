# SPDX-License-Identifier: GPL-2.0
"""Build the kernel after every patch of the series, without kevent and with it, and boot it.

What went well is remembered, so that a run that was stopped is gone on with, and a change of one
patch costs that patch and those behind it.
"""

import json
import time

from kev import boot, build, config, series, tree, ui

#: Seconds for a guest that has nothing to do.
LIMIT = 60
#: Nothing there is part of a kernel.
NO_KERNEL = ("Documentation/", "tools/testing/selftests/")
#: What marks a kernel that an earlier run built and booted.
BEFORE = "*"


def boots(kernel):
    """Boot it, if it is of the host's architecture; a Failure unless that goes well."""
    if not kernel.machine.native:
        return
    result = boot.run(kernel, "each", "true\n", LIMIT)
    result.require("the guest")
    result.require_clean()


class Seen:
    """The kernels that were built and booted well, in any run, and the seconds that each took."""

    def __init__(self, path, again=False):
        self.path = path
        self.seconds = json.loads(path.read_text()) if path.exists() and not again else {}

    def add(self, key, seconds):
        self.seconds[key] = seconds
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.seconds))
        part.replace(self.path)


def one(base, source, machine, fragment, name, seen):
    """Build and boot what is checked out, unless that was seen to go well.

    Gives whether it went well, and the words for it.
    """
    out, parts = build.out_folder(base, machine.label("each")), build.fragments(machine, fragment)
    _, settings = build.command_and_settings(source, out, parts, machine)
    key = tree.git(source, "rev-parse", "HEAD^{tree}").strip() + " " + settings
    if key in seen.seconds:
        ui.say("seen before")
        return True, f"ok {ui.duration(seen.seconds[key]):>8}{BEFORE}"
    start = time.monotonic()
    try:
        boots(build.kernel(source, out, parts, machine.label(name), machine))
    except ui.Failure as failure:
        ui.say(failure)
        return False, "FAILED      "
    seen.add(key, time.monotonic() - start)
    return True, f"ok {ui.duration(seen.seconds[key]):>8} "


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
    With `args.again`, what earlier runs saw does not count.
    """
    machine, base = args.arch, tree.get(args.tree, series.applies)
    commits = series.commits(base.repo, base.commit, series.applied(base))
    rows = {number: [f"{number:3}"] for number in range(1, len(commits) + 1)}
    with build.other_commits(base) as (source, off):
        failed, earlier, start = 0, False, time.monotonic()
        seen = Seen(config.cache("each") / f"{machine.label('seen')}.json", args.again)
        for value, fragment in (("n", off), ("y", build.FRAGMENT)):
            before = False
            for number, row in rows.items():
                tree.checkout(source, commits[number - 1])
                subject = tree.git(source, "log", "-1", "--format=%s").strip()
                ui.say(f"\npatch {number}/{len(commits)}, CONFIG_KEVENT={value}: {subject}")
                if value == "y" and not has_option(source):
                    well, words = True, "no option yet"
                elif before and not changes_kernel(source):
                    well, words = True, "as before    "
                else:
                    well, words = one(base, source, machine, fragment, f"each-{number:02}-{value}",
                                      seen)
                    before = well
                row.append(f"{value}: {words}")
                failed += not well
                earlier |= words.endswith(BEFORE)
                if value == "y":
                    row.append(subject)
    ui.say("\n" + "\n".join("  ".join(row) for row in rows.values()))
    if earlier:
        ui.say(f"{BEFORE} seen by an earlier run, which took that long; --again does it again")
    ui.say(f"{len(rows)} patches, {failed} kernels failed, in {ui.duration(time.monotonic() - start)}")
    return 1 if failed else 0
