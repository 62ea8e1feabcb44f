# SPDX-License-Identifier: GPL-2.0
"""The series on another version of Linux than the one that it is kept on.

patches/X.Y/ holds what the series needs besides on Linux X.Y, in patches of its own.
They are applied first. Then the series is merged, three ways, with what that version
has: the tree that the series is kept on is where the differences are counted from.
"""

import re
import shlex
import sys
from pathlib import Path

from kev import additions, config, ui
from kev.tree import git


def patches(checkout, version):
    """What the series needs on that version; none for the version that it is kept on."""
    minor = ".".join(version.split(".")[:2])
    return sorted((checkout / "patches" / minor).glob("[0-9]*.patch"))


def bring(repo, origin, series):
    """Bring to `repo`, from the repository `origin`, the files that the patches start from."""
    blobs = {blob for patch in series
             for blob in re.findall(r"^index ([0-9a-f]{40})\.\.", patch.read_text(), re.M)}
    blobs.discard("0" * 40)
    git(origin, "pack-objects", "-q", repo / ".git/objects/pack/pack",
        data="".join(f"{blob}\n" for blob in sorted(blobs)))


def edited(work, series):
    """The files of the tree that the patches edit: a merge wants to find them."""
    return git(work, "ls-files", "--", *{path for patch in series for path in
                                         re.findall(r"^--- a/(.*)$", patch.read_text(), re.M)}
               ).splitlines()


def options():
    """How git merges: lines that only one side adds are kept, wherever they are added."""
    attributes = config.cache("tmp") / "merge-attributes"
    attributes.write_text("* merge=additions\n")
    driver = shlex.join([sys.executable, "-B", str(Path(additions.__file__))])
    return ["-c", f"core.attributesFile={attributes}",
            "-c", f"merge.additions.driver={driver} %O %A %B"]


def refuse(checkout, version, what):
    if patches(checkout, version):
        raise ui.Failure(f"{what} is for the version of Linux that the series is kept on",
                         f"on {version} it comes after the patches of another folder",
                         "call it without --tree, and without KEVENT_TREE")
